"""BrainWideBench's own scorer on our files of predictions, in an environment of its own.

    python tools/bwb_score.py --out bench/results/bwb.json
    python tools/bwb_score.py --predictions submissions --truth ground_truth

Without --predictions it makes synthetic animals in the benchmark's schema, pretrains a small model
on some and runs `neds evaluate --protocol bwb` on the others, by the public commands. Then it
builds an environment with the package `ibl-bwb-eval`, lets its scorer read the files, and holds our
own scores against what it says: a difference above 1e-6 ends with exit code 4.

The package demands exact versions, torch 2.10.0 among them, which as a rule comes with several GB
for GPUs. The environment has all of these versions but torch's, for which the version of the
interpreter that runs this is taken; --pinned installs torch as demanded too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds.bwb.score import score_folder  # noqa: E402
from neds.bwb.tasks import VERSION  # noqa: E402
from neds_rt.errors import BadInput, CheckFailed, NedsError, StartError  # noqa: E402

PACKAGE = f"ibl-bwb-eval=={VERSION}"
PINS = ("numpy==2.2.6", "rich==15.0.0", "safetensors==0.8.0", "scikit-learn==1.7.2",
        "scipy==1.15.3", "torchmetrics==1.9.0")
"""What the package demands beside torch."""
TOLERANCE = 1e-6
SIZES = {"model.hidden": 48, "model.layers": 2, "model.heads": 2, "model.mlp": 96,
         "model.window": 50, "model.dropout": 0.1, "train.batch": 12, "train.spike_weight": 1.0}
"""Of the model that is pretrained on synthetic animals, in a minute."""
SCORE = """
import contextlib, json, sys
from importlib.metadata import version
from ibl_bwb_eval.scoring import ts1, ts2, ts3
predictions, truth = sys.argv[1:]
with contextlib.redirect_stdout(sys.stderr):
    scores = [[*key, value] for suite in (ts1, ts2)
              for key, value in suite.score_dir(predictions, truth).items()]
    scores += [[label, "ts3-unit_cosmos", "", seed, value]
               for (label, seed), value in ts3.score_dir(predictions, truth).items()]
names = ("ibl-bwb-eval", "torch", "numpy", "torchmetrics", "scikit-learn", "safetensors")
print(json.dumps({"scores": scores, "versions": {name: version(name) for name in names}}))
"""


def main() -> int:
    """Make predictions if there are none, score them twice, compare."""
    args = _arguments()
    try:
        with TemporaryDirectory(prefix="bwb-") as name:
            made = Path(name)
            if args.predictions:
                predictions, truth = Path(args.predictions), Path(args.truth or "")
                if not args.truth:
                    raise BadInput("--predictions", "--truth", "nothing", "the folder of the truth")
            else:
                predictions, truth = make(made, args)
            python = environment(Path(args.env), args.pinned, args.torch)
            report = {"synthetic": not args.predictions,
                      **compare(predictions, truth, python)}
        finish("tools/bwb_score", args, report, show)
    except NedsError as error:
        print(f"bwb_score: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def show(report: dict[str, Any]) -> None:
    """Print the scorer's tables, then every score by both."""
    print("\n".join(report["scorer_output"]))
    for row in report["rows"]:
        print(f"{row['task']:26} {row['label']:20} {row['recording'][:8]:8} {row['seed']} "
              f"{row['metric']:16} ours {_shown(row['ours'])} scorer {_shown(row['scorer'])}")
    print(f"{len(report['rows'])} scores of {report['files']} files, largest difference from ours "
          f"{report['largest_difference']:.1e}")


def _shown(value: float | None) -> str:
    return f"{float('nan') if value is None else value:11.7f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    add("--predictions", help="folder of files of predictions (made by default)")
    add("--truth", help="folder of the truth, with --predictions")
    add("--env", default=str(cache / "neds" / f"bwb-scorer-{VERSION}"),
        help="folder of the scorer's environment, kept (%(default)s)")
    add("--pinned", action="store_true", help="torch as the scorer demands it too (several GB)")
    add("--torch", default="", help="version of torch (that of this interpreter)")
    add("--animals", type=int, default=3, help="to pretrain on (%(default)s)")
    add("--held-out", type=int, default=2, help="to evaluate (%(default)s)")
    add("--seconds", type=float, default=600.0, help="of each recording (%(default)s)")
    add("--units", type=int, default=60, help="of each animal (%(default)s)")
    add("--steps", type=int, default=500, help="of pretraining (%(default)s)")
    add("--fit-steps", type=int, default=300, help="for each held-out recording (%(default)s)")
    add("--seeds", default="43,44,45", help="(%(default)s)")
    add("--out", help="write the result here, as JSON")
    add("--json", action="store_true", help="print it instead of tables")
    return parser.parse_args()


