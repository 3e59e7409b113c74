"""What a user would pick instead, beside `neds-rt serve`: whole servers in one interleaved run.

    python bench/compare.py --engine native,onnx --out bench/results/compare.json
    python bench/compare.py --bins 500 --round 100                   a first look, a minute a server

Every server is a process of its own behind real sockets and takes its turn in every round: the
echo server, `neds-rt serve` with each engine, and the programs of `bench/competitors`, which
recompute the whole window. All get the same frames, paced, of the same model, and publish the same
message. What is measured is what `neds-rt bench` measures, with CPU time and agreement of outputs.
An alternative whose package is missing is a row that says so. Exit code 4 if `neds-rt` lost a bin.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds_rt.bundle import read_bundle  # noqa: E402
from neds_rt.engines import parse_engine  # noqa: E402
from neds_rt.errors import BadInput, NedsError, StartError  # noqa: E402
from neds_rt.latency.random_model import parse_sizes, write_random  # noqa: E402
from neds_rt.latency.report import print_table  # noqa: E402
from neds_rt.latency.rounds import Contender, LiveBench, Plan, served  # noqa: E402
from neds_rt.machine import package_versions  # noqa: E402


@dataclass(frozen=True)
class Alternative:
    """A program of `bench.competitors` and what it needs."""

    packages: tuple[str, ...]  # as they are imported; the last is what its row is about
    graph: bool = False  # whether it reads the window as ONNX


ALTERNATIVES = {
    "zmq_torch": Alternative(("torch",)),
    "ezmsg_torch": Alternative(("torch", "ezmsg")),
    "zmq_onnxruntime": Alternative(("torch", "onnx", "onnxruntime"), graph=True),
    "zmq_openvino": Alternative(("torch", "onnx", "openvino"), graph=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write; 2 after bad input, 3 when a server does not start."""
    args = parse(argv)
    try:
        check(args)
        with tempfile.TemporaryDirectory(prefix="neds-compare-") as folder:
            report = compare(args, Path(folder))
        finish("compare", args, report, print_report)
    except NedsError as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    return 4 if any(row["lost"] for row in report["engines"] if row["kind"] == "engine") else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="BUNDLE", help="bundle (default: random weights)")
    parser.add_argument("--synthetic", metavar="K=V,...", default="hidden=128,heads=4",
                        help="sizes of the random one, as neds-rt bench has them "
                             "(default hidden=128,heads=4)")
    parser.add_argument("--engine", default="native,onnx", metavar="E[,E...]",
                        help="engines of neds-rt serve (default native,onnx)")
    parser.add_argument("--against", default=",".join(ALTERNATIVES), metavar="A[,A...]",
                        help=f"alternatives, or none (default {','.join(ALTERNATIVES)})")
    parser.add_argument("--bins", type=int, default=5000, help="bins a server (default 5000)")
    parser.add_argument("--round", type=int, default=250, help="bins a turn (default 250)")
    parser.add_argument("--bins-per-second", type=float, default=50.0, help="pace (default 50)")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="mean rate of a unit (10)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raise `BadInput` for the first option that cannot be; splits the lists of names."""
    for option in ("bins", "round", "bins_per_second", "rate_hz"):
        value = getattr(args, option)
        if not 0 < value < float("inf"):
            raise BadInput(f"--{option.replace('_', '-')}", "value", value, "a number above 0")
    args.engine = args.engine.split(",")
    args.against = [] if args.against == "none" else args.against.split(",")
    for name in args.against:
        if name not in ALTERNATIVES:
            raise BadInput("--against", "name", repr(name), f"some of {', '.join(ALTERNATIVES)}")


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every server in turns and return the report."""
    import msgspec

    sizes = parse_sizes(args.synthetic)
    graph = any(parse_engine(name)[0] != "native" for name in args.engine)
    model = Path(args.model) if args.model else write_random(
        folder, sizes, 1 / args.bins_per_second, graph=graph)
    manifest = read_bundle(model).manifest
    missing = {name: found for name in args.against if (found := missing_package(name))}
    present = [name for name in args.against if name not in missing]
    contenders = [*map(served, args.engine), *alternatives(present, model, folder)]
    plan = Plan(args.bins, args.round, 1 / args.bins_per_second, args.rate_hz)
    minutes = (len(contenders) + 1) * args.bins * (1 + 5 / args.round) * plan.period_s / 60
    print(f"{len(contenders)} servers and the echo, about {minutes:.1f} minutes",
          file=sys.stderr, flush=True)
    with LiveBench(model, manifest, contenders, plan) as bench:
        report = bench.run()
    for row in report["engines"]:
        row["kind"] = "alternative" if row["name"] in present else "engine"
    return {
        **report,
        "not_installed": [{"name": name, "package": found} for name, found in missing.items()],
        "bins": args.bins, "bins_per_second": args.bins_per_second,
        "model": {
            **msgspec.to_builtins(manifest.shape), "units": len(manifest.units),
            "rate_hz": args.rate_hz, "model_hash": manifest.model_hash,
            "synthetic": not args.model,
        },
        "versions": package_versions(("torch", "onnxruntime", "openvino", "ezmsg", "pyzmq")),
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the table, then what was not there to be run."""
    print_table(report)
    for row in report["not_installed"]:
        print(f"{row['name']}: not installed (pip install {row['package']})")


def missing_package(name: str) -> str | None:
    """Return what an alternative needs and does not find, None if it can run."""
    for package in reversed(ALTERNATIVES[name].packages):
        if importlib.util.find_spec(package) is None:
            return package
    return None


def alternatives(names: Sequence[str], model: Path, folder: Path) -> list[Contender]:
    """Return the programs to start; exports the window first where one of them reads it."""
    # Children look for modules where this says, and not in the folder they are started in.
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    graph = folder / "window.onnx"
    if any(ALTERNATIVES[name].graph for name in names):
        words = [sys.executable, "-m", "bench.competitors.window_model", "--model", str(model),
                 "--out", str(graph)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise StartError(f"export of the window as ONNX: {lines[-1]}")
    return [Contender(name, f"bench.competitors.{name}",
                      ("--graph", str(graph)) if ALTERNATIVES[name].graph else ())
            for name in names]


if __name__ == "__main__":
    sys.exit(main())
