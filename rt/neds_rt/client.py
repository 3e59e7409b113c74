"""Receive decodes.

    with neds_rt.Client("tcp://127.0.0.1:5580") as client:
        for decode in client:
            print(decode.bin, decode.valid, decode.values)

On another machine than the server's, with keys of `neds-rt keygen`:

    access = neds_rt.read_access(key="me.key_secret", server="server.key")
    with neds_rt.Client("tcp://192.168.1.5:5580", access=access) as client: ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import msgspec
import zmq

from neds_rt.curve import LOCAL, Access
from neds_rt.endpoints import connect
from neds_rt.wire import MAX_DECODE_BYTES, MAX_WAITING, Decode, decode_message


class Client:
    """Subscribes to a server's decodes; iterate over it, or call `recv`.

    `endpoint` is the server's `--out`. The server need not run yet: the client connects when it
    appears, and again after a restart. With `latest` only the newest decode waits, for viewers.
    Raises `BadInput` for an endpoint that is none, or on another machine without keys in `access`.
    """

    def __init__(
        self, endpoint: str, *, latest: bool = False, access: Access = LOCAL
    ) -> None:
        self.endpoint = endpoint
        self.missed = 0  # decodes lost on the way, by sequence number
        self.malformed = 0  # messages that were no decodes
        self._last_seq: int | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, MAX_WAITING)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_DECODE_BYTES)
        if latest:
            self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.subscribe(b"")
        try:
            connect("Client", self._socket, endpoint, access)
        except BaseException:
            self.close()
            raise

    def recv(self, timeout: float | None = None) -> Decode:
        """Return the next decode; raises `TimeoutError` when none came for `timeout` seconds."""
        while True:
            if not self._socket.poll(None if timeout is None else max(0, round(timeout * 1e3))):
                raise TimeoutError(f"no decode from {self.endpoint} for {timeout:g} s")
            try:
                decode = decode_message(self._socket.recv())
            except msgspec.DecodeError:
                self.malformed += 1
                continue
            self._count_missed(decode.seq)
            return decode

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        self._context.term()

    def __iter__(self) -> Iterator[Decode]:
        while True:
            yield self.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count_missed(self, seq: int) -> None:
        last, self._last_seq = self._last_seq, seq
        if last is not None and seq > last + 1:  # a lower one is that of a restarted server
            self.missed += seq - last - 1
