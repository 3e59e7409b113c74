"""The scores that BrainWideBench reports, as its scorer defines them, in double precision.

They differ from those of `neds.metrics.scores` where the benchmark does: rates come as log rates,
the null of Poisson scores is the mean of the scored rows themselves (which has seen the answer),
and a class that is predicted but never true counts as a recall of 0. The scorer sums in single
precision, so the two agree to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neds.metrics.scores import correlation

Floats = NDArray[np.floating]
EPS = 1e-9
NOTHING = 1e-4
"""Sums of squares below this are none."""


def trace_scores(truth: Floats, predicted: Floats) -> dict[str, float]:
    """r2, mae and pearson of one trace, both (T,).

    r2 is 1 where nothing is wrong and 0 where the truth alone does not change.
    """
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    residual = float(((truth - predicted) ** 2).sum())
    total = float(((truth - truth.mean()) ** 2).sum())
    r2 = 1.0 if residual <= NOTHING else 0.0 if total <= NOTHING else 1 - residual / total
    return {"r2": r2, "mae": mean_absolute_error(truth, predicted),
            "pearson": correlation(truth, predicted)}


def mean_absolute_error(truth: Floats, predicted: Floats) -> float:
    """Mean of the absolute difference of arrays of one shape."""
    return float(np.abs(truth.astype(np.float64) - predicted).mean())


def label_scores(truth: NDArray[np.integer], logits: Floats) -> dict[str, float]:
    """bacc, f1 and ap of labels (N,) from logits or probabilities (N, C), means over classes.

    bacc and f1 leave out classes that are neither true nor predicted, ap those that are never true.
    """
    truth, chosen = truth.astype(np.int64), logits.argmax(1)
    classes = np.arange(logits.shape[1])
    hits, true, said = _tallies(truth, chosen, classes)
    there = true + said > 0
    recall = hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(true + said, 1)
    probability = _softmax(logits)
    ap = [_average_precision(truth == c, probability[:, c]) for c in classes if true[c]]
    return {"bacc": float(recall[there].mean()), "f1": float(f1[there].mean()),
            "ap": float(np.mean(ap))}


def region_scores(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], names: Sequence[str]
) -> dict[str, float]:
    """NAME/precision, NAME/recall and NAME/f1-score of each class, and macro/... over all of them.

    truth and predicted (U,) are codes into `names`. What has a denominator of 0 is 0, so a class
    that nobody has lowers the mean, as in the benchmark.
    """
    hits, true, said = _tallies(truth, predicted, np.arange(len(names)))
    columns = {"precision": hits / np.maximum(said, 1), "recall": hits / np.maximum(true, 1),
               "f1-score": 2 * hits / np.maximum(true + said, 1)}
    result: dict[str, float] = {}
    for metric, column in columns.items():
        result |= {f"{name}/{metric}": float(v) for name, v in zip(names, column, strict=True)}
        result[f"macro/{metric}"] = float(column.mean())
    return result


def poisson_d2(counts: Floats, log_rates: Floats) -> float:
    """Share of Poisson deviance explained, mean over columns of (T, N) that have any counts.

    `log_rates` are per bin. The null is each column's mean. NaN where no column has counts.
    """
    y, log_rate = counts.astype(np.float64), log_rates.astype(np.float64)
    total = y.sum(0)
    own = (y * np.log(np.maximum(y, 1))).sum(0)
    loss = np.exp(log_rate).sum(0) - (y * log_rate).sum(0) - (total - own)
    null = own - total * np.log(np.maximum(total / len(y), EPS))
    valid = (total > 0) & (np.abs(null) >= EPS)
    if not valid.any():
        return float("nan")
    return float((1 - loss[valid] / null[valid]).mean())


def pooled_bits(counts: Floats, log_rates: Floats) -> float:
    """Bits per spike above the columns' own mean rates, pooled over columns of (T, N) that fire.

    After the Neural Latents Benchmark, but for the null, which is the scored rows' mean.
    """
    y, log_rate = counts.astype(np.float64), log_rates.astype(np.float64)
    total = y.sum(0)
    mean = total / len(y)
    valid = mean >= EPS
    if not valid.any():
        return float("nan")
    null = (total * (1 - np.log(np.maximum(mean, EPS))))[valid].sum()
    loss = (np.exp(log_rate).sum(0) - (y * log_rate).sum(0))[valid].sum()
    return float((null - loss) / (np.log(2) * total[valid].sum()))


def _tallies(
    truth: NDArray[np.integer], chosen: NDArray[np.integer], classes: NDArray[np.integer]
) -> tuple[Floats, Floats, Floats]:
    """Per class: rows that are right, that are true, that are predicted."""
    is_class, said = truth[:, None] == classes, chosen[:, None] == classes
    return (is_class & said).sum(0) * 1.0, is_class.sum(0) * 1.0, said.sum(0) * 1.0


def _softmax(logits: Floats) -> Floats:
    """Probabilities of logits; what lies between 0 and 1 throughout is taken for probabilities."""
    x = logits.astype(np.float64)
    if x.min() >= 0 and x.max() <= 1:
        return x
    x = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(x / x.sum(1, keepdims=True))


def _average_precision(positive: NDArray[np.bool_], score: Floats) -> float:
    """Precision averaged over the steps of recall, ties taken together."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(order) - 1]
    hits = np.cumsum(positive[order])[last]
    precision, recall = hits / (last + 1), hits / hits[-1]
    return float((np.diff(np.r_[0.0, recall]) * precision).sum())
