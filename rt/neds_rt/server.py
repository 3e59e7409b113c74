"""The server: source -> pipeline (assemble, step, encode) -> sink, on the thread that calls `run`.

That thread takes its memory before the first frame, logs nothing and waits only for frames.
`Housekeeping` logs from another thread. Nothing a source sends can stop it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zmq

from neds_rt import _core, aligning, assemble
from neds_rt.bundle import Bundle
from neds_rt.config import ServeConfig
from neds_rt.engine_slot import EngineSlot
from neds_rt.engines import Engine
from neds_rt.errors import BadInput, EngineFailed
from neds_rt.health import gauges
from neds_rt.housekeeping import Housekeeping, logger
from neds_rt.keepwarm import NEVER, KeepWarm
from neds_rt.machine import machine_facts, resident_bytes
from neds_rt.patience import Patience
from neds_rt.recording.flight import ENGINE_FAILED_EVENT, FlightRecorder
from neds_rt.reporting import StatusBoard, StatusPublisher, open_publisher
from neds_rt.sinks import Sink, open_sink
from neds_rt.sources import NATIVE, OWN, Source, open_source, scheme_of
from neds_rt.sources.frame import Frame
from neds_rt.sources.units import read_unit_file
from neds_rt.stats import latency_summary, now_ns
from neds_rt.wire import MAX_SPIKES_PER_FRAME, SPIKE_DTYPE

LATENCY_BINS = 1 << 16  # of which latency is kept
MAX_PAYLOAD_BYTES = MAX_SPIKES_PER_FRAME * SPIKE_DTYPE.itemsize
LONGEST_WAIT_NS = 100_000_000  # a stop request is seen at least this often
SWITCH_S = 1e-4  # after so long another thread hands the interpreter over; Python's own is 5 ms


class Server:
    """Serves one bundle: opens the sink, then on `run` the sources, until it is told to stop."""

    def __init__(self, config: ServeConfig, bundle: Bundle, engine: Engine) -> None:
        """Check that everything fits and bind the sink; raises `BadInput` where it does not."""
        config.check()
        manifest = bundle.manifest
        self.config = config
        unit_file = read_unit_file(config.units) if config.units else None
        self._unit_maps = assemble.unit_maps(manifest, list(config.probe), unit_file)
        assemble.give_templates(self._unit_maps, bundle)
        self.assembler = assemble.make_assembler(
            manifest, list(config.probe), config.open_bins, config.close_after, config.clock_jump)
        self.latency = _core.LatencyRing(LATENCY_BINS)
        self.slot = EngineSlot(config, bundle, engine, self.assembler, self.latency)
        self._pipeline = self.slot.pipeline
        self._frame = Frame()
        aligned = aligning.wanted(config.align, config.probe)
        self._aligner = aligning.Aligner(config.probe) if aligned else None
        self._bin_ns = int(manifest.bin_size_s * 1e9)
        self.keep_warm = KeepWarm(config.keep_warm, self._bin_ns, self.slot.warm)
        self.decodes = self.stale_decodes = self.overdue_decodes = 0
        self._stopping = False
        self.failure: EngineFailed | None = None  # why the server ended by itself
        self._last_frame_ns = self._closed_ns = self._stale_due_ns = 0
        self._idle_ns = NEVER if config.idle_exit is None else int(config.idle_exit * 1e9)
        self._patience = Patience(self._bin_ns, config.stale_after)
        self._rss_ready: int | None = None
        self._source_reports: dict[str, dict[str, Any]] = {}
        self._sources: dict[Any, Source] = {}  # by what the poller calls them
        self.flight = FlightRecorder(config, bundle, engine) if config.record else None
        self.slot.recorder = self.flight
        self._access = config.access()
        self._sink: Sink = open_sink(config.out, self._access)
        self.endpoint = self._sink.endpoint
        try:
            self.slot.open(self._publish_last, self._publish_overdue)
            self._board = StatusBoard(self, manifest)
            self._status: StatusPublisher | None = open_publisher(config, self.endpoint)
        except BaseException:
            self.slot.close()
            self._sink.close()
            raise
        self.status_endpoint = None if self._status is None else self._status.endpoint

    def run(self, on_ready: Callable[[Server], None] | None = None) -> dict[str, Any]:
        """Serve until stopped; return the summary. `on_ready` is called before the first frame.

        An engine that raises ends the run: `failure` then says how, after a last invalid decode.
        Raises `StartError` when it does so before the first frame, `BadInput` for a bad source.
        """
        started = time.monotonic()
        housekeeping: Housekeeping | None = None
        was_enabled, switch_s = gc.isenabled(), sys.getswitchinterval()
        try:
            self.slot.warm_up()
            poller = self._open_sources()
            if self.flight is not None:
                self.flight.start(self._pipeline)
            housekeeping = Housekeeping(
                self.assembler.counters, list(self._sources.values()), self._aligner,
                self.slot.tend, self.flight, None if self._status is None else self._report)
            housekeeping.start()
            self.slot.start()
            gc.collect()
            gc.freeze()
            gc.disable()
            sys.setswitchinterval(SWITCH_S)
            self._rss_ready = resident_bytes()
            if on_ready is not None:
                on_ready(self)
            self._stale_due_ns = now_ns() + self._patience.limit_ns
            self._serve(poller)
        finally:
            sys.setswitchinterval(switch_s)
            gc.unfreeze()
            if was_enabled:
                gc.enable()
            self.slot.stop()
            if housekeeping is not None and housekeeping.started:
                housekeeping.stop()
            if self.flight is not None:
                self.flight.stop()
            self._source_reports = {s.name: _source_report(s) for s in self._sources.values()}
            self.close()
        return self.summary(time.monotonic() - started)

    @property
    def stale_s(self) -> float:
        """How long no bin may close before decodes say that the input is stale."""
        return self._patience.limit_ns / 1e9

    def stop(self) -> None:
        """End `run` soon; may be called from a signal handler or another thread."""
        self._stopping = True

    def close(self) -> None:
        """Close all sockets; `run` does it on its way out."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        self.slot.close()
        self._sink.close()
        if self._status is not None:
            self._status.close()

    def _report(self, sources: Sequence[Source], states: Mapping[str, str]) -> None:
        """Publish how things are; called by the thread beside this one."""
        if self._status is not None:
            self._board.wait_for_quiet()
            self._status.send(self._board.build(sources, states))

    def _open_sources(self) -> zmq.Poller:
        """Connect once to every distinct URI: several probes may come over a native one."""
        poller = zmq.Poller()
        config = self.config
        by_uri = {uri: name for name, uri in reversed(config.probe.items())}
        for name, uri in config.probe.items():
            if by_uri[uri] != name and scheme_of(name, uri) not in NATIVE:
                raise BadInput(f"--probe {name}", "URI", f"that of {by_uri[uri]}", "one of its own")
        for uri, name in by_uri.items():
            units = self._unit_maps[name]
            source = open_source(name, uri, units=units, access=self._access)
            if units.missing and scheme_of(name, uri) not in OWN:
                logger.warning("%s: %d of %d units of the model will stay silent, no name of the "
                               "source means them alone (--units): %s", name, len(units.missing),
                               len(units.units), ", ".join(map(str, units.missing[:5])))
            self._sources[source.pollable] = source
            poller.register(source.pollable, zmq.POLLIN)
        return poller

    def _serve(self, poller: zmq.Poller) -> None:
        try:
            while not self._stopping:
                self._turn(poller)
        except EngineFailed as error:
            self.failure = error
            self._publish_last()

    def _publish_last(self) -> None:
        if self.flight is not None:
            self.flight.event(ENGINE_FAILED_EVENT)
        self._publish(self._pipeline.nothing(assemble.ENGINE_FAILED, now_ns()))

    def _publish_overdue(self, now: int) -> None:
        """Say that a decode is late; on another thread, while this one is inside the step."""
        self._publish(self._pipeline.nothing(assemble.DEADLINE_MISSED, now))
        self.overdue_decodes += 1

    # The hot path, from here to `_publish`.

    def _turn(self, poller: zmq.Poller) -> None:
        """Wait for frames, take one from every source that has one, then do what is due."""
        now = now_ns()
        due = min(now + LONGEST_WAIT_NS, self._stale_due_ns, self.keep_warm.due_ns)
        behind = self._pipeline.standby_behind  # seen to before waiting, but after any frame
        ready = poller.poll(0 if behind else max(0, -((now - due) // 1_000_000)))
        if ready:
            for pollable, _ in ready:
                self._receive(self._sources[pollable])
        elif behind:
            self._pipeline.follow()
        elif self.keep_warm.tick(now_ns()):
            for source in self._sources.values():  # most likely in vain, which warms it as well
                self._receive(source)
        if self._stopping:
            return
        now = now_ns()
        if now >= self._stale_due_ns:
            self._publish_stale(now)
        if self._last_frame_ns and now - self._last_frame_ns >= self._idle_ns:
            self._stopping = True

    def _receive(self, source: Source) -> None:
        received = now_ns()
        frame = self._frame
        if self._stopping or not source.receive(frame):
            return
        self._last_frame_ns = received
        if self._aligner is not None and not self._aligner.take(frame, received):
            return
        if frame.parts != 2:
            self.assembler.refuse(assemble.PARTS)
        elif len(frame.payload) > MAX_PAYLOAD_BYTES:
            self.assembler.refuse(assemble.OVERSIZE)
        else:
            self._decode_bins(received)

    def _decode_bins(self, received: int) -> None:
        """Publish one message for every bin that the frame closed."""
        frame, pipeline = self._frame, self._pipeline
        before = self.decodes
        try:
            size = pipeline.feed(frame.header, frame.payload, received)
        except Exception as error:
            raise self.slot.failed(error) from error
        while size:
            self._publish(size)
            self.decodes += 1
            if self._stopping or self.decodes == self.config.max_bins:
                pipeline.sent()
                self._stopping = True
                return
            try:
                size = pipeline.next()
            except Exception as error:
                raise self.slot.failed(error) from error
        if self.decodes > before:
            now = now_ns()
            if self._closed_ns:
                self._patience.waited(now - self._closed_ns, self.decodes - before)
                pipeline.set_patience(self._patience.limit_ns * 1e-9, self._patience.backlog)
            self._closed_ns = now
            self._stale_due_ns = now + self._patience.limit_ns
            self.keep_warm.bin_closed(received, pipeline.service_ns)

    def _publish_stale(self, now: int) -> None:
        """Say on time that there is nothing to say."""
        self._publish(self._pipeline.nothing(assemble.STALE, now))
        self.stale_decodes += 1
        # On the grid of the first one, unless this thread was held up for longer than a bin.
        self._stale_due_ns = max(self._stale_due_ns, now - self._bin_ns) + self._bin_ns
        for source in self._sources.values():  # one that ZeroMQ gave up dials anew
            self._receive(source)

    def _publish(self, size: int) -> None:
        self._sink.send(self.slot.message()[:size])

    def summary(self, seconds: float) -> dict[str, Any]:
        """Return what happened, JSON-ready; the fields are listed in README.md."""
        counters = dict(zip(assemble.COUNTERS, self.assembler.counters.tolist(), strict=True))
        reasons = dict(zip(assemble.REASONS, self._pipeline.reasons.tolist(), strict=True))
        rss_end = resident_bytes()
        return {
            "bins": counters["bins"],
            "decodes": self.decodes,
            "stale_decodes": self.stale_decodes,
            "overdue_decodes": self.overdue_decodes,
            "reasons": reasons,
            "counters": counters,
            "sources": self._source_reports,
            "health": gauges(self.slot.model.health),
            "clocks": None if self._aligner is None else self._aligner.report(),
            "latency": latency_summary(self.latency),
            "keep_warm": self.keep_warm.report(),
            "stale_after_ms": round(self._patience.limit_ns / 1e6, 3),
            "recording": None if self.flight is None else self.flight.report(),
            "engine": self.slot.engine.name,
            "precision": self.slot.engine.precision,
            "model": self.slot.model.model_hash,
            **self.slot.report(),
            "endpoint": self.endpoint,
            "status": self.status_endpoint,
            "failure": None if self.failure is None else str(self.failure),
            "seconds": round(seconds, 3),
            "rss_mb": {
                "ready": _megabytes(self._rss_ready),
                "end": _megabytes(rss_end),
            },
            "machine": machine_facts(),
        }


def announce(server: Server) -> None:
    """Print the line on standard error that says that frames will now be decoded."""
    probes = " ".join(f"{name}={uri}" for name, uri in server.config.probe.items())
    print(f"ready {server.endpoint} engine={server.slot.engine.name} "
          f"status={server.status_endpoint or 'off'} {probes}", file=sys.stderr, flush=True)


def _source_report(source: Source) -> dict[str, Any]:
    return {"uri": source.uri, "counters": dict(source.counters), **source.report()}


def _megabytes(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 2)
