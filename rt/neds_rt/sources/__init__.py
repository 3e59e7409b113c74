"""Sources: where spikes come from. One file each, one line each in `SOURCES`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

from neds_rt.errors import BadInput

if TYPE_CHECKING:
    from neds_rt.sources.frame import Frame

SOURCES = {
    "zmq+tcp": "neds_rt.sources.zmq:ZmqSource",
    "zmq+ipc": "neds_rt.sources.zmq:ZmqSource",
}


class Source(Protocol):
    """Something the server can wait for and take spike frames from.

    Constructed as `SourceClass(name, uri, insecure=bool)`, which connects or raises `BadInput`.
    """

    name: str
    uri: str

    @property
    def pollable(self) -> Any:
        """What `zmq.Poller.register` takes: a ZeroMQ socket, or a file descriptor."""

    def receive(self, frame: Frame) -> bool:
        """Put one waiting frame into `frame` without blocking; False when none waits."""
        ...

    def close(self) -> None:
        """Disconnect."""


def open_source(name: str, uri: str, *, insecure: bool = False) -> Source:
    """Connect to a source by URI. Raises `BadInput` for an unknown scheme or a bad address."""
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in SOURCES:
        expected = f"one of {', '.join(f'{known}://' for known in SOURCES)}"
        raise BadInput(f"--probe {name}", "URI scheme", repr(uri), expected)
    module, _, attribute = SOURCES[scheme].partition(":")
    factory: Any = getattr(importlib.import_module(module), attribute)
    return cast(Source, factory(name, uri, insecure=insecure))
