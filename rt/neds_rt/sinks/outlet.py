"""What carries decodes on to other programs: one Protocol, one table, options in the URI.

An outlet runs in a process of its own (`neds-rt sink`), which subscribes to the server's decodes as
any client does and only ever holds the newest one. So it is lossy, and whatever happens to it, the
server's loop does not notice.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec

from neds_rt.endpoints import is_loopback
from neds_rt.errors import BadInput
from neds_rt.wire import Decode

OUTLETS = {
    "lsl": "neds_rt.sinks.lsl:LslOutlet",
    "udp": "neds_rt.sinks.udp:UdpOutlet",
    "oe-events+tcp": "neds_rt.sinks.oe_events:TtlOutlet",
}
EXAMPLES = "lsl://NAME, udp://HOST:PORT or oe-events+tcp://HOST:PORT?value=NAME&above=X"

Options = TypeVar("Options", bound=msgspec.Struct)


class Outlet(Protocol):
    """Where decodes are carried to. No call may wait for the other side.

    Constructed as `OutletClass(uri, insecure=bool)`, which raises `BadInput` or `StartError`.
    """

    counters: dict[str, int]

    def write(self, decode: Decode, now_s: float) -> None:
        """Take a decode at a time of the monotonic clock; what cannot be delivered is dropped."""

    def tick(self, now_s: float) -> None:
        """Do what is due whether or not a decode came; called every few milliseconds."""

    def close(self) -> None:
        """Leave the other side in a safe state and disconnect."""


class Address(NamedTuple):
    """The parts of an outlet's URI."""

    uri: str
    host: str
    port: int | None
    query: dict[str, str]


def open_outlet(uri: str, *, insecure: bool = False) -> Outlet:
    """Open an outlet by URI. Raises `BadInput` for one that is unknown, malformed or remote."""
    scheme = uri.partition("://")[0]
    if scheme not in OUTLETS:
        raise BadInput("neds-rt sink", "URI", repr(uri), EXAMPLES)
    module, _, attribute = OUTLETS[scheme].partition(":")
    factory: Any = getattr(importlib.import_module(module), attribute)
    return cast(Outlet, factory(uri, insecure=insecure))


def parse_address(uri: str, *, port: bool, insecure: bool = False) -> Address:
    """Take a URI apart; with `port` it needs HOST:PORT on this machine, or `insecure`."""
    try:
        parts = urlsplit(uri)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        number = parts.port
    except ValueError as error:
        raise BadInput("neds-rt sink", "URI", f"{uri} ({error})", EXAMPLES) from error
    if not parts.netloc or parts.path not in ("", "/") or len(dict(query)) < len(query):
        raise BadInput("neds-rt sink", "URI", repr(uri), EXAMPLES)
    # As it was written: `hostname` is in lower case, and a stream's name is not to be.
    host = parts.netloc.rpartition(":")[0] if number is not None else parts.netloc
    if port and (number in (None, 0) or not host):
        raise BadInput("neds-rt sink", "URI", repr(uri), f"{parts.scheme}://HOST:PORT")
    if port and not insecure and not is_loopback(host):
        expected = "a loopback address such as 127.0.0.1, or --insecure"
        raise BadInput("neds-rt sink", "host", repr(host), expected)
    return Address(uri, host, number, dict(query))


def parse_options(address: Address, kind: type[Options]) -> Options:
    """Read the part after `?` as a struct; raises `BadInput` for an unknown or unfit option."""
    try:
        return msgspec.convert(address.query, kind, strict=False)
    except msgspec.ValidationError as error:
        names = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise BadInput(address.uri, "options", error, f"of {names}") from error
