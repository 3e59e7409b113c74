"""What one step costs against the number of units, the window and the width of the model.

    python bench/sizes.py --out bench/results/sizes.json             five minutes with two engines
    python bench/sizes.py --engine native,native:bf16,native:int8,onnx --rounds 40

From the base size, one size at a time is varied. All sizes and engines are loaded at once and take
turns in rounds, so that other load on the machine falls on all: in a turn an engine steps paced,
one bin every 20 ms, then in a tight loop. `tools/make_pictures.py` draws the result.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds_rt.engines import Engine, load_engine  # noqa: E402
from neds_rt.errors import BadInput, NedsError  # noqa: E402
from neds_rt.latency.random_model import make_random, parse_sizes  # noqa: E402
from neds_rt.latency.steps import (  # noqa: E402
    Rows,
    fill_window,
    make_rows,
    paced_us,
    summary,
    tight_us,
)

BIN_S = 0.02
SETTLE = 3  # steps at the start of a turn that are not counted: caches held other engines
HEAD_WIDTH = 32  # at every width, as in the paper's model
AXES = {"units": (100, 300, 600, 1200, 2500, 4000), "window": (25, 50, 100, 200, 400),
        "hidden": (64, 128, 256, 512)}
BASE = {"units": 600, "window": 100, "hidden": 256}


@dataclass
class Entry:
    """An engine at a size, ready to step, and what its steps took."""

    sizes: dict[str, int]  # of the axes
    parameters: int
    name: str
    engine: Engine
    rows: Rows
    paced: list[float] = field(default_factory=list)
    tight: list[float] = field(default_factory=list)

    def take_turn(self, n_paced: int, n_tight: int, period_s: float) -> None:
        """Step some bins as a rig paces them, then some one after the other."""
        self.paced += paced_us(self.engine, self.rows, SETTLE + n_paced, period_s)[SETTLE:]
        self.tight += tight_us(self.engine, self.rows, n_tight, 1.0)

    def row(self) -> dict[str, Any]:
        """Return the figures, JSON-ready."""
        return {**self.sizes, "parameters": self.parameters, "name": self.name,
                "precision": self.engine.precision, "step_us": summary(self.paced),
                "step_hot_us": summary(self.tight)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 2 after bad input, 3 when an engine cannot be built."""
    args = parse(argv)
    try:
        points = check(args)
        report = measure(args, points)
        finish("sizes", args, report, print_table)
    except NedsError as error:
        print(f"sizes: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="native,onnx", metavar="E[,E...]",
                        help="engines to measure (default native,onnx)")
    for axis, values in AXES.items():
        given = ",".join(map(str, values))
        parser.add_argument(f"--{axis}", default=given, metavar="N[,N...]",
                            help=f"values to measure (default {given})")
    parser.add_argument("--layers", type=int, default=5, help="layers of every model (default 5)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each (default 20)")
    parser.add_argument("--paced", type=int, default=25, help="paced steps a turn (default 25)")
    parser.add_argument("--tight", type=int, default=100,
                        help="steps in a loop a turn (default 100)")
    parser.add_argument("--period", type=float, default=BIN_S, help="seconds a bin (0.02)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> list[dict[str, int]]:
    """Return the sizes to measure, the base first; raises `BadInput` for values that cannot be."""
    for option in ("layers", "rounds", "paced", "tight", "period"):
        if not 0 < getattr(args, option) < float("inf"):
            raise BadInput(f"--{option}", "value", getattr(args, option), "a number above 0")
    points = [dict(BASE)]
    for axis in AXES:
        for text in filter(None, getattr(args, axis).split(",")):
            step = HEAD_WIDTH if axis == "hidden" else 1
            if not (text.isdecimal() and int(text) > 0 and int(text) % step == 0):
                expected = "numbers above 0" + (f", multiples of {step}" if step > 1 else "")
                raise BadInput(f"--{axis}", "value", repr(text), expected)
            points.append({**BASE, axis: int(text)})
    return [p for i, p in enumerate(points) if p not in points[:i]]


def measure(args: argparse.Namespace, points: list[dict[str, int]]) -> dict[str, Any]:
    """Load everything, take all turns, return the report."""
    names = args.engine.split(",")
    entries = [entry for point in points for entry in load(point, names, args.layers)]
    minutes = len(entries) * args.rounds * (args.paced + SETTLE) * args.period / 60
    print(f"{len(points)} sizes, {len(names)} engines, {args.rounds} rounds: a little over "
          f"{minutes:.1f} minutes", file=sys.stderr, flush=True)
    started = time.monotonic()
    gc.collect()
    gc.disable()  # as in the server, where it would stop a step just as well
    try:
        for number in range(args.rounds):
            first = number * len(names) % len(entries)
            for entry in entries[first:] + entries[:first]:
                entry.take_turn(args.paced, args.tight, args.period)
    finally:
        gc.enable()
    return {
        "base": BASE, "axes": list(AXES), "layers": args.layers, "head_width": HEAD_WIDTH,
        "rounds": args.rounds, "period_s": args.period,
        "seconds": round(time.monotonic() - started, 1),
        "rows": [entry.row() for entry in entries],
    }


def load(point: dict[str, int], names: Sequence[str], layers: int) -> list[Entry]:
    """Return every engine at one size, its window full; they share one random model."""
    sizes = parse_sizes("") | point | {
        "layers": layers, "heads": point["hidden"] // HEAD_WIDTH, "mlp": 2 * point["hidden"]}
    bundle = make_random(sizes, BIN_S)
    rows = make_rows(bundle, sizes["rate_hz"])
    parameters = sum(w.size for w in bundle.weights.values())
    entries = [Entry(point, parameters, name, load_engine(name, bundle), rows) for name in names]
    for entry in entries:
        fill_window(entry.engine, bundle, rows)
    return entries


def print_table(report: dict[str, Any]) -> None:
    """Print a line a size and engine, microseconds."""
    print(f"{'units':>6} {'window':>6} {'width':>6} {'engine':14} {'paced p50':>10} {'p99':>8} "
          f"{'p99.9':>8} {'tight p50':>10} {'p99':>8}")
    for row in report["rows"]:
        paced, tight = row["step_us"], row["step_hot_us"]
        print(f"{row['units']:6} {row['window']:6} {row['hidden']:6} {row['name']:14} "
              f"{paced['p50']:10.1f} {paced['p99']:8.1f} {paced['p999']:8.1f} "
              f"{tight['p50']:10.1f} {tight['p99']:8.1f}")


if __name__ == "__main__":
    sys.exit(main())
