"""Read brain regions from a model's unit embeddings with a linear probe, against chance.

Within animals: 5 folds over each animal's units, those of one channel never divided. Across
animals: each animal left out in turn. Chance: the same probe on labels shuffled within each animal.
With the sessions given, the same probe reads plain activity statistics too.

example:
  neds regions runs/steinmetz sessions/*.h5 --level coarse --plot regions.png --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from neds.checkpoint import CheckpointInfo, SessionState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", metavar="CKPT", help="folder written by neds train")
    parser.add_argument("sessions", nargs="*", metavar="SESSION.h5",
                        help="prepared sessions, for activity statistics; only their units are "
                        "probed (all of the checkpoint, without statistics)")
    parser.add_argument("--regions", default="", help="comma-separated regions to tell apart (all)")
    parser.add_argument("--level", choices=("given", "coarse"), default="given",
                        help="regions as recorded, or their coarse groups (default %(default)s)")
    parser.add_argument("--min-units", type=int, default=10, metavar="N",
                        help="units an animal must have in a region for it to count "
                        "(default %(default)s)")
    parser.add_argument("--shuffles", type=int, default=200, metavar="N",
                        help="label shuffles for chance (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of folds and shuffles (0)")
    parser.add_argument("--plot", default=None, metavar="OUT.png",
                        help="draw the confusion matrices (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Probe within and across animals, and print a table or JSON."""
    import json
    import time
    from pathlib import Path

    from neds.checkpoint import load_checkpoint
    from neds.plots import check_picture
    from neds.regions import across_task, labelled, run_task, unit_table, within_task
    from neds_rt.errors import BadInput

    _check(args)
    if args.plot:
        check_picture(Path(args.plot))
    started = time.monotonic()
    model, info = load_checkpoint(Path(args.checkpoint))
    states, statistics = _sessions(info, [Path(p) for p in args.sessions])
    wanted = [name.strip() for name in args.regions.split(",") if name.strip()]
    table, rows = labelled(unit_table(model, states), args.level, wanted)
    names = sorted(set(table.region.tolist()))
    features = {"neds": table.embedding}
    if statistics is not None:
        features |= {"activity": statistics[rows], "rate": statistics[rows, :1]}
    tasks = {"within": within_task(table, names, args.min_units, args.seed),
             "across": across_task(table, names, args.min_units)}
    results = {name: run_task(features, task, names, args.shuffles, args.seed)
               for name, task in tasks.items() if task is not None}
    if not results:
        raise BadInput(args.checkpoint, "regions", f"{len(table.region)} units in "
                       f"{', '.join(names)}", f"an animal with {args.min_units} units or more in "
                       "each of two regions (--min-units)")
    report = _report(results, tasks)
    report |= {"sessions": [s.session for s in states], "level": args.level, "regions": names,
               "unlabelled": sum(len(s.units) for s in states) - len(rows),
               "shuffles": args.shuffles, "seconds": round(time.monotonic() - started, 1)}
    if args.plot:
        _plot(results, Path(args.plot))
    if args.json:
        print(json.dumps(report))
    else:
        _print_tables(results, tasks)
    return 0


def _check(args: argparse.Namespace) -> None:
    from neds_rt.errors import BadInput

    if args.min_units < 2:
        raise BadInput("--min-units", "number", args.min_units, "2 or more")
    if args.shuffles < 1:
        raise BadInput("--shuffles", "number", args.shuffles, "1 or more")
    if not 0 <= args.seed < 2**32:
        raise BadInput("--seed", "number", args.seed, "from 0 to 2^32 - 1")


def _sessions(
    info: CheckpointInfo, paths: Sequence[Any]
) -> tuple[list[SessionState], NDArray[np.float64] | None]:
    """The sessions to probe and the activity statistics of their units, if data were given."""
    import numpy as np

    from neds.data.store import read_session
    from neds.dataset import match
    from neds.regions import activity_statistics
    from neds_rt.errors import BadInput

    if not paths:
        return info.sessions, None
    states: list[SessionState] = []
    blocks = []
    size = info.config.data.bin_size_s
    for path in paths:
        session = read_session(path)
        state = info.session(session.session)
        if state in states:
            raise BadInput(path, "session", f"{session.session} twice", "every session once")
        states.append(state)
        blocks.append(activity_statistics(match(session, state, size), size))
    return states, np.concatenate(blocks)


def _report(results: dict[str, Any], tasks: dict[str, Any]) -> dict[str, Any]:
    """Scores as every command reports them, details beside them; an impossible task is null."""
    names = {name for of in results.values() for name in of} - {"neds"}
    return {
        "metrics": {task: results[task]["neds"]["scores"] if task in results else None
                    for task in tasks},
        "baselines": {name: {task: of[name]["scores"] for task, of in results.items()}
                      for name in sorted(names)},
        "details": {task: {name: entry["details"] for name, entry in of.items()
                           if "details" in entry} for task, of in results.items()},
    }


def _plot(results: dict[str, Any], path: Any) -> None:
    from neds.plots import save
    from neds.regions_plot import confusion_matrices

    panels = {f"{task} animals": {
        "confusion": of["neds"]["details"]["confusion"],
        "balanced_accuracy": of["neds"]["scores"]["balanced_accuracy"],
    } for task, of in results.items()}
    save(confusion_matrices(panels), path)


def _print_tables(results: dict[str, Any], tasks: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for task, of in results.items():
        details = of["neds"]["details"]
        table = Table(title=f"{task} animals: {details['units']} units of "
                      f"{len(details['animals'])} animals")
        for column in ("features", "balanced accuracy", "accuracy", "p"):
            table.add_column(column)
        for name, entry in of.items():
            scores = entry["scores"]
            p = f"{scores['p_value']:.3f}" if "p_value" in scores else ""
            table.add_row(name, f"{scores['balanced_accuracy']:.3f}",
                          f"{scores['accuracy']:.3f}", p)
        console.print(table)
        recall = ", ".join(f"{region} {value:.2f}" for region, value in details["recall"].items())
        console.print(f"recall: {recall}", highlight=False)
        for line in details["left_out"]:
            console.print(f"left out: {line}", highlight=False)
    for task in tasks:
        if task not in results:
            console.print(f"{task} animals: too few units or animals with shared regions")
