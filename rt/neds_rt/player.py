"""Plays blocks of spikes into a ZeroMQ socket as a probe would: on time, in order, without loss.

A player binds an XPUB socket, waits for the first subscriber and sends one spike message a block.
Blocks are due when their last sample would have been recorded: deadlines are absolute, counted
from the start, so lateness of one block never adds to the next. The socket is set to block and not
to drop when a subscriber falls behind, which makes an unpaced play lossless.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt.curve import LOCAL, Access
from neds_rt.endpoints import bind, endpoint_of
from neds_rt.errors import BadInput, StartError
from neds_rt.stats import percentiles
from neds_rt.wire import SPIKE_DTYPE, WIRE_VERSION, SpikeHeader, encode_spikes

STALL_S = 30.0  # a subscriber that takes nothing for so long ends the play


class Block(NamedTuple):
    """Spikes of the samples `[t0, watermark)`; `spikes` has dtype `SPIKE_DTYPE`."""

    t0: int
    watermark: int
    spikes: NDArray[np.void]


class Played(NamedTuple):
    """What a play did; `late_us` holds, per block, send time minus due time in microseconds."""

    frames: int
    spikes: int
    first_sample: int
    last_watermark: int
    seconds: float
    unheard: int  # frames sent while nobody was subscribed
    late_us: NDArray[np.float64]

    def summary(self) -> dict[str, Any]:
        """Return the fields as plain numbers, lateness as percentiles (None if not paced)."""
        fields = self._asdict()
        late = fields.pop("late_us")
        return fields | {"late_us": percentiles(late)}


def empty_spikes(n: int = 0) -> NDArray[np.void]:
    """Return `n` zeroed spike records, dtype `SPIKE_DTYPE`."""
    return np.zeros(n, SPIKE_DTYPE)


class Player:
    """One probe's socket: bind, wait for a subscriber, send blocks.

    `session` is made new for every player, as the wire format asks, unless given. Raises
    `BadInput` for a URI that is malformed, in use, or reachable from other machines without keys
    in `access`.
    """

    def __init__(
        self, uri: str, *, stream: str, fs: float, session: str = "", access: Access = LOCAL
    ) -> None:
        self.stream = stream
        self.fs = fs
        self.session = session or uuid.uuid4().hex
        self._seq = 0
        self._listeners = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)  # count each subscriber, not only the first
        self._socket.setsockopt(zmq.SNDTIMEO, int(STALL_S * 1000))
        self._socket.setsockopt(zmq.LINGER, int(STALL_S * 1000))
        try:
            endpoint = bind(uri, self._socket, endpoint_of(uri, uri), access)
        except BadInput:
            self._context.destroy(linger=0)
            raise
        self.uri = f"zmq+{endpoint}"  # with the port the system chose if `:*` was asked for

    def wait(self, seconds: float) -> None:
        """Return when somebody is subscribed; raises `StartError` after `seconds` of waiting."""
        deadline = time.monotonic() + seconds
        while self._listeners == 0:
            left = deadline - time.monotonic()
            if left <= 0:
                raise StartError(f"{self.uri}: no subscriber within {seconds:g} s")
            if self._socket.poll(int(left * 1000) + 1):
                self._hear()

    def send(self, block: Block) -> None:
        """Send one block now; raises `StartError` if the subscriber takes nothing for 30 s."""
        header = SpikeHeader(
            version=WIRE_VERSION,
            stream=self.stream,
            session=self.session,
            seq=self._seq,
            t0_sample=block.t0,
            watermark=block.watermark,
            fs=self.fs,
            sent_mono_ns=time.monotonic_ns(),
            sent_real_ns=time.time_ns(),
            n_spikes=len(block.spikes),
        )
        try:
            self._socket.send_multipart(encode_spikes(header, block.spikes), copy=True)
        except zmq.Again as error:
            raise StartError(f"{self.uri}: subscriber took nothing for {STALL_S:g} s") from error
        self._seq += 1

    def play(
        self, blocks: Iterable[Block], speed: float, *, start_ns: int | None = None
    ) -> Played:
        """Send all blocks at `speed` times real time; `float("inf")` sends as fast as they go.

        `start_ns` is the monotonic time at which the first block's first sample is recorded, now
        if not given.
        """
        start = time.monotonic_ns() if start_ns is None else start_ns
        ns_per_sample = 1e9 / (self.fs * speed)
        late: list[int] = []
        frames = spikes = unheard = first = last = 0
        for block in blocks:
            if frames == 0:
                first = block.t0
            due = start + int((block.watermark - first) * ns_per_sample)
            if speed != float("inf"):
                sleep_until(due)
                late.append(time.monotonic_ns() - due)
            self._hear()
            unheard += self._listeners == 0
            self.send(block)
            frames += 1
            spikes += len(block.spikes)
            last = block.watermark
        seconds = (time.monotonic_ns() - start) / 1e9
        return Played(frames, spikes, first, last, seconds, unheard, np.array(late) / 1e3)

    def close(self, *, flush: bool = True) -> None:
        """Close the socket, first delivering what is queued unless `flush` is False."""
        if flush:
            self._socket.close()
            self._context.term()
        else:
            self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(flush=kind is None)

    def _hear(self) -> None:
        """Read who came (byte 1) and went (byte 0) since the last call."""
        while self._socket.poll(0):
            self._listeners += 1 if self._socket.recv()[:1] == b"\x01" else -1


def sleep_until(due_ns: int) -> None:
    """Sleep until the monotonic clock shows `due_ns`; returns at once when that is past."""
    left = due_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left / 1e9)
