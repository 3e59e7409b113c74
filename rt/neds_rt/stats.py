"""Latency of every stage of every bin, in a ring of stamps whose memory is taken at the start."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt import _core

STAGES = ("received", "assembled", "stepped", "encoded", "sent")
# What is reported, as the time from one stamp to another. `service` ends when the message has been
# handed to its socket; the `service_us` inside a message ends when it is written.
SPANS = {
    "assemble_us": ("received", "assembled"),
    "step_us": ("assembled", "stepped"),
    "encode_us": ("stepped", "encoded"),
    "send_us": ("encoded", "sent"),
    "service_us": ("received", "sent"),
}

now_ns = _core.monotonic_ns


class LatencyRing:
    """The stamps of the last `capacity` bins, in ns of the monotonic clock."""

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._stamps = np.empty((capacity, len(STAGES)), np.int64)
        self._stamps.fill(0)  # now, not one page after the other while the server runs
        self._flat = self._stamps.data.cast("B").cast("q")
        self._capacity = capacity
        self.recorded = 0

    def add(self, received: int, assembled: int, stepped: int, encoded: int, sent: int) -> None:
        """Record one bin."""
        flat, at = self._flat, (self.recorded % self._capacity) * len(STAGES)
        flat[at] = received
        flat[at + 1] = assembled
        flat[at + 2] = stepped
        flat[at + 3] = encoded
        flat[at + 4] = sent
        self.recorded += 1

    def stamps(self) -> NDArray[np.int64]:
        """Return the recorded stamps, oldest first, shape (bins, 5)."""
        if self.recorded <= self._capacity:
            return self._stamps[: self.recorded].copy()
        return np.roll(self._stamps, -(self.recorded % self._capacity), axis=0)

    def summary(self) -> dict[str, dict[str, float] | None]:
        """Return p50, p99, p999 and max of every span in microseconds; None before any bin."""
        stamps = self.stamps()
        spans = {}
        for name, (start, end) in SPANS.items():
            spans[name] = percentiles(
                (stamps[:, STAGES.index(end)] - stamps[:, STAGES.index(start)]) / 1e3
            )
        return spans


def percentiles(values: NDArray[Any]) -> dict[str, float] | None:
    """Return p50, p99, p999 and max of `values` (n,), each one of them; None for no values."""
    if len(values) == 0:
        return None
    found = np.percentile(values, [50, 99, 99.9, 100], method="higher")
    return dict(zip(("p50", "p99", "p999", "max"), map(float, found), strict=True))
