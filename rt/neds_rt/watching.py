"""Receive the status of a running server: what `top`, `dashboard` and `metrics` have in common."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import msgspec
import zmq

from neds_rt.curve import LOCAL, Access
from neds_rt.endpoints import connect
from neds_rt.errors import StartError
from neds_rt.status import MAX_STATUS_BYTES, Status, decode_status

DEFAULT_STATUS = "tcp://127.0.0.1:5581"
TAKE_S = 0.2  # a thread that is to end waits no longer
LOST_S = 1.0  # without a status for so long a server is not there any more


class StatusReader:
    """Subscribes to `--status` of a server, which need not run yet; only the newest one waits.

    Raises `BadInput` for an endpoint that is none, or on another machine without keys.
    """

    def __init__(self, endpoint: str, access: Access = LOCAL) -> None:
        self.endpoint = endpoint
        self.malformed = 0  # messages that were no status
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_STATUS_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.subscribe(b"")
        try:
            connect("--status", self._socket, endpoint, access)
        except BaseException:
            self.close()
            raise

    def recv(self, timeout: float) -> Status | None:
        """Return the next status, None when none came for `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._socket.poll(max(0, round((deadline - time.monotonic()) * 1e3))):
            try:
                return decode_status(self._socket.recv())
            except msgspec.DecodeError:
                self.malformed += 1
        return None

    def first(self, timeout: float) -> Status:
        """Return the next status; raises `StartError` when none came for `timeout` seconds."""
        status = self.recv(timeout)
        if status is None:
            found = f", {self.malformed} messages that were none" if self.malformed else ""
            raise StartError(f"{self.endpoint}: no status for {timeout:g} s{found}: does a server "
                             "run, and is that its --status?")
        return status

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Listener:
    """Takes what comes on a thread of its own, so that whoever looks waits for nobody."""

    def __init__(self, name: str, take: Callable[[], None], disconnect: Callable[[], None]) -> None:
        """Start to call `take`, which waits `TAKE_S` at most; `disconnect` when it has ended."""
        self._take, self._disconnect = take, disconnect
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and disconnect."""
        self._stop.set()
        self._thread.join()
        self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._take()


class LatestStatus(Listener):
    """The newest status of a server."""

    def __init__(self, reader: StatusReader) -> None:
        """Start to read; `reader` is closed with this."""
        self._reader = reader
        self._newest: tuple[Status, float] | None = None
        super().__init__("status", self._next, reader.close)

    def get(self) -> tuple[Status | None, float]:
        """Return the newest status and how many seconds ago it came; (None, inf) before any."""
        newest = self._newest
        if newest is None:
            return None, float("inf")
        return newest[0], time.monotonic() - newest[1]

    def _next(self) -> None:
        status = self._reader.recv(TAKE_S)
        if status is not None:
            self._newest = (status, time.monotonic())


@contextmanager
def until_signal() -> Iterator[threading.Event]:
    """Set the event at SIGINT or SIGTERM, for as long as the block lasts.

    A `KeyboardInterrupt` may be raised where Python has to ignore it; a flag is not lost.
    """
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_signal() -> None:
    """Return at SIGINT or SIGTERM."""
    with until_signal() as stop:
        while not stop.wait(0.5):  # a wait without end would not see the signal on all systems
            continue
