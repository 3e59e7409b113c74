"""The keep-warm tick: a rehearsal of a bin shortly before one is due, so that caches are warm.

After 20 ms of idleness weights and code have left the caches, and a bin takes several times what
it takes in a loop. Whether a tick helps depends on the machine, so `auto` finds out: it ticks in
every other block of bins and keeps the tick only if the median bin, from receiving its frame to
the message written, is clearly faster with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from neds_rt.stats import now_ns

LEAD_NS = 2_000_000  # how long before the bin is due a tick may begin
NEVER = 1 << 62
TRIAL_BLOCKS, BLOCK_BINS = 8, 24
WORTH = 0.95  # the median bin with the tick, as a part of one without, from which it is kept


class KeepWarm:
    """Decides when to call `warm`. Times are ns of the monotonic clock."""

    def __init__(self, mode: str, bin_ns: int, warm: Callable[[], None]) -> None:
        self.mode = mode
        self._bin_ns = bin_ns
        self._warm = warm
        self._ticked = False
        self._last_bin_ns = 0
        self._cost_ns = 0  # the longest of the recent ticks
        self._services = np.zeros((2, TRIAL_BLOCKS * BLOCK_BINS // 2), np.int64)  # without, with
        self._taken = [0, 0]
        self._trial = mode == "auto"
        # Bins shorter than this leave no time in which a tick could not delay a frame.
        self._possible = mode != "off" and bin_ns > 2 * LEAD_NS
        self.active = self._possible and mode == "on"
        self.due_ns = NEVER
        self.ticks = 0

    def bin_closed(self, received_ns: int, service_ns: int) -> None:
        """Tell of a frame that closed a bin, and plan the tick before the next one."""
        paced = received_ns - self._last_bin_ns > self._bin_ns // 2
        self._last_bin_ns = received_ns
        if self._trial and self._possible and paced:
            self._learn(service_ns)
        self._ticked = False
        wanted = self.active or (self._trial and self._possible and self._tick_in_block())
        self.due_ns = received_ns + self._bin_ns - LEAD_NS if wanted and paced else NEVER

    def tick(self, now: int) -> bool:
        """Run the tick if it is due and surely over before the frame it is for; True if it ran."""
        if now < self.due_ns:
            return False
        expected_ns = self.due_ns + LEAD_NS
        self.due_ns = NEVER
        if now + 2 * self._cost_ns >= expected_ns:
            # Too late, or too slow. The estimate fades, so that one slow tick does not end them.
            self._cost_ns -= self._cost_ns // 16
            return False
        self._warm()
        self._cost_ns = max(now_ns() - now, self._cost_ns - self._cost_ns // 16)
        self._ticked = True
        self.ticks += 1
        return True

    def report(self) -> dict[str, Any]:
        """Return the mode, whether ticks are on, their number and what the trial measured."""
        without, with_tick = (self._median(k) for k in (0, 1))
        return {
            "mode": self.mode, "active": self.active, "decided": not self._trial,
            "ticks": self.ticks, "service_us_without": without, "service_us_with": with_tick,
        }

    def _tick_in_block(self) -> bool:
        return sum(self._taken) // BLOCK_BINS % 2 == 1

    def _learn(self, service_ns: int) -> None:
        kind = int(self._ticked)
        if self._taken[kind] < self._services.shape[1]:
            self._services[kind, self._taken[kind]] = service_ns
            self._taken[kind] += 1
        if min(self._taken) == self._services.shape[1]:
            without, with_tick = np.median(self._services, axis=1)
            self.active = bool(with_tick < WORTH * without)
            self._trial = False

    def _median(self, kind: int) -> float | None:
        taken = self._services[kind, : self._taken[kind]]
        return round(float(np.median(taken)) / 1e3, 3) if len(taken) else None
