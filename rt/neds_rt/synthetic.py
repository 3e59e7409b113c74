"""Synthetic animals: IBL-like recordings with known firing rates, hence with a known ceiling.

All animals share the laws (which cell types a region has, and what drives them); each has its own
units. Spikes are Poisson given the rates, and the rates do not depend on past spikes. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput
from neds_rt.synthetic_task import FEATURES, STEP_S, TRIAL_COLUMNS, Steps, Task

FS = 30000.0
"""Samples per second of the spike clock; a step is exactly 600 samples."""

BLOCK_STEPS = 50
"""Steps generated at a time. Fixed, so that a recording does not depend on how it is read."""

REGIONS = ("PO", "LP", "DG", "CA1", "VISa")  # from the probe's tip upwards
MEAN_RATE_HZ = 8.0
MAX_RATE_HZ = 250.0
TYPES = 6  # cell types a region has
LEADS = np.arange(-2, 5)  # steps by which a unit's activity leads what it encodes

# How strongly a region's types are driven by each feature (log rate per unit of feature): wheel to
# the left and right, whisker, stimulus left and right, choice, block, feedback, noise, drift.
GAIN = np.array([
    [0.60, 0.60, 0.50, 0.1, 0.1, 0.15, 0.05, 0.2, 0.15, 0.15, 0.15, 0.1, 0.1],
    [0.35, 0.35, 0.20, 0.9, 0.9, 0.25, 0.10, 0.1, 0.15, 0.15, 0.15, 0.1, 0.1],
    [0.10, 0.10, 0.10, 0.1, 0.1, 0.15, 0.35, 0.3, 0.20, 0.20, 0.20, 0.2, 0.2],
    [0.25, 0.25, 0.15, 0.1, 0.1, 0.20, 0.30, 0.5, 0.20, 0.20, 0.20, 0.2, 0.2],
    [0.50, 0.50, 0.25, 0.7, 0.7, 0.40, 0.15, 0.1, 0.15, 0.15, 0.15, 0.1, 0.1],
])
LAW_SEED = 20240501


class Trace(NamedTuple):
    """One behaviour on the steps: kind, values (T, 1) at the end of each step, unit, classes."""

    kind: str
    values: NDArray[np.float32]
    unit: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SyntheticRecording:
    """T consecutive steps of one animal, from step `first` on; times count from step 0.

    rates (T, U) float32 in Hz: the truth; sample (n,) int64, sorted, and unit (n,) int32: the
    spikes; steps: the behaviour; trials: the table of the trials that start here, IBL column names.
    """

    first: int
    rates: NDArray[np.float32]
    sample: NDArray[np.int64]
    unit: NDArray[np.int32]
    steps: Steps
    trials: dict[str, NDArray[np.float64]]
    fs: float = FS
    step_s: float = STEP_S

    @property
    def n_steps(self) -> int:
        """Number of steps T."""
        return len(self.rates)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """End of each step in seconds, (T,): when the behaviour has its value."""
        return np.asarray((self.first + np.arange(1.0, self.n_steps + 1)) * self.step_s)

    @property
    def behaviours(self) -> dict[str, Trace]:
        """The four behaviours by name; choice is NaN where there is none."""
        column = self.steps
        return {
            "wheel": Trace("continuous", column.wheel[:, None], "rad/s"),
            "whisker": Trace("continuous", column.whisker[:, None], "a.u."),
            "choice": Trace("categorical", column.choice[:, None], classes=("right", "left")),
            "block": Trace("categorical", column.block[:, None], classes=("0.2", "0.5", "0.8")),
        }

    def ceiling(self) -> float:
        """Bits per spike of the true rates over each unit's mean rate: what no model can beat."""
        per_step = self.rates.astype(np.float64) * self.step_s
        row = self.sample // round(self.fs * self.step_s) - self.first
        mean = np.bincount(self.unit, minlength=self.rates.shape[1]) / self.n_steps
        seen = mean > 0
        gain = np.log(per_step[row, self.unit] / mean[self.unit]).sum()
        gain -= per_step[:, seen].sum() - mean[seen].sum() * self.n_steps
        return float(gain / np.log(2) / max(len(self.sample), 1))


