"""The buffers one spike frame is received into: taken once, used for every frame."""

from __future__ import annotations

import numpy as np

from neds_rt.wire import MAX_HEADER_BYTES, MAX_SPIKES_PER_FRAME, SPIKE_DTYPE

# Pages up to here are touched at the start, so that memory does not grow with the first big frames.
TOUCHED_BYTES = 1 << 18


class Frame:
    """One received frame; `header[:header_size]` and `payload[:payload_size]` are its bytes.

    A part longer than its buffer is cut off there; `oversize` then says so.
    """

    def __init__(self) -> None:
        self.header = bytearray(MAX_HEADER_BYTES + 1)  # one more, so that too long is seen
        payload = np.empty(MAX_SPIKES_PER_FRAME * SPIKE_DTYPE.itemsize, np.uint8)
        payload[:TOUCHED_BYTES] = 0
        self.payload = payload.data
        self.header_size = 0
        self.payload_size = 0
        self.parts = 0
        self.oversize = False
