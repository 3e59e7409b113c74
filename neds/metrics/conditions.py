"""PSTH R2: are the averages over trials of the same condition right?

A PSTH (peri-stimulus time histogram) is the mean over a condition's trials at each bin from the
event that trials are aligned to. The score is one R2 over the concatenated mean traces of all
conditions, as in the NEDS reference, which averages it over units.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neds.metrics.behaviour import CONSTANT
from neds.metrics.resample import Floats, ratio


def psth_r2(
    truth: Floats, predicted: Floats, condition: NDArray[np.int64], weights: Floats
) -> Floats:
    """R2 (K,) of condition means for K weightings of the trials, (K, n) each; row 0 is the score.

    truth and predicted (n, L): one trace a trial, NaN where it is unknown; condition (n,). A bin
    that no trial of its condition knows is left out. NaN where the true means do not change.
    """
    known = ~np.isnan(truth)
    shown = np.where(known, truth, 0.0).astype(np.float64)
    guessed = np.where(known, predicted, 0.0).astype(np.float64)
    n = np.zeros(len(weights))
    sums = np.zeros((3, len(weights)))  # of the means, of their squares, of the squared residuals
    offset = shown.sum() / max(int(known.sum()), 1)
    for c in np.unique(condition):
        rows = condition == c
        w = weights[:, rows]
        held = w @ known[rows]
        mean = ratio(w @ shown[rows], held) - offset
        other = ratio(w @ guessed[rows], held) - offset
        there = held > 0
        n += there.sum(1)
        for i, term in enumerate((mean, mean**2, (mean - other) ** 2)):
            sums[i] += np.where(there, term, 0.0).sum(1)
    total = sums[1] - sums[0] ** 2 / np.maximum(n, 1)
    spread = float(truth[known].var()) * n[0] if known.any() else 0.0
    return 1 - ratio(sums[2], total, CONSTANT * spread if spread > 0 else np.inf)
