"""Scores of decoded behaviours with bootstrap replicates.

The scores themselves equal those of `neds.metrics.scores`, which say what each is; here they are
written as functions of sums over blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neds.metrics.resample import Estimate, Floats, Resampling, ratio

CONSTANT = 1e-9
"""A resample with less than this share of the rows' variance is constant: it has no R2."""


def behaviour_estimates(
    kind: str, truth: Floats, predicted: Floats, resampling: Resampling
) -> dict[str, Estimate]:
    """All metrics of a behaviour kind over rows; arguments as `neds.metrics.score` takes them.

    `resampling` tells the block of each of the T rows. Unknown (NaN) rows are left out.
    """
    if kind == "continuous":
        return _continuous(truth, predicted, resampling)
    if kind == "circular":
        angle = np.arctan2(predicted[:, 1::2], predicted[:, 0::2])
        return _circular(truth, angle, resampling)
    codes = np.where(np.isnan(truth[:, 0]), -1, truth[:, 0]).astype(np.int64)
    return class_estimates(codes, predicted.argmax(1), predicted.shape[1], resampling)


def r2_columns(
    truth: Floats, predicted: Floats, resampling: Resampling
) -> NDArray[np.float64]:
    """R2 per column, (1 + R, width), of truth and predicted (T, width) without NaN.

    NaN where the truth does not change.
    """
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    centred = truth - truth.mean(0)
    n = resampling.totals(np.ones((len(truth), 1)))
    first, second = resampling.totals(centred), resampling.totals(centred**2)
    residual = resampling.totals((truth - predicted) ** 2)
    total = second - first**2 / np.maximum(n, 1)
    changes = np.ptp(truth, axis=0) > 0
    floor = np.where(changes, CONSTANT * total[:1], np.inf)
    return np.asarray(1 - ratio(residual, total, floor), np.float64)


def _continuous(truth: Floats, predicted: Floats, resampling: Resampling) -> dict[str, Estimate]:
    known = np.flatnonzero(~np.isnan(truth).any(1))
    if not known.size:
        return {"r2": _nothing(), "correlation": _nothing()}
    truth, predicted = truth[known].astype(np.float64), predicted[known].astype(np.float64)
    part = resampling.among(known)
    a, b = truth - truth.mean(0), predicted - predicted.mean(0)
    n = part.totals(np.ones((len(a), 1)))
    sums = [part.totals(x) for x in (a, b, a * a, b * b, a * b)]
    n = np.maximum(n, 1)
    variance_a, variance_b = sums[2] - sums[0] ** 2 / n, sums[3] - sums[1] ** 2 / n
    covariance = sums[4] - sums[0] * sums[1] / n
    product = np.maximum(variance_a, 0) * np.maximum(variance_b, 0)
    changes = (np.ptp(truth, axis=0) > 0) & (np.ptp(predicted, axis=0) > 0)
    floor = np.where(changes, CONSTANT**2 * product[:1], np.inf)
    correlation = ratio(covariance, np.sqrt(product), np.sqrt(floor))
    return {
        "r2": Estimate(r2_columns(truth, predicted, part).mean(1), upper=1.0),
        "correlation": Estimate(correlation.mean(1), upper=1.0, lower=-1.0),
    }


def _circular(truth: Floats, angle: Floats, resampling: Resampling) -> dict[str, Estimate]:
    known = np.flatnonzero(~np.isnan(truth).any(1))
    if not known.size:
        return {"circular_r2": _nothing(), "median_error_deg": _nothing()}
    truth, angle = truth[known].astype(np.float64), angle[known].astype(np.float64)
    part = resampling.among(known)
    n = part.totals(np.ones((len(truth), 1)))
    length = np.hypot(part.totals(np.cos(truth)), part.totals(np.sin(truth)))
    error = part.totals(1 - np.cos(truth - angle))
    changes = np.ptp(truth, axis=0) > 0
    spread = ratio(error, n - length, np.where(changes, CONSTANT * n, np.inf))
    off = np.degrees(np.abs(np.angle(np.exp(1j * (truth - angle)))))
    return {
        "circular_r2": Estimate((1 - spread).mean(1), upper=1.0),
        "median_error_deg": Estimate(_weighted_median(off, part), upper=180.0, lower=0.0),
    }


def _weighted_median(values: Floats, resampling: Resampling) -> Floats:
    """Median of all entries of `values` (T, width) in each replicate, (1 + R,)."""
    order = np.argsort(values.ravel(), kind="stable")
    ordered = values.ravel()[order]
    block = np.repeat(resampling.block, values.shape[1])[order]
    medians = np.empty(len(resampling.weights))
    for i, weights in enumerate(resampling.weights):
        upto = np.cumsum(weights[block])
        half = upto[-1] / 2
        low = np.searchsorted(upto, half - 1e-9)
        high = np.searchsorted(upto, half + 1e-9)
        medians[i] = np.nan if half == 0 else (ordered[low] + ordered[high]) / 2
    return medians


def class_estimates(
    truth: NDArray[np.int64], chosen: NDArray[np.int64], n_classes: int, resampling: Resampling
) -> dict[str, Estimate]:
    """Accuracy and balanced accuracy of class codes (T,); negative truth is unknown.

    Classes absent from the truth do not count in the balanced one, as in scikit-learn; a replicate
    may lack one that the rows have.
    """
    known = np.flatnonzero(truth >= 0)
    if not known.size:
        return {"balanced_accuracy": _nothing(), "accuracy": _nothing()}
    classes = np.arange(n_classes)
    is_class = truth[known, None] == classes
    right = is_class & (chosen[known, None] == classes)
    part = resampling.among(known)
    total, hits = part.totals(is_class), part.totals(right)
    share = ratio(hits, total)
    balanced = ratio(np.nansum(share, 1), (total > 0).sum(1))
    return {
        "balanced_accuracy": Estimate(balanced, upper=1.0, lower=0.0),
        "accuracy": Estimate(ratio(hits.sum(1), total.sum(1)), upper=1.0, lower=0.0),
    }


def trial_estimates(
    truth: NDArray[np.int64],
    last_bin: Floats,
    mean_log_probability: Floats,
    resampling: Resampling,
) -> dict[str, Estimate]:
    """Scores of one decision a trial: truth (n,) codes, negative unknown; votes (n, classes).

    `last_bin` are the probabilities at the trial's last bin, `mean_log_probability` their
    logarithms averaged over its bins; either way the largest is chosen.
    """
    result = {}
    votes = {"trial_last_bin": last_bin, "trial_mean_log_probability": mean_log_probability}
    for name, vote in votes.items():
        for metric, e in class_estimates(
            truth, vote.argmax(1), vote.shape[1], resampling
        ).items():
            result[f"{name}_{metric}"] = e
    return result


def _nothing() -> Estimate:
    return Estimate(np.full(1, np.nan))
