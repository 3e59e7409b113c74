"""TS3: which region a unit lies in, from what its session's maps learned of it.

The benchmark calls this the transductive setting: a new recording's maps are fitted to its spikes
and behaviour, never to regions, on a backbone that stays as it is, so that all maps lie in one
space. A linear probe is fitted on the units of the checkpoint's sessions, which are other animals,
and answers for the new units. Multi-unit answers are means over a unit's neighbours on its probe.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neds.bwb.tasks import COSMOS, MULTI_UNIT_MOST, MULTI_UNIT_UM
from neds.checkpoint import CheckpointInfo
from neds.model import Neds
from neds.region_probe import choose_cost
from neds.regions import unit_table
from neds_rt.errors import BadInput

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Probe:
    """Multinomial logistic regression on z-scored features, columns in the order of `COSMOS`."""

    mean: Floats
    sd: Floats
    weights: Floats  # (features, 10)
    bias: Floats  # (10,): minus infinity for regions that the checkpoint never saw

    def probabilities(self, x: Floats) -> NDArray[np.float32]:
        """Probabilities (U, 10) of units' embeddings (U, features)."""
        z = ((x - self.mean) / self.sd) @ self.weights + self.bias
        z = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(z / z.sum(1, keepdims=True), np.float32)


def fit_probe(model: Neds, info: CheckpointInfo, seed: int) -> Probe:
    """The probe of a checkpoint's units. Raises `BadInput` where these have no Cosmos regions."""
    from sklearn.linear_model import LogisticRegression

    table = unit_table(model, info.sessions)
    rows = np.flatnonzero(np.isin(table.region, COSMOS))
    codes = np.array([COSMOS.index(r) for r in table.region[rows]], np.int64)
    present = np.unique(codes)
    if len(present) < 2:
        raise BadInput("checkpoint", "units' regions", f"{len(present)} of the Cosmos regions",
                       "two or more, as of sessions prepared with --reader bwb")
    x = table.embedding[rows].astype(np.float64)
    mean, sd = x.mean(0), np.maximum(x.std(0), 1e-12)
    cost = choose_cost(x, codes, table.group[rows], seed)
    fitted = LogisticRegression(C=cost, class_weight="balanced", max_iter=500, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops at max_iter is good enough here
        fitted.fit((x - mean) / sd, codes)
    weights, bias = np.zeros((x.shape[1], len(COSMOS))), np.full(len(COSMOS), -np.inf)
    coefficients, offsets = np.atleast_2d(fitted.coef_), np.ravel(fitted.intercept_)
    if len(present) == 2:  # one row, for the second class against the first
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        offsets = np.r_[0.0, offsets]
    weights[:, present], bias[present] = coefficients.T, offsets
    return Probe(mean, sd, weights, bias)


def pooled(
    probabilities: Floats, depth_um: Floats, probe: Sequence[str] | NDArray[np.str_]
) -> NDArray[np.float32]:
    """Multi-unit probabilities (U, 10): means over the nearest units of the same probe, itself
    among them, at most five and at most 60 um away."""
    names = np.asarray(probe)
    result = np.array(probabilities, np.float32)
    for i in range(len(result)):
        away = np.abs(depth_um - depth_um[i])
        near = np.flatnonzero((names == names[i]) & (away <= MULTI_UNIT_UM))
        nearest = near[np.argsort(away[near], kind="stable")][:MULTI_UNIT_MOST]
        if len(nearest):  # none where the depth is unknown
            result[i] = probabilities[nearest].mean(0)
    return result
