"""What carries decodes on to other programs: one Protocol, one table, options in the URI.

An outlet runs in a process of its own (`neds-rt sink`), which subscribes to the server's decodes as
any client does and only ever holds the newest one. So it is lossy, and whatever happens to it, the
server's loop does not notice.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from neds_rt.errors import BadInput
from neds_rt.wire import Decode

OUTLETS = {
    "lsl": "neds_rt.sinks.lsl:LslOutlet",
    "udp": "neds_rt.sinks.udp:UdpOutlet",
    "oe-events+tcp": "neds_rt.sinks.oe_events:TtlOutlet",
}
WHERE = "neds-rt sink"
EXAMPLES = "lsl://NAME, udp://HOST:PORT or oe-events+tcp://HOST:PORT?value=NAME&above=X"


class Outlet(Protocol):
    """Where decodes are carried to. No call may wait for the other side.

    Constructed as `OutletClass(uri, insecure=bool)`, which raises `BadInput` or `StartError`.
    """

    counters: dict[str, int]
    due_s: float  # when `tick` has something to do, on the monotonic clock; infinite for nothing

    def write(self, decode: Decode, now_s: float) -> None:
        """Take a decode at a time of the monotonic clock; what cannot be delivered is dropped."""

    def tick(self, now_s: float) -> None:
        """Do what is due whether or not a decode came; called every few milliseconds."""

    def close(self) -> None:
        """Leave the other side in a safe state and disconnect."""


def open_outlet(uri: str, *, insecure: bool = False) -> Outlet:
    """Open an outlet by URI. Raises `BadInput` for one that is unknown, malformed or remote."""
    scheme = uri.partition("://")[0]
    if scheme not in OUTLETS:
        raise BadInput(WHERE, "URI", repr(uri), EXAMPLES)
    module, _, attribute = OUTLETS[scheme].partition(":")
    factory: Any = getattr(importlib.import_module(module), attribute)
    return cast(Outlet, factory(uri, insecure=insecure))

