"""Teach a pretrained model new sessions: their own maps first, then everything at a lower rate.

The checkpoint written holds the new sessions alone. Behaviours that the pretrained model does not
know get new heads.

example:
  neds finetune sessions/new.h5 --init runs/all --out runs/new
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from neds.run_arguments import add_run_arguments

    add_run_arguments(parser, "finetune", save_every=200)
    parser.add_argument("--init", required=True, metavar="CKPT", help="pretrained checkpoint")
    parser.add_argument("--rebin", action="store_true",
                        help="add up bins of binned recordings to the checkpoint's")


def run(args: argparse.Namespace) -> int:
    """Fine-tune, write the checkpoint, print its validation score and the drop report."""
    from pathlib import Path

    import torch

    from neds.checkpoint import load_checkpoint
    from neds.config import check, load_recipe
    from neds.data.store import read_session
    from neds.drops import load_recordings
    from neds.fits import check_behaviours, in_bins, recipe_on
    from neds.processes import Processes
    from neds.run_arguments import overrides, say
    from neds.runs import Job, carry_out, finished, kept, session_files
    from neds.transplant import transplant

    wanted, init = overrides(args), Path(args.init)
    recipe = load_recipe(args.recipe, wanted)
    model, info = load_checkpoint(init)
    config = recipe_on(info, recipe, wanted)
    check(config, args.recipe)
    job = Job.of(args, provenance={"init": str(init.resolve())})
    command = f"finetune {args.sessions[0]} --init {init} --out {args.out}"
    paths = [Path(path) for path in args.sessions]
    for path in paths:
        in_bins(read_session(path), info, init, args.rebin, command)
    processes = Processes.joined(job.device)
    try:
        with kept(job, processes) as rows:
            recordings, config, drops = load_recordings(paths, config, args.rebin, fit=False,
                                                        spill=rows)
            check_behaviours([r.state for r in recordings], info, init, command)
            if finished(job, config, recordings):
                if processes.rank == 0:
                    print(f"{args.out} is finished: nothing left to do")
                return 0
            torch.manual_seed(config.train.seed)
            fresh = transplant(model, info.config, recordings)
            done = carry_out(job, config, recordings, session_files(args.sessions), drops,
                             processes, fresh)
    finally:
        processes.leave()
    if processes.rank == 0:
        say(args, {**done, "checkpoint": args.out}, drops.lines())
    return 0
