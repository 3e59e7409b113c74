"""Sources: where spikes come from. One file each, one line each in `SOURCES`."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from neds_rt.curve import LOCAL, Access
from neds_rt.errors import BadInput

if TYPE_CHECKING:
    from neds_rt.sources.frame import Frame
    from neds_rt.sources.units import UnitMap

SOURCES = {
    "zmq+tcp": "neds_rt.sources.zmq:ZmqSource",
    "zmq+ipc": "neds_rt.sources.zmq:ZmqSource",
    "oe": "neds_rt.sources.oe:open_openephys",
    "oe-events": "neds_rt.sources.oebroadcast:BroadcastSource",
    "spikeglx": "neds_rt.sources.spikeglx:SpikeGlxSource",
    "trodes": "neds_rt.sources.trodes:TrodesSource",
    "replay": "neds_rt.sources.played:open_replay",
    "synthetic": "neds_rt.sources.played:open_synthetic",
}
NATIVE = ("zmq+tcp", "zmq+ipc")  # frames name their stream: several probes may come over one URI
# Our own: units come numbered in the bundle's order, samples of all probes are of one clock.
OWN = (*NATIVE, "replay", "synthetic")
HOSTLESS = ("replay", "synthetic")


class Source(Protocol):
    """Something the server can wait for and take spike frames from.

    Constructed as `SourceClass(name, uri, insecure=bool, units=UnitMap)`, native ones with
    `access=Access` for `insecure`, which connects or raises `BadInput`. `name` is the stream's. The
    thread that serves calls `receive`; `tend` is called from another one, so the two share nothing
    but `counters` and plain attributes.
    """

    name: str
    uri: str
    # What went in and what went wrong, by kind; all kinds are there from the start.
    counters: Mapping[str, int]
    # What to log when a counter first moves; kinds that are not here are part of normal work.
    messages: Mapping[str, str]
    # Rising edges of the line that all probes share: sample and time of receipt in ns, appended by
    # whatever thread hears of them and taken by another. None where `?sync=` did not ask for them.
    edges: deque[tuple[int, int]] | None

    @property
    def pollable(self) -> Any:
        """What `zmq.Poller.register` takes: a ZeroMQ socket, or a file descriptor."""

    def receive(self, frame: Frame) -> bool:
        """Put one waiting frame into `frame` without blocking; False when none waits.

        A source that collects many messages to a frame takes a bounded number of them a call.
        """
        ...

    def tend(self) -> str:
        """Do what is due beside the hot path; return the state of the connection in words.

        Called about four times a second; a state that differs from the last one is logged.
        """
        ...

    def report(self) -> dict[str, Any]:
        """Return what a summary should say beside the counters, JSON-ready."""
        ...

    def close(self) -> None:
        """Disconnect."""


def open_source(name: str, uri: str, *, units: UnitMap, access: Access = LOCAL) -> Source:
    """Connect to a source by URI. Raises `BadInput` for an unknown scheme or a bad address."""
    scheme = scheme_of(name, uri)
    module, _, attribute = SOURCES[scheme].partition(":")
    factory: Any = getattr(importlib.import_module(module), attribute)
    if scheme in NATIVE:
        return cast(Source, factory(name, uri, access=access, units=units))
    return cast(Source, factory(name, uri, insecure=access.insecure, units=units))


def scheme_of(name: str, uri: str) -> str:
    """Return the URI's scheme; raises `BadInput` for one that no source has."""
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in SOURCES:
        expected = f"one of {', '.join(map(_written, SOURCES))}"
        raise BadInput(f"--probe {name}", "URI scheme", repr(uri), expected)
    return scheme


def _written(scheme: str) -> str:
    return f"{scheme}:" if scheme in HOSTLESS else f"{scheme}://"
