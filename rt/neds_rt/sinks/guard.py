"""Whether an output may act: the safe state of sinks, apart from what each of them does in it."""

from __future__ import annotations

import math

from neds_rt.errors import BadInput
from neds_rt.sinks.outlet import WHERE
from neds_rt.wire import Decode

LATE_S = 0.003
"""By how much a decode may come later than a bin after the last one.

Of the 5 ms that the safe state may take beyond a bin; the rest is for this process to wake up in.
"""

UNKNOWN_BIN_S = 0.02  # before the first decode of a bin told how long one is


class Guard:
    """Follows the decodes: safe from an invalid one on, or once none comes, and for a while after.

    `stale` is the silence in seconds that takes validity away; None: a bin and `LATE_S`, which fits
    input that comes in blocks no longer than a bin. After validity is back, it has to last for
    `lockout` seconds before `see` says so. Raises `BadInput` for times that cannot be.
    """

    def __init__(self, stale: float | None, lockout: float) -> None:
        for name, value, good in (("stale", stale, stale is None or 0 < stale < math.inf),
                                  ("lockout", lockout, 0 <= lockout < math.inf)):
            if not good:
                raise BadInput(WHERE, name, value, "a number of seconds")
        self._stale, self._lockout = stale, lockout
        self.bin_s = UNKNOWN_BIN_S
        self._last = self._valid_since = math.inf  # times; no decode, not valid

    @property
    def due_s(self) -> float:
        """When silence is too long, on the clock of `see`; infinite before the first decode."""
        return self._last + (self.bin_s + LATE_S if self._stale is None else self._stale)

    def see(self, decode: Decode, now_s: float) -> bool:
        """Take a decode; True if it may be acted upon."""
        if self.silent(now_s):
            self._valid_since = math.inf
        self._last = now_s
        if decode.bin >= 0 and 0 < decode.t_s < math.inf:
            self.bin_s = decode.t_s / (decode.bin + 1)  # a bin's end, on the grid from sample 0 on
        if not decode.valid:
            self._valid_since = math.inf
            return False
        self._valid_since = min(self._valid_since, now_s)
        return now_s - self._valid_since >= self._lockout

    def silent(self, now_s: float) -> bool:
        """Whether decodes have stopped; what was valid is not any more."""
        return now_s >= self.due_s
