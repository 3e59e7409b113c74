"""Measure what a rig would see: paced bins through whole servers, beside an echo server.

Every engine runs in its own `neds-rt serve` process behind real ZeroMQ sockets. In each round the
echo server and then every engine gets its share of bins, one every 1/RATE seconds. Reported are
arrival to publish (due time of the bin's frame to receipt of the decode, here, outside the server),
service time (frame received to decode encoded), the engine's step when paced, the same step in a
tight loop (step_hot_us), which no rig sees, and what arrival to publish is above the echo's
(above_echo: medians in steps, ratio of p99.9).

    neds-rt bench --synthetic hidden=128,layers=5,heads=4,mlp=512,units=600 --engine native,onnx
    neds-rt bench --model X.neds --engine native,neds.torch_engine:EagerWindow --bins 1000 --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from neds_rt.bundle import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt bench`."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", metavar="BUNDLE", help="bundle to serve")
    model.add_argument("--synthetic", metavar="K=V,...", default="",
                       help="a bundle of random weights, for example "
                       "hidden=128,layers=5,heads=4,mlp=512,units=600,rate_hz=10,window=100,"
                       "conv=5,recurrent=1 (the default if no --model is given, hidden=256, "
                       "heads=8)")
    parser.add_argument("--engine", default="native", metavar="E[,E...]",
                        help="engines, each NAME[:PRECISION]; NAME may be module:Class "
                        "(default native)")
    parser.add_argument("--bins-per-second", type=float, default=50.0, metavar="R",
                        help="bins sent a second (default 50)")
    parser.add_argument("--bins", type=int, default=20_000, metavar="N",
                        help="bins counted an engine (default 20000: 7 minutes an engine)")
    parser.add_argument("--round", type=int, default=250, metavar="N",
                        help="bins a server gets before the next takes its turn (default 250)")
    parser.add_argument("--rate-hz", type=float, default=None, metavar="HZ",
                        help="mean firing rate of a unit (default 10, or as --synthetic says)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run all rounds and report; returns 0, or 4 if a bin was never answered."""
    import tempfile
    from pathlib import Path

    from neds_rt.bundle import read_bundle
    from neds_rt.engines import parse_engine
    from neds_rt.latency.random_model import parse_sizes, write_random

    sizes = parse_sizes(args.synthetic)
    _check(args)
    with tempfile.TemporaryDirectory(prefix="neds-bench-") as folder:
        graph = any(parse_engine(name)[0] != "native" for name in args.engine.split(","))
        model = Path(args.model) if args.model else write_random(
            Path(folder), sizes, 1 / args.bins_per_second, graph=graph)
        manifest = read_bundle(model).manifest
        report = _measure(args, model, manifest, sizes)
    _print(args, report)
    return 4 if any(row["lost"] for row in report["engines"]) else 0


def _check(args: argparse.Namespace) -> None:
    from neds_rt.engines import parse_engine
    from neds_rt.errors import BadInput

    for option, value in (("--bins-per-second", args.bins_per_second), ("--bins", args.bins),
                          ("--round", args.round), ("--rate-hz", args.rate_hz)):
        if value is not None and not 0 < value < float("inf"):
            raise BadInput(option, "value", value, "a number above 0")
    for engine in args.engine.split(","):
        parse_engine(engine)


def _measure(
    args: argparse.Namespace, model: Path, manifest: Manifest, sizes: dict[str, Any]
) -> dict[str, Any]:
    import msgspec

    from neds_rt.latency.rounds import LiveBench, Plan, hot_steps, served
    from neds_rt.machine import machine_facts

    engines = args.engine.split(",")
    rate_hz = args.rate_hz or sizes["rate_hz"]
    plan = Plan(args.bins, args.round, 1 / args.bins_per_second, rate_hz)
    with LiveBench(model, manifest, [*map(served, engines)], plan) as bench:
        report = bench.run()
    hot = hot_steps(model, engines, rate_hz, limit_s=4.0)
    for row, engine in zip(report["engines"], engines, strict=True):
        row["step_hot_us"] = hot[engine]
    return {
        **report,
        "bins": args.bins,
        "bins_per_second": args.bins_per_second,
        "model": {
            **msgspec.to_builtins(manifest.shape), "units": len(manifest.units),
            "rate_hz": rate_hz, "model_hash": manifest.model_hash,
            "synthetic": not args.model,
        },
        "machine": machine_facts(),
    }


def _print(args: argparse.Namespace, report: dict[str, Any]) -> None:
    import json
    import sys

    from neds_rt.machine import commit

    command = "neds-rt " + " ".join(sys.argv[1:])
    if args.json:
        print(json.dumps({"command": command, "commit": commit(), **report}))
        return
    from neds_rt.latency.report import print_table

    print_table(report)
