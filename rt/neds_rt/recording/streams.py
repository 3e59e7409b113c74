"""Frames of a stream -> its spikes and the samples it covered, by the rules of the assembler.

What is kept is what live binning counts (README.md, "Bins"): late spikes and duplicates are left
out, a gap ends a span. One difference: spikes that ran further ahead of their watermark than the
assembler keeps are kept here.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds_rt.player import empty_spikes
from neds_rt.wire import SPIKE_DTYPE, SpikeHeader, decode_header

MAX_UNITS = 1 << 16  # of a probe; a sender that numbers more has them left out


class Stream:
    """One session of one probe: `spans`, spikes, and what was refused, by kind."""

    def __init__(self, first: SpikeHeader) -> None:
        self.session, self.fs = first.session, first.fs
        self.spans: list[list[int]] = [[first.t0_sample, first.t0_sample]]
        self.counters = dict.fromkeys(
            ("frames", "duplicate", "bad_payload", "bad_rate", "bad_watermark", "late_spikes",
             "unit_range", "gaps"), 0)
        self._seq: int | None = None
        self._watermark = first.t0_sample
        self.received = array("q")  # of each frame taken: watermark, the same in its own clock, ns
        self.edges = array("q")  # of each: sample in the probe's own clock, ns
        self._reach = 0  # how far past a watermark spikes have come
        self._parts: list[NDArray[np.void]] = []

    def take(
        self, header: SpikeHeader, payload: bytes, ns: int = 0, own: int | None = None
    ) -> None:
        """Take a frame of this session; `own` is its watermark in the probe's own clock."""
        refused = self._refused(header, payload)
        if refused:
            self.counters[refused] += 1
            return
        self.counters["frames"] += 1
        self.received.extend((header.watermark, header.watermark if own is None else own, ns))
        spikes = np.frombuffer(payload, SPIKE_DTYPE)
        kept = spikes[spikes["sample"] >= self._watermark]
        self.counters["late_spikes"] += len(spikes) - len(kept)
        known = kept["unit"] < MAX_UNITS
        self.counters["unit_range"] += len(kept) - int(known.sum())
        kept = kept[known]
        self._cover(header)
        if len(kept):
            self._parts.append(kept)
            self._reach = max(self._reach, int(kept["sample"].max()) + 1 - header.watermark)
        self._seq, self._watermark = header.seq, header.watermark

    def spikes(self) -> NDArray[np.void]:
        """Return all spikes by sample, those of one sample as they came."""
        if not self._parts:
            return empty_spikes()
        whole = np.concatenate(self._parts)
        return whole[np.argsort(whole["sample"], kind="stable")]

    def _refused(self, header: SpikeHeader, payload: bytes) -> str:
        if self._seq is not None and header.seq <= self._seq:
            return "duplicate"
        if len(payload) != header.n_spikes * SPIKE_DTYPE.itemsize:
            return "bad_payload"
        if header.fs != self.fs:
            return "bad_rate"
        return "bad_watermark" if header.watermark < self._watermark else ""

    def _cover(self, header: SpikeHeader) -> None:
        begin = header.t0_sample
        if self._seq is not None:
            begin = max(begin, self._watermark)
            if header.seq > self._seq + 1 and self._reach > 0:
                # The missing frames may have carried early spikes as far as that.
                begin = max(begin, header.watermark + self._reach)
        if begin > self.spans[-1][1]:
            self.counters["gaps"] += 1
            self.spans.append([begin, begin])
        self.spans[-1][1] = max(self.spans[-1][1], header.watermark)


class Probe:
    """The sessions of one probe, in order; the last one runs."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.bad_header = self.ended_session = 0
        self._edges = array("q")  # since the last frame

    def edge(self, sample: int, ns: int) -> None:
        """Take an edge. It belongs to the session of the next frame, which comes after it."""
        self._edges.extend((sample, ns))

    def end(self) -> None:
        """Give edges that no frame came after to the session that runs."""
        if self.streams:
            self.streams[-1].edges.extend(self._edges)

    def take(
        self, head: bytes, payload: bytes, ns: int = 0, own: int | None = None
    ) -> str | None:
        """Take a frame's two parts; return its stream's name, None if the header is none."""
        try:
            header = decode_header(head)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        running = self.streams[-1] if self.streams else None
        if running is None or header.session != running.session:
            ended = any(s.session == header.session for s in self.streams)
            if ended and header.seq > 0:
                self.ended_session += 1
                return header.stream
            self.streams.append(Stream(header))
        self.streams[-1].edges.extend(self._edges)
        self._edges = array("q")
        self.streams[-1].take(header, payload, ns, own)
        return header.stream


def common_spans(spans: list[list[list[int]]]) -> NDArray[np.int64]:
    """Return the samples (n, 2) that all streams cover, from 0 on, ascending, none empty."""
    common = np.array([[0, np.iinfo(np.int64).max]])
    for own in spans:
        cut = [
            (max(a, b), min(c, d)) for a, c in common.tolist() for b, d in own if
            max(a, b) < min(c, d)
        ]
        common = np.array(sorted(cut), np.int64).reshape(-1, 2)
    return common


def inside(samples: NDArray[Any], spans: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the samples (n,) lie in one of the spans (m, 2)."""
    row = np.searchsorted(spans[:, 0], samples, side="right") - 1
    found: NDArray[np.bool_] = (row >= 0) & (samples < spans[np.maximum(row, 0), 1])
    return found
