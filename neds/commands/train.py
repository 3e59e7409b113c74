"""Train a model on prepared sessions.

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
    parser.add_argument("sessions", nargs="+", metavar="SESSION.h5", help="prepared sessions")
    parser.add_argument("--recipe", default="single", help="packaged recipe or TOML file (single)")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.FIELD=VALUE",
                        help="override one field of the recipe; may be repeated")
    parser.add_argument("--behaviours", default="", help="comma-separated names (all)")
    parser.add_argument("--seed", type=int, default=None, help="seed of weights, masks and batches")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (torch's default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Train, write the checkpoint, print its scores on the validation part."""
    import json
    from pathlib import Path

    import torch

    from neds.checkpoint import (
        CHECKPOINT_SCHEMA,
        CheckpointInfo,
        check_writable,
        created_by,
        save_checkpoint,
    )
    from neds.config import load_recipe
    from neds.data.store import read_session
    from neds.dataset import describe, to_recording
    from neds.model import count_parameters
    from neds.train import open_log, train
    from neds_rt.errors import BadInput

    overrides = list(args.set)
    if args.seed is not None:
        overrides.append(f"train.seed={args.seed}")
    if args.behaviours:
        names = [name.strip() for name in args.behaviours.split(",")]
        overrides.append(f"data.behaviours={json.dumps(names)}")
    config = load_recipe(args.recipe, overrides)
    if args.threads < 0:
        raise BadInput("--threads", "number", args.threads, "0 (torch's default) or more")
    if args.threads:
        torch.set_num_threads(args.threads)
    out = Path(args.out).absolute()
    check_writable(out)
    sessions = [read_session(Path(path)) for path in args.sessions]
    if not any(item.startswith("data.bin_size_s=") for item in overrides):
        config = _on_its_bins(config, sessions[0])
    recordings = []
    for session in sessions:
        binned, state = describe(session, config.data, config.model.window)
        recordings.append(to_recording(binned, state))
    with open_log(out.with_name(out.name + ".log.jsonl")) as log:
        result = train(config, recordings, log, progress=not args.json)
    info = CheckpointInfo(
        schema=CHECKPOINT_SCHEMA,
        created_by=created_by(),
        config=config,
        sessions=[r.state for r in recordings],
        step=result.best_step,
        provenance={
            "recipe": args.recipe,
            "sessions": {r.state.session: str(Path(p).resolve())
                         for r, p in zip(recordings, args.sessions, strict=True)},
            "validation": result.best_score,
            "seconds": round(result.seconds, 1),
        },
    )
    save_checkpoint(out, result.model, info)
    parameters = count_parameters(result.model)
    summary = {
        "checkpoint": args.out,
        "validation": result.best_score,
        "best_step": result.best_step,
        "seconds": round(result.seconds, 1),
        "parameters": parameters,
    }
    if args.json:
        print(json.dumps(summary))
    else:
        score = "no known value" if result.best_score is None else f"{result.best_score:.3f}"
        print(f"wrote {args.out}: validation {score} at step {result.best_step}, "
              f"{result.seconds:.0f} s, {parameters['backbone']:,} backbone + "
              f"{parameters['stitchers']:,} stitcher parameters")
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
