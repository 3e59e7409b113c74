"""The pictures of one evaluated session, written beside its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neds.plots.conditions import TrialTraces, trial_panels
from neds.plots.style import save
from neds.plots.traces import decoded_traces
from neds.scoring import Context, Predictions
from neds.trials import Trials

SHOWN_UNITS = (0.95, 0.75, 0.5)
"""Units in the picture, by where their encoding score ranks: good, fair and middling ones. Of those
above a spike a second, where there are as many: of others single spikes decide the score."""

SMOOTH_S = 0.05  # of the Gaussian that units' averages are drawn with, not scored with


def draw_session(folder: Path, suffix: str, at: Context, predictions: Predictions) -> list[str]:
    """Write the session's pictures and return their file names; `suffix` such as ".svg".

    SESSION.traces: decoded behaviours over time. SESSION.behaviour-trials and SESSION.unit-trials:
    averages by condition and single trials, where the session has trials with conditions.
    """
    state = at.recording.state
    pictures = {}
    if predictions.pairs:
        pictures["traces"] = decoded_traces(state.behaviours, predictions.pairs, at.bin_size_s)
    trials = at.trials
    if trials is not None and (trials.condition >= 0).any():
        seconds = trials.start_s + np.arange(trials.aligned.shape[1]) * at.bin_size_s
        for name, rows in (("behaviour-trials", behaviour_rows(at, trials, predictions)),
                           ("unit-trials", unit_rows(at, trials, predictions))):
            if rows:
                pictures[name] = trial_panels(rows, trials.condition, trials.labels, seconds)
    names = []
    for name, picture in pictures.items():
        names.append(f"{state.session}.{name}{suffix}")
        save(picture, folder / names[-1])
    return names


def behaviour_rows(at: Context, trials: Trials, predictions: Predictions) -> list[TrialTraces]:
    """A row for each column of each continuous behaviour known in some trial."""
    rows: list[TrialTraces] = []
    if not predictions.pairs:
        return rows
    for b, (truth, predicted) in zip(at.recording.state.behaviours, predictions.pairs, strict=True):
        if b.kind != "continuous":
            continue
        real, guessed = trials.take(truth), trials.take(predicted)
        for column in range(b.width):
            if np.isfinite(real[:, :, column]).any():
                number = f" {column + 1}" if b.width > 1 else ""
                rows.append(TrialTraces(f"{b.name}{number}\n{b.unit}".strip(),
                                        real[:, :, column], guessed[:, :, column]))
    return rows


def unit_rows(at: Context, trials: Trials, predictions: Predictions) -> list[TrialTraces]:
    """Rows of the units at `SHOWN_UNITS`, in spikes per second."""
    counts, rates = predictions.counts, predictions.rates
    if counts is None or rates is None:
        return []
    bits = unit_bits(counts, rates, np.array(at.recording.state.null_rates))
    if np.isfinite(bits[at.fast]).sum() >= len(SHOWN_UNITS):
        bits[~at.fast] = np.nan
    ranked = np.argsort(bits)[: int(np.isfinite(bits).sum())]  # NaN sorts last
    rows = []
    for share in SHOWN_UNITS if len(ranked) >= len(SHOWN_UNITS) else ():
        unit = int(ranked[round(share * (len(ranked) - 1))])
        region = at.recording.state.units[unit].region
        label = f"unit {unit}{' ' + region if region else ''}, Hz\n{bits[unit]:.2f} bits a spike"
        rows.append(TrialTraces(
            label,
            trials.take(counts[:, [unit]])[:, :, 0] / at.bin_size_s,
            trials.take(rates[:, [unit]])[:, :, 0] / at.bin_size_s,
            smooth=max(1.0, SMOOTH_S / at.bin_size_s),
        ))
    return rows


def unit_bits(
    counts: NDArray[np.floating], rates: NDArray[np.floating], null: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Bits per spike of each unit (N,), NaN for those that did not fire."""
    from neds.metrics import RateSums, Resampling
    from neds.metrics.resample import ratio

    whole = Resampling.draw(np.zeros(len(counts), np.int64), 0, 0)
    sums = RateSums.of(counts, rates, null, whole)
    return np.asarray(ratio(sums.likelihood - sums.null, np.log(2) * sums.spikes)[0])
