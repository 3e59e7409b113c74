"""Rising edges of a pulse that all probes record, by which their clocks are aligned.

An edge is the sample at which the line is high and the sample before was low, and the time at which
this machine heard of it (ns of the monotonic clock). `neds_rt/clocks.py` finds which edge of one
probe is which of another.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput

MAX_EDGES = 1024  # waiting for whom aligns
TTL_LINES = 64  # of an Open Ephys event

Edges = deque[tuple[int, int]]


def edge_queue(where: str, line: int | None, n_lines: int) -> Edges | None:
    """Return where edges of `?sync=` go, None without one; raises `BadInput` for no such line."""
    if line is None:
        return None
    if not 0 <= line < n_lines:
        expected = f"a line from 0 to {n_lines - 1}"
        raise BadInput(where, "URI option", f"sync={line}", expected)
    return deque(maxlen=MAX_EDGES)


class EdgeFinder:
    """Finds rising edges of one bit of a word that is sampled as often as the probe is."""

    def __init__(self, bit: int, edges: Edges) -> None:
        self.edges = edges
        self._bit = bit
        self._next: int | None = None  # sample that would follow the last ones
        self._high = 1  # of the last word; before the first one no edge can be told

    def take(self, words: NDArray[np.int16], head: int, received_ns: int) -> None:
        """Take the words (n,) of samples from `head` on; after a gap the first is no edge."""
        if not len(words):
            return
        high = ((words >> self._bit) & 1).astype(np.int8)
        before = self._high if head == self._next else 1
        for k in np.flatnonzero(np.diff(high, prepend=np.int8(before)) > 0).tolist():
            self.edges.append((head + k, received_ns))
        self._next, self._high = head + len(words), int(high[-1])
