"""Scores: of behaviours, of spike rates, by condition, and how sure they are. Plain NumPy.

`scores` holds one function a metric for a single value; `resample`, `behaviour`, `rates` and
`conditions` compute the same metrics over resampled blocks of time, for confidence intervals.
"""

from neds.metrics.behaviour import behaviour_estimates, trial_estimates
from neds.metrics.conditions import psth_r2
from neds.metrics.rates import RateSums
from neds.metrics.resample import Estimate, Resampling, mean_estimate
from neds.metrics.scores import (
    accuracy,
    balanced_accuracy,
    bits_per_spike,
    circular_r2,
    correlation,
    json_scores,
    median_error_deg,
    r2,
    score,
)

__all__ = [
    "Estimate",
    "RateSums",
    "Resampling",
    "accuracy",
    "balanced_accuracy",
    "behaviour_estimates",
    "bits_per_spike",
    "circular_r2",
    "correlation",
    "json_scores",
    "mean_estimate",
    "median_error_deg",
    "psth_r2",
    "r2",
    "score",
    "trial_estimates",
]
