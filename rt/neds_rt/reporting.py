"""Makes and publishes the `Status` of a running server, on the thread beside the hot path.

Everything read here is a single number or a ring that the serving thread writes without waiting for
anybody. What it costs is the interpreter: a status has to be built in a fraction of a millisecond,
or a frame that arrives meanwhile waits for it.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt import _core
from neds_rt.assemble import COUNTERS, REASONS
from neds_rt.curve import LOCAL, Access
from neds_rt.endpoints import bind
from neds_rt.engines import device_of
from neds_rt.errors import BadInput
from neds_rt.health import gauges
from neds_rt.housekeeping import logger
from neds_rt.machine import resident_bytes
from neds_rt.stats import SPANS, STAGES, now_ns
from neds_rt.status import (
    MAX_ITEMS,
    DriftStatus,
    FailoverStatus,
    Histogram,
    ModalityStatus,
    Percentiles,
    ProbeStatus,
    RasterStatus,
    RecorderStatus,
    Stage,
    Status,
    encode_status,
)

if TYPE_CHECKING:
    from neds_rt.config import ServeConfig
    from neds_rt.engine_slot import EngineSlot
    from neds_rt.manifest import Manifest
    from neds_rt.recording.flight import FlightRecorder
    from neds_rt.server import Server
    from neds_rt.sources import Source

RECENT_S = 10.0
MAX_RECENT_BINS = 2000
FIRST_US, PER_DECADE, DECADES = 1.0, 40, 7  # 1 us to 10 s
RASTER_ROWS, RASTER_S, MAX_RASTER_BINS = 256, 2.0, 256
MEMORY_EVERY_S = 1.0
SILENT_S = 0.3  # blocks of all known programs are shorter
BUILD_NS = 4_000_000  # what building and sending a status takes at worst, the warming tick included
MAX_SHOWN_TEXT, MAX_SHOWN_CLASSES = 80, 64

OFF, AUTO = "off", "auto"


class LatencyBook:
    """Percentiles of a ring of stamps: of the last bins exactly, of all bins by histogram."""

    def __init__(
        self, ring: _core.LatencyRing, bin_size_s: float, deadline_s: float | None = None
    ) -> None:
        self._ring = ring
        self._bins = max(10, min(MAX_RECENT_BINS, math.ceil(RECENT_S / bin_size_s)))
        self.recent_s = self._bins * bin_size_s
        self.deadline_s = bin_size_s if deadline_s is None else deadline_s
        self._ends = [STAGES.index(end) for _, end in SPANS.values()]
        self._starts = [STAGES.index(start) for start, _ in SPANS.values()]
        # The last bucket is for everything beyond the last edge.
        self._edges = FIRST_US * 10 ** (np.arange(PER_DECADE * DECADES + 1) / PER_DECADE)
        self._counts = np.zeros((len(SPANS), len(self._edges) + 1), np.int64)
        self._sums = np.zeros(len(SPANS))
        self._largest = np.zeros(len(SPANS))
        self._service = list(SPANS).index("service_us")
        self._recent = np.zeros((0, len(SPANS)))  # sorted, a column a span
        self._seen = 0
        self.missed = 0

    def update(self) -> None:
        """Take in what was recorded since the last call."""
        rows, recorded = self._ring.rows, self._ring.recorded
        new = min(recorded - self._seen, len(rows))
        self._seen = recorded
        # Of a ring that is full the oldest row may be under the pen at this moment.
        kept = min(recorded, len(rows) - 1)
        n = max(min(new, kept), min(self._bins, kept))
        stamps = rows[np.arange(recorded - n, recorded) % len(rows)]
        spans = (stamps[:, self._ends] - stamps[:, self._starts]) / 1e3
        if new:
            self._count(spans[-new:])
        # A bin long ago is not recent, however few have come since.
        first = now_ns() - int(self.recent_s * 1e9)
        self._recent = np.sort(spans[-self._bins :][stamps[-self._bins :, 0] >= first], axis=0)

    def _count(self, spans: NDArray[np.float64]) -> None:
        places = np.searchsorted(self._edges, spans)
        for i in range(len(SPANS)):
            np.add.at(self._counts[i], places[:, i], 1)
        self._sums += spans.sum(axis=0)
        self._largest = np.maximum(self._largest, spans.max(axis=0))
        self.missed += int((spans[:, self._service] > self.deadline_s * 1e6).sum())

    def stages(self) -> dict[str, Stage]:
        """Return every span of `neds_rt.stats`, by name."""
        count = int(self._counts[0].sum())
        if count == 0:
            return {name: Stage() for name in SPANS}
        picked = np.ceil(np.array([0.5, 0.99, 0.999, 1.0]) * (len(self._recent) - 1)).astype(int)
        recent = self._recent[picked].T.tolist() if len(self._recent) else None
        return {
            name: Stage(Percentiles(*recent[i]) if recent else None, self._of_all(i, count),
                        float(self._sums[i]), count)
            for i, name in enumerate(SPANS)
        }

    def histogram(self) -> Histogram:
        """Return the buckets of `service_us`."""
        recent = self._recent[:, self._service]
        places = np.searchsorted(self._edges, recent)
        counts = np.bincount(places, minlength=len(self._edges) + 1)
        return Histogram(
            FIRST_US, PER_DECADE, counts.tolist(), self._counts[self._service].tolist())

    def _of_all(self, i: int, count: int) -> Percentiles:
        largest = float(self._largest[i])
        places = np.searchsorted(np.cumsum(self._counts[i]), [0.5 * count, 0.99 * count,
                                                              0.999 * count])
        tops = np.minimum(self._edges[np.minimum(places, len(self._edges) - 1)], largest)
        p50, p99, p999 = tops.tolist()
        return Percentiles(p50, p99, p999, largest)


class StatusBoard:
    """Builds the status of one server; every method but the constructor from one thread."""

    def __init__(self, server: Server, manifest: Manifest) -> None:
        """Take all memory, and let the pipeline write into a raster of its last bins."""
        self._server, self._pipeline = server, server.slot.pipeline
        self._run = uuid.uuid4().hex
        self._started = time.monotonic()
        self._bin_size_s = manifest.bin_size_s
        self._units = len(manifest.units)
        bins = max(8, min(MAX_RASTER_BINS, math.ceil(RASTER_S / manifest.bin_size_s)))
        self._raster = _core.Raster(bins, self._units, min(RASTER_ROWS, self._units))
        self._pipeline.watch(self._raster)
        config = server.config
        deadline_s = None if config.deadline_ms is None else config.deadline_ms / 1e3
        self._book = LatencyBook(server.latency, manifest.bin_size_s, deadline_s)
        self._silent_s = max(SILENT_S, 3 * manifest.bin_size_s)
        self._memory = self._memory_ready = _megabytes()
        self._memory_due = 0.0

    def wait_for_quiet(self) -> None:
        """Sleep past the next bin if it is so near that building now might delay it.

        Bins that come on time then never meet this thread. At most a bin's length.
        """
        ring = self._server.latency
        if ring.recorded == 0:
            return
        rows = ring.rows
        bin_ns = int(self._bin_size_s * 1e9)
        due = int(rows[(ring.recorded - 1) % len(rows), 0]) + bin_ns
        left = due - now_ns()
        if 0 < left < BUILD_NS < bin_ns // 2:
            time.sleep((left + BUILD_NS / 4) / 1e9)

    def build(self, sources: Sequence[Source], notes: Mapping[str, str]) -> Status:
        """Return the status of now; `notes` is what sources and clocks say of themselves."""
        server, now = self._server, now_ns()
        model = server.slot.model
        self._book.update()
        if time.monotonic() >= self._memory_due:
            self._memory, self._memory_due = _megabytes(), time.monotonic() + MEMORY_EVERY_S
        counters = dict(zip(COUNTERS, server.assembler.counters.tolist(), strict=True))
        reasons = dict(zip(REASONS, self._pipeline.reasons.tolist(), strict=True))
        code, since_ns = self._raster.word
        return Status(
            run=self._run, mono_ns=now, uptime_s=time.monotonic() - self._started,
            endpoint=server.endpoint, model=model.model_hash, engine=model.serving.name,
            precision=model.serving.precision, device=_cut(device_of(model.serving)),
            bin_size_s=self._bin_size_s,
            modalities=_modalities(model.manifest), bins=counters["bins"],
            decodes=server.latency.recorded, stale_decodes=reasons["stale"],
            valid=code == 0, reason=REASONS[code] if code >= 0 else "",
            reason_s=max(0.0, (now - since_ns) / 1e9) if code >= 0 else 0.0,
            reasons=reasons, counters=counters, stale_s=server.stale_s, silent_s=self._silent_s,
            recent_s=self._book.recent_s, sample_age_s=self._sample_age(now),
            deadline_s=self._book.deadline_s, missed_deadlines=self._book.missed,
            stages=self._book.stages(), service=self._book.histogram(),
            probes=self._probes(sources, notes, now),
            memory_mb=self._memory, memory_ready_mb=self._memory_ready,
            keep_warm=server.keep_warm.active, keep_warm_ticks=server.keep_warm.ticks,
            clocks=notes.get("clocks", ""), raster=self._raster_status(),
            failover=_engines(server.slot), drift=_drift(gauges(model.health)),
            recorder=_recorder(server.flight),
        )

    def _probes(
        self, sources: Sequence[Source], notes: Mapping[str, str], now: int
    ) -> list[ProbeStatus]:
        by_uri = {source.uri: source for source in sources}
        streams = self._server.assembler.streams
        furthest = max((mark / fs for _, _, n, mark, fs, _, _ in streams if n), default=0.0)
        found = []
        for name, units, frames, watermark, fs, heard_ns, missing in streams:
            uri = self._server.config.probe[name]
            source = by_uri.get(uri)
            age = max(0.0, (now - heard_ns) / 1e9) if heard_ns else None
            silent = missing or (age is not None and age > self._silent_s)
            state = "waiting" if age is None else "silent" if silent else "live"
            counters = {} if source is None else source.counters
            moved = {kind: n for kind, n in counters.items() if n}
            trouble = [kind for kind in moved if source is not None and kind in source.messages]
            note = "" if source is None else notes.get(source.name, "")
            found.append(ProbeStatus(
                name, _cut(uri), units, state, _cut(note), frames,
                age, max(0.0, furthest - watermark / fs) if frames else 0.0, moved,
                trouble))
        return found

    def _sample_age(self, now: int) -> float | None:
        ring = self._server.latency
        lag = self._server.assembler.spike_lag_s
        if ring.recorded == 0 or lag < 0:
            return None
        rows = ring.rows
        sent = int(rows[(ring.recorded - 1) % len(rows), -1])
        return float(lag + max(0, now - sent) / 1e9)

    def _raster_status(self) -> RasterStatus:
        bins, reasons, cells = self._raster.recent()
        return RasterStatus(self._raster.rows, self._units, bins, reasons, cells)


def _drift(found: Mapping[str, float | None] | None) -> DriftStatus | None:
    if found is None or found["drift"] is None:
        return None
    return DriftStatus(found["drift"], detail={k: v for k, v in found.items() if v is not None})


def _recorder(flight: FlightRecorder | None) -> RecorderStatus | None:
    if flight is None:
        return None
    report = flight.report()
    return RecorderStatus(
        _cut(report["path"]), _cut(report["state"]), report.get("bytes", 0),
        report.get("waiting_bytes", 0), report.get("lost_records", 0))


class StatusPublisher:
    """A PUB socket that keeps one message for each subscriber, the newest, and never waits."""

    def __init__(self, endpoint: str, access: Access = LOCAL) -> None:
        """Bind; raises `BadInput` for an endpoint that is malformed, in use, or needs keys."""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self.endpoint = bind("--status", self._socket, endpoint, access)
        except BaseException:
            self._socket.close()
            raise

    def send(self, status: Status) -> None:
        """Publish one status."""
        self._socket.send(encode_status(status), zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def open_publisher(config: ServeConfig, out: str) -> StatusPublisher | None:
    """Bind what `--status` asks for; None where that is nothing. `out` is where decodes go.

    `auto` is the port after that of the decodes, or any where that port was left open: a server
    goes without a status, and says so, if somebody else has it.
    """
    if config.status == OFF:
        return None
    if config.status != AUTO:
        return StatusPublisher(config.status, config.access())
    try:
        return StatusPublisher(_beside(out, config.out), config.access())
    except BadInput as error:
        logger.warning("no status is published, choose another endpoint for it: %s", error)
        return None


def _beside(out: str, asked: str) -> str:
    """Return the endpoint that goes with that of the decodes."""
    if out.startswith("ipc://"):
        return f"{out}.status"
    host, _, port = out.rpartition(":")
    return f"{host}:*" if asked.endswith(":*") else f"{host}:{int(port) + 1}"


def _modalities(manifest: Manifest) -> list[ModalityStatus]:
    return [
        ModalityStatus(_cut(m.name), m.kind, m.n_outputs, _cut(m.unit),
                       [_cut(label) for label in m.classes[:MAX_SHOWN_CLASSES]])
        for m in manifest.modalities[:MAX_ITEMS]
    ]


def _engines(slot: EngineSlot) -> FailoverStatus:
    model = slot.model
    standby = "" if model.failed or model.standby is None else model.standby.name
    why = _cut(slot.failovers[-1]["why"]) if slot.failovers else ""
    return FailoverStatus(model.serving.name, standby, len(slot.failovers), slot.swaps, why,
                          model.failed)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_TEXT else text[: MAX_SHOWN_TEXT - 1] + "…"


def _megabytes() -> float | None:
    size = resident_bytes()
    return None if size is None else round(size / 1e6, 2)
