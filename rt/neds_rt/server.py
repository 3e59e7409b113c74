"""The server: source -> assemble -> step -> encode -> sink, all on the thread that calls `run`.

That thread takes its memory before the first frame, logs nothing and waits only for frames.
`Housekeeping` logs from another thread. Nothing a source sends can stop it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import zmq

from neds_rt import assemble
from neds_rt.bundle import Bundle
from neds_rt.config import ServeConfig
from neds_rt.engines import Engine
from neds_rt.errors import BadInput, EngineFailed, NedsError, StartError
from neds_rt.housekeeping import Housekeeping
from neds_rt.keepwarm import NEVER, KeepWarm
from neds_rt.machine import machine_facts, resident_bytes
from neds_rt.sinks import Sink, open_sink
from neds_rt.sources import Source, open_source
from neds_rt.sources.frame import Frame
from neds_rt.stats import LatencyRing, now_ns

WARM_UP_STEPS = 50
LONGEST_WAIT_NS = 100_000_000  # a stop request is seen at least this often


class Server:
    """Serves one bundle: opens the sink, then on `run` the sources, until it is told to stop."""

    def __init__(self, config: ServeConfig, bundle: Bundle, engine: Engine) -> None:
        """Check that everything fits and bind the sink; raises `BadInput` where it does not."""
        config.check()
        manifest = bundle.manifest
        check_engine(engine, bundle)
        self.config, self.engine, self.model_hash = config, engine, manifest.model_hash
        self.assembler = assemble.make_assembler(manifest, list(config.probe), config.open_bins)
        self._encoder = assemble.make_encoder(manifest, len(config.probe))
        self._validity = assemble.Validity(manifest.shape.window)
        self._counts = self.assembler.counts
        self._message = self._encoder.buffer.data
        self._frame = Frame()
        self.latency = LatencyRing()
        self._bin_ns = int(manifest.bin_size_s * 1e9)
        self.keep_warm = KeepWarm(config.keep_warm, self._bin_ns, self._warm)
        self._seq = self.decodes = self.stale_decodes = 0
        self.reasons = [0] * len(assemble.REASONS)
        self._epoch = -1
        self._stopping = False
        self.failure: EngineFailed | None = None  # why the server ended by itself
        self._engine_calls = _EngineCalls(engine.name)
        self._last_frame_ns = self._last_bin_ns = self._stale_due_ns = 0
        self._idle_ns = NEVER if config.idle_exit is None else int(config.idle_exit * 1e9)
        self._stale_ns = max(int(config.stale_after * 1e9), 2 * self._bin_ns)
        self._rss_ready: int | None = None
        self._sources: dict[Any, Source] = {}  # by what the poller calls them
        self._sink: Sink = open_sink(config.out, insecure=config.insecure)
        self.endpoint = self._sink.endpoint

    def run(self, on_ready: Callable[[Server], None] | None = None) -> dict[str, Any]:
        """Serve until stopped; return the summary. `on_ready` is called before the first frame.

        An engine that raises ends the run: `failure` then says how, after a last invalid decode.
        Raises `StartError` when it does so before the first frame, `BadInput` for a bad source.
        """
        started = time.monotonic()
        housekeeping = Housekeeping(self.assembler.counters)
        was_enabled = gc.isenabled()
        try:
            self._warm_up()
            poller = self._open_sources()
            housekeeping.start()
            gc.collect()
            gc.freeze()
            gc.disable()
            self._rss_ready = resident_bytes()
            if on_ready is not None:
                on_ready(self)
            self._stale_due_ns = now_ns() + self._stale_ns
            self._serve(poller)
        finally:
            gc.unfreeze()
            if was_enabled:
                gc.enable()
            if housekeeping.started:
                housekeeping.stop()
            self.close()
        return self.summary(time.monotonic() - started)

    def stop(self) -> None:
        """End `run` soon; may be called from a signal handler or another thread."""
        self._stopping = True

    def close(self) -> None:
        """Close all sockets; `run` does it on its way out."""
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        self._sink.close()

    def _open_sources(self) -> zmq.Poller:
        """Connect once to every distinct URI: several probes may come over one."""
        poller = zmq.Poller()
        by_uri = {uri: name for name, uri in reversed(self.config.probe.items())}
        for uri, name in by_uri.items():
            source = open_source(name, uri, insecure=self.config.insecure)
            self._sources[source.pollable] = source
            poller.register(source.pollable, zmq.POLLIN)
        return poller

    def _warm_up(self) -> None:
        try:
            for _ in range(WARM_UP_STEPS):
                self._warm()
        except EngineFailed as error:
            raise StartError(str(error)) from error

    def _warm(self) -> None:
        """Go through a decode that nobody gets to see, leaving the stream as it is."""
        with self._engine_calls:
            self.engine.warm()
        self._encoder.encode(0, -1, 0.0, -1.0, now_ns(), assemble.STALE, None)

    def _serve(self, poller: zmq.Poller) -> None:
        try:
            while not self._stopping:
                self._turn(poller)
        except EngineFailed as error:
            self.failure = error
            self._publish_nothing(now_ns(), assemble.ENGINE_FAILED)

    # The hot path, from here to `_publish`.

    def _turn(self, poller: zmq.Poller) -> None:
        """Wait for frames, take one from every source that has one, then do what is due."""
        now = now_ns()
        due = min(now + LONGEST_WAIT_NS, self._stale_due_ns, self.keep_warm.due_ns)
        ready = poller.poll(max(0, -((now - due) // 1_000_000)))
        if ready:
            for pollable, _ in ready:
                received = now_ns()
                if self._sources[pollable].receive(self._frame):
                    self._take(received)
                if self._stopping:
                    return
            now = now_ns()
        else:
            self.keep_warm.tick(now_ns())
            now = now_ns()
        if now >= self._stale_due_ns:
            self._publish_stale(now)
        if self._last_frame_ns and now - self._last_frame_ns >= self._idle_ns:
            self._stopping = True

    def _take(self, received: int) -> None:
        frame, assembler = self._frame, self.assembler
        self._last_frame_ns = received
        if frame.parts != 2:
            assembler.refuse(assemble.PARTS)
        elif frame.oversize:
            assembler.refuse(assemble.OVERSIZE)
        elif assembler.push(frame.header, frame.payload, frame.header_size, frame.payload_size):
            self._close_bins(received)

    def _close_bins(self, received: int) -> None:
        assembler = self.assembler
        if assembler.epoch != self._epoch:
            self._restart()
        while not self._stopping and (n := assembler.pop()):
            if n == 1:
                self._decode(assembler.bin, True, received)
            else:
                self._lose(assembler.bin, -n, received)
        self._last_bin_ns = now_ns()
        self._stale_due_ns = self._last_bin_ns + self._stale_ns

    def _restart(self) -> None:
        """The bins from here on belong to another session than those before."""
        self._epoch = self.assembler.epoch
        with self._engine_calls:
            self.engine.reset()
        self._validity.reset()
        self._encoder.set_session(self.assembler.session)

    def _lose(self, first_bin: int, n_bins: int, received: int) -> None:
        """Publish lost bins up to the length of the window; step over the rest of a long gap."""
        published = min(n_bins, self._validity.window)
        for index in range(first_bin, first_bin + published):
            self._decode(index, False, received)
            if self._stopping:
                return
        if n_bins > published:
            with self._engine_calls:
                self.engine.skip(n_bins - published)
            self._validity.advance(False, n_bins - published)

    def _decode(self, index: int, present: bool, received: int) -> None:
        assembler, encoder = self.assembler, self._encoder
        assembled = now_ns()
        with self._engine_calls:
            outputs = self.engine.step(self._counts, present)
            stepped = now_ns()
            size = encoder.encode(
                self._seq, index, assembler.end_s(index), assembler.spike_lag_s, received,
                self._validity.advance(present), outputs,
            )
        self._publish(size)
        self.latency.add(received, assembled, stepped, encoder.pub_ns, now_ns())
        self.keep_warm.bin_closed(received, stepped - assembled)
        self.decodes += 1
        if self.decodes == self.config.max_bins:
            self._stopping = True

    def _publish_stale(self, now: int) -> None:
        """Say on time that there is nothing to say."""
        self._publish_nothing(now, assemble.STALE)
        self.stale_decodes += 1
        # On the grid of the first one, unless this thread was held up for longer than a bin.
        self._stale_due_ns = max(self._stale_due_ns, now - self._bin_ns) + self._bin_ns

    def _publish_nothing(self, now: int, reason: int) -> None:
        """Publish a message that belongs to no bin and has no values."""
        lag = self.assembler.spike_lag_s
        if lag >= 0:
            lag += (now - self._last_bin_ns) / 1e9
        nan = float("nan")
        size = self._encoder.encode(self._seq, -1, nan, lag, now, reason, None)
        self._publish(size)

    def _publish(self, size: int) -> None:
        self._sink.send(self._message[:size])
        self.reasons[self._encoder.reason] += 1
        self._seq += 1

    def summary(self, seconds: float) -> dict[str, Any]:
        """Return what happened, JSON-ready; the fields are listed in README.md."""
        counters = dict(zip(assemble.COUNTERS, self.assembler.counters.tolist(), strict=True))
        rss_end = resident_bytes()
        return {
            "bins": counters["bins"],
            "decodes": self.decodes,
            "stale_decodes": self.stale_decodes,
            "reasons": dict(zip(assemble.REASONS, self.reasons, strict=True)),
            "counters": counters,
            "latency": self.latency.summary(),
            "keep_warm": self.keep_warm.report(),
            "engine": self.engine.name,
            "precision": self.engine.precision,
            "model": self.model_hash,
            "endpoint": self.endpoint,
            "failure": None if self.failure is None else str(self.failure),
            "seconds": round(seconds, 3),
            "rss_mb": {
                "ready": _megabytes(self._rss_ready),
                "end": _megabytes(rss_end),
            },
            "machine": machine_facts(),
        }


class _EngineCalls:
    """`with` this around calls of an engine: whatever one raises becomes `EngineFailed`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, NedsError):
            raise EngineFailed(self._name, error) from error


def check_engine(engine: Engine, bundle: Bundle) -> None:
    """Raise `BadInput` unless the engine has the bundle's units and outputs."""
    n_units = len(bundle.manifest.units)
    n_outputs = sum(m.n_outputs for m in bundle.manifest.modalities)
    if engine.n_units != n_units:
        raise BadInput(bundle.where, "units", f"{n_units} in the manifest", str(engine.n_units))
    if engine.n_outputs != n_outputs:
        found = f"{n_outputs} in the manifest"
        raise BadInput(bundle.where, "outputs", found, str(engine.n_outputs))


def announce(server: Server) -> None:
    """Print the line on standard error that says that frames will now be decoded."""
    probes = " ".join(f"{name}={uri}" for name, uri in server.config.probe.items())
    print(f"ready {server.endpoint} engine={server.engine.name} {probes}", file=sys.stderr,
          flush=True)


def _megabytes(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 2)
