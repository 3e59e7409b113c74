"""Multi-session reduced-rank encoder: log rates = (features V) U_session + b_session, Poisson.

V (features to rank) is shared by all sessions, U (rank to the session's units) is not. V is trained
by gradient on whitened features with batches from all sessions; the rank is chosen on the
validation parts. With V fixed, U and b of every session are a convex Poisson regression, solved on
training and validation together with a strength chosen on the validation part; so are those of a
new session, shrunk to the mean U of the units on the same channel instead of to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neds.baselines import Budget, Fitted
from neds.baselines.adaptation import channel_means
from neds.baselines.features import Features, make_features, offsets, row_tensor
from neds.baselines.glm import encode
from neds.baselines.layout import Output, SessionRows, layout, session_rows
from neds.baselines.poisson import LARGEST, PoissonProblem, PoissonWeights
from neds.baselines.rows import Floats, best_of, unfitted
from neds.dataset import Recording
from neds_rt.bundle import Unit

LAGS = 10
RANKS = (4, 8, 16)
STEPS, ROWS, SESSIONS = 1500, 512, 4  # rows a session and sessions a batch
RATE = 1e-2
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
FLOOR = 1e-3  # of the largest eigenvalue: directions below it are not blown up by whitening


@dataclass(frozen=True)
class View:
    """A session with its features."""

    data: SessionRows
    features: Features


def fit(
    recordings: list[Recording], *, seed: int, device: str, budget: Budget, progress: bool
) -> Fitted:
    """Fit V over all sessions, then U of each. See the module and `neds.baselines.fit`."""
    outputs = layout(recordings)
    views = [view_of(r, outputs, device) for r in recordings]
    whiten = whitening(views)
    ranks, steps = (RANKS, STEPS) if budget == "full" else (RANKS[:1], STEPS // 5)
    shared = {rank: train(views, whiten, rank, steps, seed, progress) for rank in ranks}
    scores = {rank: pooled(views, shared[rank]) for rank in ranks} if len(ranks) > 1 else {}
    v = shared[best_of(scores, ranks[0])]
    weights = {w.data.recording.state.session: solve(w, v) for w in views}
    units = [u for r in recordings for u in r.state.units]
    return RrrEncoder(outputs, v, weights, units, device)


def view_of(recording: Recording, outputs: list[Output], device: str) -> View:
    """Lay out a session, its features cut to the rows to fit and to choose on."""
    data = session_rows(recording, outputs, device)
    runs = [*data.fit_on, *data.choose_on]
    features = make_features(data, outputs, runs, quadratic=True)
    return View(data, features.with_lags(offsets(LAGS, False)))


def whitening(views: list[View]) -> Tensor:
    """(F, F): features @ this have about unit variance over all sessions' training rows."""
    gram: Tensor | float = 0.0
    rows = 0
    for view in views:
        for block in row_tensor(view.data.fit_on, view.data.counts.device).split(4096):
            x = view.features.rows(block)
            gram, rows = gram + (x.T @ x).double(), rows + len(x)
    assert isinstance(gram, Tensor)
    values, basis = torch.linalg.eigh(gram / rows)
    scale = values.clamp(min=FLOOR * float(values[-1].clamp(min=1e-9))).rsqrt()
    scaled: Tensor = basis * scale
    return scaled.float()


def train(views: list[View], whiten: Tensor, rank: int, steps: int, seed: int, progress: bool
          ) -> Tensor:
    """V (F, rank) in terms of the features, by Adam with a rate falling to zero."""
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    device = whiten.device

    def drawn(*shape: int) -> Tensor:
        start = torch.randn(*shape, generator=generator) * math.sqrt(1 / shape[0])
        return start.to(device).requires_grad_(True)

    v = drawn(len(whiten), rank)
    each: list[tuple[Tensor, Tensor]] = []
    rows = [row_tensor(view.data.fit_on, device) for view in views]
    for view, r in zip(views, rows, strict=True):
        spikes = view.data.counts[r].sum(0, dtype=torch.float64).clamp(min=1)
        u = (drawn(rank, view.data.counts.shape[1]).detach() * 0.1).requires_grad_(True)
        each.append((u, (spikes / len(r)).log().float().requires_grad_(True)))
    optimiser = torch.optim.Adam([v, *(p for pair in each for p in pair)], lr=RATE)
    lengths = torch.tensor([float(len(r)) for r in rows])
    for step in tqdm(range(steps), unit="step", desc="rrr_encoder", disable=not progress):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
        loss = torch.zeros((), device=device)
        some = torch.multinomial(lengths, min(SESSIONS, len(views)), generator=generator)
        for s in some.tolist():
            at = rows[s][torch.randint(len(rows[s]), (ROWS,), generator=generator).to(device)]
            u, b = each[s]
            x = views[s].features.rows(at) @ whiten
            log_rates = (x @ v @ u + b).clamp(max=LARGEST)
            y = views[s].data.counts[at].float()
            loss = loss + (log_rates.exp() - y * log_rates).sum(1).mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
    found: Tensor = whiten @ v.detach()
    return found


