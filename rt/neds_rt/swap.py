"""Another model in the place of the one that is served, between two bins and without missing one.

All of this runs on the thread that asks for it, never on the serving one: read and verify the
bundle, build its engine, warm it, take it through the bins that are kept (`_core.History`) to the
present, let it decode some live bins that nobody sees, then offer it. The serving thread takes it
at the start of a bin, if it has seen every bin before that one: two pointers change.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from neds_rt import _core
from neds_rt.bundle import Bundle
from neds_rt.bundle_reader import read_apart
from neds_rt.errors import BadInput, EngineFailed, NedsError, StartError
from neds_rt.models import ServedModel, check_replacement

SHADOW_BINS = 10
SILENCE_S = 3.0  # without a live bin for so long, a swap is given up
# Python code of this thread gives way to the serving thread after so long, not after 5 ms.
SWITCH_INTERVAL_S = 1e-4
MOST_OFFERS = 1000
STRIDE = 64  # bins of the past between two looks at whether to go on


class Swapper:
    """Loads models beside the one that is served. One load or rollback at a time."""

    def __init__(
        self, pipeline: _core.Pipeline, history: _core.History, served: ServedModel,
        build: Callable[[Bundle], ServedModel], budget_s: float, trust: str = "",
        trust_plans: bool = False,
    ) -> None:
        """`build` makes a model of a bundle; shadowed steps may take `budget_s` at the median.

        With `trust`, a file of public keys, only bundles signed by one of those are loaded.
        `trust_plans` as for `read_bundle`.
        """
        self._trust, self._trust_plans = trust, trust_plans
        self._pipeline, self._history, self._build = pipeline, history, build
        self._budget_s = budget_s
        self._bin_s = served.manifest.bin_size_s
        self._busy = threading.Lock()
        self._stopped = threading.Event()
        self.served = served
        self.previous: ServedModel | None = None
        self.offered: ServedModel | None = None  # what the serving thread may find in its place
        self.stage = "idle"

    def stop(self) -> None:
        """Have a load that is going on end soon, without a swap."""
        self._stopped.set()

    def load(self, path: str, shadow_bins: int = SHADOW_BINS) -> dict[str, Any]:
        """Serve the bundle at `path` from some bin on; returns once that bin has come.

        Returns `model` and `previous` (hashes), `engine`, `replayed_bins`, `shadow_bins`,
        `seconds` by stage. Raises `BadInput` for a bundle that is damaged or does not fit,
        `EngineFailed` for an engine that fails before it serves, `StartError` when no bins come or
        another load is going on. Nothing has changed then.
        """
        with self._alone() as clock:
            clock.stage("read")
            bundle = read_apart(path, self._trust, self._trust_plans)
            check_replacement(self.served.manifest, bundle.manifest, self._history.capacity,
                              bundle.where)
            clock.stage("build")
            model = self._build(bundle)
            del bundle
            clock.stage("warm")
            model.warm_up()
            return self._bring_in(model, shadow_bins, clock)

    def rollback(self, shadow_bins: int = SHADOW_BINS) -> dict[str, Any]:
        """Serve the model before this one again; returns and raises as `load` does."""
        with self._alone() as clock:
            model = self.previous
            if model is None:
                raise BadInput("rollback", "model", "none before this one", "a swap beforehand")
            if model.failed:
                raise BadInput("rollback", "engine", f"{model.engine.name}, which has failed",
                               f"one that works: load {model.where} anew")
            return self._bring_in(model, shadow_bins, clock)

    def _bring_in(
        self, model: ServedModel, shadow_bins: int, clock: _Clock
    ) -> dict[str, Any]:
        clock.stage("replay")
        model.follower.restart()
        replayed = self._to_present(model)
        clock.stage("shadow")
        slowest = self._shadow(model, shadow_bins)
        clock.stage("swap")
        self._swap(model)
        before, self.served = self.served, model
        self.previous = before
        clock.stage("idle")
        return {
            "model": model.model_hash, "previous": before.model_hash, "engine": model.engine.name,
            "precision": model.engine.precision, "replayed_bins": replayed,
            "shadow_bins": shadow_bins, "shadow_step_us": slowest, "seconds": clock.seconds,
        }

    def _to_present(self, model: ServedModel) -> int:
        """Take the engine and its standby through all that is kept; returns the bins of it."""
        replayed = 0
        for follower in (model.standby_follower, model.follower):
            done = 0
            while follower is not None and follower.behind:
                self._go_on()
                before = time.perf_counter()
                n = _step(model, follower, STRIDE)
                if n == STRIDE:
                    took = (time.perf_counter() - before) / n
                    self._check_pace(model, took, f"each of {n} bins")
                done += n
                if done > 4 * self._history.capacity:
                    raise StartError(f"engine {model.engine.name}: slower than bins come")
            replayed = done
        return replayed

    def _shadow(self, model: ServedModel, n_bins: int) -> dict[str, float]:
        """Decode live bins unseen; returns the median and longest step in microseconds."""
        took: list[float] = []
        pace = self._patience()
        while len(took) < n_bins:
            before = time.perf_counter()
            if not _step(model, model.follower, 1):
                next(pace)
                continue
            took.append(time.perf_counter() - before)
            pace = self._patience()
            if not model.follower.finite:
                raise EngineFailed(model.engine.name, ValueError("outputs that are not finite"))
        median = float(np.median(took)) if took else 0.0
        self._check_pace(model, median, f"the median of {n_bins} live bins")
        return {"p50": round(median * 1e6, 1), "max": round(max(took, default=0.0) * 1e6, 1)}

    def _check_pace(self, model: ServedModel, step_s: float, what: str) -> None:
        if step_s > self._budget_s:
            raise StartError(f"engine {model.engine.name}: {what} took {step_s * 1e3:.1f} ms, "
                             f"expected at most {self._budget_s * 1e3:.1f}")

    def _swap(self, model: ServedModel) -> None:
        """Offer the model until the serving thread has it."""
        pace = self._patience()
        self.offered = model
        for _ in range(MOST_OFFERS):
            for follower in (model.standby_follower, model.follower):
                if follower is not None:
                    _step(model, follower, STRIDE)
            at = self._history.end
            self._pipeline.offer(model.candidate)
            try:
                while self._history.end == at:
                    next(pace)
            except NedsError:
                if self._pipeline.retract(model.candidate):
                    raise
            if not self._pipeline.retract(model.candidate):
                return
            # That bin came before the model had seen the one ahead of it: on to the next.
        raise StartError(f"engine {model.engine.name}: never at the present between two bins")

    def _patience(self) -> Iterator[None]:
        """Wait an eighth of a bin each time; raises `StartError` after `SILENCE_S` of them."""
        until = time.monotonic() + SILENCE_S
        while time.monotonic() < until:
            self._go_on()
            time.sleep(self._bin_s / 8)
            yield
        raise StartError(f"no live bin for {SILENCE_S:g} s: the model is as before")

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise StartError("the server is about to end: the model is as before")

    @contextmanager
    def _alone(self) -> Iterator[_Clock]:
        if not self._busy.acquire(blocking=False):
            raise StartError(f"another model is being brought in ({self.stage})")
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            yield _Clock(self)
        finally:
            self.stage = "idle"
            gc.collect()  # the collector is off; what was there at the start is not looked at
            sys.setswitchinterval(interval)
            self._busy.release()


class _Clock:
    """Says which stage a load is in, and how long each took."""

    def __init__(self, swapper: Swapper) -> None:
        self._swapper = swapper
        self._since = time.monotonic()
        self.seconds: dict[str, float] = {}

    def stage(self, name: str) -> None:
        now = time.monotonic()
        if self._swapper.stage != "idle":
            self.seconds[self._swapper.stage] = round(now - self._since, 3)
        self._since, self._swapper.stage = now, name


def _step(model: ServedModel, follower: _core.Follower, most: int) -> int:
    try:
        return follower.follow(most)
    except Exception as error:
        raise EngineFailed(model.engine.name, error) from error
