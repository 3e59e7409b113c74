"""The server's engine: which model serves, what may take its place, and who may ask for that.

The switching itself is C++ (`rt/src/engine_slot.hpp`), on the serving thread, between two bins.
This object owns what it switches between, and tells and remembers what happened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from neds_rt import _core
from neds_rt.bundle import Bundle
from neds_rt.config import ServeConfig
from neds_rt.control import ControlSocket, Request
from neds_rt.engines import Engine, load_engine
from neds_rt.errors import BadInput, EngineFailed, StartError
from neds_rt.housekeeping import logger
from neds_rt.models import ServedModel, history_bins
from neds_rt.overdue import OverdueNotice
from neds_rt.recording.changes import SERVES, encode_serves
from neds_rt.swap import SHADOW_BINS, Swapper
from neds_rt.watchdog import Watchdog

if TYPE_CHECKING:
    from neds_rt.recording.flight import FlightRecorder

MAX_SHADOW_BINS = 10_000


class EngineSlot:
    """What serves now. Methods are the serving thread's unless they say otherwise."""

    def __init__(
        self, config: ServeConfig, bundle: Bundle, engine: Engine, assembler: _core.Assembler,
        latency: _core.LatencyRing,
    ) -> None:
        """Build the pipeline around `engine`; raises `BadInput` when it does not fit `bundle`."""
        manifest = bundle.manifest
        self._config, self._assembler = config, assembler
        self._history = _core.History(history_bins(manifest), len(manifest.units))
        self.model = self._model(bundle, engine)
        self.pipeline = _core.Pipeline(assembler, self.model.candidate, latency)
        self.pipeline.keep(self._history)
        budget_s = manifest.bin_size_s if config.budget_ms is None else config.budget_ms / 1e3
        self.pipeline.limit(int(budget_s * 1e9), config.overruns)
        self._limit_text = f"{config.overruns} steps in a row took over {budget_s * 1e3:g} ms"
        self.swapper = Swapper(
            self.pipeline, self._history, self.model, self._build, budget_s, config.trust,
            config.trust_plans)
        self.swaps = self._failovers = 0
        self.failovers: list[dict[str, Any]] = []
        self._news: deque[tuple[str, ...]] = deque()  # what is not logged yet
        self.recorder: FlightRecorder | None = None  # is told what serves
        self._why = ""  # what a rehearsal that failed said
        self._control: ControlSocket | None = None
        self._watchdog: Watchdog | None = None
        self._overdue: OverdueNotice | None = None
        self._bin_s = manifest.bin_size_s

    @property
    def engine(self) -> Engine:
        """The engine that steps."""
        return self.model.serving

    def open(
        self, publish_last: Callable[[], None], publish_overdue: Callable[[int], None]
    ) -> None:
        """Bind the control socket, if there is to be one; raises `BadInput`.

        `publish_last` sends the decode after which there are no more, `publish_overdue` one that
        says, as of a time in ns, that the next is late.
        """
        if self._config.control:
            self._control = ControlSocket(self._config.control, self._handle)

        def last_words() -> str:
            publish_last()
            return (f"neds-rt serve: engine {self.engine.name} failed: a step has not returned "
                    f"for {self._config.hang_after:g} s")

        self._watchdog = Watchdog(self.pipeline, self._config.hang_after, last_words)
        # Whoever wants no word of stale input for so long wants none of late decodes.
        deadline_s = self._config.deadline_ms / 1e3 if self._config.deadline_ms else self._bin_s
        limit_s = max(deadline_s, self._config.stale_after or 0.0)
        self._overdue = OverdueNotice(self.pipeline, limit_s, self._bin_s, publish_overdue)

    def start(self) -> None:
        """Begin to watch the engine and to answer the control socket."""
        for watcher in (self._watchdog, self._overdue):
            if watcher is not None:
                watcher.start()
        if self._control is not None:
            self._control.start()

    def stop(self) -> None:
        """End a load that is going on, and what watches the engine."""
        self.swapper.stop()
        for watcher in (self._watchdog, self._overdue):
            if watcher is not None:
                watcher.stop()

    def close(self) -> None:
        """Remove the control socket."""
        if self._control is not None:
            self._control.close()

    def warm_up(self) -> None:
        """Warm engine and standby before the first frame. Raises `StartError`."""
        try:
            self.model.warm_up()
        except EngineFailed as error:
            raise StartError(str(error)) from error

    # The hot path: `warm`, `message`, and `failed` at its end.

    def warm(self) -> None:
        """Go through a bin that nobody gets to see. An engine that fails in it fails over."""
        self.pipeline.enter()
        try:
            self.model.warm()
        except EngineFailed as error:
            if not self.pipeline.give_up():
                raise
            self._why = str(error)
            self.model.resting = True
        finally:
            self.pipeline.leave()

    def message(self) -> memoryview:
        """Return the buffer of the message that the pipeline has just written."""
        if self.pipeline.swaps != self.swaps:
            self._swapped()
        if self.pipeline.failovers != self._failovers:
            self._failed_over()
        return self.model.message

    def failed(self, error: Exception) -> EngineFailed:
        """Return what to raise for an error of the pipeline."""
        self.message()  # a swap may have come just before
        return EngineFailed(self.engine.name, error)

    def _swapped(self) -> None:
        self.swaps = self.pipeline.swaps
        if self.swapper.offered is not None:
            before, self.model = self.model, self.swapper.offered
            self._news.append(("model %s took over from %s at decode %s",
                               self.model.model_hash[:12], before.model_hash[:12],
                               str(self.pipeline.seq - 1)))
            self._record(self.model.follower)

    def _failed_over(self) -> None:
        self._failovers = self.pipeline.failovers
        name, why = self.engine.name, self._why or self._limit_text
        self._why = ""
        try:
            self.pipeline.raise_failure()
        except Exception as error:
            why = str(EngineFailed(name, error))
        self.model.failed = True
        decode = self.pipeline.seq - 1
        if self.model.standby_follower is not None:
            self._record(self.model.standby_follower)
        self.failovers.append({"from": name, "to": self.engine.name, "why": why,
                               "model": self.model.model_hash, "decode": decode})
        self._news.append(("failed over from engine %s to %s at decode %s: %s", name,
                           self.engine.name, str(decode), why))

    def _record(self, follower: _core.Follower) -> None:
        """Put what serves now on the tape, ahead of its first decode, with how it came there."""
        if self.recorder is not None:
            self.recorder.event(SERVES, encode_serves(
                self.model.model_hash, self.engine, follower.begun, self.pipeline.seq - 1))

    # Other threads.

    def tend(self) -> None:
        """Log what is new; for the housekeeping thread."""
        while self._news:
            logger.warning(*self._news.popleft())

    def report(self) -> dict[str, Any]:
        """Return `swaps` and `failovers`, JSON-ready."""
        return {"swaps": self.swaps, "failovers": list(self.failovers)}

    def _build(self, bundle: Bundle) -> ServedModel:
        return self._model(bundle, load_engine(self._config.engine, bundle))

    def _model(self, bundle: Bundle, engine: Engine) -> ServedModel:
        config, bin_s = self._config, bundle.manifest.bin_size_s
        return ServedModel(
            bundle, engine, self._assembler, self._history, len(config.probe),
            standby=config.fail_over == "native",
            deadline_s=config.deadline_ms / 1e3 if config.deadline_ms else bin_s,
            drift=config.drift,
        )

    def _handle(self, request: Request) -> dict[str, Any]:
        """Do what the control socket was asked for; on one of its threads."""
        n = SHADOW_BINS if request.shadow_bins is None else request.shadow_bins
        if not 1 <= n <= MAX_SHADOW_BINS:
            raise BadInput("model", "--shadow-bins", n, f"1 to {MAX_SHADOW_BINS}")
        if request.command == "load":
            report = self.swapper.load(request.path, n)
            if self.recorder is not None:
                self.recorder.keep_bundle(request.path, report["model"])
            return report
        if request.command == "rollback":
            return self.swapper.rollback(n)
        model, previous = self.swapper.served, self.swapper.previous
        return {
            "model": model.model_hash, "bundle": model.where, "engine": model.serving.name,
            "precision": model.serving.precision,
            "standby": None if model.failed or model.standby is None else model.standby.name,
            "previous": None if previous is None else previous.model_hash,
            "stage": self.swapper.stage, **self.report(),
        }
