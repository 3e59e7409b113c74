"""Block bootstrap: how far a score would move on another stretch of the same recording.

Neighbouring bins are correlated, so whole blocks (trials, or stretches of some seconds) are drawn
with replacement, never bins (Kuensch 1989; here with blocks that do not overlap). Every metric of
this package is a function of sums over rows, so a replicate is a weighted sum of the blocks' sums:
row 0 of the weights counts every block once and gives the score itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

MIN_BLOCKS = 5
"""With fewer blocks no interval is given: their resamples say next to nothing."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score with its bootstrap replicates: values (1 + R,), the score itself first."""

    values: Floats
    upper: float = np.inf  # what the metric cannot exceed
    lower: float = -np.inf

    @property
    def value(self) -> float:
        """The score on the rows as they are; NaN where it does not exist."""
        return float(self.values[0])

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Central interval of the score; None without replicates or where the score is NaN.

        The quantiles of the replicates, moved so that their mean lies on the score: resampled
        trials repeat, which makes averages over them noisier and scores of averages lower than the
        score itself, by about as much as the score itself lies below that of endless trials.
        """
        drawn = self.values[1:][np.isfinite(self.values[1:])]
        if len(drawn) < max(2, 0.5 * (len(self.values) - 1)) or not np.isfinite(self.value):
            return None
        tail = 50 * (1 - level)
        low, high = np.percentile(drawn, [tail, 100 - tail]) - drawn.mean() + self.value
        low, high = np.clip([low, high], self.lower, self.upper).tolist()
        return low, high


@dataclass(frozen=True, eq=False)
class Resampling:
    """Which block each row belongs to, and how often each replicate draws each block.

    block (T,) int64, 0 to n - 1; weights (1 + R, n) float64, row 0 all ones, R = 0 where there are
    fewer than `MIN_BLOCKS` blocks.
    """

    block: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def draw(
        cls, block: NDArray[np.int64], replicates: int, seed: int | Sequence[int]
    ) -> Resampling:
        """Draw replicates for rows with these block labels (any integers, each label a block)."""
        labels, index = np.unique(block, return_inverse=True)
        n = len(labels)
        ones = np.ones((1, n))
        if n < MIN_BLOCKS or replicates < 1:
            return cls(index.astype(np.int64), ones)
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=replicates)
        return cls(index.astype(np.int64), np.concatenate([ones, drawn]))

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.weights[0])

    def totals(self, rows: Floats, used: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Sums (1 + R, k) over `rows` (T, k), or over those of them that are `used` (T,)."""
        block, kept = self.block, rows
        if used is not None:
            block, kept = block[used], rows[used]
        sums = np.zeros((self.n_blocks, rows.shape[1]))
        order = np.argsort(block, kind="stable")
        first = np.flatnonzero(np.r_[True, np.diff(block[order]) > 0]) if len(order) else order
        if len(order):
            sums[block[order][first]] = np.add.reduceat(kept[order].astype(np.float64), first)
        return np.asarray(self.weights @ sums)

    def row_weights(self) -> NDArray[np.float64]:
        """How often each replicate holds each row, (1 + R, T)."""
        return np.asarray(self.weights[:, self.block])

    def among(self, rows: NDArray[np.int64]) -> Resampling:
        """The same draws for some of the rows (or for things that each lie in one row)."""
        return Resampling(self.block[rows], self.weights)


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent scores, such as of several sessions; scores that are NaN left out.

    Its interval speaks of these sessions on other stretches of time, not of other animals. Where a
    session has no replicates the mean has none either.
    """
    there = [e for e in estimates if np.isfinite(e.value)]
    if not there:
        return Estimate(np.full(1, np.nan))
    n = min(len(e.values) for e in there)
    if len({len(e.values) for e in there}) > 1:
        n = 1
    values = np.mean([e.values[:n] for e in there], axis=0)
    return Estimate(values, there[0].upper, there[0].lower)


def ratio(numerator: Floats, denominator: Floats, floor: float | Floats = 0.0) -> Floats:
    """numerator / denominator, NaN where the denominator is not above `floor`."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    result = np.full(denominator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > floor)
    return result


def mean_over(values: Floats, kept: NDArray[np.bool_]) -> Floats:
    """Mean over the last axis of the values that are `kept`, NaN where none is."""
    shown = np.where(kept, values, 0.0)
    return ratio(shown.sum(-1), kept.sum(-1))
