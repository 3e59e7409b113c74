"""A whole rig on this machine, with the truth beside it: needs no data, no GPU, no arguments.

Starts a synthetic probe (an animal with known behaviour), the server with a packaged model, and a
client that shows decodes over the truth, class probabilities and latency in the terminal. Without
a terminal, or with --json, nothing is drawn and the figures come at the end.

    neds-rt demo
    neds-rt demo --seconds 5 --json
"""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt demo`."""
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S",
                        help="length of the play (default %(default)g)")
    parser.add_argument("--engine", default="native", metavar="E",
                        help="engine, NAME[:PRECISION] (default %(default)s)")
    parser.add_argument("--model", metavar="BUNDLE", help="a bundle of the same animal to serve "
                        "instead of the packaged one")
    parser.add_argument("--dashboard", action="store_true",
                        help="also show the server on a page in the browser, see neds-rt dashboard")
    parser.add_argument("--json", action="store_true",
                        help="draw nothing, end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns 0, or 4 if a decode is missing."""
    import json
    import sys
    from pathlib import Path

    from neds_rt.demo import BUNDLE
    from neds_rt.demo.run import run_demo
    from neds_rt.errors import BadInput

    if not 1 <= args.seconds <= 3600:
        raise BadInput("--seconds", "value", args.seconds, "1 to 3600")
    view = sys.stdout.isatty() and not args.json
    if not view and not args.json:
        print(f"demo: {args.seconds:g} s of a synthetic session ...", flush=True)
    model = Path(args.model) if args.model else BUNDLE
    report = run_demo(model, args.engine, args.seconds, view=view, dashboard=args.dashboard)
    print(json.dumps(report) if args.json else summary(report))
    return 0 if report["decodes"] == report["expected_decodes"] else 4


def summary(report: dict[str, Any]) -> str:
    """Return the report as a few lines of text."""
    nothing = {"p50": float("nan"), "p99": float("nan"), "max": float("nan")}
    service, whole = report["service_us"] or nothing, report["spike_to_publish_us"] or nothing
    scores = [f"{name} R² {value}" for name, value in report["r2"].items()]
    scores += [f"{name} {value} right" for name, value in report["accuracy"].items()]
    return "\n".join([
        f"{report['decodes']} of {report['expected_decodes']} bins decoded by {report['engine']}, "
        f"{report['missed_deadlines']} a bin late or lost",
        f"service time p50 {service['p50']:.0f} us, p99 {service['p99']:.0f} us, "
        f"max {service['max']:.0f} us",
        f"last spike to decode p50 {whole['p50']:.0f} us, p99 {whole['p99']:.0f} us",
        ", ".join(scores),
    ])
