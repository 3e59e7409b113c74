"""Carry a server's decodes on to other programs.

Subscribes to the decodes of `neds-rt serve` and hands the newest one to every sink. It is a process
of its own, so that nothing that happens to a sink can slow the server; a sink that is too slow
skips decodes. It may be started before the server and waits for it. Ctrl-C ends it with a summary.

    neds-rt sink udp://127.0.0.1:9000
    neds-rt sink lsl://decodes --insecure
    neds-rt sink 'oe-events+tcp://127.0.0.1:5556?value=choice.p1&above=0.9&refractory=1&line=3'
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neds_rt.client import Client
    from neds_rt.sinks.outlet import Outlet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt sink`."""
    from neds_rt.access_options import add_access_arguments

    parser.add_argument("sinks", nargs="+", metavar="URI",
                        help="lsl://NAME, udp://HOST:PORT or oe-events+tcp://HOST:PORT?OPTIONS, "
                        "see rt/README.md")
    parser.add_argument("--from", dest="server", metavar="ENDPOINT",
                        default="tcp://127.0.0.1:5580",
                        help="where the server publishes (default %(default)s)")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds")
    add_access_arguments(parser, binds=False, connects=True, foreign=True)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Carry decodes until stopped; returns 0."""
    import json
    import sys
    from contextlib import ExitStack

    from neds_rt.access_options import access_of
    from neds_rt.client import Client
    from neds_rt.errors import BadInput
    from neds_rt.sinks.outlet import open_outlet

    if args.seconds is not None and not args.seconds > 0:
        raise BadInput("neds-rt sink", "--seconds", args.seconds, "a number above 0")
    access = access_of(args)
    with ExitStack() as stack:
        outlets = []
        for uri in args.sinks:
            outlet = open_outlet(uri, insecure=args.insecure)
            stack.callback(outlet.close)
            outlets.append(outlet)
        client = stack.enter_context(Client(args.server, latest=True, access=access))
        print(f"ready {args.server} -> {' '.join(args.sinks)}", file=sys.stderr, flush=True)
        decodes = _carry(client, outlets, args.seconds)
    report = {
        "decodes": decodes, "skipped": client.missed, "malformed": client.malformed,
        "sinks": {uri: o.counters for uri, o in zip(args.sinks, outlets, strict=True)},
    }
    if args.json:
        print(json.dumps(report))
    else:
        print(f"{decodes} decodes carried, {client.missed} skipped")
        for uri, outlet in zip(args.sinks, outlets, strict=True):
            print(f"{uri}: " + ", ".join(f"{k} {v}" for k, v in outlet.counters.items()))
    return 0


def _carry(client: Client, outlets: list[Outlet], seconds: float | None) -> int:
    """Hand decodes over until SIGINT or SIGTERM, or for `seconds`; returns how many."""
    import signal
    import threading
    import time

    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    decodes, end = 0, None if seconds is None else time.monotonic() + seconds
    try:
        while not stop.is_set() and (end is None or time.monotonic() < end):
            try:
                wait = min(outlet.due_s for outlet in outlets) - time.monotonic()
                decode = client.recv(min(max(wait, 0.0), 0.005))
            except TimeoutError:
                for outlet in outlets:
                    outlet.tick(time.monotonic())
                continue
            decodes += 1
            for outlet in outlets:
                outlet.write(decode, time.monotonic())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return decodes