class SyntheticAnimal:
    """One animal: its units and what drives them. The same `seed` is always the same animal."""

    def __init__(self, seed: int, n_units: int = 200, *, n_probes: int = 1) -> None:
        if n_units < n_probes or n_probes < 1:
            expected = f"at least one for each of {n_probes} probes"
            raise BadInput("synthetic animal", "units", n_units, expected)
        self.seed, self.n_units = int(seed), int(n_units)
        rng = np.random.default_rng([self.seed, 0])
        self.units = _unit_table(rng, n_units, n_probes)
        region = np.array([REGIONS.index(name) for name in self.units["region"]])
        self.weights = _unit_weights(rng, region)  # (features, U)
        self.lead = rng.choice(LEADS, n_units)
        sigma = 1.1  # of the log rate: the median is about half the mean, a few units are fast
        base = rng.lognormal(np.log(MEAN_RATE_HZ) - sigma**2 / 2, sigma, n_units)
        self.log_base = np.log(np.clip(base, 0.05, 60.0))
        self.log_base -= self._mean_log_gain()

    def simulate(self, seconds: float, seed: int) -> SyntheticRecording:
        """Return the first `seconds` of session `seed` of this animal."""
        n = round(seconds / STEP_S)
        if n < 1:
            raise BadInput("synthetic animal", "seconds", seconds, f"at least {STEP_S}")
        blocks: list[SyntheticRecording] = []
        for block in self.stream(seed):
            blocks.append(block)
            if len(blocks) * BLOCK_STEPS >= n:
                break
        return _join(blocks, n)

    def stream(self, seed: int) -> Iterator[SyntheticRecording]:
        """Yield session `seed` for ever in blocks of `BLOCK_STEPS`; joined they are `simulate`."""
        spikes = np.random.default_rng([self.seed, seed, 3])
        task = Task(seed, self.seed)
        before, after = -int(LEADS.min()), int(LEADS.max())
        held, trials = task.next_trial()
        held = Steps(*(np.concatenate([part[:1].repeat(before, axis=0), part]) for part in held))
        rows = [trials]
        first = 0
        while True:
            while len(held.wheel) < before + BLOCK_STEPS + after:
                more, row = task.next_trial()
                held = Steps(*map(np.concatenate, zip(held, more, strict=True)))
                rows.append(row)
            rates = self._rates(held.features, before)
            stop_s = (first + BLOCK_STEPS) * STEP_S
            here = [row for row in rows if row["intervals_0"] < stop_s - STEP_S / 2]
            rows = rows[len(here):]
            sample, unit = _draw_spikes(spikes, rates, first)
            now = Steps(*(part[before : before + BLOCK_STEPS] for part in held))
            yield SyntheticRecording(first=first, rates=rates, sample=sample, unit=unit, steps=now,
                                     trials=_table(here))
            held = Steps(*(part[BLOCK_STEPS:] for part in held))
            first += BLOCK_STEPS

    def _rates(self, features: NDArray[np.float32], before: int) -> NDArray[np.float32]:
        log_rate = np.empty((BLOCK_STEPS, self.n_units), dtype=np.float32)
        for lead in LEADS:
            mine = self.lead == lead
            part = features[before + lead : before + lead + BLOCK_STEPS]
            log_rate[:, mine] = part @ self.weights[:, mine].astype(np.float32)
        log_rate += self.log_base.astype(np.float32)
        return np.minimum(np.exp(log_rate), np.float32(MAX_RATE_HZ))

    def _mean_log_gain(self) -> NDArray[np.float64]:
        """Log of the factor that the drive adds to each unit's rate on average, over 20 trials."""
        task = Task(0, self.seed)
        features = np.concatenate([task.next_trial()[0].features for _ in range(20)])
        return np.asarray(np.log(np.exp(features @ self.weights).mean(axis=0)))


def _unit_table(rng: np.random.Generator, n: int, n_probes: int) -> dict[str, NDArray[Any]]:
    """Neuropixels-like: 384 channels in pairs every 20 um, regions stacked from the tip upwards."""
    probe = np.sort(np.arange(n) % n_probes)
    depth = rng.uniform(0, 3840, n)
    border = np.cumsum(rng.dirichlet(np.full(len(REGIONS), 12.0)))[:-1] * 3840
    region = np.array(REGIONS)[np.searchsorted(border, depth)]
    channel = (depth // 20).astype(np.int64) * 2 + rng.integers(0, 2, n)
    return {
        "probe": np.array([f"probe{index:02d}" for index in probe]),
        "channel": channel.astype(np.int32),
        "cluster": np.arange(n, dtype=np.int32),
        "region": region,
        "depth_um": depth.astype(np.float32),
    }


def _unit_weights(rng: np.random.Generator, region: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each unit is of one of its region's types, which all animals share, and deviates a little."""
    law = np.random.default_rng(LAW_SEED)
    types = law.standard_normal((len(REGIONS), TYPES, len(FEATURES))) * GAIN[:, None]
    mine = types[region, rng.integers(0, TYPES, len(region))]
    own = rng.standard_normal(mine.shape) * GAIN[region] * 0.3
    # Noise and drift load on each unit by chance: no law holds across animals for them.
    shared = FEATURES.index("noise0")
    mine[:, shared:] = rng.standard_normal(mine[:, shared:].shape) * GAIN[region][:, shared:]
    return np.asarray((mine + own).T)


def _draw_spikes(
    rng: np.random.Generator, rates: NDArray[np.float32], first: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Draw Poisson spikes: a unit-rate process on the cumulated rate, then uniform in the step."""
    total = np.cumsum(rates.ravel(), dtype=np.float64) * STEP_S
    at = np.sort(rng.random(rng.poisson(total[-1]))) * total[-1]
    cell = np.minimum(np.searchsorted(total, at, side="right"), total.size - 1)
    step, unit = np.divmod(cell, rates.shape[1])
    width = round(FS * STEP_S)
    sample = (first + step) * width + rng.integers(0, width, len(at))
    order = np.argsort(sample, kind="stable")
    return sample[order].astype(np.int64), unit[order].astype(np.int32)


def _table(rows: list[dict[str, float]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([row[name] for row in rows]) for name in TRIAL_COLUMNS}


def _join(blocks: list[SyntheticRecording], n: int) -> SyntheticRecording:
    """Join blocks to one recording and cut it after `n` steps."""
    sample = np.concatenate([b.sample for b in blocks])
    keep = int(np.searchsorted(sample, n * round(FS * STEP_S)))
    steps = Steps(*(np.concatenate(parts)[:n] for parts in zip(*(b.steps for b in blocks),
                                                              strict=True)))
    trials = {name: np.concatenate([b.trials[name] for b in blocks]) for name in TRIAL_COLUMNS}
    inside = trials["intervals_1"] <= n * STEP_S + 1e-9
    return SyntheticRecording(
        first=0,
        rates=np.concatenate([b.rates for b in blocks])[:n],
        sample=sample[:keep],
        unit=np.concatenate([b.unit for b in blocks])[:keep],
        steps=steps,
        trials={name: column[inside] for name, column in trials.items()},
    )