def make(folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """Predictions and truth of synthetic animals, by the public commands.

    Recordings are short, so chunks of TS2 are a tenth of a recording and gaps 5 s.
    """
    from neds.bwb.synthetic import write_synthetic
    from neds_rt.synthetic import SyntheticAnimal

    for i in range(args.animals):
        write_synthetic(SyntheticAnimal(i, args.units), args.seconds, folder / f"pre-{i}.h5",
                        regime="pretrain")
    held = [folder / f"held-{i}.h5" for i in range(args.held_out)]
    for i, path in enumerate(held):
        write_synthetic(SyntheticAnimal(900 + i, args.units, n_probes=2), args.seconds, path,
                        chunk_s=args.seconds / 10, gap_s=5.0)
    _neds("prepare", "--reader", "bwb", *map(str, sorted(folder.glob("pre-*.h5"))),
          "--out", str(folder / "sessions"))
    sizes = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]
    _neds("pretrain", *map(str, sorted((folder / "sessions").glob("*.h5"))), "--recipe", "pretrain",
          "--out", str(folder / "run"), *sizes, "--set", f"train.steps={args.steps}")
    _neds("evaluate", str(folder / "run"), *map(str, held), "--protocol", "bwb", "--context", "4",
          "--predictions", str(folder / "predictions"), "--truth", str(folder / "truth"),
          "--seeds", args.seeds, "--set", f"train.steps={args.fit_steps}")
    return folder / "predictions", folder / "truth"


def _neds(*words: str) -> None:
    """Run one command of `neds`; its output is not ours. Raises `CheckFailed`."""
    print("neds", words[0], file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "neds", *words], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise CheckFailed(f"neds {words[0]}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def environment(folder: Path, pinned: bool, torch: str) -> Path:
    """The Python of an environment that has the scorer, built if need be. Raises `StartError`."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / ("pinned.txt" if pinned else "ready.txt")
    if ready.is_file() and python.exists():
        return python
    print(f"building {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    if pinned:
        _pip(python, PACKAGE)
    else:
        _pip(python, f"torch=={torch or _own_torch()}", *PINS)
        _pip(python, "--no-deps", PACKAGE)
    ready.write_text("built\n")
    return python


def _own_torch() -> str:
    from importlib.metadata import version

    return version("torch")


def _pip(python: Path, *what: str) -> None:
    done = subprocess.run([python, "-m", "pip", "install", "-q", *what], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["?"]
        raise StartError(f"pip install {' '.join(what)}: {said[0]}")


def compare(predictions: Path, truth: Path, python: Path) -> dict[str, Any]:
    """Scores of both, row by row. Raises `CheckFailed` where they differ by more than 1e-6."""
    for folder in (predictions, truth):
        if not folder.is_dir():
            raise BadInput(folder, "folder", "nothing there", "files of the benchmark")
    done = _run(python, "-W", "ignore", "-c", SCORE, str(predictions), str(truth))
    theirs = json.loads(done.splitlines()[-1])
    found = {tuple(row[:4]): row[4] for row in theirs["scores"]}
    ours = {(r["label"], r["task"], r["recording"], r["seed"]): r["scores"]
            for r in score_folder(predictions, truth)}
    if found.keys() != ours.keys():
        missing = sorted(map(str, ours.keys() ^ found.keys()))
        raise CheckFailed(f"{len(missing)} files that one of the two did not score: {missing[0]}")
    rows = list(differences(ours, found))
    largest = max((row["difference"] for row in rows), default=0.0)
    tables = _run(python, "-W", "ignore", "-m", "ibl_bwb_eval.scoring.aggregation", "--pred_dir",
                  str(predictions), "--gt_dir", str(truth))
    if not rows:
        raise CheckFailed(f"{predictions}: no file that has its truth in {truth}")
    if largest > TOLERANCE:
        worst = max(rows, key=lambda row: row["difference"])
        raise CheckFailed(f"ours differs from the scorer's by more than {TOLERANCE:g}: {worst}")
    return {"files": len(ours), "largest_difference": largest, "tolerance": TOLERANCE,
            "scorer_versions": theirs["versions"], "rows": rows,
            "scorer_output": _scores_alone(tables)}


def _scores_alone(output: str) -> list[str]:
    """The scorer's tables of scores, without its ranking of labels, of which there is but one."""
    lines = output.splitlines()
    ranking = (i for i, line in enumerate(lines) if line.startswith("rank():"))
    return lines[:next(ranking, len(lines))]


def differences(
    ours: dict[Any, dict[str, float]], theirs: dict[Any, dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """A row for every metric; the difference is relative where a score is above 1.

    Scores that are no number agree where both are none. Raises `CheckFailed` for a metric that one
    of the two lacks.
    """
    for key, scores in ours.items():
        if scores.keys() != theirs[key].keys():
            raise CheckFailed(f"{key}: metrics {sorted(scores.keys() ^ theirs[key].keys())}")
        for metric, value in scores.items():
            other = theirs[key][metric]
            both_none = value != value and other != other
            away = 0.0 if both_none else abs(value - other) / max(1.0, abs(other))
            if "/" in metric and not metric.startswith("macro/"):
                if not away <= TOLERANCE:
                    raise CheckFailed(f"{key}: {metric}: {value} and {other}")
                continue  # a region's own scores are checked, and not listed
            yield {"label": key[0], "task": key[1], "recording": key[2], "seed": key[3],
                   "metric": metric, "ours": None if value != value else value,
                   "scorer": None if other != other else other,
                   "difference": away if away == away else float("inf")}


def _run(python: Path, *words: str) -> str:
    room = {**os.environ, "COLUMNS": "240"}  # for its tables
    done = subprocess.run([python, *words], capture_output=True, text=True, check=False, env=room)
    if done.returncode:
        raise StartError(f"the scorer: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
