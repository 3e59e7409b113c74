"""What of a session's part is scored: every task predicted once, then scored with intervals.

    decoding      behaviours from spikes: bin by bin, one decision a trial for behaviours that are
                  constant within trials, and the averages over trials of a condition (PSTH)
    encoding      spike rates from all behaviours, overall and by brain region
    per_variable  spike rates from one behaviour, the others hidden
    co_smoothing  rates of a fifth of the units from the others' spikes  (`neds.spike_tasks`)
    forecasting   rates of the next bins from past spikes                (`neds.spike_tasks`)

PSTH scores exist where the session has a trial table, and are left out elsewhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.checkpoint import BehaviourState
from neds.dataset import Recording
from neds.evaluate import Floats, decode_part, encode_part, part_counts
from neds.metrics import (
    Estimate,
    RateSums,
    Resampling,
    behaviour_estimates,
    psth_r2,
    trial_estimates,
)
from neds.metrics.resample import mean_over
from neds.model import Neds
from neds.spike_tasks import RatePrediction, co_smooth_part, forecast_part
from neds.trials import Trials, constant_in_trials, trial_blocks, trial_votes, trials_within

TASKS = ("decoding", "encoding", "per_variable", "co_smoothing", "forecasting")

FAST_HZ = 1.0
"""R2 of rates is over units above this rate, as in the reference; here on the training part."""

PSTH_REPLICATES = 200
"""Replicates for the PSTHs of units: each costs a pass over all trials and units."""

Estimates = dict[str, dict[str, Estimate]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to score and how."""

    part: str = "test"
    tasks: tuple[str, ...] = TASKS
    block_s: float = 5.0  # blocks of the bootstrap where there are no trials
    replicates: int = 1000
    seed: int = 0  # of the bootstrap and of the units that co-smoothing holds out
    forecast_bins: int = 0  # 0 takes a tenth of the model's window
    conditions: tuple[str, ...] = ()  # columns of the trial table; empty takes the usual ones

    def ahead(self, window: int) -> int:
        """Bins that forecasting predicts."""
        return self.forecast_bins or max(1, window // 10)


@dataclass(frozen=True, eq=False)
class Context:
    """What every score of one part shares."""

    recording: Recording
    part: str
    bin_size_s: float
    trials: Trials | None
    resampling: Resampling
    blocks: str  # what a block of the bootstrap is: "trials" or "seconds"

    @property
    def fast(self) -> NDArray[np.bool_]:
        """Units (N,) whose training rate reaches `FAST_HZ`."""
        return np.array(self.recording.state.null_rates) >= FAST_HZ * self.bin_size_s


@dataclass(eq=False)
class Predictions:
    """One pass of each task over a part: pairs per behaviour (truth, predicted); rates (T, N)."""

    pairs: list[tuple[Floats, Floats]] = field(default_factory=list)
    counts: Floats | None = None
    rates: Floats | None = None
    from_one: dict[str, Floats] = field(default_factory=dict)  # behaviour shown -> rates
    co_smoothing: RatePrediction | None = None
    forecasting: RatePrediction | None = None


def context(
    recording: Recording, trial_table: Mapping[str, Any], bin_size_s: float, settings: Settings
) -> Context:
    """Trials and bootstrap blocks of a part. Raises `BadInput` for an unknown condition column."""
    trials = trials_within(trial_table, recording, settings.part, bin_size_s, settings.conditions)
    bins = recording.bin[recording.rows(settings.part)]
    block, name = trial_blocks(trials, bins, round(settings.block_s / bin_size_s))
    # Sessions draw apart, else resamples of several with as many blocks would move together.
    own = zlib.crc32(recording.state.session.encode())
    resampling = Resampling.draw(block, settings.replicates, [settings.seed, own])
    return Context(recording, settings.part, bin_size_s, trials, resampling, name)


def predict(model: Neds, recording: Recording, settings: Settings) -> Predictions:
    """Run every task asked for, once."""
    result, part = Predictions(), settings.part
    behaviours = recording.state.behaviours
    if "decoding" in settings.tasks:
        result.pairs = decode_part(model, recording, part)
    if "encoding" in settings.tasks:
        result.counts, result.rates = encode_part(model, recording, part)
    if "per_variable" in settings.tasks and len(behaviours) > 1:
        for m, b in enumerate(behaviours):
            result.from_one[b.name] = encode_part(model, recording, part, [m])[1]
    if "co_smoothing" in settings.tasks:
        result.co_smoothing = co_smooth_part(model, recording, part, settings.seed)
    if "forecasting" in settings.tasks:
        ahead = settings.ahead(model.config.window)
        result.forecasting = forecast_part(model, recording, part, ahead)
    return result


def score_all(at: Context, predictions: Predictions) -> tuple[Estimates, Estimates]:
    """Every score of the predictions: {behaviour or task: {metric: estimate}}, and by region."""
    recording = at.recording
    result: Estimates = {}
    regions: Estimates = {}
    if predictions.pairs:
        result |= score_decoding(at, predictions.pairs)
    if predictions.rates is not None:
        result["spikes"], regions = score_encoding(at, predictions.rates)
    for name, rates in predictions.from_one.items():
        everyone = {"": np.arange(rates.shape[1])}
        result[f"spikes_from_{name}"] = rate_scores(at, rates, everyone, psth=False)[""]
    null = np.array(recording.state.null_rates)
    for task in ("co_smoothing", "forecasting"):
        found: RatePrediction | None = getattr(predictions, task)
        if found is not None:
            sums = RateSums.of(found.counts, found.rates, null[found.units],
                               at.resampling.among(found.rows))
            result[task] = sums.estimates(fast=at.fast[found.units])
    return result, regions


def score_decoding(at: Context, pairs: Sequence[tuple[Floats, Floats]]) -> Estimates:
    """Scores of decoded behaviours; `pairs` as `neds.evaluate.decode_part` gives them."""
    result: Estimates = {}
    for b, (truth, predicted) in zip(at.recording.state.behaviours, pairs, strict=True):
        scores = behaviour_estimates(b.kind, truth, predicted, at.resampling)
        if b.kind == "continuous" and _has_conditions(at):
            scores["psth_r2"] = Estimate(
                _psth_columns(at, truth, predicted, at.resampling.weights).mean(1), upper=1.0)
        if b.kind == "categorical" and decided_by_trial(at, b):
            assert at.trials is not None
            codes, last, mean = trial_votes(truth, predicted, at.trials)
            scores |= trial_estimates(codes, last, mean, _by_trial(at))
        result[b.name] = scores
    return result


def score_encoding(at: Context, rates: Floats) -> tuple[dict[str, Estimate], Estimates]:
    """Scores of predicted rates (T, N) over all units, and {region: scores} where known."""
    groups = {"": np.arange(rates.shape[1]), **units_by_region(at.recording)}
    scores = rate_scores(at, rates, groups, psth=True)
    return scores.pop(""), scores


def rate_scores(
    at: Context, rates: Floats, groups: Mapping[str, NDArray[np.int64]], psth: bool
) -> Estimates:
    """Scores over groups of units, each from one pass over the rows."""
    counts = part_counts(at.recording, at.part)
    sums = RateSums.of(counts, rates, np.array(at.recording.state.null_rates), at.resampling)
    result = {name: sums.estimates(units, at.fast) for name, units in groups.items()}
    if psth and _has_conditions(at):
        values = np.full((len(at.resampling.weights[: 1 + PSTH_REPLICATES]), len(at.fast)), np.nan)
        chosen = np.flatnonzero(at.fast)
        if chosen.size:
            values[:, chosen] = _psth_columns(at, counts[:, chosen], rates[:, chosen],
                                              at.resampling.weights[: 1 + PSTH_REPLICATES])
        for name, units in groups.items():
            over = values[:, units]
            result[name]["psth_r2"] = Estimate(mean_over(over, np.isfinite(over)), upper=1.0)
    return result


def units_by_region(recording: Recording) -> dict[str, NDArray[np.int64]]:
    """Units of each known brain region, in order of its name."""
    regions = np.array([unit.region for unit in recording.state.units])
    return {str(name): np.flatnonzero(regions == name) for name in np.unique(regions) if name}


def decided_by_trial(at: Context, behaviour: BehaviourState) -> bool:
    """Whether a categorical behaviour has one class a trial, in the part that is scored.

    A property of what is asked, not of a prediction; nothing is fitted with it.
    """
    rows = at.recording.rows(at.part)
    return constant_in_trials(at.recording.values[behaviour.name][rows], at.trials)


def _has_conditions(at: Context) -> bool:
    return at.trials is not None and bool((at.trials.condition >= 0).any())


def _by_trial(at: Context) -> Resampling:
    """The bootstrap's draws, one entry a trial."""
    assert at.trials is not None
    return at.resampling.among(at.trials.extent[:, 0])


def _psth_columns(
    at: Context, truth: NDArray[Any], predicted: NDArray[Any], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """PSTH R2 (1 + R, k) of every column of truth and predicted (T, k)."""
    trials = at.trials
    assert trials is not None
    known = trials.condition >= 0
    own = weights[:, _by_trial(at).block[known]]
    a, b = trials.take(truth)[known], trials.take(predicted)[known]
    columns = [psth_r2(a[:, :, k], b[:, :, k], trials.condition[known], own)
               for k in range(a.shape[2])]
    return np.stack(columns, 1)
