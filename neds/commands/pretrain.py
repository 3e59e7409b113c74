"""Pretrain one model on many prepared sessions; what cannot be trained on is left out and reported.

The state is kept every --save-every steps, and the same command with --resume goes on from it as if
nothing had happened. Under torchrun the processes share every batch:

    neds pretrain sessions/*.h5 --recipe pretrain --out runs/all --resume
    torchrun --nproc-per-node 2 -m neds pretrain sessions/*.h5 --recipe pretrain --out runs/all
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from neds.run_arguments import add_run_arguments

    add_run_arguments(parser, "pretrain", save_every=200)
    parser.add_argument("--rebin", action="store_true",
                        help="add up bins of binned recordings to the recipe's")


def run(args: argparse.Namespace) -> int:
    """Pretrain, write the checkpoint, print its validation score and the drop report."""
    from pathlib import Path

    from neds.config import load_recipe
    from neds.drops import load_recordings
    from neds.processes import Processes
    from neds.run_arguments import overrides, say
    from neds.runs import Job, carry_out, finished, kept, session_files

    wanted = overrides(args)
    config = load_recipe(args.recipe, wanted)
    job = Job.of(args)
    fit = not any(item.startswith("data.bin_size_s=") for item in wanted)
    processes = Processes.joined(job.device)
    try:
        with kept(job, processes) as rows:
            recordings, config, drops = load_recordings(
                [Path(path) for path in args.sessions], config, args.rebin, fit=fit, spill=rows)
            if finished(job, config, recordings):
                if processes.rank == 0:
                    print(f"{args.out} is finished: nothing left to do")
                return 0
            done = carry_out(job, config, recordings, session_files(args.sessions), drops,
                             processes)
    finally:
        processes.leave()
    if processes.rank == 0:
        say(args, {**done, "checkpoint": args.out}, drops.lines())
    return 0
