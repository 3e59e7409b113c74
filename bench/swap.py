"""Swaps and fail-overs under load: missed bins, decodes of the wrong model, what they cost in time.

    python bench/swap.py --swaps 100 --failovers 100 --slow 100 --json --out bench/results/swap.json

A sender plays Poisson spikes of 600 units at 50 bins a second; the server changes between a model
of the paper's size (256 wide, 5 layers) and a small one by `model load`, with a random pause after
each. Then an engine is killed at random moments, and one made slow: every step takes longer than
--budget-ms allows, and after --overruns of them the native engine takes over. Its model is loaded
anew after each. Every decode is checked against both models, recomputed here from the same spikes:
it must be what the model says whose hash it carries.

Ends with exit code 1 and a line for each thing that does not hold: a bin missing or doubled, a
decode wrong, a fail-over untold, more than one bin late at one, or a late one that says it is ok.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish, lend_path, verdict  # noqa: E402
from bench.swap_judge import at_failure, broken, judge  # noqa: E402
from bench.swap_rig import BIN_S, START_S, Rig  # noqa: E402
from neds_rt.bundle import read_bundle  # noqa: E402
from neds_rt.control import Request, ask  # noqa: E402
from neds_rt.errors import NedsError  # noqa: E402
from neds_rt.latency.random_model import parse_sizes, write_random  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402

SIZES = {"paper": "", "small": "hidden=64,layers=2,heads=4,mlp=128,window=50"}
# A slow engine takes 12 ms a step (bench/dying_engine.py): over this budget, and within a bin.
BUDGET_MS, OVERRUNS = 8.0, 3
FAILOVER_S = 10.0  # until a failed engine that still serves is given up
SETTLE_S = 0.3  # from a fail-over until its model is loaded anew


def run_swaps(folder: Path, n: int, engine: str, seed: int) -> dict[str, Any]:
    """Change between two models `n` times."""
    models = [folder / name / "random.neds" for name in SIZES]
    rig = Rig(folder, models[0], engine)

    def change(i: int) -> dict[str, Any]:
        path = str(models[(i + 1) % 2])
        return ask(rig.control, Request("load", path), START_S)

    summary = rig.run(n, change, seed)
    seen = [row.decode.model for row in rig.rows]
    changes = sum(a != b for a, b in pairwise(seen))
    stages = {name: percentiles(np.array([c.report["seconds"][name] for c in rig.changes]))
              for name in rig.changes[0].report["seconds"]}
    bundles = {name: read_bundle(path) for name, path in zip(SIZES, models, strict=True)}
    return {
        "asked": n, "swaps": changes, "seconds": stages,
        "replayed_bins": rig.changes[-1].report["replayed_bins"],
        **judge(rig, bundles), "rss_mb": summary["rss_mb"],
    }


def run_failovers(folder: Path, n: int, seed: int, *, slow: bool) -> dict[str, Any]:
    """Kill the engine `n` times, or make it slow; the model is loaded anew after each."""
    size = next(iter(SIZES))
    model = folder / size / "random.neds"
    kind = "SlowEngine" if slow else "DyingEngine"
    limits = ("--budget-ms", str(BUDGET_MS), "--overruns", str(OVERRUNS)) if slow else ()
    rig = Rig(folder, model, f"bench.dying_engine:{kind}", *limits)

    def change(i: int) -> dict[str, Any]:
        os.kill(rig.server.pid, signal.SIGUSR1)
        until = time.monotonic() + FAILOVER_S
        while len(ask(rig.control, Request("info"), START_S)["failovers"]) <= i:
            if time.monotonic() > until:  # it goes on with its engine: the verdict says so
                break
            time.sleep(0.05)
        time.sleep(SETTLE_S)
        return ask(rig.control, Request("load", str(model)), START_S)

    summary = rig.run(n, change, seed)
    return {
        "asked": n, "failed_over": len(summary["failovers"]),
        **({"budget_ms": BUDGET_MS, "overruns": OVERRUNS} if slow else {}),
        **at_failure(rig, OVERRUNS if slow else 0), **judge(rig, {size: read_bundle(model)}),
    }


def print_table(report: dict[str, Any]) -> None:
    for name in ("swaps", "failovers", "slow"):
        part = report[name]
        if part is None:
            continue
        print(f"{part['asked']} {name}: {part['decodes']} decodes, {part['missed']} missed, "
              f"{part['wrong_model']} wrong, late {part['late']}")
        if name != "swaps":
            print(f"  {part['reported']} told, {part['late_at_failure']} bins late at a fail-over "
                  f"{part['late_reasons']}, {part['late_unreported']} of them untold")
        for size, rows in part["service_us"].items():
            for phase, figures in rows.items():
                text = "".join(f"{k} {v:9.1f}  " for k, v in (figures or {}).items())
                print(f"  service us, {size:6} {phase:18} {text}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=100, help="number of swaps (default 100)")
    parser.add_argument("--failovers", type=int, default=20, help="engines killed (default 20)")
    parser.add_argument("--slow", type=int, default=20, help="engines made slow (default 20)")
    parser.add_argument("--engine", default="native", help="engine of the swaps (default native)")
    parser.add_argument("--seed", type=int, default=0, help="of the random pauses")
    parser.add_argument("--out", type=Path, help="file for the JSON object")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all that is asked for; parts that are not are None."""
    for size, text in SIZES.items():
        (folder / size).mkdir()
        write_random(folder / size, parse_sizes(text), BIN_S, graph=args.engine == "onnx")
    swaps = run_swaps(folder, args.swaps, args.engine, args.seed) if args.swaps else None
    killed, slow = (run_failovers(folder, n, args.seed, slow=slow) if n else None
                    for n, slow in ((args.failovers, False), (args.slow, True)))
    return {"engine": args.engine, "bins_per_second": 1 / BIN_S, "sizes": SIZES,
            "swaps": swaps, "failovers": killed, "slow": slow}


def main(argv: Sequence[str] | None = None) -> int:
    """Run and report; returns 1 if something does not hold that should."""
    args = parse(argv)
    lend_path(ROOT)
    try:
        with tempfile.TemporaryDirectory(prefix="neds-swap-") as name:
            report = measure(args, Path(name))
        found = broken(report)
        finish("swap", args, {"passed": not found, **report}, print_table)
    except NedsError as error:
        print(f"bench/swap.py: {error}", file=sys.stderr)
        return error.exit_code
    return verdict("swap", found)


if __name__ == "__main__":
    sys.exit(main())
