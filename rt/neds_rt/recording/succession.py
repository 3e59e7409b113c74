"""The models and engines of a recording, one after the other, each in the place that it had."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from neds_rt import _core
from neds_rt.assemble import make_encoder, make_stepper
from neds_rt.engines.native import ISA_VARIABLE, NativeEngine
from neds_rt.health import make_health
from neds_rt.models import check_engine, history_bins
from neds_rt.recording.changes import FAILED_OVER, SWAPPED, Change, Serves

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle
    from neds_rt.config import ServeConfig
    from neds_rt.engines import Engine


class Following:
    """An engine that goes through the history from the entry that its like in the server began at.

    It begins when that entry may soon be overwritten, or when it is needed.
    """

    def __init__(self, engine: Engine, history: _core.History, begun: int) -> None:
        counts = np.zeros(engine.n_units, np.uint16)
        self.engine = engine
        self.follower = _core.Follower(history, make_stepper(engine, counts), counts,
                                       engine.n_outputs)
        self._history, self._begun, self._started = history, begun, False

    def advance(self, *, needed: bool = False) -> None:
        """Go on to the present; nothing happens before it is time to begin."""
        due = needed or is_due(self._history, self._begun)
        if not self._started and due and self._history.end > self._begun:
            self.follower.begin_at(self._begun)
            self._started = True
        if self._started:
            self.follower.follow()

    @property
    def faithful(self) -> bool:
        """Whether it began where it had to."""
        return self.follower.begun == self._begun


class Stint:
    """One model for as long as it served, and what took over from its engine."""

    def __init__(
        self, bundle: Bundle, engine: Engine, assembler: _core.Assembler, history: _core.History,
        config: ServeConfig, begun: int, failed: Serves | None,
    ) -> None:
        """Build what the pipeline needs of it; raises `BadInput` where the engine does not fit."""
        check_engine(engine, bundle)
        self.bundle = bundle
        self.encoder = make_encoder(bundle.manifest, len(config.probe))
        self.main = Following(engine, history, begun)
        self.standby: Following | None = None
        self._serving: Following | None = None
        if failed is not None:
            if failed.engine.isa in _core.supported_isas():
                os.environ.setdefault(ISA_VARIABLE, failed.engine.isa)
            self.standby = Following(NativeEngine(bundle), history, failed.begun)
        self.candidate = _core.Candidate(
            make_stepper(engine, assembler.counts), self.encoder, bundle.manifest.shape.window,
            self.main.follower, None if self.standby is None else self.standby.follower,
            make_health(bundle, config.drift))

    def failed_over(self) -> bool:
        """Leave the stream to the standby, which steps now; False if it began elsewhere."""
        self._serving, self.standby = self.standby, None
        return self._serving is not None and self._serving.faithful

    def advance(self) -> None:
        """Have those follow for which it is time."""
        self.main.advance()
        if self.standby is not None:
            self.standby.advance()


class Succession:
    """Who serves, and lets the next one take over where the recording says so."""

    def __init__(
        self, config: ServeConfig, bundles: Mapping[str, Bundle], engine: Engine,
        build: Callable[[Bundle], Engine], assembler: _core.Assembler, first: Bundle,
        changes: Iterable[Change],
    ) -> None:
        """`engine` is that of the bundle `first`, `build` makes those of the others."""
        self._config, self._bundles, self._build = config, bundles, build
        self._assembler = assembler
        self.history = _core.History(history_bins(first.manifest), len(first.manifest.units))
        # Of every model after the first: what it is, and what took over from its engine.
        self._plan: list[tuple[Serves, Serves | None]] = []
        failed: Serves | None = None
        for change in changes:
            if change.kind == SWAPPED:
                self._plan.append((change.serves, None))
            elif self._plan:
                self._plan[-1] = (self._plan[-1][0], change.serves)
            else:
                failed = change.serves
        self._due = [change.kind for change in changes]  # those still to come
        self._started: dict[int, Stint] = {}  # of the plan, before they serve
        self.stint = Stint(first, engine, assembler, self.history, config, 0, failed)
        self._next = 0
        self._offered: Stint | None = None
        self._failing = False

    def advance(self) -> None:
        """Bring all that has to follow the stream by now to the present."""
        if self.stint.standby is not None:
            self.stint.standby.advance()
        for k in range(self._next, len(self._plan)):
            serves, failed = self._plan[k]
            entries = [serves.begun] + ([] if failed is None else [failed.begun])
            if k in self._started or is_due(self.history, min(entries)):
                self._stint(k).advance()

    def take_over(self, kind: str, pipeline: _core.Pipeline) -> bool:
        """Have the next change happen with the bin to come; False if it cannot be followed."""
        if not self._due or self._due.pop(0) != kind or self._offered is not None:
            return False
        if kind == FAILED_OVER:
            standby = self.stint.standby
            if standby is None:
                return False
            standby.advance(needed=True)
            self._failing = True
            return pipeline.give_up()
        stint = self._stint(self._next)
        stint.main.advance(needed=True)
        if stint.main.follower.behind or not stint.main.faithful:
            return False
        self._next += 1
        self._offered = stint
        pipeline.offer(stint.candidate)
        return True

    def settle(self, pipeline: _core.Pipeline) -> bool:
        """See who made the last message; False if whoever was to take over has not."""
        if self._failing:
            self._failing = False
            return self.stint.failed_over()
        if self._offered is None:
            return True
        stint, self._offered = self._offered, None
        if pipeline.retract(stint.candidate):
            return False
        self._started.pop(self._next - 1)
        self.stint = stint
        return True

    def _stint(self, k: int) -> Stint:
        if k not in self._started:
            serves, failed = self._plan[k]
            bundle = self._bundles[serves.model]
            self._started[k] = Stint(bundle, self._build(bundle), self._assembler, self.history,
                                     self._config, serves.begun, failed)
        return self._started[k]


def is_due(history: _core.History, entry: int) -> bool:
    """Whether an entry of the history may soon be overwritten."""
    return history.end - entry >= 3 * history.capacity // 4
