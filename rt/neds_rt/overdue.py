"""The thread that says on time that a decode is late: the engine is still at work on its bin.

The serving thread is inside the step then and can say nothing until it is over. So this thread
borrows what that one uses, publishes one invalid decode without a bin, and gives it back; the step
that returns meanwhile waits for it. The order of messages stays whole, the hot path is as it was.
Waiting is done in C++ without the GIL (`EngineSlot::overdue` in `rt/src/engine_slot.hpp`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from neds_rt import _core
from neds_rt.stats import now_ns


class OverdueNotice:
    """Says so once the engine is inside one call for `limit_s` seconds, and every bin after that.

    `say` publishes the notice, as of a time in ns; it runs on this object's thread.
    """

    def __init__(
        self, pipeline: _core.Pipeline, limit_s: float, bin_s: float, say: Callable[[int], None]
    ) -> None:
        self._pipeline, self._say = pipeline, say
        self._limit_ns, self._bin_s = int(limit_s * 1e9), bin_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overdue", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._pipeline.end_overdue()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            since = self._pipeline.overdue(self._limit_ns)
            while not self._stop.is_set() and self._pipeline.borrow(since):
                try:
                    self._say(now_ns())
                finally:
                    self._pipeline.give_back(since)
                self._stop.wait(self._bin_s)
