"""How long no bin may close before decodes say that the input is stale.

Bins come a bin apart from a sender that sends them so, and in bursts from a program that works in
blocks of its own. So the patience is learned: half as much again as the sixth longest wait of the
last 64 to 128, and at least two bins. What happens less often than one time in ten is a stall, not
the source's way, even when one follows upon another. An alarm then comes within a bin of when the
next bin was due, as the source delivers them, and not before.
"""

from __future__ import annotations

BLOCK = 64  # waits looked at together
RARE = 6  # so many of them may be stalls
LONGEST_S = 0.5  # at first, and at most


class Patience:
    """Takes the waits between bins; `limit_ns` is how long the next one may be."""

    def __init__(self, bin_ns: int, fixed_s: float | None = None) -> None:
        """Learn, or keep to `fixed_s` (but for the time that a bin and its way take anyway)."""
        self._bin_ns, self._least_ns = bin_ns, 2 * bin_ns
        self._most_ns = max(int(LONGEST_S * 1e9), self._least_ns)
        self._learns = fixed_s is None
        self.limit_ns = self._most_ns
        if fixed_s is not None:
            self.limit_ns = max(int(fixed_s * 1e9), bin_ns + 5_000_000)
        self._before = self._most_ns  # what the last block of waits asks for
        self._n = 0
        self._longest = [0] * RARE  # waits of this block, ascending

    @property
    def backlog(self) -> int:
        """How many bins may come together before the older ones come too late."""
        return self.limit_ns // self._bin_ns

    def waited(self, ns: int, bins: int = 1) -> None:
        """Take the wait that so many bins have ended together. Allocates nothing that stays."""
        if not self._learns:
            return
        ns = max(ns, bins * self._bin_ns)  # a recording may be played faster than it was made
        longest = self._longest
        if ns > longest[0]:
            at = 1
            while at < RARE and ns > longest[at]:
                longest[at - 1] = longest[at]
                at += 1
            longest[at - 1] = ns
        self._n += 1
        if self._n == BLOCK:
            now = longest[0] * 3 // 2
            most = now if self._before == self._most_ns else max(now, self._before)
            self.limit_ns = min(max(most, self._least_ns), self._most_ns)
            self._before = now
            self._n = 0
            for at in range(RARE):
                longest[at] = 0
