"""What the training spikes were like, for the runtime to know when live ones are not like them.

Fitted on the training part alone: each unit's rate, the spread of its running mean, its longest
silence and its ceiling, and a readout that predicts the next bin's rates from the state that the
model decodes from. The limits of the scores are set on time that these numbers were not fitted on:
the last quarter of the training part, and the validation part. The test part is never looked at.

Predicting by a masked spike token, as the model was trained to, was measured too: it costs a second
step a bin and on two Indy sessions gave 0.025 bits per spike, against 0.14 and 0.23 by the readout,
which costs one product with (hidden, units).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from neds.dataset import Recording
from neds_rt import _core
from neds_rt.bundle import Bundle, Health
from neds_rt.engines.native import build_step_engine
from neds_rt.health import numbers
from neds_rt.safetensors_io import encode_tensors

FILE = "health.safetensors"
SMOOTH_S = 10.0
BURST_S = 0.2
FALSE_ALARMS_PER_HOUR = 1.0
FIT_SHARE = 0.75  # of the training part; the rest sets limits
READOUT_SHARE = 2 / 3  # of that, which the readout is fitted on; the rest says how well it predicts
MAX_FIT_BINS = 150_000  # the last ones: a drifting recording is best described by its end
LEAST_BLOCKS = 8  # of the smoothing time, held back, below which no limit can be set
HIGHEST_LIMIT = 10.0  # of a score that 25 is the most of: two fifths of the units as odd as can be
MARGIN = 1.5  # over the longest silence and the highest burst of a unit
LONGEST_QUIET_S = 30.0  # a unit that may be silent for longer tells nothing in time
LEAST_SHARE = 0.2  # of units, below which silence or bursts are no alarm
STEPS, BATCH = 200, 2048  # of the readout's fit

Floats = NDArray[np.float32]
Runs = list[tuple[int, int]]


@dataclass(frozen=True)
class Seen:
    """Counts (T, N) uint16 and states (T, H) of runs of bins, one after the other; ends of runs."""

    counts: NDArray[np.uint16]
    states: Floats
    ends: NDArray[np.int64]

    def part(self, first: int, stop: int) -> Seen:
        """Bins [first, stop)."""
        ends = np.unique(np.clip(self.ends, first, stop)) - first
        return Seen(self.counts[first:stop], self.states[first:stop], ends[ends > 0])

    def pairs(self) -> NDArray[np.int64]:
        """Bins whose next bin follows at once."""
        alone = np.zeros(len(self.counts), bool)
        alone[self.ends - 1] = True
        return np.flatnonzero(~alone)


def fit_health(
    bundle: Bundle, recording: Recording, false_alarms_per_hour: float = FALSE_ALARMS_PER_HOUR
) -> tuple[Health, bytes] | None:
    """Return what the manifest says of the spikes, and the file of the units' numbers.

    None for a recording that is too short to set limits on (80 s of it held back are the least).
    """
    bin_s = bundle.manifest.bin_size_s
    train = _last(recording.runs_within("train"), MAX_FIT_BINS)
    runs = [*train, *recording.runs_within("val")]
    fit = int(FIT_SHARE * sum(b - a for a, b in train))
    held_bins = sum(b - a for a, b in runs) - fit
    if min(fit, held_bins) * bin_s < SMOOTH_S * LEAST_BLOCKS:
        return None
    seen = watch(bundle, recording, runs)
    held = seen.part(fit, len(seen.counts))
    arrays = fit_arrays(seen.part(0, fit), bin_s)
    drafted = Health(
        file=FILE, smooth_s=SMOOTH_S, burst_s=BURST_S, firing_limit=1.0, likelihood_limit=1.0,
        silent_limit=1.0, saturated_limit=1.0, false_alarms_per_hour=false_alarms_per_hour,
        fitted_s=round(fit * bin_s, 1), held_back_s=round(len(held.counts) * bin_s, 1),
        bits_per_spike=0.0)
    gauges = scores(_core.Health(arrays, bundle.manifest.shape.hidden, numbers(drafted, bin_s)),
                    held)
    settled = {name: values[round(2 * SMOOTH_S / bin_s) :] for name, values in gauges.items()}
    blocks = len(held.counts) * bin_s / SMOOTH_S - 2
    chance = false_alarms_per_hour * SMOOTH_S / 3600 / 2  # a block, for each of two scores
    health = Health(**{
        **{name: getattr(drafted, name) for name in drafted.__struct_fields__},
        "firing_limit": limit(settled["firing"], blocks, chance),
        "likelihood_limit": limit(settled["likelihood"], blocks, chance),
        "silent_limit": max(LEAST_SHARE, MARGIN * float(gauges["silent"].max())),
        "saturated_limit": max(LEAST_SHARE, MARGIN * float(gauges["saturated"].max())),
        "bits_per_spike": round(float(np.nanmean(settled["bits_per_spike"])), 4),
    })
    return health, encode_tensors(arrays)


def watch(bundle: Bundle, recording: Recording, runs: Runs) -> Seen:
    """What the served engine sees of these runs of rows, each from a cold start."""
    engine = build_step_engine(bundle)
    counts = np.concatenate([recording.counts[a:b].numpy().astype(np.uint16) for a, b in runs])
    states = np.empty((len(counts), bundle.manifest.shape.hidden), np.float32)
    ends = np.cumsum([b - a for a, b in runs])
    fresh = {0, *ends.tolist()}
    for t, row in enumerate(counts):
        if t in fresh:
            engine.reset()
        engine.step(row)
        states[t] = engine.state
    return Seen(counts, states, ends.astype(np.int64))


def fit_arrays(seen: Seen, bin_s: float) -> dict[str, Floats]:
    """Every unit's numbers, as `neds_rt.health.array_shapes` lists them."""
    counts = seen.counts.astype(np.float32)
    rate = np.maximum(counts.sum(0), 1) / len(counts)
    slow = min(1.0, bin_s / SMOOTH_S)
    # No running mean of a Poisson count spreads less than this.
    least = np.sqrt(rate * slow / 2)
    spread = running_mean(counts, slow, rate).std(0)
    cut = max(2, int(READOUT_SHARE * len(counts)))
    weight, bias = fit_readout(seen.part(0, cut), rate)
    later = seen.part(cut, len(counts))
    now = later.pairs()
    eta = np.minimum(later.states[now] @ weight + bias, 8.0)
    gain = later.counts[now + 1] * (eta - np.log(rate)) - (np.exp(eta) - rate)
    mean = gain.mean(0)
    # A gain's own noise, as if bins were independent, is the least that its running mean spreads.
    noise = gain.std(0) * np.sqrt(slow / 2)
    fast = min(1.0, bin_s / BURST_S)
    top = running_mean(counts, fast, np.zeros_like(rate)).max(0)
    quiet = MARGIN * longest_silence(seen)
    arrays = {
        "rate": rate,
        "rate.sd": np.maximum(spread, least),
        "gain": mean,
        "gain.sd": np.maximum(np.maximum(running_mean(gain, slow, mean).std(0), noise), 1e-6),
        "quiet": np.where(quiet * bin_s <= LONGEST_QUIET_S, np.maximum(quiet, 1), 0),
        "ceiling": MARGIN * np.maximum(top, 2 * fast),
        "forecast.weight": weight,
        "forecast.bias": bias,
    }
    return {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}


