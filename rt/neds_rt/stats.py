"""Figures from the stamps that the pipeline takes at every stage of every bin."""

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


def stamps_of(ring: _core.LatencyRing) -> NDArray[np.int64]:
    """Return the recorded stamps, oldest first, shape (bins, 5), ns of the monotonic clock."""
    rows, recorded = ring.rows, ring.recorded
    if recorded <= len(rows):
        return rows[:recorded].copy()
    return np.roll(rows, -(recorded % len(rows)), axis=0)


def latency_summary(ring: _core.LatencyRing) -> dict[str, dict[str, float] | None]:
    """Return p50, p99, p999 and max of every span in microseconds; None before any bin."""
    stamps = stamps_of(ring)
    return {
        name: percentiles((stamps[:, STAGES.index(end)] - stamps[:, STAGES.index(start)]) / 1e3)
        for name, (start, end) in SPANS.items()
    }


def percentiles(values: NDArray[Any]) -> dict[str, float] | None:
    """Return p50, p99, p999 and max of `values` (n,), each one of them; None for no values."""
    if len(values) == 0:
        return None
    found = np.percentile(values, [50, 99, 99.9, 100], method="higher")
    return dict(zip(("p50", "p99", "p999", "max"), map(float, found), strict=True))
