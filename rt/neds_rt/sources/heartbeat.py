"""The connection to an Open Ephys plugin, watched beside the hot path."""

from __future__ import annotations

import contextlib
import json
import time
import uuid

import zmq
from zmq.utils.monitor import recv_monitor_message

# A part that is too long ends a connection for good: libzmq does not dial again after what it takes
# for an error of the protocol. Whoever was lost for so long is dialled anew.
DEAF_S = 2.0
MAX_ANSWER_BYTES = 4096
BEAT_S = 2.0  # what the plugin's documentation asks for; after 5 s it calls a client dead
PATIENCE_S = 10.0  # without an answer the socket is made anew: a REQ socket cannot ask twice


class Heartbeat:
    """Tells the plugin that somebody listens; all calls but `__init__` from one thread.

    The answer proves that the plugin lives, not that acquisition runs; data come without it.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.sent = self.answered = self.given_up = 0
        self.reply = ""
        beat = {"application": "neds-rt", "uuid": str(uuid.uuid4()), "type": "heartbeat"}
        self._beat = json.dumps(beat).encode()
        self._socket: zmq.Socket[bytes] | None = None
        self._due = self._asked = 0.0
        self._waiting = False

    @property
    def alive(self) -> bool:
        """Whether the last question was answered, or is young."""
        return self.answered > 0 and (not self._waiting or time.monotonic() - self._asked < BEAT_S)

    def tend(self) -> None:
        """Send and receive what is due, without waiting."""
        now = time.monotonic()
        if self._socket is None:
            self._socket = zmq.Context.instance().socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_ANSWER_BYTES)
            self._socket.connect(self.endpoint)
            self._waiting = False
        if self._waiting and self._socket.poll(0):
            self.reply = self._socket.recv()[:60].decode("ascii", "replace").rstrip("\0")
            self.answered += 1
            self._waiting, self._due = False, self._asked + BEAT_S
        elif self._waiting and now - self._asked > PATIENCE_S:
            self.given_up += 1
            self.close()
        elif not self._waiting and now >= self._due:
            try:
                self._socket.send(self._beat, zmq.NOBLOCK)
            except zmq.Again:  # nobody there yet
                self._due = now + BEAT_S / 4
                return
            self.sent += 1
            self._waiting, self._asked = True, now

    def close(self) -> None:
        """Close the socket; the next `tend` opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def report(self) -> dict[str, int | str]:
        """Return what was asked and answered, JSON-ready."""
        return {"sent": self.sent, "answered": self.answered, "given_up": self.given_up,
                "reply": self.reply}


class Link:
    """Whether a SUB socket has somebody at the other end, seen from another thread."""

    EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._watched = socket
        self._monitor = socket.get_monitor_socket(self.EVENTS)
        self._up = False
        self._lost_s: float | None = None  # when, since the connection last stood
        self.deaf = False  # lost for long: `revive` is due
        self.connections = 0
        self.losses = 0  # connections that were lost

    def up(self) -> bool:
        """Return whether the connection stands."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self._up = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.losses += not self._up
            self.connections += self._up
            self._lost_s = None if self._up else time.monotonic()
        if self._lost_s is not None and time.monotonic() - self._lost_s > DEAF_S:
            self._lost_s, self.deaf = time.monotonic(), True
        return self._up

    def revive(self, endpoint: str) -> None:
        """Dial anew; from the thread that owns the watched socket, when that has nothing to give.

        Where libzmq was still dialling this does no harm.
        """
        self.deaf = False
        with contextlib.suppress(zmq.ZMQError):  # it may know of no such connection any more
            self._watched.disconnect(endpoint)
        self._watched.connect(endpoint)

    def close(self) -> None:
        """End the watch; from the thread that owns the watched socket, which is still open."""
        self._watched.disable_monitor()
        self._monitor.close(linger=0)


def open_subscriber(endpoint: str, queue: int, max_part_bytes: int) -> zmq.Socket[bytes]:
    """Return a SUB socket for everything at `endpoint`, that connects by itself when it can."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    for option, value in (
        (zmq.RCVHWM, queue), (zmq.MAXMSGSIZE, max_part_bytes), (zmq.LINGER, 0),
        (zmq.RECONNECT_IVL, 50), (zmq.RECONNECT_IVL_MAX, 500),
    ):
        socket.setsockopt(option, value)
    socket.subscribe(b"")
    return socket


def receive_parts(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Return the parts of a waiting message; raises `zmq.Again` where none waits.

    Does what `recv_multipart` does at half its price: ZeroMQ's own frames know whether more
    follows, where the socket has to be asked.
    """
    part = socket.recv(zmq.NOBLOCK, copy=False)
    parts = [part.bytes]
    while part.more:
        part = socket.recv(zmq.NOBLOCK, copy=False)
        parts.append(part.bytes)
    return parts
