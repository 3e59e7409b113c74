"""Receive the status of a running server: what `top`, `dashboard` and `metrics` have in common."""

from __future__ import annotations

import time
from typing import Self

import msgspec
import zmq

from neds_rt.endpoints import check_endpoint
from neds_rt.errors import BadInput, StartError
from neds_rt.status import MAX_STATUS_BYTES, Status, decode_status

DEFAULT_STATUS = "tcp://127.0.0.1:5581"
LOST_S = 1.0  # without a status for so long a server is not there any more


class StatusReader:
    """Subscribes to `--status` of a server, which need not run yet; only the newest one waits.

    Raises `BadInput` for an endpoint that is none, or on another machine without `insecure`.
    """

    def __init__(self, endpoint: str, *, insecure: bool = False) -> None:
        check_endpoint("--status", endpoint, insecure=insecure)
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
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            expected = "tcp://HOST:PORT or ipc://PATH"
            raise BadInput("--status", "endpoint", f"{endpoint} ({error})", expected) from error

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
