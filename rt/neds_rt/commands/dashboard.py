"""Watch a running server in the browser.

Shows decodes with the stretches in which they must not be believed, the population, latency of
every stage, every probe, gaps and the engine. The page is served from this process, which only
listens to what `neds-rt serve` publishes: it cannot slow the server down, and the page changes
nothing. Needs the extra `dashboard` (pip install 'neds[dashboard]'), but no network. Prints a line
that begins with `ready` and the address; ends with Ctrl-C.

    neds-rt dashboard
    neds-rt dashboard --decodes tcp://127.0.0.1:5580 --port 8000 --no-open
"""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt dashboard`."""
    from neds_rt.access_options import add_access_arguments
    from neds_rt.config import ServeConfig
    from neds_rt.watching import DEFAULT_STATUS

    parser.add_argument("--decodes", default=ServeConfig().out, metavar="ENDPOINT",
                        help="the server's --out (default %(default)s)")
    parser.add_argument("--status", default=DEFAULT_STATUS, metavar="ENDPOINT",
                        help="the server's --status (default %(default)s)")
    parser.add_argument("--port", type=int, default=5590, metavar="PORT",
                        help="port of the page on this machine, 0 for any (default %(default)s)")
    parser.add_argument("--no-open", action="store_true", help="open no browser")
    add_access_arguments(parser, binds=False, connects=True)


def run(args: argparse.Namespace) -> int:
    """Serve the page until stopped; returns 0."""
    import sys
    import webbrowser
    from importlib.util import find_spec

    from neds_rt.access_options import access_of
    from neds_rt.dashboard.app import start_app
    from neds_rt.dashboard.feed import Feed
    from neds_rt.errors import BadInput, StartError

    if find_spec("bokeh") is None:
        raise StartError("needs bokeh: pip install 'neds[dashboard]'")
    if not 0 <= args.port <= 65535:
        raise BadInput("--port", "value", args.port, "0 to 65535")
    with Feed(args.decodes, args.status, access_of(args)) as feed:
        server = start_app(feed, "127.0.0.1", args.port)
        address = f"http://127.0.0.1:{server.port}/"
        print(f"ready {address}", file=sys.stderr, flush=True)
        if not args.no_open:
            webbrowser.open(address)
        _serve(server)
    return 0


def _serve(server: Any) -> None:
    """Run the server's loop until SIGINT or SIGTERM."""
    import signal

    loop = server.io_loop

    def stop(*_: object) -> None:
        loop.asyncio_loop.call_soon_threadsafe(loop.stop)  # wakes the loop as well

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        loop.start()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        server.stop()
