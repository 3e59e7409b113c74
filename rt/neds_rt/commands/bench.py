"""Measure what a rig would see: paced bins through whole servers, beside an echo server.

Every engine runs in its own `neds-rt serve` process behind real ZeroMQ sockets. In each round the
echo server and then every engine gets its share of bins, one every 1/RATE seconds. Reported are
arrival to publish (due time of the bin's frame to receipt of the decode, here, outside the server),
service time (frame received to decode encoded), the engine's step when paced, and the same step in
a tight loop (step_hot_us), which no rig sees.

    neds-rt bench --synthetic hidden=128,layers=5,heads=4,mlp=512,units=600 --engine native,onnx
    neds-rt bench --model X.neds --engine native,neds.torch_engine:EagerWindow --bins 1000 --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from neds_rt.bundle import Manifest

# The model of --synthetic where the text does not say otherwise.
SYNTHETIC = {"hidden": 256, "layers": 5, "heads": 8, "mlp": 512, "units": 600, "rate_hz": 10.0,
             "window": 100, "conv": 5, "recurrent": 1}


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

    sizes = _synthetic_sizes(args.synthetic)
    _check(args)
    with tempfile.TemporaryDirectory(prefix="neds-bench-") as folder:
        model = Path(args.model) if args.model else _write_random(Path(folder), sizes, args)
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


def _synthetic_sizes(text: str) -> dict[str, Any]:
    """Parse `hidden=256,layers=5` over the defaults; raises `BadInput` for anything else."""
    from neds_rt.errors import BadInput

    sizes: dict[str, Any] = dict(SYNTHETIC)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in SYNTHETIC:
            raise BadInput("--synthetic", "key", repr(name), f"one of {', '.join(SYNTHETIC)}")
        try:
            sizes[name] = type(SYNTHETIC[name])(value)
        except ValueError:
            raise BadInput("--synthetic", name, repr(value), "a number") from None
    if sizes["recurrent"] not in (0, 1):
        raise BadInput("--synthetic", "recurrent", sizes["recurrent"], "0 or 1")
    return sizes


def _write_random(folder: Path, sizes: dict[str, Any], args: argparse.Namespace) -> Path:
    """Write a bundle of random weights with the four IBL behaviours; returns its path."""
    from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle
    from neds_rt.engines import parse_engine

    modalities = [
        ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s"),
        ModalityOut(name="whisker", kind="continuous", n_outputs=1, unit="a.u."),
        ModalityOut(name="choice", kind="categorical", n_outputs=2, classes=["right", "left"]),
        ModalityOut(name="block", kind="categorical", n_outputs=3, classes=["0.2", "0.5", "0.8"]),
    ]
    shape = Shape(**{key: sizes[key] for key in
                     ("hidden", "layers", "heads", "mlp", "window", "conv")},
                  recurrent=bool(sizes["recurrent"]))
    bundle = random_bundle(shape, sizes["units"], modalities, bin_size_s=1 / args.bins_per_second)
    manifest = bundle.manifest
    files = {}
    if any(parse_engine(engine)[0] != "native" for engine in args.engine.split(",")):
        files["model.onnx"] = _step_graph(manifest, bundle.weights)
    path = folder / "random.neds"
    write_bundle(
        path, session=manifest.session, subject=manifest.subject, bin_size_s=manifest.bin_size_s,
        shape=shape, units=manifest.units, modalities=modalities, weights=bundle.weights,
        files=files, provenance=manifest.provenance,
    )
    return path


def _step_graph(manifest: Manifest, weights: dict[str, Any]) -> bytes:
    from neds_rt.errors import StartError

    try:
        from neds_rt.engines.onnx_graph import build_step_graph
    except ImportError as error:
        raise StartError("a random ONNX graph needs onnx: pip install 'neds[train]'") from error
    return build_step_graph(manifest, weights)


def _measure(
    args: argparse.Namespace, model: Path, manifest: Manifest, sizes: dict[str, Any]
) -> dict[str, Any]:
    import msgspec

    from neds_rt.latency.rounds import LiveBench, Plan, hot_steps
    from neds_rt.machine import machine_facts

    engines = args.engine.split(",")
    rate_hz = args.rate_hz or sizes["rate_hz"]
    plan = Plan(args.bins, args.round, 1 / args.bins_per_second, rate_hz)
    with LiveBench(model, manifest, engines, plan) as bench:
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
    from rich.console import Console
    from rich.table import Table

    from neds_rt.latency.rounds import summary_line

    table = Table(title=f"{report['bins']} bins an engine at {report['bins_per_second']:g} a "
                  f"second, {report['rounds']} interleaved rounds; milliseconds")
    for column in ("engine", "weights", "figure", "p50", "p99", "p99.9", "max"):
        words = column in ("engine", "weights", "figure")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    table.add_row("echo", "", "arrival to publish", *summary_line(report, "echo_us"), style="dim")
    for row in report["engines"]:
        for key, label in (("arrival_to_publish_us", "arrival to publish"),
                           ("service_us", "service"), ("step_us", "step, paced"),
                           ("step_hot_us", "step, tight loop")):
            first = label == "arrival to publish"
            names = (row["engine"].rpartition(":")[2], row["precision"]) if first else ("", "")
            table.add_row(*names, label, *summary_line(row, key))
        table.add_row("", "", "a bin late / lost", str(row["late"]), str(row["lost"]))
    Console().print(table)
