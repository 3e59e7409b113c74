"""Rows of a recording as the baselines use them: runs, lagged blocks, scores, per-session fits.

Shapes: T rows, N units, L lags, K outputs. Lag l of a row is the row l bins before it in the same
run; lags before a run's first row are zero. Counts are centred first where a fit centres them, so
that zero stands for the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neds.baselines import Fitted
from neds.checkpoint import BehaviourState
from neds.dataset import Recording
from neds.evaluate import to_units
from neds.metrics import score
from neds.modalities import KINDS
from neds_rt.errors import BadInput

Floats = NDArray[np.float32]
Run = tuple[int, int]
Key = TypeVar("Key")
BLOCK_NUMBERS = 16_000_000  # float32 numbers of a lagged block: 64 MB
HELD_BACK = 0.2  # share of the training rows that choose where there is no validation part


def tuning_runs(recording: Recording) -> tuple[list[Run], list[Run]]:
    """(runs to fit on, runs to choose on): the parts "train" and "val".

    Where "val" is empty the last fifth of the training rows takes its place. Both may be empty.
    """
    fit_on, choose_on = recording.runs_within("train"), recording.runs_within("val")
    if choose_on or not fit_on:
        return fit_on, choose_on
    left = round((1 - HELD_BACK) * n_rows(fit_on))
    head: list[Run] = []
    tail: list[Run] = []
    for first, stop in fit_on:
        cut = min(max(first + left, first), stop)
        left -= cut - first
        head += [(first, cut)] if cut > first else []
        tail += [(cut, stop)] if stop > cut else []
    return head, tail


def n_rows(runs: Sequence[Run]) -> int:
    """Rows of all runs together."""
    return sum(stop - first for first, stop in runs)


def mean_counts(recording: Recording, runs: Sequence[Run]) -> Tensor:
    """Mean count per bin of every unit (N,), float32; zero without rows."""
    total = torch.zeros(recording.counts.shape[1], dtype=torch.float64)
    for first, stop in _pieces(runs, 1 << 14):
        total += recording.counts[first:stop].sum(0, dtype=torch.float64)
    return (total / max(n_rows(runs), 1)).float()


def lagged(signal: Tensor, first: int, start: int, stop: int, lags: int) -> Tensor:
    """Rows [start, stop) of a run that begins at row `first`, with their past: (n, L D).

    `signal` (rows from max(first, start - lags + 1) to stop, D) holds what they need; columns are
    ordered by lag, then by D, so that the columns of fewer lags come first.
    """
    n = stop - start
    missing = lags - 1 - (len(signal) - n)
    padded = torch.cat([signal.new_zeros(missing, signal.shape[1]), signal])
    return torch.cat([padded[lags - 1 - lag : lags - 1 - lag + n] for lag in range(lags)], 1)


def lagged_blocks(
    signal: Callable[[int, int], Tensor], runs: Sequence[Run], lags: int, width: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, lagged rows (stop - start, L width)) of the runs, a block at a time.

    `signal(a, b)` gives rows [a, b) as (b - a, width). The lagged matrix is never held whole.
    """
    size = max(256, BLOCK_NUMBERS // (lags * width))
    for first, last in runs:
        for start, stop in _pieces([(first, last)], size):
            rows = signal(max(first, start - lags + 1), stop)
            yield start, stop, lagged(rows, first, start, stop, lags)


def apply_lags(
    signal: Callable[[int, int], Tensor], runs: Sequence[Run], weights: Tensor
) -> Tensor:
    """Sum over lags of signal[t - l] @ weights[l] for all rows of the runs: (rows, K).

    `weights` (L, D, K). One product with all lags' weights, then shifted sums: the lagged rows are
    not made.
    """
    lags, width, outputs = weights.shape
    flat = weights.permute(1, 0, 2).reshape(width, lags * outputs)
    parts = []
    for first, last in runs:
        for start, stop in _pieces([(first, last)], 1 << 14):
            begin = max(first, start - lags + 1)
            each = (signal(begin, stop) @ flat).view(stop - begin, lags, outputs)
            total = each.new_zeros(stop - begin, outputs)
            for lag in range(min(lags, stop - begin)):
                total[lag:] += each[: stop - begin - lag, lag]
            parts.append(total[start - begin :])
    return torch.cat(parts) if parts else weights.new_zeros(0, outputs)


def _pieces(runs: Sequence[Run], size: int) -> Iterator[Run]:
    for first, last in runs:
        for start in range(first, last, size):
            yield start, min(start + size, last)


def rows_of(runs: Sequence[Run]) -> NDArray[np.int64]:
    """Row numbers of the runs, one after another."""
    return np.concatenate([np.arange(a, b) for a, b in runs] or [np.zeros(0, np.int64)])


def in_units(
    recording: Recording, behaviour: int, outputs: Tensor, scaling: BehaviourState | None = None
) -> Floats:
    """Outputs (rows, K), on any device, in behaviour units or probabilities.

    `scaling` replaces the recording's own where it was fitted on nothing.
    """
    state = scaling or recording.state.behaviours[behaviour]
    return to_units(state, outputs.detach().cpu().float()).float().numpy()


def headline(recording: Recording, behaviour: int, runs: Sequence[Run], predicted: Floats) -> float:
    """The headline metric of predictions for the rows of `runs`; NaN where it does not exist."""
    state = recording.state.behaviours[behaviour]
    truth = recording.values[state.name][rows_of(runs)]
    return float(score(state.kind, truth, predicted)[KINDS[state.kind].metrics[0]])


def best_of(scores: dict[Key, float], otherwise: Key) -> Key:
    """The key of the largest score that is a number; `otherwise` where there is none."""
    known = {key: value for key, value in scores.items() if not math.isnan(value)}
    return max(known, key=known.__getitem__) if known else otherwise


def mean_known(values: Sequence[float]) -> float | None:
    """Mean of the values that are numbers; None without any."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else None


class PerSession(Fitted):
    """Fits of single sessions under one roof; a new session is fitted on its own data alone."""

    def __init__(
        self, fit_one: Callable[[Recording, int], Fitted], fits: dict[str, Fitted]
    ) -> None:
        self.fit_one, self.fits = fit_one, fits

    def decode_part(self, recording: Recording, part: str) -> list[Floats]:
        """See `Fitted.decode_part`."""
        return self._of(recording).decode_part(recording, part)

    def encode_part(self, recording: Recording, part: str) -> Floats:
        """See `Fitted.encode_part`."""
        return self._of(recording).encode_part(recording, part)

    def adapt(self, recording: Recording, *, seed: int) -> Fitted:
        """See `Fitted.adapt`; raises `BadInput` without calibration data, nothing is pretrained."""
        if not recording.runs_within("train"):
            raise BadInput(recording.state.session, "calibration data", "none",
                           f"some rows: {self.name} has nothing pretrained")
        name = recording.state.session
        adapted = PerSession(self.fit_one, {name: self.fit_one(recording, seed)})
        adapted.name = self.name
        return adapted

    def _of(self, recording: Recording) -> Fitted:
        if recording.state.session not in self.fits:
            raise unfitted(recording, self.fits)
        return self.fits[recording.state.session]


def unfitted(recording: Recording, names: Sequence[str] | dict[str, Fitted]) -> BadInput:
    """The error for a session that a baseline was not fitted on."""
    return BadInput(recording.state.session, "session", "not fitted",
                    f"one of {', '.join(names)}, or adapt first")
