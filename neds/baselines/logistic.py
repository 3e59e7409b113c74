"""Multinomial logistic regression for `neds.baselines.linear`: on lagged counts or whole trials.

Minimises mean(weight * cross-entropy) + strength / 2 |w|^2 with free intercepts by L-BFGS. Chosen
on the validation part: the strength, the lags, and whether rows are weighted so that every class
counts alike (the headline metric is balanced accuracy).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from neds.baselines import Budget
from neds.baselines.rows import (
    Run,
    apply_lags,
    best_of,
    headline,
    in_units,
    mean_counts,
    n_rows,
    rows_of,
    tuning_runs,
)
from neds.data.windows import SHORT_RUN
from neds.dataset import Recording

if TYPE_CHECKING:
    from neds.baselines.linear import LaggedWeights

SPANS_S = (0.2, 0.1, 0.05, 0.0)  # seconds that a weight on trials may cover; 0: one bin
TrialKey = tuple[int, float, bool]  # span, strength, balanced
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ITERATIONS = 100
INTERCEPT_STRENGTH = 1e-6  # keeps the intercept of a class that training lacks finite


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum of a smooth convex function of one tensor, by L-BFGS with a line search."""
    x = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([x], max_iter=ITERATIONS, history_size=10, tolerance_grad=1e-6,
                                  tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(x)
        torch.autograd.backward(value)
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return x.detach()


def class_weights(codes: Tensor, classes: int, balanced: bool) -> Tensor:
    """Weight of every row (n,), with mean 1: all alike, or every class present alike."""
    if not balanced:
        return torch.ones(len(codes), device=codes.device)
    each = torch.bincount(codes, minlength=classes).float()
    return (len(codes) / ((each > 0).sum() * each.clamp(min=1)))[codes]


def penalty(weights: Tensor, intercept: Tensor, strength: float) -> Tensor:
    """strength / 2 |weights|^2, and next to nothing on the intercept."""
    return (strength * weights.square().sum() + INTERCEPT_STRENGTH * intercept.square().sum()) / 2


def fit_lagged(
    recording: Recording, behaviour: int, lags: Sequence[int], device: str, budget: Budget
) -> LaggedWeights:
    """Logistic regression per bin on lagged counts; the lags are tried with the best strength."""
    from neds.baselines.linear import LaggedWeights

    fit_on, choose_on = tuning_runs(recording)
    centre = mean_counts(recording, fit_on).to(device)
    strengths = STRENGTHS[1:5:2] if budget == "quick" else STRENGTHS[:5]
    middle = lags[len(lags) // 2]

    def solve(key: tuple[int, float, bool], runs: Sequence[Run]) -> LaggedWeights:
        count, strength, balanced = key
        problem = LaggedProblem(recording, behaviour, runs, centre, balanced)
        weights, intercept = problem.solve(count, strength)
        return LaggedWeights(weights, centre, intercept)

    def evaluate(key: tuple[int, float, bool]) -> float:
        outputs = solve(key, fit_on).outputs(recording, choose_on)
        return headline(recording, behaviour, choose_on, in_units(recording, behaviour, outputs))

    scores = {(middle, s, True): evaluate((middle, s, True)) for s in strengths}
    best = best_of(scores, (middle, strengths[len(strengths) // 2], True))
    others = [(count, best[1], True) for count in lags if count != middle]
    others.append((middle, best[1], False))
    scores |= {key: evaluate(key) for key in others}
    return solve(best_of(scores, best), [*fit_on, *choose_on])


class LaggedProblem:
    """The loss of one behaviour on the known rows of some runs, block by block."""

    def __init__(
        self, recording: Recording, behaviour: int, runs: Sequence[Run], centre: Tensor,
        balanced: bool,
    ) -> None:
        self.recording, self.runs, self.centre = recording, runs, centre
        rows = torch.from_numpy(rows_of(runs))
        self.known = recording.known[behaviour][rows].to(centre.device)
        target = recording.encoded[behaviour][rows].to(centre.device)
        self.codes, self.classes = target.argmax(1)[self.known], target.shape[1]
        self.weight = class_weights(self.codes, self.classes, balanced)

    def solve(self, lags: int, strength: float) -> tuple[Tensor, Tensor]:
        """Weights (lags, N, classes) and intercept (classes,)."""
        shape = (lags, len(self.centre), self.classes)
        size = lags * len(self.centre) * self.classes
        start = torch.zeros(size + self.classes, device=self.centre.device)
        if not len(self.codes):
            return start[:size].view(shape), start[size:]

        def loss(x: Tensor) -> Tensor:
            weights, intercept = x[:size].view(shape), x[size:]
            outputs = intercept + apply_lags(self._signal, self.runs, weights)
            each = F.cross_entropy(outputs[self.known], self.codes, reduction="none")
            return (self.weight * each).mean() + penalty(weights, intercept, strength)

        x = minimise(loss, start)
        return x[:size].view(shape), x[size:]

    def _signal(self, first: int, stop: int) -> Tensor:
        return self.recording.counts[first:stop].to(self.centre.device).float() - self.centre


def is_trial_like(recording: Recording, behaviour: int) -> bool:
    """Whether all runs are equally short and the behaviour never changes in a run fitted on."""
    lengths = recording.runs[:, 1] - recording.runs[:, 0]
    if lengths.min() != lengths.max() or lengths[0] > SHORT_RUN * len(recording.counts):
        return False
    fit_on, choose_on = tuning_runs(recording)
    known, codes = recording.known[behaviour], recording.encoded[behaviour].argmax(1)
    for first, stop in (*fit_on, *choose_on):
        here = known[first:stop]
        if here.any() and not (here.all() and len(codes[first:stop].unique()) == 1):
            return False
    return all(stop - first == lengths[0] for first, stop in (*fit_on, *choose_on))


@dataclass(frozen=True)
class TrialWeights:
    """Outputs = intercept + (flattened trial - centre) @ weights, the same for all its bins."""

    weights: Tensor  # (bins * N, K)
    centre: Tensor  # (bins * N,)
    intercept: Tensor  # (K,)

    def outputs(self, recording: Recording, runs: Sequence[Run]) -> Tensor:
        """Outputs (rows, K); every run must be a whole trial."""
        bins = runs[0][1] - runs[0][0] if runs else 1
        each = self.intercept + (trials(recording, runs, self.centre) - self.centre) @ self.weights
        return each.repeat_interleave(bins, 0)


def trials(recording: Recording, runs: Sequence[Run], like: Tensor) -> Tensor:
    """Counts of whole runs, flattened: (trials, bins * N), as `like` in type and device."""
    rows = [recording.counts[first:stop].flatten().to(like) for first, stop in runs]
    return torch.stack(rows) if rows else like.new_zeros(0, len(like))


def spans_of(recording: Recording, budget: Budget) -> list[int]:
    """Bins that may be added up to one, longest first: those of `SPANS_S` that divide a trial."""
    bins = int(recording.runs[0, 1] - recording.runs[0, 0])
    found = (max(1, round(s / recording.bin_size_s)) for s in SPANS_S)
    spans = list(dict.fromkeys(span for span in found if bins % span == 0))
    return spans[-1:] if budget == "quick" else spans


def fit_trials(recording: Recording, behaviour: int, device: str, budget: Budget) -> TrialWeights:
    """Logistic regression on flattened trials; span, strength and class weighting are chosen."""
    known = recording.known[behaviour]
    fit_on, choose_on = ([run for run in runs if known[run[0]]]
                         for runs in tuning_runs(recording))
    strengths = STRENGTHS[1::2] if budget == "quick" else STRENGTHS
    grid = list(product(spans_of(recording, budget), strengths, (True, False)))

    def solve(runs: list[Run], keys: list[TrialKey]) -> list[TrialWeights]:
        return [w for span, same in groupby(keys, lambda key: key[0]) for w in solve_trials(
            recording, behaviour, runs, [key[1:] for key in same], device, span)]

    scores = {}
    for key, weights in zip(grid, solve(fit_on, grid), strict=True):
        predicted = in_units(recording, behaviour, weights.outputs(recording, choose_on))
        scores[key] = headline(recording, behaviour, choose_on, predicted)
    best = best_of(scores, grid[len(grid) // 2])
    return solve([*fit_on, *choose_on], [best])[0]


def solve_trials(
    recording: Recording, behaviour: int, runs: list[Run], keys: list[tuple[float, bool]],
    device: str, span: int = 1,
) -> list[TrialWeights]:
    """Weights for every (strength, balanced), from trials that are all known.

    The counts of every `span` bins, which must divide the trial, are added up: they share a weight.

    With far fewer trials than columns the optimum lies in the span of the trials: X = U S V', and
    the weights of the columns U S, of which there are as many as trials, have the same norm.
    """
    shape = recording.encoded[behaviour].shape[1]
    bins = int(recording.runs[0, 1] - recording.runs[0, 0])
    empty = torch.zeros(bins * recording.counts.shape[1], device=device)
    x = trials(recording, runs, empty)
    centre = x.mean(0) if len(x) else empty
    if not len(x):
        return [TrialWeights(empty[:, None].expand(-1, shape), centre,
                             empty.new_zeros(shape)) for _ in keys]
    summed = (x - centre).view(len(x), bins // span, span, -1).sum(2).flatten(1)
    u, s, vt = torch.linalg.svd(summed, full_matrices=False)
    z = u * s
    scale = float(s.square().sum() / n_rows(runs)) ** 0.5  # columns of about unit size together
    z = z / max(scale, 1e-6)
    first = torch.tensor([run[0] for run in runs])
    codes = recording.encoded[behaviour][first].argmax(1).to(device)
    found = []
    for strength, balanced in keys:
        weight = class_weights(codes, shape, balanced)

        def loss(w: Tensor, weight: Tensor = weight, strength: float = strength) -> Tensor:
            each = F.cross_entropy(z @ w[:-1] + w[-1], codes, reduction="none")
            return (weight * each).mean() + penalty(w[:-1], w[-1], strength)

        w = minimise(loss, z.new_zeros(z.shape[1] + 1, shape))
        each = (vt.T @ w[:-1] / max(scale, 1e-6)).view(bins // span, -1, shape)
        found.append(TrialWeights(each.repeat_interleave(span, 0).flatten(0, 1), centre, w[-1]))
    return found

