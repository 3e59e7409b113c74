"""Accuracy of NEDS and its baselines on a directory of archives, one table, one run.

    python bench/accuracy.py --data ../shared/data/indy --protocol within --seeds 3 --jobs 2

Trained on the first part of every session, scored on the last 20 % of its time. All models see the
same rows; what is chosen (ridge strength, best step) is chosen on the same validation rows. Seeds
are for reporting and differ from the seeds recipes were tuned with.

    within               behaviour from spikes: NEDS and every decoder (`bench/protocols.py`)
    new-session          sessions left out of pretraining, after some seconds of their data
    new-animal           every animal left out of pretraining in turn, then fine-tuned on the
                         training parts of its sessions, all of them in one fit
    encoding             spikes from behaviour, and both directions by unimodal models
    streaming-vs-window  the causal form against the bidirectional one
    forms, masking       the model with one choice undone, the masking with one scheme left out

Several protocols, separated by commas, share their fits.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench import archives  # noqa: E402
from bench.output import write_json  # noqa: E402
from bench.protocols import FIRST_SEED, MODELS, PROTOCOLS  # noqa: E402
from bench.tasks import Row, Task, run_task  # noqa: E402
from neds.config import load_recipe  # noqa: E402
from neds.data.presets import PRESETS  # noqa: E402
from neds_rt.errors import BadInput  # noqa: E402
from neds_rt.machine import commit, machine_facts  # noqa: E402

AMOUNTS = (0.0, 30.0, 120.0, -1.0)  # seconds of calibration data; the last is all there is


def main(argv: list[str] | None = None) -> int:
    """Run the protocols, print the table, write JSON; 2 after bad input, named in one line."""
    args = parse_arguments(argv)
    try:
        return score_all(args)
    except BadInput as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Options of the program."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True,
                        help="directory of .npz archives, or of session files")
    parser.add_argument("--preset", default=None,
                        help="how to read them (by the arrays they hold)")
    parser.add_argument("--protocol", default="within", help=", ".join(PROTOCOLS))
    parser.add_argument("--models", default="all",
                        help="comma-separated (the protocols'), of: " + ", ".join(MODELS))
    parser.add_argument("--sessions", default="", help="comma-separated parts of file names (all)")
    parser.add_argument("--held-out", type=int, default=6,
                        help="sessions left out of pretraining (new-session)")
    parser.add_argument("--behaviours", default="", help="comma-separated behaviours (recipe's)")
    parser.add_argument("--recipe", default=None, help="of models trained on all sessions")
    parser.add_argument("--single-recipe", default=None, help="of models trained on one")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.FIELD=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--threads", type=int, default=1, help="of each job")
    parser.add_argument("--jobs", type=int, default=1, help="fits at the same time")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--budget", choices=("full", "quick"), default="full",
                        help="care given to the baselines")
    parser.add_argument("--pretrained", default="",
                        help="directory to keep pretrained models in and take them from")
    parser.add_argument("--pretrain-only", action="store_true",
                        help="leave calibration for a later run with the same --pretrained")
    parser.add_argument("--out", default=None, help="write the JSON here after every fit")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    return parser.parse_args(argv)


def score_all(args: argparse.Namespace) -> int:
    """Do every task; after each, all rows so far are on disk."""
    check_arguments(args)
    tasks = list(tasks_of(args))
    rows: list[Row] = []
    failed: list[str] = []
    for done, (task, found, error) in enumerate(finished(tasks, args), 1):
        rows += found
        shown = "  ".join(f"{k} {v:.3f}" for k, v in means(found).get(task.model, {}).items())
        print(f"{done}/{len(tasks)} {task.label()}: {error or shown}", file=sys.stderr)
        if error:
            failed.append(f"{task.label()}: {error}")
        if args.out:
            write_json(args.out, summary(rows, args))
    print_means(rows)
    if args.json:
        print(json.dumps(summary(rows, args)))
    if failed:
        raise BadInput(args.data, "fits", "; ".join(failed), "all of them to end")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse before the first hour of work what would fail after it. Raises `BadInput`."""
    for name in args.protocol.split(","):
        if name not in PROTOCOLS:
            raise BadInput("--protocol", "name", repr(name), f"some of {', '.join(PROTOCOLS)}")
    for name in wanted_models(args):
        if name not in MODELS:
            raise BadInput("--models", "name", repr(name), f"all, or some of {', '.join(MODELS)}")
    for option in ("seeds", "threads", "jobs", "held_out"):
        if getattr(args, option) < 1:
            raise BadInput(f"--{option.replace('_', '-')}", "number", getattr(args, option),
                           "1 or more")
    if args.out:
        try:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(args.out, "output", error.strerror, "a file to write") from error


def wanted_models(args: argparse.Namespace) -> list[str]:
    """Names of the models asked for, the protocols' in order without repetition."""
    if args.models != "all":
        return [name.strip() for name in args.models.split(",")]
    return list(dict.fromkeys(m for p in args.protocol.split(",") for m in PROTOCOLS[p]))


