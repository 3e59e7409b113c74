"""Train a model on prepared sessions.

Refuses what `neds pretrain` would leave out; otherwise the same.

example:
  neds train data/indy_20161006_02.h5 --recipe single --out runs/indy --set data.bin_size_s=0.064
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neds.config import RunConfig
    from neds.data.session import Session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from neds.run_arguments import add_run_arguments

    add_run_arguments(parser, "single", save_every=0)


def run(args: argparse.Namespace) -> int:
    """Train, write the checkpoint, print its scores on the validation part."""
    from pathlib import Path

    from neds.checkpoint import check_writable
    from neds.config import load_recipe
    from neds.data.dropped import DropReport
    from neds.data.store import read_session
    from neds.dataset import after, describe, to_recording
    from neds.processes import Processes
    from neds.run_arguments import overrides, say
    from neds.runs import Job, carry_out, finished, kept

    wanted = overrides(args)
    config = load_recipe(args.recipe, wanted)
    job = Job.of(args)
    check_writable(job.out)
    sessions = [read_session(Path(path)) for path in args.sessions]
    if not any(item.startswith("data.bin_size_s=") for item in wanted):
        config = _on_its_bins(config, sessions[0])
    processes = Processes.joined(job.device)
    sources, recordings = {}, []
    try:
        with kept(job, processes):
            data = config.data
            for path, session in zip(args.sessions, sessions, strict=True):
                binned, state = describe(session, data, config.model.window)
                data = after(data, state)
                recordings.append(to_recording(binned, state))
                sources[state.session] = str(Path(path).resolve())
            if finished(job, config, recordings):
                print(f"{args.out} is finished: nothing left to do")
                return 0
            done = carry_out(job, config, recordings, sources, DropReport(), processes)
    finally:
        processes.leave()
    if processes.rank == 0:
        say(args, {**done, "checkpoint": args.out}, [])
    return 0


def _on_its_bins(config: RunConfig, session: Session) -> RunConfig:
    """Fit the recipe to a binned recording, and say so when that changes it."""
    import sys

    from neds.dataset import fit_bins

    fitted = fit_bins(config, session)
    if fitted != config:
        print(f"{session.session} comes in bins of {fitted.data.bin_size_s} s, the recipe has "
              f"{config.data.bin_size_s}: window {config.model.window} -> {fitted.model.window} "
              f"bins, sequences {config.train.bins} -> {fitted.train.bins}", file=sys.stderr)
    return fitted
