"""Poisson GLM: every unit's rate from the behaviours of a bin and its neighbours.

Causal as NEDS's streaming form encodes (the bin and those before it), or with `future` as many bins
after it, to be held against the window form. Chosen on the validation part by likelihood, in this
order: products of continuous columns or none, the number of lags, the strength of the penalty (one
for all units: one each is chosen worse on little data). The weights are then fitted on training and
validation together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from neds.baselines import Budget, Fitted
from neds.baselines.features import Features, make_features, offsets, row_tensor
from neds.baselines.layout import Output, SessionRows, layout, session_rows
from neds.baselines.poisson import PoissonProblem, PoissonWeights
from neds.baselines.rows import Floats, PerSession, best_of, unfitted
from neds.dataset import Recording

STRENGTHS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
LAGS = {False: (1, 5, 10, 15), True: (3, 5, 10)}
FIRST = (5, 100.0)  # lags with which the products are judged, strength of all but the last

Choice = tuple[bool, int]  # products, lags


def fit(
    recordings: list[Recording], *, seed: int, device: str, budget: Budget, progress: bool,
    future: bool = False,
) -> Fitted:
    """Fit every session alone; see the module and `neds.baselines.fit`. Nothing is drawn."""
    from tqdm import tqdm

    fit_one = partial(GlmSession, device=device, budget=budget, future=future)
    rows = tqdm(recordings, unit="session", desc="glm", disable=not progress)
    return PerSession(lambda r, _: fit_one(r), {r.state.session: fit_one(r) for r in rows})


class GlmSession(Fitted):
    """The fitted GLMs of one session's units."""

    def __init__(self, recording: Recording, *, device: str, budget: Budget, future: bool) -> None:
        self.session, self.device, self.future = recording.state.session, device, future
        self.outputs: list[Output] = layout([recording])
        data = session_rows(recording, self.outputs, device)
        self.choice, strength = self._choose(data, budget)
        features = self._features(data, *self.choice)
        rows = row_tensor([*data.fit_on, *data.choose_on], data.counts.device)
        self.weights = PoissonProblem(features.rows, data.counts, rows).solve(strength)

    def _features(self, data: SessionRows, quadratic: bool, lags: int) -> Features:
        runs = [*data.fit_on, *data.choose_on]
        features = make_features(data, self.outputs, runs, quadratic)
        return features.with_lags(offsets(lags, self.future))

    def _choose(self, data: SessionRows, budget: Budget) -> tuple[Choice, float]:
        device = data.counts.device
        fit_on, choose_on = row_tensor(data.fit_on, device), row_tensor(data.choose_on, device)
        first, strength = FIRST
        if not len(choose_on):
            return (False, first), strength

        def losses(choice: Choice, strengths: Sequence[float]) -> Tensor:
            features = self._features(data, *choice)
            problem = PoissonProblem(features.rows, data.counts, fit_on)
            judge = PoissonProblem(features.rows, data.counts, choose_on)
            return torch.stack([judge.nll(problem.solve(s)) for s in strengths])  # (S, N)

        def value(choice: Choice) -> float:
            return -float(losses(choice, (strength,)).sum())

        scores = {(q, first): value((q, first)) for q in (False, True)}
        best = best_of(scores, (False, first))
        if budget == "full":
            others = [(best[0], lags) for lags in LAGS[self.future] if lags != first]
            scores |= {choice: value(choice) for choice in others}
            best = best_of(scores, best)
        strengths = STRENGTHS if budget == "full" else STRENGTHS[1:4]
        return best, strengths[int(losses(best, strengths).sum(1).argmin())]

    def encode_part(self, recording: Recording, part: str) -> Floats:
        """See `Fitted.encode_part`."""
        if recording.state.session != self.session:
            raise unfitted(recording, [self.session])
        quadratic, lags = self.choice
        data = session_rows(recording, self.outputs, self.device)
        runs = recording.runs_within(part)
        features = make_features(data, self.outputs, runs, quadratic)
        features = features.with_lags(offsets(lags, self.future))
        return encode(features, self.weights, row_tensor(runs, data.counts.device))


@torch.inference_mode()
def encode(features: Features, weights: PoissonWeights, rows: Tensor) -> Floats:
    """Rates (n, N) for the rows (n,), a block at a time."""
    parts = [weights.rates(features.rows(block)).cpu() for block in rows.split(4096)]
    return torch.cat(parts).numpy()
