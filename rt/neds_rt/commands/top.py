"""Watch a running server in the terminal, also over ssh.

Shows whether decodes may be believed, their last seconds as a small curve each, red where they may
not, every probe, latency of every stage, deadlines, gaps and the engine, eight times a second.
Reads what `neds-rt serve` publishes on --status and --out; ends with Ctrl-C.

    neds-rt top
    neds-rt top --once --json
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt top`."""
    from neds_rt.access_options import add_access_arguments
    from neds_rt.watching import DEFAULT_STATUS

    parser.add_argument("--status", default=DEFAULT_STATUS, metavar="ENDPOINT",
                        help="the server's --status (default %(default)s)")
    parser.add_argument("--decodes", default="auto", metavar="ENDPOINT",
                        help="the server's --out: auto for where the status says, or off "
                             "(default %(default)s)")
    parser.add_argument("--once", action="store_true", help="show one status and end")
    parser.add_argument("--json", action="store_true",
                        help="print every status as one JSON object a line, without the raster")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S",
                        help="with --once: end with code 3 after S seconds without a server "
                             "(default %(default)g)")
    add_access_arguments(parser, binds=False, connects=True)


def run(args: argparse.Namespace) -> int:
    """Show until Ctrl-C, or once; returns 0. Raises `StartError` if --once met no server."""
    from rich.console import Console

    from neds_rt.access_options import access_of
    from neds_rt.errors import BadInput
    from neds_rt.terminal import Decodes, as_json, render, watch
    from neds_rt.watching import StatusReader, until_signal

    if not 0 < args.timeout < float("inf"):
        raise BadInput("neds-rt top", "--timeout", args.timeout, "a number of seconds above 0")
    with StatusReader(args.status, access_of(args)) as reader:
        if args.once:
            status = reader.first(args.timeout)
            if args.json:
                print(as_json(status))
            else:
                Console().print(render(status, 0.0))
            return 0
        with until_signal() as stop:
            if not args.json:
                with Decodes(args.decodes, access_of(args)) as decodes:
                    watch(reader, decodes, Console(), stop)
            while not stop.is_set():
                status_now = reader.recv(0.5)
                if status_now is not None:
                    print(as_json(status_now), flush=True)
    return 0
