"""The options that say who may talk to a command, the same for every one that opens a socket."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neds_rt.curve import Access


def add_access_arguments(
    parser: argparse.ArgumentParser, *, binds: bool, connects: bool, foreign: bool = False
) -> None:
    """Declare the `--curve-...` options that a command has a use for, and `--insecure`."""
    add = parser.add_argument
    add("--curve-key", metavar="FILE",
        help="this side's secret key, NAME.key_secret of neds-rt keygen")
    if binds:
        add("--curve-allow", metavar="FILE",
            help="public keys let in: one a line, or a folder of NAME.key; with it any address may "
                 "be bound")
    if connects:
        add("--curve-server", action="append", metavar="[PROBE=]KEY",
            help="public key, or its file, that the other side must prove to have; with it any "
                 "address may be connected to")
    programs = " (acquisition programs know no keys)" if foreign else ""
    add("--insecure", action="store_true",
        help=f"accept addresses on other machines without keys{programs}: nothing is encrypted")


def access_of(args: argparse.Namespace) -> Access:
    """Read the keys that the options name. Raises `BadInput`."""
    from neds_rt.curve import parse_servers, read_access

    return read_access(
        key=getattr(args, "curve_key", None) or "",
        allow=getattr(args, "curve_allow", None) or "",
        server=parse_servers(getattr(args, "curve_server", None) or []),
        insecure=args.insecure,
    )
