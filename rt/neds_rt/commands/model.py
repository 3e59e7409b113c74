"""Change the model of a running server, over its control socket.

`load` has the server read the bundle, bring it to the present beside the model that it serves, let
it decode some live bins unseen and swap the two between two bins: no bin is missed. `rollback` goes
back to the model before. `info` says what is served. The server must run with `--control PATH`.

    neds-rt model load X.neds --control ~/.neds-rt/rig.ctl
    neds-rt model rollback --control ~/.neds-rt/rig.ctl
    neds-rt model info --json --control ~/.neds-rt/rig.ctl
"""

from __future__ import annotations

import argparse
from typing import Any

TIMEOUT_S = 600.0  # building a GPU engine takes minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt model`."""
    parser.add_argument("action", choices=("load", "rollback", "info"), help="what to do")
    parser.add_argument("bundle", nargs="?", metavar="X.neds", help="the bundle to load")
    parser.add_argument("--control", required=True, metavar="PATH",
                        help="control socket of the server, its own --control")
    parser.add_argument("--shadow-bins", type=int, metavar="N",
                        help="live bins that the model decodes unseen before the swap "
                             "(default 10)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S",
                        help=f"how long to wait for the server (default {TIMEOUT_S:g})")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Ask the server; returns 0. Raises what the server refused, `StartError` without a server."""
    import json
    from pathlib import Path

    from neds_rt.control import Request, ask
    from neds_rt.errors import BadInput

    if (args.action == "load") != (args.bundle is not None):
        found = "a bundle" if args.bundle else "none"
        expected = "one for load, none for rollback and info"
        raise BadInput(f"model {args.action}", "bundle", found, expected)
    if not 0 < args.timeout < 1e6:
        raise BadInput(f"model {args.action}", "--timeout", args.timeout, "seconds above 0")
    path = str(Path(args.bundle).absolute()) if args.bundle else ""
    result = ask(args.control, Request(args.action, path, args.shadow_bins), args.timeout)
    print(json.dumps(result) if args.json else _text(args.action, result))
    return 0


def _text(action: str, result: dict[str, Any]) -> str:
    if action == "info":
        return "\n".join(f"{name:>14}  {value}" for name, value in result.items())
    took = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result["seconds"].items())
    return (f"serving {result['model'][:12]} by {result['engine']} ({result['precision']}), "
            f"before it {result['previous'][:12]}\n"
            f"{result['replayed_bins']} bins replayed, {result['shadow_bins']} shadowed; "
            f"seconds: {took}")
