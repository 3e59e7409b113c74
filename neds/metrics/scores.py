"""Scores: R2, balanced accuracy, bits per spike. Plain NumPy, one function a metric.

A score that does not exist (a constant truth, nothing known) is NaN; reports turn it into null.

Two quantities in the field are called bits per spike. `bps_neuron_mean` is the mean over neurons
used by NEDS and MtM, `bps_pooled` pools likelihood and spikes over neurons as the Neural Latents
Benchmark does. They are reported under these names, never one as the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def r2(truth: Floats, predicted: Floats) -> float:
    """Coefficient of determination per column, averaged over columns; arrays are (T, width).

    Rows with an unknown (NaN) truth are left out. A constant column, or no known row, gives NaN.
    """
    truth, predicted = _known(_columns(truth), _columns(predicted))
    if not len(truth):
        return math.nan
    residual = ((truth - predicted) ** 2).sum(0)
    total = ((truth - truth.mean(0)) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.where(total > 0, 1 - residual / total, np.nan)))


def correlation(truth: Floats, predicted: Floats) -> float:
    """Pearson correlation per column, averaged; NaN where a column is constant or no row known."""
    truth, predicted = _known(_columns(truth), _columns(predicted))
    if not len(truth):
        return math.nan
    a, b = truth - truth.mean(0), predicted - predicted.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))


def circular_r2(truth: Floats, predicted: Floats) -> float:
    """1 - mean(1 - cos(error)) / mean(1 - cos(truth - circular mean)); angles (T,) in radians.

    NaN where the truth is constant or no row is known.
    """
    truth, predicted = _known(_columns(truth), _columns(predicted))
    if not len(truth):
        return math.nan
    centre = np.angle(np.exp(1j * truth).mean(0))
    spread = (1 - np.cos(truth - centre)).mean(0)
    error = (1 - np.cos(truth - predicted)).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.where(spread > 0, 1 - error / spread, np.nan)))


def median_error_deg(truth: Floats, predicted: Floats) -> float:
    """Median absolute angular error in degrees; angles in radians. NaN where no row is known."""
    truth, predicted = _known(_columns(truth), _columns(predicted))
    if not len(truth):
        return math.nan
    return float(np.degrees(np.median(np.abs(np.angle(np.exp(1j * (truth - predicted)))))))


def accuracy(truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> float:
    """Share of rows whose class is right; rows with a negative (unknown) truth are left out."""
    known = truth >= 0
    return float(np.mean(truth[known] == predicted[known])) if known.any() else float("nan")


def balanced_accuracy(truth: NDArray[np.integer], predicted: NDArray[np.integer]) -> float:
    """Mean over the classes present of the share of that class that is right."""
    shares = [np.mean(predicted[truth == c] == c) for c in np.unique(truth[truth >= 0])]
    return float(np.mean(shares)) if shares else float("nan")


def bits_per_spike(
    counts: Floats, rates: Floats, null_rates: Floats
) -> tuple[float, float]:
    """(bps_neuron_mean, bps_pooled) of predicted rates, all per bin.

    `counts` and `rates` are (T, N); `null_rates` (N,) is the mean count per bin on TRAINING data
    (the reference takes it on the test data itself). Per neuron
    `[NLL(null) - NLL(rate)] / (ln 2 * spikes)` with the Poisson likelihood; the factorial cancels.
    Neurons without a spike in `counts` are left out of the mean. Rates are floored at 1e-9, as in
    the reference: a unit silent in training and not after has that null rate, so that each of its
    spikes counts for up to 30 bits in favour of any model. `data.min_rate_hz` drops such units.
    """
    rates = np.maximum(rates, 1e-9)
    null = np.broadcast_to(np.maximum(null_rates, 1e-9), rates.shape)
    nll = (rates - counts * np.log(rates)).sum(0)
    nll_null = (null - counts * np.log(null)).sum(0)
    spikes = counts.sum(0)
    fired = spikes > 0
    if not fired.any():
        return float("nan"), float("nan")
    per_neuron = (nll_null - nll)[fired] / (np.log(2) * spikes[fired])
    pooled = (nll_null - nll).sum() / (np.log(2) * spikes.sum())
    return float(per_neuron.mean()), float(pooled)


def score(kind: str, truth: Floats, predicted: Floats) -> dict[str, float]:
    """All metrics of a behaviour kind.

    `truth` (T, width), for categorical (T, 1) codes with NaN unknown. `predicted` are model
    outputs: continuous (T, width), circular (T, 2) as (cos, sin), categorical (T, classes).
    """
    if kind == "continuous":
        return {"r2": r2(truth, predicted), "correlation": correlation(truth, predicted)}
    if kind == "circular":
        angle = np.arctan2(predicted[:, 1::2], predicted[:, 0::2])
        return {
            "circular_r2": circular_r2(truth, angle),
            "median_error_deg": median_error_deg(truth, angle),
        }
    codes = np.where(np.isnan(truth[:, 0]), -1, truth[:, 0]).astype(np.int64)
    chosen = predicted.argmax(1)
    return {
        "balanced_accuracy": balanced_accuracy(codes, chosen),
        "accuracy": accuracy(codes, chosen),
    }


def json_scores(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Scores as JSON can hold them: a score that is not a number becomes null."""
    return {
        modality: {name: value if math.isfinite(value) else None for name, value in row.items()}
        for modality, row in scores.items()
    }


def _columns(x: Floats) -> Floats:
    return x[:, None] if x.ndim == 1 else x


def _known(truth: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(truth).any(1)
    return truth[known].astype(np.float64), predicted[known].astype(np.float64)
