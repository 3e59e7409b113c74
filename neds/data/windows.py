"""Parts of a recording in time, and what is fitted on the training part alone.

Neighbouring bins are correlated, so parts are contiguous in time and lie a window apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neds.data.session import Binned
from neds_rt.errors import BadInput

SHORT_RUN = 0.05
"""A run of consecutive bins below this share of all rows is a trial: no cut goes through it."""

Range = tuple[int, int]


class Split(NamedTuple):
    """Row ranges [first, stop) on the bin axis, in this order in time."""

    train: Range
    val: Range
    test: Range


def split(
    binned: Binned, fractions: Sequence[float] = (0.72, 0.08, 0.2), gap_bins: int = 100
) -> Split:
    """Cut the rows into training, validation and test parts in time.

    The test part is the last fraction of all rows, whatever the gap; `gap_bins` bins before it and
    before the validation part are left out (bins of the clock, so that a pause between trials
    counts). In recordings of many short runs, such as trials, cuts fall between runs. Raises
    `BadInput` for fractions that are none, or when a part with a fraction above 0 has no row left.
    """
    shares = [float(share) for share in fractions]
    proper = len(shares) == 3 and min(shares) >= 0 and shares[2] > 0
    if not (proper and abs(sum(shares) - 1) <= 1e-6):
        raise BadInput("split", "fractions", list(fractions), "three shares that add up to 1")
    if gap_bins < 0:
        raise BadInput("split", "gap_bins", gap_bins, "0 or more")
    n = len(binned)
    test = _between_runs(binned, n - round(shares[2] * n))
    val = test if shares[1] == 0 else _between_runs(binned, n - round((shares[1] + shares[2]) * n))
    val_stop = val if shares[1] == 0 else _before_gap(binned, test, gap_bins)
    parts = Split((0, _before_gap(binned, val, gap_bins)), (val, val_stop), (test, n))
    for name, share, (first, stop) in zip(Split._fields, shares, parts, strict=True):
        if share > 0 and stop <= first:
            raise BadInput("split", f"{name} part", f"no row left of {n}",
                           f"a longer recording or a gap below {gap_bins} bins")
    return parts


def split_trials(
    binned: Binned, session: str, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 42,
    before: Sequence[int] | None = None,
) -> dict[str, list[int]]:
    """Deal the trials of a trial-aligned recording to the parts at random: part -> run numbers.

    For comparison with published numbers only: behind a random split a test trial has neighbours in
    training, and whatever drifts slowly is known. The permutation depends on `seed` and the
    session's name alone; with `before` it is the one that the NEDS release draws, from one
    generator for all its sessions, after sessions of so many trials. Raises `BadInput` for a
    recording that is not made of short runs, or when a part gets no trial.
    """
    runs = binned.runs()
    longest = int((runs[:, 1] - runs[:, 0]).max())
    if longest > SHORT_RUN * len(binned):
        raise BadInput("split", "random", f"a run of {longest} of {len(binned)} bins",
                       "a trial-aligned recording of many short runs")
    shares = np.cumsum(fractions)[:2]
    if before is None:
        own = np.random.default_rng([seed, zlib.crc32(session.encode())])
        order, cuts = own.permutation(len(runs)), [int(s * len(runs) + 1e-9) for s in shares]
    else:  # the release's cuts are one trial lower where 0.7 * n is rounded down
        order = _release_order(len(runs), seed, before)
        cuts = [int(s * len(runs)) for s in shares.round(12)]
    parts = dict(zip(Split._fields, np.split(order, cuts), strict=True))
    for name, share in zip(Split._fields, fractions, strict=True):
        if share > 0 and not len(parts[name]):
            raise BadInput("split", f"{name} part", f"no trial left of {len(runs)}", "more trials")
    return {name: sorted(part.tolist()) for name, part in parts.items()}


def _release_order(n: int, seed: int, before: Sequence[int]) -> NDArray[np.int64]:
    """The release's order of a session's n trials, after those of the sessions before it."""
    generator = np.random.RandomState(seed)  # as the release draws
    for trials in before:
        generator.permutation(trials)
    return np.asarray(generator.permutation(n), np.int64)


def _between_runs(binned: Binned, row: int) -> int:
    """Move a cut out of a short run, to its nearer end."""
    runs = binned.runs()
    first, stop = runs[np.searchsorted(runs[:, 0], row, side="right") - 1].tolist()
    if stop - first > SHORT_RUN * len(binned) or row <= first:
        return row
    return int(first if row - first <= stop - row and first > 0 else stop)


def _before_gap(binned: Binned, row: int, gap_bins: int) -> int:
    """Return how many rows lie `gap_bins` bins or more before `row`, whole trials only."""
    if row >= len(binned):
        return row
    stop = min(int(np.searchsorted(binned.bin, binned.bin[row] - gap_bins)), row)
    runs = binned.runs()
    first, after = runs[max(int(np.searchsorted(runs[:, 0], stop, side="right")) - 1, 0)]
    short = bool(after - first <= SHORT_RUN * len(binned))
    return int(first) if short and first < stop < after else stop


def fit_scaling(
    name: str, kind: str, values: NDArray[np.float32], scaling: str = "zscore"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sd with which `neds.model.encode_behaviour` scales a behaviour.

    Fitted on `values` (T, width) of the training rows; NaN rows are left out. Continuous: (width,)
    each, with sd 1 for a column that never changes; with scaling "minmax" the minimum and the range
    take their places. Other kinds are not scaled: angles get 0 and 1
    (2 * width,), categories nothing (0,). Raises `BadInput` when no row is known.
    """
    known = values[np.isfinite(values).all(axis=1)].astype(np.float64)
    if not len(known):
        raise BadInput(f"behaviour {name}", "training rows", "no known value",
                       "some, or leave it out with --behaviours")
    if kind == "categorical":
        return np.zeros(0), np.zeros(0)
    if kind == "circular":
        return np.zeros(2 * values.shape[1]), np.ones(2 * values.shape[1])
    if scaling == "minmax":
        centre, spread = known.min(axis=0), np.ptp(known, axis=0)
    else:
        centre, spread = known.mean(axis=0), known.std(axis=0)
    return centre, np.where(spread > 1e-9, spread, 1.0)


def units_above(
    binned: Binned, part: Range | slice | NDArray[np.int64], min_rate_hz: float
) -> NDArray[np.int64]:
    """Return the indices of the units whose mean rate on the rows of `part` reaches the rate."""
    rows = slice(*part) if isinstance(part, tuple) else part
    rate = binned.counts[rows].mean(axis=0) / binned.bin_size_s
    return np.flatnonzero(rate >= min_rate_hz)
