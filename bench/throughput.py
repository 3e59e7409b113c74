"""Training throughput: our model against the paper's straightforward implementation.

    python bench/throughput.py --json
    python bench/throughput.py --data ../shared/data/indy --sessions 8 --json

Both train on the same trials of the same sessions with the same batch, width, layers, heads and
inner width, in turns, round by round; a sample is one trial of `--bins` bins. `reference` is the
parity configuration (`neds.reference`): it loops over the sessions of a batch, and its stitchers
are padded to the largest session and quadratic in it. `neds` is what the recipe trains.
`neds_as_paper` is our model in the paper's form (window form, full attention over one token a
modality and bin, no convolution): it tells what batching and linear stitchers bring by themselves.
On a GPU ours runs in bfloat16 as its training does; `reference_bf16` gives the reference the same.
Sessions are synthetic, aligned to the stimulus, unless `--data` names archives.

Ends with exit code 4 if the median of `neds` over `reference` is below `--at-least`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import write_json  # noqa: E402
from neds.config import RunConfig, load_recipe  # noqa: E402
from neds.data.presets import guess_preset, read_preset  # noqa: E402
from neds.data.session import Session  # noqa: E402
from neds.data.synthetic import synthetic_session  # noqa: E402
from neds.dataset import Recording, describe, fit_bins, to_recording  # noqa: E402
from neds.model import count_parameters  # noqa: E402
from neds.reference import ReferenceNeds, count_reference  # noqa: E402
from neds.reference_config import ReferenceConfig  # noqa: E402
from neds.reference_data import align, trial_set  # noqa: E402
from neds.reference_train import ReferenceTraining, draw_trials, make_optimiser, make_step  # noqa: E402
from neds.train import Run  # noqa: E402
from neds_rt.errors import BadInput  # noqa: E402
from neds_rt.machine import commit, machine_facts  # noqa: E402
from neds_rt.synthetic import SyntheticAnimal  # noqa: E402

MODELS = ("reference", "reference_bf16", "neds", "neds_as_paper")
PAPER_FORM = ('model.form="window"', 'model.tokens="separate"', "model.conv=0",
              "model.recurrent=false", 'model.attend=""')


@dataclass(frozen=True)
class Contender:
    """A model in training: its parameter counts and what makes one step."""

    name: str
    parameters: dict[str, int]
    step: Callable[[], Any]


def main(argv: list[str] | None = None) -> int:
    """Measure, print or write; 2 after bad input, named in one line."""
    args = parse_arguments(argv)
    try:
        return compare(args)
    except BadInput as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None, help="directory of .npz archives (synthetic)")
    parser.add_argument("--sessions", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--units", type=int, nargs=2, default=(200, 450), metavar=("LOW", "HIGH"),
                        help="units of synthetic sessions, spread evenly (default 200 450)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a synthetic session")
    parser.add_argument("--recipe", default="single", help="recipe of our model (default single)")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.FIELD=VALUE")
    parser.add_argument("--models", default="", help="comma-separated; all where empty")
    parser.add_argument("--bins", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--mlp", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--steps", type=int, default=1, help="steps a round (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--at-least", type=float, default=3.0, help="ratio asked for (default 3)")
    parser.add_argument("--out", default=None, help="write the JSON here")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> int:
    """Build every contender, time them in turns, report."""
    for option in ("sessions", "bins", "batch", "rounds", "steps", "threads"):
        if getattr(args, option) < 1:
            raise BadInput(f"--{option}", "number", getattr(args, option), "1 or more")
    for name in wanted(args):
        if name not in MODELS:
            raise BadInput("--models", "name", repr(name), f"some of {', '.join(MODELS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device", "device", "cuda", "one that torch can use: cpu")
    torch.set_num_threads(args.threads)
    config = our_config(args, args.set)
    recordings = [prepared(session, config) for session in load_sessions(args, config)]
    built = contenders(args, config, recordings)
    rounds = time_in_turns(built, args)
    result = summary(args, recordings, built, rounds)
    report(result, args)
    return 0 if result["speedup"].get("neds", {"median": 0.0})["median"] >= args.at_least else 4


def our_config(args: argparse.Namespace, extra: list[str]) -> RunConfig:
    """The recipe at the sizes that both models share."""
    sizes = [f"model.hidden={args.hidden}", f"model.layers={args.layers}",
             f"model.heads={args.heads}", f"model.mlp={args.mlp}", f"model.window={args.bins}",
             f"train.bins={args.bins}", f"train.batch={args.batch}", "train.steps=100000"]
    return load_recipe(args.recipe, [*sizes, *extra])


def load_sessions(args: argparse.Namespace, config: RunConfig) -> list[Session]:
    """Archives of a directory, or synthetic sessions cut to windows around the stimulus."""
    if args.data is not None:
        files = sorted(Path(args.data).glob("*.npz"))[: args.sessions]
        if not files:
            raise BadInput(args.data, "archives", "none", ".npz files")
        return [read_preset(path, guess_preset(path)) for path in files]
    low, high = args.units
    sessions = []
    for i in range(args.sessions):
        n = round(low + (high - low) * i / max(1, args.sessions - 1))
        made = synthetic_session(SyntheticAnimal(i, n), args.seconds)
        after = args.bins * config.data.bin_size_s - 0.5
        sessions.append(align(made, config.data.bin_size_s, after_s=after))
    return sessions


def prepared(session: Session, config: RunConfig) -> Recording:
    """The session in its own bins, split in time."""
    data = fit_bins(config, session).data
    binned, state = describe(session, data, 0)  # nothing is scored, so parts may touch
    return to_recording(binned, state)


def contenders(
    args: argparse.Namespace, config: RunConfig, recordings: list[Recording]
) -> list[Contender]:
    """The models asked for, ready to train."""
    as_paper = our_config(args, [*args.set, *PAPER_FORM])
    return [
        reference(args, recordings, name) if name.startswith("reference")
        else ours(config if name == "neds" else as_paper, recordings, name, args.device)
        for name in wanted(args)
    ]


def wanted(args: argparse.Namespace) -> list[str]:
    """Names of the models asked for; bfloat16 is for GPUs."""
    if args.models:
        return str(args.models).split(",")
    return [name for name in MODELS if args.device == "cuda" or not name.endswith("bf16")]


def reference(args: argparse.Namespace, recordings: list[Recording], name: str) -> Contender:
    """The parity configuration with its own optimiser, schedule and sampling."""
    sets = [trial_set(r, args.bins) for r in recordings]
    knobs = ReferenceTraining(steps=100_000, batch=args.batch)
    config = ReferenceConfig(layers=args.layers, hidden=args.hidden, heads=args.heads,
                             mlp=args.mlp, bins=args.bins, n_session_rows=max(84, len(sets)))
    torch.manual_seed(knobs.seed)
    model = ReferenceNeds(config, [s.spec for s in sets]).to(args.device)
    optimiser, schedule = make_optimiser(model, knobs)
    generator = torch.Generator().manual_seed(knobs.seed)
    batches = draw_trials(sets, knobs, model.n_units, generator)

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=name.endswith("bf16")):
            make_step(model, optimiser, schedule, next(batches), generator)

    return Contender(name, count_reference(model), step)


def ours(config: RunConfig, recordings: list[Recording], name: str, device: str) -> Contender:
    """Our model as `neds.train` trains it."""
    run = Run(config, recordings, device)
    return Contender(name, count_parameters(run.model), run.advance)


def time_in_turns(built: list[Contender], args: argparse.Namespace) -> dict[str, list[float]]:
    """Samples per second of each contender and round; the order turns with every round."""
    rates: dict[str, list[float]] = {c.name: [] for c in built}
    for c in built:  # the first step pays for memory, kernels and threads
        time_steps(c, 1, args.device)
    for number in range(args.rounds):
        turn = number % len(built)
        for c in built[turn:] + built[:turn]:
            seconds = time_steps(c, args.steps, args.device)
            rates[c.name].append(args.batch * args.steps / seconds)
            print(f"round {number + 1}: {c.name:15} {rates[c.name][-1]:8.2f} samples/s",
                  file=sys.stderr)
    return rates


def time_steps(contender: Contender, steps: int, device: str) -> float:
    """Seconds that some steps take, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        contender.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(
    args: argparse.Namespace, recordings: list[Recording], built: list[Contender],
    rates: dict[str, list[float]],
) -> dict[str, Any]:
    """The result as one JSON object; `speedup` is over `reference` of the same round."""
    base = rates.get("reference", [])
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": args.threads,
        "sizes": {name: getattr(args, name)
                  for name in ("bins", "batch", "hidden", "layers", "heads", "mlp")},
        "recipe": args.recipe,
        "set": args.set,
        "data": "synthetic" if args.data is None else Path(args.data).name,
        "units": [r.counts.shape[1] for r in recordings],
        "behaviours": [b.name for b in recordings[0].state.behaviours],
        "rounds": args.rounds,
        "steps_a_round": args.steps,
        "models": {c.name: {"parameters": c.parameters, "samples_per_s": spread(rates[c.name])}
                   for c in built},
        "speedup": {c.name: spread([a / b for a, b in zip(rates[c.name], base, strict=True)])
                    for c in built if base and c.name != "reference"},
        "machine": machine_facts(),
    }


def report(result: dict[str, Any], args: argparse.Namespace) -> None:
    """The table on standard error, the JSON where it was asked for."""
    for name, row in result["models"].items():
        rate = row["samples_per_s"]
        ratio = result["speedup"].get(name)
        times = "" if ratio is None else f"  {ratio['median']:.2f} times the reference"
        print(f"{name:15} {rate['median']:8.2f} samples/s ({rate['min']:.2f} to {rate['max']:.2f})"
              f"  {row['parameters']['total']:,} parameters{times}", file=sys.stderr)
    if args.out:
        write_json(args.out, result)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
