"""Pretrained ridge: one decoder for all sessions, through what they share, the channels.

Counts are summed over the units of a (probe, channel), z-scored per session with its training rows
and lagged. The pretrained weights w0 are a ridge over all sessions' training rows together; a new
session is decoded with w0 as it is (zero-shot) or with ridge towards w0, the strength chosen on the
calibration's validation rows. Categorical behaviours are regressed on one-hot targets, and what is
predicted for each class, at least a thousandth, is taken for its share of the probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from neds.baselines import Budget, Fitted
from neds.baselines.layout import Output, SessionRows, layout, scaling, session_rows
from neds.baselines.linear import add_runs, candidates_for
from neds.baselines.ridge import STRENGTHS, Sums, tune
from neds.baselines.rows import Floats, Run, apply_lags, headline, in_units, mean_known, unfitted
from neds.dataset import Recording
from neds_rt.bundle import Unit

PRIOR_ROWS = 200  # a channel's pretrained mean and sd count for so many rows of a new session
TOWARDS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # strengths of adaptation

Channel = tuple[str, int]


@dataclass(frozen=True)
class Scaled:
    """How a session's counts become z-scored channel sums: channel of every unit, mean and sd.

    index (N,): column among C + 1 of each unit, the last for channels that were not fitted.
    """

    index: Tensor
    mean: Tensor  # (C,)
    sd: Tensor

    def signal(self, counts: Tensor) -> Callable[[int, int], Tensor]:
        """Rows [a, b) as (b - a, C) floats."""
        return lambda a, b: (self.sums(counts[a:b]) - self.mean) / self.sd

    def sums(self, counts: Tensor) -> Tensor:
        """Counts (n, N) summed per channel (n, C)."""
        return channel_sums(counts, self.index, len(self.mean))


def channel_sums(counts: Tensor, index: Tensor, channels: int) -> Tensor:
    """Counts (n, N) of any type, summed into the columns of `index`: (n, channels) floats."""
    total = torch.zeros(len(counts), channels + 1, device=index.device)
    return total.index_add_(1, index, counts.to(index.device).float())[:, :channels]


def moments(data: SessionRows, index: Tensor, channels: int) -> tuple[Tensor, Tensor, int]:
    """Mean and mean square of the channel sums over the training rows, and their number."""
    total = torch.zeros(2, channels, dtype=torch.float64, device=index.device)
    rows = 0
    for first, stop in data.recording.runs_within("train"):
        for start in range(first, stop, 1 << 14):
            x = channel_sums(data.counts[start : min(start + (1 << 14), stop)], index, channels)
            total += torch.stack([x.sum(0), x.square().sum(0)])
            rows += len(x)
    mean, square = total / max(rows, 1)
    return mean, square, rows


def place(units: list[Unit], channels: Sequence[Channel], device: str) -> Tensor:
    """The column of every unit's channel; the number of channels for one that is not there."""
    column = {channel: i for i, channel in enumerate(channels)}
    return torch.tensor([column.get((u.probe, u.channel), len(channels)) for u in units],
                        device=device)


def fit(
    recordings: list[Recording], *, seed: int, device: str, budget: Budget, progress: bool
) -> Fitted:
    """Pool the sessions; lags and strength are chosen by the mean score on their validation rows.

    Nothing is drawn. See the module and `neds.baselines.fit`.
    """
    from tqdm import tqdm

    outputs = layout(recordings)
    units = [u for r in recordings for u in r.state.units if u.channel >= 0]
    channels = sorted({(u.probe, u.channel) for u in units})
    data = [session_rows(r, outputs, device) for r in recordings]
    if not channels:  # a column that is always zero: only the intercept is left
        channels = [("", -1)]
    places = [place(r.state.units, channels, device) for r in recordings]
    each = [moments(d, index, len(channels)) for d, index in zip(data, places, strict=True)]
    mean = torch.stack([m for m, _, _ in each]).mean(0)
    sd = torch.stack([(q - m.square()).clamp(min=0) for m, q, _ in each]).mean(0).sqrt()
    model = Pretrained(outputs, channels, mean.float(), sd.clamp(min=1e-3).float(), device)
    views = [model.scaled(d) for d in data]
    lags = candidates_for(len(channels), budget)
    pooled = [Sums.zeros(max(lags) * len(channels), width(o), device) for o in outputs]
    for d, view in zip(tqdm(data, desc="ridge_pretrained", disable=not progress), views,
                       strict=True):
        for m, sums in enumerate(pooled):
            add_known(sums, d, view, m, outputs, d.fit_on)
    strengths = STRENGTHS[1::2] if budget == "quick" else STRENGTHS
    best = [tune(partial(model.pooled_score, sums, m, data, views), lags, strengths)
            for m, sums in enumerate(pooled)]
    for d, view in zip(data, views, strict=True):
        for m, sums in enumerate(pooled):
            add_known(sums, d, view, m, outputs, d.choose_on)
    model.weights = [model.solve(sums, *key) for sums, key in zip(pooled, best, strict=True)]
    model.sessions = {d.recording.state.session: (view, model.weights)
                      for d, view in zip(data, views, strict=True)}
    return model


def width(output: Output) -> int:
    """Columns of a behaviour."""
    return output.behaviour.spec.n_outputs