def tasks_of(args: argparse.Namespace) -> Iterator[Task]:
    """The fits to be made: by seed, so that an unfinished run has all models of the first."""
    files = archives.find(args.data)
    if args.sessions:
        files = [f for f in files if any(name in f.name for name in args.sessions.split(","))]
    if not files:
        raise BadInput(args.data, "recordings", "none to score",
                       ".npz or .h5 files named as in --sessions")
    preset = args.preset or archives.preset_of(files[0])
    if preset not in (*PRESETS, archives.STORED):
        raise BadInput("--preset", "name", repr(preset), f"one of {', '.join(PRESETS)}")
    overrides = list(args.set)
    if args.behaviours:
        overrides.append(f"data.behaviours={json.dumps(args.behaviours.split(','))}")
    many, single = (args.recipe or recipe_for(preset, False),
                    args.single_recipe or recipe_for(preset, True))
    for recipe in (many, single):
        load_recipe(recipe, overrides)
    names = tuple(str(f) for f in files)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in wanted_models(args):
            model = MODELS[name]
            if seed > args.first_seed and not model.seeded:
                continue
            common = {"model": name, "seed": seed, "preset": preset, "device": args.device,
                      "overrides": tuple(overrides), "budget": args.budget,
                      "recipe": single if model.alone else many}
            protocols = args.protocol.split(",")
            if "new-session" in protocols:
                yield Task(**common, **left_out(names, args))
            elif "new-animal" in protocols and not model.alone:
                for animal in animals_out(names, args):
                    yield Task(**common, finetune=finetune_recipe(preset), **animal)
            elif model.alone:
                yield from (Task(**common, files=(file,)) for file in names)
            else:
                yield Task(**common, files=names)


def left_out(files: tuple[str, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Which archives are pretrained on and which held out: the held out spread over the set."""
    if args.held_out >= len(files):
        raise BadInput("--held-out", "sessions", args.held_out, f"fewer than {len(files)}")
    step = len(files) / args.held_out
    held = [files[int((i + 0.5) * step)] for i in range(args.held_out)]
    return {"files": tuple(f for f in files if f not in held), "held_out": tuple(held),
            "amounts": () if args.pretrain_only else AMOUNTS, "models_dir": args.pretrained}


def animals_out(files: tuple[str, ...], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each animal's archives held out in turn, the other animals' to pretrain on."""
    of: dict[str, list[str]] = defaultdict(list)
    for file in files:
        of[subject_of(file)].append(file)
    if len(of) < 2:
        raise BadInput(args.data, "subject_id", f"{len(of)} animal", "two or more (new-animal)")
    for animal, held in of.items():
        yield {"files": tuple(f for f in files if f not in held), "held_out": tuple(held),
               "animal": animal, "amounts": () if args.pretrain_only else (-1.0,),
               "models_dir": str(Path(args.pretrained) / animal) if args.pretrained else ""}


def subject_of(file: str) -> str:
    """The animal of an archive. Raises `BadInput` where it does not say."""
    with np.load(file) as arrays:
        if "subject_id" not in arrays:
            raise BadInput(file, "array", "no subject_id", "the animal's name (new-animal)")
        return str(arrays["subject_id"])


def recipe_for(preset: str, alone: bool) -> str:
    """The recipe made for a preset, else the general one."""
    if preset == "indy":
        return "indy" if alone else "indy_many"
    if preset == "steinmetz":
        return "trials"
    return "single" if alone or preset != archives.STORED else "pretrain"


def finetune_recipe(preset: str) -> str:
    """The recipe that fits a pretrained model to a new animal's sessions."""
    return "trials_finetune" if preset == "steinmetz" else "finetune"


def finished(tasks: list[Task], args: argparse.Namespace) -> Iterator[tuple[Task, list[Row], str]]:
    """Tasks as they end, with their rows or what went wrong."""
    if args.jobs == 1:
        _prepare(args.threads)
        yield from map(_attempt, tasks)
        return
    # A fresh process a job: CUDA does not survive a fork.
    with multiprocessing.get_context("spawn").Pool(
        min(args.jobs, len(tasks)), _prepare, (args.threads,)
    ) as pool:
        yield from pool.imap_unordered(_attempt, tasks)


def _prepare(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _attempt(task: Task) -> tuple[Task, list[Row], str]:
    try:
        return task, run_task(task), ""
    except Exception as error:  # one fit that fails must not cost the others
        import traceback

        traceback.print_exc()
        return task, [], f"{type(error).__name__}: {error}"


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{model: {"modality.metric": mean over sessions of the mean over seeds}}."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = f"{row['modality']}.{row['metric']}"
        if "calibration_s" in row:
            key += f"@{'all' if row['calibration_s'] < 0 else format(row['calibration_s'], 'g')}"
        groups[row["model"], key][row["session"]].append(row["value"])
    result: dict[str, dict[str, float]] = defaultdict(dict)
    for (model, key), sessions in groups.items():
        result[model][key] = float(np.mean([np.mean(v) for v in sessions.values()]))
    return dict(result)


def print_means(rows: list[Any]) -> None:
    """The running means on standard error."""
    n = len({row["session"] for row in rows})
    for model, values in means(rows).items():
        text = "  ".join(f"{key} {value:.3f}" for key, value in values.items())
        print(f"  mean of {n}: {model:6} {text}", file=sys.stderr)


def summary(rows: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """The result as one JSON object."""
    return {
        "protocol": args.protocol,
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "rows": rows,
        "mean": means(rows),
        "machine": machine_facts(),
    }


if __name__ == "__main__":
    sys.exit(main())
