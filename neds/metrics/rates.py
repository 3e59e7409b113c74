"""Scores of predicted spike rates, per unit and over units, with bootstrap replicates.

y are counts, r predicted counts per bin (rates), both (T, N); L(y, r) = sum over bins of
y ln r - r, the Poisson log likelihood less the factorial, which cancels everywhere.

    bps_pooled           sum over units of L(y, r) - L(y, null), / (ln 2 * all spikes); null is the
                         mean count per bin on TRAINING data (the Neural Latents Benchmark pools)
    bps_neuron_mean      the same unit by unit, then the mean over units that fired
    bps_test_mean_null   bps_neuron_mean with the null taken on the scored rows themselves, as the
                         NEDS reference does; that null has seen the answer
    poisson_d2           1 - deviance(y, r) / deviance(y, mean y) unit by unit, mean over units that
                         fired: the share of deviance explained, 0 for the mean of the scored rows
    single_trial_r2      R2 of rates against counts bin by bin, mean over units above a rate
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neds.metrics.behaviour import r2_columns
from neds.metrics.resample import Estimate, Floats, Resampling, mean_over, ratio

FLOOR = 1e-9
"""Least rate per bin, as in the reference: a rate of zero would make any spike infinitely bad."""


@dataclass(frozen=True, eq=False)
class RateSums:
    """What the metrics need of counts and rates: (1 + R, N) each, bins (1 + R, 1)."""

    bins: NDArray[np.float64]
    spikes: NDArray[np.float64]
    likelihood: NDArray[np.float64]  # L(y, r)
    null: NDArray[np.float64]  # L(y, null)
    saturated: NDArray[np.float64]  # L(y, y)
    r2: NDArray[np.float64]

    @classmethod
    def of(
        cls, counts: Floats, rates: Floats, null_rates: Floats, resampling: Resampling
    ) -> RateSums:
        """Sum up counts and rates (T, N) against null rates (N,) of the training part."""
        counts = counts.astype(np.float64)
        rates = np.maximum(rates.astype(np.float64), FLOOR)
        null = np.maximum(np.asarray(null_rates, np.float64), FLOOR)
        bins = resampling.totals(np.ones((len(counts), 1)))
        spikes = resampling.totals(counts)
        own = np.where(counts > 0, counts * np.log(np.maximum(counts, 1)), 0.0) - counts
        return cls(
            bins=bins,
            spikes=spikes,
            likelihood=resampling.totals(counts * np.log(rates) - rates),
            null=spikes * np.log(null) - bins * null,
            saturated=resampling.totals(own),
            r2=r2_columns(counts, rates, resampling),
        )

    def estimates(
        self, units: NDArray[np.int64] | None = None, fast: NDArray[np.bool_] | None = None
    ) -> dict[str, Estimate]:
        """The metrics over some units (all by default); R2 over those that are also `fast` (N,)."""
        chosen = np.arange(self.spikes.shape[1]) if units is None else units
        spikes, likelihood = self.spikes[:, chosen], self.likelihood[:, chosen]
        null, saturated = self.null[:, chosen], self.saturated[:, chosen]
        fired = spikes > 0
        mean = np.maximum(spikes / np.maximum(self.bins, 1), FLOOR)
        own_null = spikes * np.log(mean) - spikes
        bits = np.log(2) * spikes
        explained = 1 - ratio(saturated - likelihood, saturated - own_null, 1e-9)
        pooled = ratio((likelihood - null).sum(1), bits.sum(1))
        r2 = self.r2[:, chosen]
        counted = np.isfinite(r2) if fast is None else np.isfinite(r2) & fast[chosen]
        return {
            "bps_neuron_mean": Estimate(mean_over(ratio(likelihood - null, bits), fired)),
            "bps_pooled": Estimate(pooled),
            "bps_test_mean_null": Estimate(mean_over(ratio(likelihood - own_null, bits), fired)),
            "poisson_d2": Estimate(mean_over(explained, np.isfinite(explained)), upper=1.0),
            "single_trial_r2": Estimate(mean_over(r2, counted), upper=1.0),
        }