def fit_readout(seen: Seen, rate: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Poisson regression of the next bin's counts on the state: weight (H, N) and bias (N,)."""
    now = seen.pairs()
    mean, sd = seen.states[now].mean(0), seen.states[now].std(0) + 1e-6
    x = torch.from_numpy((seen.states[now] - mean) / sd)
    y = torch.from_numpy(seen.counts[now + 1].astype(np.float32))
    weight = torch.zeros(x.shape[1], y.shape[1], requires_grad=True)
    bias = torch.tensor(np.log(rate), dtype=torch.float32, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / STEPS)
        rows = torch.randint(len(x), (min(len(x), BATCH),), generator=generator)
        eta = (x[rows] @ weight + bias).clamp(max=8.0)
        loss = F.poisson_nll_loss(eta, y[rows]) + 1e-3 * weight.square().sum(0).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    scaled = weight.detach().numpy() / sd[:, None]
    return scaled, bias.detach().numpy() - mean @ scaled


def scores(health: _core.Health, seen: Seen) -> dict[str, NDArray[np.float64]]:
    """The gauges after every bin, by name, (T,) each."""
    health.reset()
    found = np.empty((len(seen.counts), len(_core.HEALTH)))
    starts = {0, *seen.ends.tolist()}
    for t in range(len(seen.counts)):
        if t in starts:
            health.skip()
        health.observe(seen.counts[t], seen.states[t])
        found[t] = health.gauges
    return dict(zip(_core.HEALTH, found.T, strict=True))


def limit(score: NDArray[np.float64], blocks: float, chance: float) -> float:
    """What the score of another block exceeds with this chance, at most `HIGHEST_LIMIT`.

    Its logarithm is taken as normal above its median, with the spread found there: how quiet the
    quiet times were says nothing. `blocks` is how many independent ones `score` holds: with few
    their median and spread are uncertain, hence Student's t.
    """
    logs = np.log(np.maximum(score[np.isfinite(score)], 1e-6))
    middle = float(np.median(logs))
    spread = float(np.sqrt(np.square(logs[logs >= middle] - middle).mean() * (1 + 1 / blocks)))
    found = float(np.exp(middle + student(1 - chance, max(blocks - 1, 3)) * spread))
    return min(found, HIGHEST_LIMIT)


def student(p: float, freedom: float) -> float:
    """Quantile of Student's t by its expansion around the normal one (Abramowitz, 26.7.5)."""
    z = NormalDist().inv_cdf(p)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96,
             (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def running_mean(
    x: NDArray[np.floating], share: float, start: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Exponential running means (T, N) of the columns of x, of which each new value is a share."""
    means = np.empty(x.shape)
    now = start.astype(np.float64)
    for t, row in enumerate(x):
        now = now + share * (row - now)
        means[t] = now
    return means


def longest_silence(seen: Seen) -> NDArray[np.int64]:
    """Bins (N,) of the longest stretch without a spike, those at the ends of runs included."""
    longest = np.zeros(seen.counts.shape[1], np.int64)
    silent = longest.copy()
    ends = set(seen.ends.tolist())
    for t, row in enumerate(seen.counts):
        silent = np.where((row == 0) & (t not in ends), silent + 1, (row == 0).astype(np.int64))
        longest = np.maximum(longest, silent)
    return longest


def _last(runs: Runs, bins: int) -> Runs:
    """The last runs, cut to `bins` rows in all."""
    kept: Runs = []
    for first, stop in reversed(runs):
        if bins > 0:
            kept.insert(0, (max(first, stop - bins), stop))
        bins -= stop - first
    return kept
