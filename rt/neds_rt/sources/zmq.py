"""The native source: a SUB socket that connects to a probe's publisher and reconnects by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import zmq

from neds_rt.endpoints import endpoint_of
from neds_rt.errors import BadInput
from neds_rt.sources.frame import Frame

if TYPE_CHECKING:
    from neds_rt.sources.units import UnitMap

# Frames waiting in the server. Beyond that TCP pushes back on the publisher, which decides what
# happens: an XPUB with XPUB_NODROP waits, and nothing is lost; memory stays bounded either way.
RECEIVE_QUEUE = 20_000
# A part longer than this ends the connection, before memory is taken for it.
MAX_PART_BYTES = 64 << 20


class ZmqSource:
    """Spike frames of the native wire format from `zmq+tcp://HOST:PORT` or `zmq+ipc://PATH`.

    Units come numbered in the bundle's order, and all counting is the assembler's.
    """

    counters: Mapping[str, int] = {}
    messages: Mapping[str, str] = {}
    edges = None

    def __init__(
        self, name: str, uri: str, *, insecure: bool = False, units: UnitMap | None = None
    ) -> None:
        self.name, self.uri = name, uri
        endpoint = endpoint_of(f"--probe {name}", uri, insecure=insecure)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.subscribe(b"")
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            found = f"{uri} ({error})"
            raise BadInput(f"--probe {name}", "URI", found, "one to connect to") from error

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        """The socket."""
        return self._socket

    def receive(self, frame: Frame) -> bool:
        """Put one waiting message into `frame`; False when none waits."""
        receive = self._socket.recv
        try:
            # As ZeroMQ's own frames: they know whether more follows, where the socket has to be
            # asked at the price of a look-up that is slow on cold caches.
            part = receive(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        frame.header, frame.payload, frame.parts = part, b"", 1
        while part.more:
            part = receive(zmq.NOBLOCK, copy=False)
            frame.parts += 1
            if frame.parts == 2:
                frame.payload = part
        return True

    def tend(self) -> str:
        """Nothing is due: ZeroMQ connects and reconnects by itself."""
        return ""

    def report(self) -> dict[str, Any]:
        """Nothing to add to the counters."""
        return {}

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
