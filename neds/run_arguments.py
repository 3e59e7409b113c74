"""Options and words that the training commands share; imports nothing heavy, for --help."""

from __future__ import annotations

import argparse
from typing import Any


def add_run_arguments(parser: argparse.ArgumentParser, recipe: str, save_every: int) -> None:
    """Declare the options of a training run."""
    parser.add_argument("sessions", nargs="+", metavar="SESSION.h5", help="prepared sessions")
    parser.add_argument("--recipe", default=recipe,
                        help=f"packaged recipe or TOML file ({recipe})")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.FIELD=VALUE",
                        help="override one field of the recipe; may be repeated")
    parser.add_argument("--behaviours", default="", help="comma-separated names (all)")
    parser.add_argument("--seed", type=int, default=None, help="seed of weights, masks and batches")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (torch's default)")
    parser.add_argument("--device", default="cpu" if not save_every else "auto",
                        help="cpu, cuda, or auto: a GPU where there is one (default %(default)s)")
    parser.add_argument("--save-every", type=int, default=save_every, metavar="N",
                        help="steps between states on disk, 0 for none (default %(default)s)")
    parser.add_argument("--resume", action="store_true",
                        help="go on with an unfinished run of the same --out, if there is one")
    parser.add_argument("--overwrite", action="store_true",
                        help="begin anew where an unfinished run lies")
    parser.add_argument("--wandb", default="", metavar="PROJECT",
                        help="log to Weights & Biases too (or set NEDS_WANDB=PROJECT)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def overrides(args: argparse.Namespace) -> list[str]:
    """The recipe's overrides, from --set and from the options that are short for one."""
    import json

    found = list(args.set)
    if args.seed is not None:
        found.append(f"train.seed={args.seed}")
    if args.behaviours:
        names = [name.strip() for name in args.behaviours.split(",")]
        found.append(f"data.behaviours={json.dumps(names)}")
    return found


def say(args: argparse.Namespace, summary: dict[str, Any], drops: list[str]) -> None:
    """Print what a run left: the drop report and one line, or JSON."""
    import json
    import sys

    if args.json:
        print(json.dumps(summary))
        return
    if drops:
        print("left out or masked:", *drops, sep="\n  ", file=sys.stderr)
    value, parameters = summary["validation"], summary["parameters"]
    score = "no known value" if value is None else f"{value:.3f}"
    print(f"wrote {args.out}: validation {score} at step {summary['best_step']}, "
          f"{summary['seconds']:.0f} s, {parameters['backbone']:,} backbone + "
          f"{parameters['stitchers']:,} stitcher parameters")
