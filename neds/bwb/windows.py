"""The windows that are scored, what is true in them, and the spike counts that lead up to them.

Windows start where trials do, at any phase of a clock, so their bins are counted anew for each from
its end backwards: `counts_before` is exact, with no bin that straddles a window's border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.bwb.source import Source
from neds.bwb.splits import intersect
from neds.bwb.tasks import BIN_S, FORECAST_BINS, RATE_HZ, TARGET_BINS, TARGET_S, Task

Floats = NDArray[np.floating]
SLACK_S = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What a task of TS1 asks of a part: values (n, 50) or (n, 1), trial (n,), span (n, 2) s.

    times (n, 50): seconds of each value (n, 0 for labels); sure (n, 50) bool or None.
    """

    trial: NDArray[np.int64]
    span: NDArray[np.float64]
    values: NDArray[Any]
    times: NDArray[np.float64]
    sure: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikeTruth:
    """What a task of TS2 asks: start (n,) s of each window, targets (n, bins, units).

    units: rows of the units asked for; interval (n,): which trial's span a window lies in.
    """

    start: NDArray[np.float64]
    targets: NDArray[np.uint8]
    units: NDArray[np.int64]
    interval: NDArray[np.int64]


def truth_of(source: Source, task: Task, part: str) -> Truth:
    """The windows of a part and their truth, as the benchmark scores it (z-scored, or counts).

    A window that the part, the trial's span or the series cuts, or that has no sure value, is not
    among them.
    """
    windows = source.windows[task.name]
    whole = _within(windows.span, source.part("ts1", part)) & _within(windows.span, source.trials)
    rows = np.flatnonzero(whole)
    if task.kind == "label":
        assert windows.label is not None
        return Truth(trial=windows.trial[rows], span=windows.span[rows],
                     values=windows.label[rows, None], times=np.zeros((len(rows), 0)), sure=None)
    trace = source.traces[task.name]
    first = np.searchsorted(trace.times, windows.span[rows, 0] - SLACK_S)
    there = (first + TARGET_BINS <= len(trace.times)) \
        & (windows.span[rows, 0] >= trace.times[0] - SLACK_S)
    index = first[there, None] + np.arange(TARGET_BINS)
    rows = rows[there]
    if task.mask:
        some = trace.sure[index].any(1)
        index, rows = index[some], rows[some]
    return Truth(trial=windows.trial[rows], span=windows.span[rows],
                 values=scaled(source, task, trace.values[index]).astype(np.float32),
                 times=trace.times[index], sure=trace.sure[index] if task.mask else None)


def scaled(source: Source, task: Task, values: Floats) -> Floats:
    """A behaviour's values in its file as the benchmark scores them."""
    if task.kind == "rate":
        return np.round(values / RATE_HZ)
    if task.name == "wheel_speed":
        return values  # a physical unit, left as it is
    mean, sd = source.scale[task.name]
    return (values - mean) / sd


def spike_truth(source: Source, task: Task, part: str) -> SpikeTruth:
    """The windows of a part, one a bin within each trial, and the counts that are asked for."""
    spans = intersect(source.trials, source.part("ts2", part))
    starts, number = [], []
    for i, (start, stop) in enumerate(spans):
        own = _every_bin(start, stop)
        own = own[own + TARGET_S <= stop]
        if len(own) and own[-1] + TARGET_S < stop:  # one more, so that the span is covered
            own = np.r_[own, stop - TARGET_S]
        starts.append(own)
        number.append(np.full(len(own), i))
    start = np.concatenate([np.zeros(0), *starts])
    units = asked_units(source, task)
    bins = FORECAST_BINS if task.name == "forecasting" else TARGET_BINS
    counts = counts_before(source, start + TARGET_S, bins, units)
    return SpikeTruth(start=start, targets=counts, units=units,
                      interval=np.concatenate([np.zeros(0, np.int64), *number]))


def _every_bin(start: float, stop: float) -> NDArray[np.float64]:
    """Times from `start` on, a bin apart, as torch counts them.

    The scorer aligns windows by the very bits of these numbers, and the benchmark's come from
    `torch.arange`, whose vectorised sums differ from start + i * step in the last bit, in about one
    of eight.
    """
    from torch import arange, float64

    times: NDArray[np.float64] = arange(start, stop, BIN_S, dtype=float64).numpy()
    return times


def asked_units(source: Source, task: Task) -> NDArray[np.int64]:
    """Rows of the units whose spikes a task of TS2 predicts."""
    if task.name == "forecasting":
        return np.arange(source.n_units)
    assert source.held_out is not None
    return np.flatnonzero(source.held_out)


def counts_before(
    source: Source, stops: NDArray[np.float64], bins: int, units: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """Counts (n, bins, k) of the last `bins` bins before each of `stops` (n,), of some units.

    Bins before the recording are empty. A count beyond 255 stays at 255.
    """
    chosen = np.arange(source.n_units) if units is None else units
    place = np.full(source.n_units, -1)
    place[chosen] = np.arange(len(chosen))
    result = np.zeros((len(stops), bins, len(chosen)), np.uint8)
    starts = stops - bins * BIN_S
    edges = np.searchsorted(source.times, np.stack([starts, stops], 1))
    for row, (first, last) in enumerate(edges):
        at = np.floor((source.times[first:last] - starts[row]) / BIN_S).astype(np.int64)
        unit = place[source.unit[first:last]]
        flat = (np.clip(at, 0, bins - 1) * len(chosen) + unit)[unit >= 0]
        counted = np.bincount(flat, minlength=bins * len(chosen))
        result[row] = np.minimum(counted, 255).reshape(bins, len(chosen))
    return result


def _within(spans: NDArray[np.float64], parts: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the spans (n, 2) lie whole in one of the parts (m, 2)."""
    row = np.clip(np.searchsorted(parts[:, 0], spans[:, 0] + SLACK_S, side="right") - 1, 0, None)
    if not len(parts):
        return np.zeros(len(spans), bool)
    return np.asarray((spans[:, 0] >= parts[row, 0] - SLACK_S)
                      & (spans[:, 1] <= parts[row, 1] + SLACK_S))
