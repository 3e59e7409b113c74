"""Linear decoding of one session: ridge for continuous and circular behaviours, logistic otherwise.

Inputs are centred counts of a bin and the bins before it in its run. The number of lags and the
strength of the penalty are chosen per behaviour on the validation part; the weights are then fitted
on training and validation together. Circular behaviours are regressed as (cos, sin).

Trial-like recordings, where all runs are equally short, have categorical behaviours that are
constant within a run. There one logistic regression sees the counts of the whole trial, every unit
and span of bins apart, and its prediction holds for all bins of the trial; the span is chosen too.
This one is not causal: it is the field's usual baseline for trial labels, and sees more than a
causal decoder does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from neds.baselines import Budget, Fitted
from neds.baselines.logistic import fit_lagged, fit_trials, is_trial_like
from neds.baselines.ridge import STRENGTHS, Sums, tune
from neds.baselines.rows import (
    Floats,
    PerSession,
    Run,
    apply_lags,
    headline,
    in_units,
    lagged_blocks,
    mean_counts,
    tuning_runs,
    unfitted,
)
from neds.dataset import Recording

LAGS = (5, 10, 15, 25, 50, 75)  # the last are 1.5 s of 20 ms bins, which few units allow
MAX_COLUMNS = 6500  # a Gram matrix of this size is 340 MB, and two are held


class Weights(Protocol):
    """What predicts one or more behaviours."""

    def outputs(self, recording: Recording, runs: Sequence[Run]) -> Tensor:
        """Model outputs (rows, K) of the runs, as `to_units` takes them."""


@dataclass(frozen=True)
class LaggedWeights:
    """Outputs = intercept + sum over lags of (counts - centre) @ weights[lag]."""

    weights: Tensor  # (L, N, K)
    centre: Tensor  # (N,)
    intercept: Tensor  # (K,)

    def outputs(self, recording: Recording, runs: Sequence[Run]) -> Tensor:
        """See `Weights`."""
        return self.intercept + apply_lags(
            centred_counts(recording, self.centre), runs, self.weights)


class LinearSession(Fitted):
    """The fitted linear decoders of one session, one per behaviour."""

    def __init__(self, session: str, parts: list[tuple[Weights, slice]]) -> None:
        self.session = session
        self.parts = parts

    def decode_part(self, recording: Recording, part: str) -> list[Floats]:
        """See `Fitted.decode_part`."""
        if recording.state.session != self.session:
            raise unfitted(recording, [self.session])
        runs = recording.runs_within(part)
        return [in_units(recording, m, weights.outputs(recording, runs)[:, columns])
                for m, (weights, columns) in enumerate(self.parts)]


def fit(
    recordings: list[Recording], *, seed: int, device: str, budget: Budget, progress: bool
) -> Fitted:
    """Fit every session alone; see the module and `neds.baselines.fit`. Nothing is drawn."""
    from tqdm import tqdm

    fit_one = partial(fit_session, device=device, budget=budget)
    rows = tqdm(recordings, unit="session", desc="linear", disable=not progress)
    return PerSession(lambda r, _: fit_one(r), {r.state.session: fit_one(r) for r in rows})


def fit_session(recording: Recording, *, device: str, budget: Budget) -> LinearSession:
    """Fit one session's behaviours; those known on the same rows share the sums of their ridge."""
    session = recording.state.session
    parts: dict[int, tuple[Weights, slice]] = {}
    groups: dict[bytes, list[int]] = {}
    for m, b in enumerate(recording.state.behaviours):
        if b.kind != "categorical":
            groups.setdefault(recording.known[m].numpy().tobytes(), []).append(m)
        elif is_trial_like(recording, m):
            parts[m] = (fit_trials(recording, m, device, budget), slice(None))
        else:
            lags = candidates_for(recording.counts.shape[1], budget)
            parts[m] = (fit_lagged(recording, m, lags, device, budget), slice(None))
    for group in groups.values():
        parts |= fit_ridge(recording, group, device, budget)
    return LinearSession(session, [parts[m] for m in range(len(parts))])


def candidates_for(width: int, budget: Budget) -> tuple[int, ...]:
    """Numbers of lags to try with `width` columns a lag, as the largest Gram matrix allows."""
    if budget == "quick":
        return (min(5, max(1, MAX_COLUMNS // width)),)
    return tuple(lags for lags in LAGS if lags * width <= MAX_COLUMNS) or (
        max(1, MAX_COLUMNS // width),)


def fit_ridge(
    recording: Recording, group: list[int], device: str, budget: Budget
) -> dict[int, tuple[Weights, slice]]:
    """Ridge for behaviours that are known on the same rows; lags and strength chosen for each."""
    fit_on, choose_on = tuning_runs(recording)
    centre = mean_counts(recording, fit_on).to(device)
    width = len(centre)
    lags = candidates_for(width, budget)
    strengths = STRENGTHS[1::2] if budget == "quick" else STRENGTHS
    y = torch.cat([recording.encoded[m] for m in group], 1)
    known = recording.known[group[0]]
    columns = _columns([recording.encoded[m].shape[1] for m in group])
    signal = centred_counts(recording, centre)

    sums = Sums.zeros(max(lags) * width, y.shape[1], device)
    add_runs(sums, signal, fit_on, y, known)
    solved: dict[tuple[int, float], LaggedWeights] = {}

    def weights(count: int, strength: float) -> LaggedWeights:
        w, b = sums.solve(count * width, strength)
        return LaggedWeights(w.float().view(count, width, -1), centre, b.float())

    def evaluate(m: int, part: slice, count: int, strength: float) -> float:
        if (count, strength) not in solved:
            solved[count, strength] = weights(count, strength)
        outputs = solved[count, strength].outputs(recording, choose_on)[:, part]
        return headline(recording, m, choose_on, in_units(recording, m, outputs))

    best = {m: tune(partial(evaluate, m, part), lags, strengths)
            for m, part in zip(group, columns, strict=True)}
    add_runs(sums, signal, choose_on, y, known)
    final = {key: weights(*key) for key in sorted(set(best.values()))}
    return {m: (final[best[m]], part) for m, part in zip(group, columns, strict=True)}


def add_runs(
    sums: Sums, signal: Callable[[int, int], Tensor], runs: Sequence[Run], y: Tensor, known: Tensor
) -> None:
    """Add the known rows of the runs; `y` (T, K) and `known` (T,) are of the whole recording."""
    width = signal(0, 0).shape[1]
    for start, stop, x in lagged_blocks(signal, runs, len(sums.x) // width, width):
        rows = known[start:stop].to(x.device)
        sums.add(x if rows.all() else x[rows], y[start:stop].to(x)[rows])


def centred_counts(recording: Recording, centre: Tensor) -> Callable[[int, int], Tensor]:
    """Rows [a, b) of the counts less `centre` (N,), as floats on its device."""
    return lambda a, b: recording.counts[a:b].to(centre.device).float() - centre


def _columns(widths: list[int]) -> list[slice[Any, Any, Any]]:
    stops = torch.tensor(widths).cumsum(0).tolist()
    return [slice(stop - width, stop) for width, stop in zip(widths, stops, strict=True)]
