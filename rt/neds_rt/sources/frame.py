"""What a source hands over: the parts of one message, as it got them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zmq


class Frame:
    """One received frame; one object serves all frames of a server."""

    def __init__(self) -> None:
        self.header: bytes | bytearray | memoryview | zmq.Frame = b""
        self.payload: bytes | memoryview | zmq.Frame = b""
        self.parts = 0  # parts of the message; a frame has 2
