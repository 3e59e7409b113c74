"""Accuracy of NEDS and its baselines on a directory of archives, one table, one run.

    python bench/accuracy.py --data ../shared/data/indy --preset indy --protocol within --seeds 3

Protocol `within`: every session alone; trained on the first part, scored on the last 20 % of its
time. Ridge on lagged counts, a GRU of similar size and NEDS see the same rows; what is chosen
(ridge strength, best step) is chosen on the same validation rows. Seeds are for reporting and
differ from the seed the recipe was tuned with.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neds.baselines import fit
from neds.config import RunConfig, load_recipe
from neds.data.presets import guess_preset, read_preset
from neds.dataset import Recording, describe, fit_bins, to_recording
from neds.evaluate import decode_part, encode_part
from neds.metrics import bits_per_spike, score
from neds.train import train
from neds_rt.errors import BadInput
from neds_rt.machine import commit, machine_facts

FIRST_SEED = 101  # recipes were tuned with seeds below 100
MODELS = ("ridge", "gru", "neds")


def main(argv: list[str] | None = None) -> int:
    """Run the protocol, print the table, write JSON; 2 after bad input, named in one line."""
    args = parse_arguments(argv)
    try:
        return score_all(args)
    except BadInput as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2


def score_all(args: argparse.Namespace) -> int:
    """Score every archive in turn; after each, all rows so far are on disk."""
    check_arguments(args)
    torch.set_num_threads(args.threads)
    files = sorted(Path(args.data).glob("*.npz"))
    if args.sessions:
        files = [f for f in files if any(name in f.name for name in args.sessions.split(","))]
    if not files:
        raise BadInput(args.data, "archives", "none to score", ".npz files named as in --sessions")
    rows: list[dict[str, Any]] = []
    for path in files:
        rows += within(path, args)
        print_means(rows)
        if args.out:
            write(Path(args.out), rows, args)
    result = summary(rows, args)
    if args.json:
        print(json.dumps(result))
    return 0


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Options of the program."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="directory of .npz archives")
    parser.add_argument("--preset", default=None,
                        help="how to read them (by the arrays they hold)")
    parser.add_argument("--protocol", choices=("within",), default="within")
    parser.add_argument("--models", default="all", help="comma-separated, of: ridge, gru, neds")
    parser.add_argument("--sessions", default="", help="comma-separated parts of file names (all)")
    parser.add_argument("--behaviours", default="", help="comma-separated behaviours (recipe's)")
    parser.add_argument("--recipe", default=None,
                        help="packaged recipe or TOML file (indy for its preset, else single)")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.FIELD=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=None, help="write the JSON here after every session")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse before the first hour of work what would fail after it. Raises `BadInput`."""
    for name in wanted_models(args):
        if name not in MODELS:
            raise BadInput("--models", "name", repr(name), f"all, or some of {', '.join(MODELS)}")
    for option in ("seeds", "threads"):
        if getattr(args, option) < 1:
            raise BadInput(f"--{option}", "number", getattr(args, option), "1 or more")
    if args.out:
        try:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(args.out, "output", error.strerror, "a file to write") from error


def wanted_models(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of the models asked for."""
    names = tuple(name.strip() for name in args.models.split(","))
    return MODELS if names == ("all",) else names


def within(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one session, all models and seeds."""
    preset = args.preset or guess_preset(path)
    session = read_preset(path, preset)
    config = load_recipe(args.recipe or recipe_for(preset), recipe_overrides(args))
    if not any(item.startswith("data.bin_size_s=") for item in args.set):
        config = fit_bins(config, session)
    binned, state = describe(session, config.data, config.model.window)
    recording = to_recording(binned, state)
    rows = []
    for model, seed, seconds, scores in run_models(recording, config, args):
        for modality, metrics in scores.items():
            rows += [
                {"session": state.session, "model": model, "seed": seed, "modality": modality,
                 "metric": metric, "value": value, "seconds": round(seconds, 1)}
                for metric, value in metrics.items()
            ]
        shown = {m: round(next(iter(v.values())), 3) for m, v in scores.items()}
        print(f"{state.session} {model:6} seed {seed} {seconds:6.1f} s {shown}", file=sys.stderr)
    return rows


def recipe_for(preset: str) -> str:
    """The recipe made for a preset, else the general one."""
    return "indy" if preset == "indy" else "single"


def recipe_overrides(args: argparse.Namespace) -> list[str]:
    """The command line's overrides of the recipe."""
    overrides = list(args.set)
    if args.behaviours:
        overrides.append(f"data.behaviours={json.dumps(args.behaviours.split(','))}")
    return overrides


def run_models(
    recording: Recording, config: RunConfig, args: argparse.Namespace
) -> Iterator[tuple[str, int, float, dict[str, dict[str, float]]]]:
    """(model, seed, seconds, {modality: {metric: value}}) on the test part."""
    import msgspec

    wanted = wanted_models(args)
    rows = np.concatenate([np.arange(a, b) for a, b in recording.runs_within("test")])
    if "ridge" in wanted:
        started = time.monotonic()
        predictions = fit("linear", [recording], seed=0).decode_part(recording, "test")
        yield "ridge", 0, time.monotonic() - started, behaviour_scores(recording, rows, predictions)
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        if "gru" in wanted:
            started = time.monotonic()
            fitted = fit("gru", [recording], seed=seed)
            scores = behaviour_scores(recording, rows, fitted.decode_part(recording, "test"))
            yield "gru", seed, time.monotonic() - started, scores
        if "neds" in wanted:
            started = time.monotonic()
            knobs = msgspec.structs.replace(config.train, seed=seed)
            trained = train(msgspec.structs.replace(config, train=knobs), [recording],
                            progress=sys.stderr.isatty())
            pairs = decode_part(trained.model, recording, "test")
            scores = behaviour_scores(recording, rows, [predicted for _, predicted in pairs])
            counts, rates = encode_part(trained.model, recording, "test")
            bps = bits_per_spike(counts, rates, np.array(recording.state.null_rates))
            scores["spikes"] = {"bps_neuron_mean": bps[0], "bps_pooled": bps[1]}
            yield "neds", seed, time.monotonic() - started, scores


def behaviour_scores(
    recording: Recording, rows: np.ndarray, predictions: list[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Scores of predictions for the given rows, per behaviour."""
    return {
        b.name: score(b.kind, recording.values[b.name][rows], predicted)
        for b, predicted in zip(recording.state.behaviours, predictions, strict=True)
    }


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{model: {"modality.metric": mean over sessions of the mean over seeds}}."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = f"{row['modality']}.{row['metric']}"
        groups[row["model"], key][row["session"]].append(row["value"])
    result: dict[str, dict[str, float]] = defaultdict(dict)
    for (model, key), sessions in groups.items():
        result[model][key] = float(np.mean([np.mean(v) for v in sessions.values()]))
    return dict(result)


def print_means(rows: list[dict[str, Any]]) -> None:
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


def write(path: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the JSON so that a reader never finds a part of it."""
    staged = path.with_name(f".{path.name}.part")
    try:
        staged.write_text(json.dumps(summary(rows, args), indent=1) + "\n")
        staged.replace(path)
    except OSError as error:
        raise BadInput(path, "output", error.strerror, "a file to write") from error


if __name__ == "__main__":
    sys.exit(main())