def through(features: Features, v: Tensor) -> Callable[[Tensor], Tensor]:
    """Rows (n,) to the rank's components (n, rank)."""
    return lambda rows: features.rows(rows) @ v


def tuned(view: View, v: Tensor, prior: Tensor | None = None) -> tuple[float, float]:
    """(strength, log likelihood per spike on the rows to choose on, NaN without any)."""
    device = view.data.counts.device
    fit_on = PoissonProblem(through(view.features, v), view.data.counts,
                            row_tensor(view.data.fit_on, device))
    chosen = row_tensor(view.data.choose_on, device)
    if not len(chosen):
        return STRENGTHS[2], math.nan
    judge = PoissonProblem(through(view.features, v), view.data.counts, chosen)
    spikes = float(view.data.counts[chosen].sum()) or math.nan
    scores = {s: -float(judge.nll(fit_on.solve(s, prior)).sum()) / spikes for s in STRENGTHS}
    best = best_of(scores, STRENGTHS[2])
    return best, scores[best]


def pooled(views: list[View], v: Tensor) -> float:
    """Mean over sessions of the log likelihood per spike on the rows to choose on."""
    values = [value for _, value in (tuned(view, v) for view in views) if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def solve(view: View, v: Tensor, prior: Tensor | None = None) -> PoissonWeights:
    """U, shrunk to `prior`, and b of a session on all its rows, training and validation."""
    strength, _ = tuned(view, v, prior)
    rows = row_tensor([*view.data.fit_on, *view.data.choose_on], view.data.counts.device)
    problem = PoissonProblem(through(view.features, v), view.data.counts, rows)
    return problem.solve(strength, prior)


class RrrEncoder(Fitted):
    """The shared V and the sessions' U and b."""

    def __init__(self, outputs: list[Output], v: Tensor, weights: dict[str, PoissonWeights],
                 units: list[Unit], device: str) -> None:
        self.outputs, self.v, self.weights = outputs, v, weights
        self.units, self.device = units, device

    def encode_part(self, recording: Recording, part: str) -> Floats:
        """See `Fitted.encode_part`."""
        name = recording.state.session
        if name not in self.weights:
            raise unfitted(recording, list(self.weights))
        data = session_rows(recording, self.outputs, self.device)
        runs = recording.runs_within(part)
        features = make_features(data, self.outputs, runs, quadratic=True)
        features = features.with_lags(offsets(LAGS, False))
        own = self.weights[name]
        whole = PoissonWeights(self.v @ own.weights, own.intercept)
        return encode(features, whole, row_tensor(runs, data.counts.device))

    def adapt(self, recording: Recording, *, seed: int) -> Fitted:
        """See `Fitted.adapt`: V stays, U is drawn from the means of its channels, or is them."""
        view = view_of(recording, self.outputs, self.device)
        own = self._from_channels(recording.state.units)
        if view.data.fit_on:
            own = solve(view, self.v, own.weights)
        new = RrrEncoder(self.outputs, self.v, {recording.state.session: own}, self.units,
                         self.device)
        new.name = self.name
        return new

    def _from_channels(self, units: list[Unit]) -> PoissonWeights:
        rows = torch.cat([torch.cat([w.weights, w.intercept[None]]).T.cpu()
                          for w in self.weights.values()])
        otherwise = torch.zeros(len(units), rows.shape[1])
        otherwise[:, -1] = rows[:, -1].mean()
        found = channel_means(rows, self.units, units, otherwise).to(self.device)
        return PoissonWeights(found[:, :-1].T.contiguous(), found[:, -1])