def add_known(sums: Sums, data: SessionRows, view: Scaled, m: int, outputs: list[Output],
              runs: Sequence[Run]) -> None:
    """Add the rows of a session where behaviour m is known."""
    target = data.targets[:, outputs[m].columns]
    add_runs(sums, view.signal(data.counts), runs, target, data.known[:, m])


Weights = tuple[Tensor, Tensor]  # (L, C, K) and intercept (K,)


class Pretrained(Fitted):
    """Weights shared by all sessions, and what each session uses of its own."""

    def __init__(self, outputs: list[Output], channels: list[Channel], mean: Tensor, sd: Tensor,
                 device: str) -> None:
        self.outputs, self.channels, self.device = outputs, channels, device
        self.mean, self.sd = mean, sd
        self.weights: list[Weights] = []
        self.sessions: dict[str, tuple[Scaled, list[Weights]]] = {}

    def scaled(self, data: SessionRows) -> Scaled:
        """Scaling by the session's training rows, drawn to the pretrained if few."""
        index = place(data.recording.state.units, self.channels, self.device)
        mean, square, rows = moments(data, index, len(self.channels))
        share = rows / (rows + PRIOR_ROWS)
        variance = (square - mean.square()).clamp(min=0)
        mean = share * mean + (1 - share) * self.mean
        variance = share * variance + (1 - share) * self.sd.square()
        return Scaled(index, mean.float(), variance.sqrt().clamp(min=1e-3).float())

    def solve(self, sums: Sums, lags: int, strength: float, prior: Tensor | None = None) -> Weights:
        """Weights with so many lags; `prior` (L, C, K) is what they are shrunk to."""
        columns = lags * len(self.channels)
        towards = None if prior is None else prior.double().view(columns, -1)
        w, b = sums.solve(columns, strength, towards)
        return w.float().view(lags, len(self.channels), -1), b.float()

    def pooled_score(self, sums: Sums, m: int, data: list[SessionRows], views: list[Scaled],
                     lags: int, strength: float) -> float:
        """Mean over sessions of the headline metric on the rows to choose on."""
        weights = self.solve(sums, lags, strength)
        scores = [self.score(d, view, m, weights) for d, view in zip(data, views, strict=True)]
        value = mean_known(scores)
        return float("nan") if value is None else value

    def score(self, data: SessionRows, view: Scaled, m: int, weights: Weights) -> float:
        """Headline metric of behaviour m of a session that has it; NaN otherwise."""
        names = [b.name for b in data.recording.state.behaviours]
        name = self.outputs[m].behaviour.name
        if name not in names or not data.choose_on:
            return float("nan")
        at = names.index(name)
        predicted = self.predict(data.recording, view, at, weights, data.choose_on)
        return headline(data.recording, at, data.choose_on, predicted)

    def predict(self, recording: Recording, view: Scaled, at: int, weights: Weights,
                runs: Sequence[Run]) -> Floats:
        """Predictions of the recording's behaviour number `at`."""
        raw = weights[1] + apply_lags(view.signal(recording.counts), runs, weights[0])
        state = scaling(recording, self.outputs)[at]
        if state.kind == "categorical":  # regressed one-hot: shares of 0 to 1, not log odds
            raw = raw.clamp(min=1e-3).log()
        return in_units(recording, at, raw, state)

    def decode_part(self, recording: Recording, part: str) -> list[Floats]:
        """See `Fitted.decode_part`."""
        if recording.state.session not in self.sessions:
            raise unfitted(recording, list(self.sessions))
        view, weights = self.sessions[recording.state.session]
        order = [o.behaviour.name for o in self.outputs]
        return [self.predict(recording, view, at, weights[order.index(b.name)],
                             recording.runs_within(part))
                for at, b in enumerate(recording.state.behaviours)]

    def adapt(self, recording: Recording, *, seed: int) -> Fitted:
        """See `Fitted.adapt`: ridge towards the pretrained weights. Nothing is drawn."""
        data = session_rows(recording, self.outputs, self.device)
        view = self.scaled(data)
        weights = [self.towards(data, view, m) for m in range(len(self.outputs))]
        new = Pretrained(self.outputs, self.channels, self.mean, self.sd, self.device)
        new.name, new.weights = self.name, self.weights
        new.sessions = {recording.state.session: (view, weights)}
        return new

    def towards(self, data: SessionRows, view: Scaled, m: int) -> Weights:
        """Weights of behaviour m after calibration; the pretrained ones if it has no known row."""
        prior, intercept = self.weights[m]
        lags = len(prior)
        sums = Sums.zeros(lags * len(self.channels), len(intercept), self.device)
        add_known(sums, data, view, m, self.outputs, data.fit_on)
        if sums.rows == 0:
            return prior, intercept

        def evaluate(_: int, strength: float) -> float:
            return self.score(data, view, m, self.solve(sums, lags, strength, prior))

        _, strength = tune(evaluate, (lags,), TOWARDS)
        kept = self.score(data, view, m, (prior, intercept))
        if kept > evaluate(lags, strength):  # not so where there is no score
            return prior, intercept
        add_known(sums, data, view, m, self.outputs, data.choose_on)
        return self.solve(sums, lags, strength, prior)
