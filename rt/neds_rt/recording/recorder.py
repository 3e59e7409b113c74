"""Sources -> spool: takes frames as the server does and appends them, whatever they hold."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from neds_rt.aligning import Aligner, wanted
from neds_rt.assemble import COUNTERS
from neds_rt.curve import LOCAL, Access
from neds_rt.errors import BadInput
from neds_rt.housekeeping import Housekeeping
from neds_rt.recording.spool import Spool
from neds_rt.sources import NATIVE, Source, open_source, scheme_of
from neds_rt.sources.frame import Frame
from neds_rt.sources.units import MAX_NAMES, UNKNOWN, SourceKey, UnitMap
from neds_rt.wire import decode_header

FLUSH_S = 1.0


class FoundUnits(UnitMap):
    """Numbers units as they are first heard of, and writes their names down."""

    def __init__(self, probe: str, spool: Spool) -> None:
        super().__init__([])
        self._probe, self._spool, self._n = probe, spool, 0
        self._heard = bytearray(MAX_NAMES)

    def _find(self, key: SourceKey) -> int:
        if self._n == MAX_NAMES:
            return UNKNOWN
        self._spool.name(self._probe, self._n, *key)
        self._n += 1
        return self._n - 1


class SpooledEdges(deque[tuple[int, int]]):
    """A source's edges, written down as they are appended, whoever takes them afterwards."""

    def __init__(self, probe: str, spool: Spool, edges: deque[tuple[int, int]]) -> None:
        super().__init__(edges, edges.maxlen)
        self._probe, self._spool = probe, spool

    def append(self, edge: tuple[int, int]) -> None:
        """Append (sample, ns of its receipt); called by `receive`, on the thread that records."""
        self._spool.edge(self._probe, *edge)
        super().append(edge)


class Recorder:
    """Records all probes into one spool until `stop`."""

    def __init__(
        self, probes: dict[str, str], spool: Spool, *, access: Access = LOCAL, align: str = "auto"
    ) -> None:
        self.spool, self._names = spool, set(probes)
        self.aligner = Aligner(probes) if wanted(align, probes) else None
        self.counters = {"bad_parts": 0, "bad_header": 0, "bad_stream": 0}
        self._sources: dict[Any, Source] = {}
        self._stopping = False
        by_uri: dict[str, str] = {}
        try:
            for name, uri in probes.items():
                native = scheme_of(name, uri) in NATIVE
                if uri in by_uri and not native:
                    raise BadInput(f"--probe {name}", "URI", f"that of {by_uri[uri]}",
                                   "one of its own")
                if uri not in by_uri:
                    by_uri[uri] = name
                    units = FoundUnits(name, spool)
                    source = open_source(name, uri, units=units, access=access)
                    if source.edges is not None:
                        source.edges = SpooledEdges(name, spool, source.edges)
                    self._sources[source.pollable] = source
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """End `run` soon; may be called from a signal handler."""
        self._stopping = True

    def run(self, seconds: float | None = None) -> None:
        """Record for so long, or until `stop`."""
        poller = zmq.Poller()
        for pollable in self._sources:
            poller.register(pollable, zmq.POLLIN)
        sources = list(self._sources.values())
        housekeeping = Housekeeping(np.zeros(len(COUNTERS), np.int64), sources, self.aligner)
        housekeeping.start()
        frame, end = Frame(), None if seconds is None else time.monotonic() + seconds
        flushed = time.monotonic()
        try:
            while not self._stopping and (end is None or time.monotonic() < end):
                for pollable, _ in poller.poll(50):
                    if self._sources[pollable].receive(frame):
                        self._take(frame, time.monotonic_ns())
                if time.monotonic() - flushed > FLUSH_S:
                    self.spool.flush()
                    flushed = time.monotonic()
        finally:
            housekeeping.stop()

    def report(self) -> dict[str, Any]:
        """Return what every source says of itself, JSON-ready."""
        return {s.name: {"uri": s.uri, "counters": dict(s.counters), **s.report()}
                for s in self._sources.values()}

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources.values():
            source.close()

    def _take(self, frame: Frame, received_ns: int) -> None:
        own = self._own_watermark(frame)
        if self.aligner is not None and not self.aligner.take(frame, received_ns):
            return
        if frame.parts != 2:
            self.counters["bad_parts"] += 1
            return
        header = _copy(frame.header)
        try:
            stream = decode_header(header).stream
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.counters["bad_header"] += 1
            return
        if stream not in self._names:
            self.counters["bad_stream"] += 1
            return
        self.spool.frame(header, _copy(frame.payload), received_ns, own)

    def _own_watermark(self, frame: Frame) -> int | None:
        """Return the watermark of a frame before it is put into another clock, if it may be."""
        if self.aligner is None:
            return None
        try:
            return decode_header(_copy(frame.header)).watermark
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def _copy(part: Any) -> bytes:
    """Return the bytes of a frame's part, which is a buffer of one kind or another."""
    return bytes(memoryview(part))


def spool_path(out: Path) -> Path:
    """Return where the spool of a recording lies."""
    return out.with_name(f".{out.stem}.spool")
