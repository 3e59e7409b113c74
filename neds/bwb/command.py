"""`neds evaluate --protocol bwb`: the options and what is printed."""

from __future__ import annotations

import argparse
from typing import Any


def add_bwb_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that only this protocol has."""
    add = parser.add_argument_group("--protocol bwb", "IBL BrainWideBench: SESSION.h5 are its "
                                    "recordings, --predictions is a folder, --tasks names tasks or "
                                    "suites (ts1, ts2, ts3)").add_argument
    # None where not given, so that an option of the other protocol is refused and not ignored.
    add("--label", default=None, help="name of the submission (neds)")
    add("--seeds", default=None, help="comma-separated (43,44,45,46,47)")
    add("--context", type=float, default=None, metavar="SECONDS",
        help="input before a window's end, 1 to 20 (20)")
    add("--truth", default=None, metavar="DIR", help="write the truth of the test parts here too")
    add("--recipe", default=None, help="recipe whose [train] fits a recording (finetune)")
    add("--set", action="append", default=None, metavar="train.FIELD=VALUE",
        help="override one field of it; may be repeated")
    add("--device", default=None, help="cpu, cuda or auto (cpu)")


OWN = ("label", "seeds", "context", "truth", "recipe", "set", "device")
OTHERS = ("session_id", "baselines", "out", "against", "conditions", "nwb", "plot")


def refuse_others(args: argparse.Namespace) -> None:
    """Raise `BadInput` for an option that the other protocol has and this one has not."""
    from neds_rt.errors import BadInput

    for name in OTHERS if args.protocol == "bwb" else OWN:
        if getattr(args, name):
            other = "neds" if args.protocol == "bwb" else "bwb"
            raise BadInput(f"--protocol {args.protocol}", f"--{name.replace('_', '-')}",
                           getattr(args, name), f"no such option; it is of --protocol {other}")


def run_bwb(args: argparse.Namespace) -> int:
    """Fit the checkpoint to every recording, write files of predictions, print our own scores."""
    import json
    import sys
    from pathlib import Path

    from neds.bwb.files import write_truth
    from neds.bwb.protocol import Settings, run_protocol, summary
    from neds.bwb.source import read_source
    from neds.bwb.tasks import CONTEXT_S, SEEDS, tasks_of
    from neds.checkpoint import load_checkpoint
    from neds.config import load_recipe
    from neds.report_output import check_folder
    from neds.runs import choose_device
    from neds_rt.errors import BadInput

    if not args.predictions:
        raise BadInput("--protocol bwb", "--predictions", "nothing", "a folder for the files")
    if not args.session:
        raise BadInput("--protocol bwb", "sessions", "none", "recordings of the benchmark (HDF5)")
    label = args.label or "neds"
    if "/" in label or label.startswith("."):
        raise BadInput("--label", "name", repr(label), "a name usable as a folder's")
    settings = Settings(
        tasks=tasks_of(args.tasks), seeds=SEEDS if args.seeds is None else seeds(args.seeds),
        label=label, context_s=CONTEXT_S if args.context is None else args.context,
        knobs=load_recipe(args.recipe or "finetune", args.set or []).train,
        device=choose_device(args.device or "cpu"))
    model, info = load_checkpoint(Path(args.checkpoint))
    paths = [Path(path) for path in args.session]
    folder = Path(args.predictions)
    check_folder(folder)
    if args.truth:
        write_truth(Path(args.truth), (read_source(path) for path in paths), settings.tasks)

    def said(line: str) -> None:
        if not args.json:
            print(line, file=sys.stderr)

    report = summary(run_protocol(model, info, paths, folder, settings, said), settings)
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        say(report)
    return 0


def seeds(text: str) -> list[int]:
    """Seeds of a comma-separated list. Raises `BadInput`."""
    from neds_rt.errors import BadInput

    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise BadInput("--seeds", "numbers", repr(text), "different numbers of 0 or more")
    return found


def say(report: dict[str, Any]) -> None:
    """Print the report in words."""
    for row in report["tasks"]:
        how = next(f["how"] for f in report["files"] if f["task"] == row["task"])
        scores = ", ".join(f"{name} {'–' if v is None else f'{v:.3f}'}"
                           for name, v in row["scores"].items()
                           if "/" not in name or name.startswith("macro/"))
        print(f"{row['task']} ({row['label']}, {row['files']} files): {scores}; {how}")
    for line in report["not_run"]:
        print(f"not run: {line}")
    for line in report["notes"]:
        print(f"note: {line}")
