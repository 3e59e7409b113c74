"""Time of single steps of an engine in this process: one after the other, or paced as bins are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines import Engine
from neds_rt.stats import percentiles

POOL = 256  # different bins; they repeat
Rows = Sequence[NDArray[np.uint16]]


def make_rows(bundle: Bundle, rate_hz: float, n_bins: int = POOL, seed: int = 0) -> Rows:
    """Return Poisson counts of `n_bins` bins, each (n_units,), at a mean rate of a unit."""
    manifest = bundle.manifest
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rate_hz * manifest.bin_size_s, (n_bins, len(manifest.units)))
    return list(counts.astype(np.uint16))


def fill_window(engine: Engine, bundle: Bundle, rows: Rows) -> None:
    """Step until attention sees as many bins as it ever will, and a few more."""
    for i in range(bundle.manifest.shape.window + 5):
        engine.step(rows[i % len(rows)])


def tight_us(engine: Engine, rows: Rows, steps: int, limit_s: float) -> list[float]:
    """Return microseconds of each of at most `steps` steps in a loop, at most `limit_s` long."""
    return list(_timed(engine, rows, steps, limit_s, 0.0, 0.0))


def paced_us(
    engine: Engine, rows: Rows, steps: int, period_s: float, warm_every_s: float = 0.0
) -> list[float]:
    """Return microseconds of steps that come every `period_s`.

    Between steps `warm` is called every `warm_every_s`, if that is not 0. An engine that cannot
    keep the pace is given up after one and a half times what the steps should take.
    """
    limit_s = steps * period_s * 1.5 + 1.0
    return list(_timed(engine, rows, steps, limit_s, period_s, warm_every_s))


def summary(took_us: Sequence[float]) -> dict[str, Any]:
    """Return the number of steps and their percentiles."""
    return {"steps": len(took_us), **(percentiles(np.array(took_us)) or {})}


def _timed(
    engine: Engine, rows: Rows, steps: int, limit_s: float, period_s: float, warm_s: float
) -> Iterator[float]:
    clock = time.perf_counter_ns
    end = clock() + int(limit_s * 1e9)
    due = clock()
    for i in range(steps):
        if period_s:
            due += int(period_s * 1e9)
            _wait_until(due, engine, int(warm_s * 1e9))
        row = rows[i % len(rows)]
        start = clock()
        engine.step(row)
        now = clock()
        yield (now - start) / 1e3
        if now > end:
            return


def _wait_until(due: int, engine: Engine, warm_ns: int) -> None:
    """Sleep, then spin for the last 0.3 ms; with `warm_ns` call `warm` so often, never too late."""
    clock = time.perf_counter_ns
    next_warm = clock() + warm_ns if warm_ns else due
    while (now := clock()) < due:
        if warm_ns and now >= next_warm and due - now > 300_000:
            engine.warm()
            next_warm += warm_ns
        elif min(due, next_warm) - now > 400_000:
            time.sleep((min(due, next_warm) - now - 300_000) / 1e9)
