"""Parts of a recording in time, scalers fitted on one of them, and windows drawn from it.

Neighbouring bins are correlated, so parts are contiguous in time and lie a window apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


class Windows(NamedTuple):
    """Windows of T bins: rows (n, T) into the bin axis, present (n, T) False for a lost bin.

    Where `present` is False the row is some valid row, to be ignored.
    """

    rows: NDArray[np.int64]
    present: NDArray[np.bool_]


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaler:
    """How a behaviour enters the model: z-scores, or cosine and sine of an angle.

    mean, sd (n_outputs,): continuous: of each column; circular: 0 and 1, two per angle;
    categorical: empty, codes stay codes.
    """

    kind: str
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]

    @classmethod
    def fit(cls, kind: str, values: NDArray[np.float32]) -> Scaler:
        """Fit on `values` (T, width) of the training rows; NaN rows are left out.

        A column that never changes gets sd 1. Raises `BadInput` when nothing is known.
        """
        known = values[np.isfinite(values).all(axis=1)].astype(np.float64)
        if not len(known):
            raise BadInput("scaler", "training rows", "no known value", "a behaviour known there")
        if kind == "categorical":
            return cls(kind=kind, mean=np.zeros(0), sd=np.zeros(0))
        if kind == "circular":
            width = 2 * values.shape[1]
            return cls(kind=kind, mean=np.zeros(width), sd=np.ones(width))
        sd = known.std(axis=0)
        return cls(kind=kind, mean=known.mean(axis=0), sd=np.where(sd > 1e-9, sd, 1.0))

    def transform(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `values` (T, width) as model outputs (T, n_outputs)."""
        if self.kind == "categorical":
            return values
        if self.kind == "circular":
            pairs = np.stack([np.cos(values), np.sin(values)], axis=-1)
            return np.asarray(pairs.reshape(len(values), -1), dtype=np.float32)
        return np.asarray((values - self.mean) / self.sd, dtype=np.float32)

    def inverse(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return model outputs (T, n_outputs) as behaviour values (T, width)."""
        if self.kind == "categorical":
            return outputs
        if self.kind == "circular":
            pairs = outputs.reshape(len(outputs), -1, 2)
            return np.asarray(np.arctan2(pairs[..., 1], pairs[..., 0]), dtype=np.float32)
        return np.asarray(outputs * self.sd + self.mean, dtype=np.float32)


def units_above(binned: Binned, part: Range, min_rate_hz: float) -> NDArray[np.int64]:
    """Return the indices of the units whose mean rate on the rows of `part` reaches the rate."""
    rate = binned.counts[slice(*part)].mean(axis=0) / binned.bin_size_s
    return np.flatnonzero(rate >= min_rate_hz)


def sample_windows(
    rng: np.random.Generator,
    binned: Binned,
    part: Range,
    n: int,
    bins: int,
    *,
    across_gaps: bool = False,
) -> Windows:
    """Draw `n` windows of `bins` bins at random phases from the rows of `part`.

    A window lies in one run of consecutive bins; a run that is shorter fills its window's start
    and the rest is marked absent. With `across_gaps` a window covers `bins` consecutive bins of
    the clock instead, those that were not recorded (or lie beyond the part) marked absent.
    """
    first, stop = part
    if stop <= first or bins < 1:
        raise BadInput("windows", "part and bins", f"rows {part}, {bins} bins", "one or more each")
    if across_gaps:
        return _on_the_clock(rng, binned.bin[first:stop], first, n, bins)
    runs = binned.runs().clip(first, stop)
    runs = runs[runs[:, 1] > runs[:, 0]]
    starts = np.maximum(runs[:, 1] - runs[:, 0] - bins + 1, 1)
    pick = rng.integers(0, starts.sum(), n)
    run = np.searchsorted(np.cumsum(starts), pick, side="right")
    begin = runs[run, 0] + pick - (np.cumsum(starts) - starts)[run]
    rows = begin[:, None] + np.arange(bins)
    present = rows < runs[run, 1][:, None]
    return Windows(np.where(present, rows, begin[:, None]), present)


def _on_the_clock(
    rng: np.random.Generator, bin_of_row: NDArray[np.int64], first: int, n: int, bins: int
) -> Windows:
    fits = int(np.searchsorted(bin_of_row, bin_of_row[-1] - bins + 1, side="right"))
    begin = rng.integers(0, max(fits, 1), n)
    wanted = bin_of_row[begin][:, None] + np.arange(bins)
    at = np.minimum(np.searchsorted(bin_of_row, wanted), len(bin_of_row) - 1)
    present = bin_of_row[at] == wanted
    return Windows(np.where(present, at, begin[:, None]) + first, present)
