"""From a foreign source to the server: spikes and watermarks written as native frames.

A source that speaks another program's protocol does not bring a second way into the server. It
collects spikes in a `Bridge` and, where it knows that a stretch of samples is complete, has the
bridge fill the server's `Frame` exactly as a native publisher would have sent it. Binning, gaps,
late spikes, restarts and recording then have one implementation, `rt/src/assembler.hpp`.
"""

from __future__ import annotations

import struct
import time
import uuid
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds_rt.sources.frame import Frame
from neds_rt.wire import MAX_SAMPLE, SPIKE_DTYPE, WIRE_VERSION, SpikeHeader

CAPACITY = 1 << 16  # spikes that can wait for a watermark before a frame is sent without one
_RUN = uuid.uuid4().hex[:12]  # tells this process's sessions from those of another one
_SPIKE = struct.Struct("<qI")


class Bridge:
    """One stream on its way into the assembler. Takes its memory here, none later on.

    Sessions are numbered from 1 and named after their number, so that several probes of one
    acquisition restart into the same session.
    """

    def __init__(self, stream: str, capacity: int = CAPACITY) -> None:
        self.stream = stream
        self.watermark: int | None = None  # of the last frame of this session
        self.waiting = 0  # spikes that no frame has taken yet
        self.n_sessions = 0
        self._seq = 0
        self._capacity = capacity
        self._spikes = np.zeros(capacity, SPIKE_DTYPE)
        self._bytes = self._spikes.view(np.uint8).data
        self._header = bytearray(512)
        self._encode_into = msgspec.msgpack.Encoder().encode_into
        self.restart()

    @property
    def full(self) -> bool:
        """Whether `flush` has to be called before the next `add`."""
        return self.waiting == self._capacity

    def restart(self) -> None:
        """Begin a new session: samples count anew, spikes that still wait are dropped."""
        self.n_sessions += 1
        self.session = f"{_RUN}.{self.n_sessions}"
        self.watermark, self.waiting, self._seq = None, 0, 0

    def add(self, sample: int, unit: int) -> None:
        """Keep one spike for the next frame; the caller has checked `full` and the sample."""
        _SPIKE.pack_into(self._bytes, 12 * self.waiting, sample, unit)
        self.waiting += 1

    def extend(self, samples: NDArray[Any], units: NDArray[Any]) -> None:
        """Keep the spikes (n,) for the next frame; raises `ValueError` if there is no room."""
        end = self.waiting + len(samples)
        self._spikes["sample"][self.waiting : end] = samples
        self._spikes["unit"][self.waiting : end] = units
        self.waiting = end

    def emit(self, frame: Frame, t0: int, watermark: int, fs: float) -> None:
        """Fill `frame`: all spikes of samples `[t0, watermark)` are here or were sent before.

        `t0` above the last watermark declares that what lies between them is lost. Both are
        clipped to the limits of the wire format, which the assembler checks.
        """
        t0 = min(max(t0, -MAX_SAMPLE), MAX_SAMPLE)
        watermark = min(max(watermark, t0), MAX_SAMPLE)
        header = SpikeHeader(
            WIRE_VERSION, self.stream, self.session, self._seq, t0, watermark, fs,
            time.monotonic_ns(), time.time_ns(), self.waiting,
        )
        self._encode_into(header, self._header)
        frame.header = self._header
        frame.payload = self._bytes[: 12 * self.waiting]
        frame.parts = 2
        self.watermark = watermark
        self._seq += 1
        self.waiting = 0

    def flush(self, frame: Frame, fs: float) -> bool:
        """Fill `frame` with the spikes that wait, ahead of the watermark; False before the first.

        Before a session's first frame nothing says where it begins: the spikes are then dropped.
        """
        if self.watermark is None:
            self.waiting = 0
            return False
        self.emit(frame, self.watermark, self.watermark, fs)
        return True
