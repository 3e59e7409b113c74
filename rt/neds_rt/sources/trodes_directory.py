"""Where a Trodes network has its streams: its directory asked without ever waiting for it.

A socket at a known address tells where questions are answered; the answer to `get NAME` is the
endpoint of the stream, empty while nobody offers it. The stock client asks for ever; here each
step has a deadline and the whole is begun again, a step a call, so that the caller never waits.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import zmq

from neds_rt.endpoints import check_endpoint
from neds_rt.errors import BadInput
from neds_rt.sources.address import check_host

STEP_S = 2.0  # for each: hearing of the directory, and its answer
MAX_BYTES = 4096
_encode = msgspec.msgpack.Encoder().encode


class _Where(msgspec.Struct):
    replyEndpoint: str


def is_announcement(message: bytes) -> bool:
    """Return whether a message is a directory's, which says where to ask."""
    try:
        return bool(_decode_where(message).replyEndpoint)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


_decode_where = msgspec.msgpack.Decoder(_Where).decode
_decode_answer = msgspec.msgpack.Decoder(str).decode


class Directory:
    """Looks one name up; `step` until it returns an endpoint. All calls from one thread."""

    def __init__(self, endpoint: str, name: str, *, insecure: bool = False) -> None:
        self.endpoint, self.name, self.state = endpoint, name, ""
        self.bad_answers = 0
        self._insecure = insecure
        self._socket: zmq.Socket[bytes] | None = None
        self._asking = False  # else listening for where to ask
        self._deadline = 0.0

    def step(self) -> str | None:
        """Go on as far as that is possible now; return the stream's endpoint once it is known."""
        now = time.monotonic()
        if self._socket is None:
            self._listen(now)
        assert self._socket is not None
        try:
            message = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            if now > self._deadline:
                self.state = (f"the Trodes network at {self.endpoint} does not answer"
                              if self._asking else f"no Trodes network at {self.endpoint}")
                self.close()
            return None
        try:
            if not self._asking:
                self._ask(self._checked(_decode_where(message).replyEndpoint), now)
                return None
            endpoint = _decode_answer(message)
            if endpoint:
                endpoint = self._checked(endpoint)
        except (msgspec.DecodeError, UnicodeDecodeError, BadInput, zmq.ZMQError) as error:
            self.bad_answers += 1
            self.state = f"the Trodes network at {self.endpoint} answers oddly: {error}"
            self.close()
            return None
        self.close()
        if not endpoint:
            self.state = f"the Trodes network at {self.endpoint} has no {self.name} yet"
        return endpoint or None

    def close(self) -> None:
        """Forget the question; the next `step` begins again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _listen(self, now: float) -> None:
        self._open(zmq.SUB, self.endpoint, now)
        self._asking = False

    def _ask(self, endpoint: str, now: float) -> None:
        self.close()
        self._open(zmq.REQ, endpoint, now)
        self._asking = True
        assert self._socket is not None
        self._socket.send(_encode({"tag": "get", "name": self.name, "endpoint": ""}), zmq.NOBLOCK)

    def _open(self, kind: int, endpoint: str, now: float) -> None:
        socket: Any = zmq.Context.instance().socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        if kind == zmq.SUB:
            socket.subscribe(b"")
        self._socket, self._deadline = socket, now + STEP_S
        socket.connect(endpoint)

    def _checked(self, endpoint: str) -> str:
        """Take an endpoint that the network told; it may name this machine only, or `insecure`."""
        check_endpoint("Trodes", endpoint, insecure=self._insecure)
        if endpoint.endswith(":*") or not endpoint.startswith("tcp://"):
            raise BadInput("Trodes", "endpoint", repr(endpoint), "tcp://HOST:PORT")
        check_host("Trodes", endpoint.removeprefix("tcp://").rpartition(":")[0])
        return endpoint
