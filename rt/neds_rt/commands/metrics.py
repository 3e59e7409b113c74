"""Prometheus metrics of a running server, over HTTP, from a process of their own.

Reads what `neds-rt serve` publishes on --status, so no scrape can delay a bin. Needs the extra
`metrics`: pip install 'neds[metrics]'. Prints a line that begins with `ready` and the address;
ends with Ctrl-C.

    neds-rt metrics --listen 127.0.0.1:9464
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt metrics`."""
    from neds_rt.access_options import add_access_arguments
    from neds_rt.watching import DEFAULT_STATUS

    parser.add_argument("--status", default=DEFAULT_STATUS, metavar="ENDPOINT",
                        help="the server's --status (default %(default)s)")
    parser.add_argument("--listen", default="127.0.0.1:9464", metavar="HOST:PORT",
                        help="where /metrics is served; port 0 picks one (default %(default)s)")
    add_access_arguments(parser, binds=False, connects=True)


def run(args: argparse.Namespace) -> int:
    """Serve metrics until stopped; returns 0."""
    import sys
    from importlib.util import find_spec

    from neds_rt.access_options import access_of
    from neds_rt.endpoints import parse_listen
    from neds_rt.errors import StartError
    from neds_rt.prometheus import serve_metrics
    from neds_rt.watching import LatestStatus, StatusReader, wait_for_signal

    if find_spec("prometheus_client") is None:
        raise StartError("needs prometheus-client: pip install 'neds[metrics]'")
    host, port = parse_listen("--listen", args.listen, insecure=args.insecure)
    with LatestStatus(StatusReader(args.status, access_of(args))) as latest:
        server = serve_metrics(latest, host, port)
        print(f"ready http://{host}:{server.server_port}/metrics", file=sys.stderr, flush=True)
        wait_for_signal()
        server.shutdown()
        server.server_close()
    return 0
