"""Recordings with a relation planted in them, for the baselines to find."""

import msgspec
import numpy as np

from neds.baselines.nets import Sizes
from neds.baselines.sequence import Recipe
from neds.config import DataConfig
from neds.data.session import Behaviour, Counts, Session, Units
from neds.dataset import describe, to_recording

BIN_S = 0.05
CONFIG = DataConfig(bin_size_s=BIN_S, fractions=(0.6, 0.2, 0.2))


TINY = Recipe(sizes=Sizes(width=8), least_steps=4, most_steps=4, batch=4, bins=10, validations=2,
              ranks=(4,))
"""A net that has seen next to nothing, for tests of what surrounds it."""


def made(session, counts, behaviours, channel=None, pauses=None):
    """A recording of counts (T, N) and {name: (kind, values, classes)}; bins jump by `pauses`."""
    bins = np.arange(len(counts)) + (0 if pauses is None else pauses)
    ends = (bins + 1) * BIN_S
    units = Units.of(counts.shape[1], **({} if channel is None else {"channel": channel}))
    found = {
        name: Behaviour(kind=kind, timestamps=ends, values=values, classes=classes,
                        gaps=bool(np.isnan(values).any()))
        for name, (kind, values, classes) in behaviours.items()
    }
    whole = Session(session=session, subject="nobody", units=units, behaviours=found,
                    spikes=Counts(counts=counts, bin=bins, bin_size_s=BIN_S))
    return to_recording(*describe(whole, CONFIG, 5))


def smooth(rng, rows, width, length=15):
    """Slow traces (rows, width) of unit variance."""
    kernel = np.hanning(length + 2)
    white = rng.standard_normal((rows + len(kernel) - 1, width))
    trace = np.stack([np.convolve(w, kernel, "valid") for w in white.T], 1)
    return trace / trace.std(0)


def driven(session="driven", rows=1500, channels=8, per_channel=2, seed=0, missing=(), unknown=0.0,
           classes=("left", "right")):
    """Counts driven by a slow velocity, the same way per channel in every session and seed.

    Behaviours: velocity (continuous, 2), side (categorical) and heading (circular), less those
    `missing`; `unknown` is the share of rows whose values are not known.
    """
    rng = np.random.default_rng(seed)
    velocity = smooth(rng, rows, 2)
    angles = np.linspace(0, 2 * np.pi, channels, endpoint=False)
    drive = velocity @ np.stack([np.cos(angles), np.sin(angles)])
    channel = np.repeat(np.arange(channels), per_channel)[: channels * per_channel - seed % 2]
    counts = rng.poisson(np.exp(0.7 + 0.6 * drive)[:, channel].clip(max=30))
    gone = rng.random(rows) < unknown
    values = {
        "velocity": ("continuous", np.where(gone[:, None], np.nan, velocity), ()),
        "side": ("categorical", np.where(gone, np.nan, (velocity[:, 0] > 0) * 1.0), classes),
        "heading": ("circular", np.where(gone, np.nan, np.arctan2(velocity[:, 1], velocity[:, 0])),
                    ()),
    }
    kept = {name: value for name, value in values.items() if name not in missing}
    return made(session, counts, kept, channel)


def trials(session="trials", n=80, length=10, units=12, seed=0):
    """Trials of equal length whose label sets which units fire late in the trial."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    late = np.arange(length) >= length // 2
    rates = np.full((n, length, units), 0.8)
    rates[:, late, : units // 2] += 0.8 * label[:, None, None]
    counts = rng.poisson(rates).reshape(-1, units)
    side = np.repeat(label.astype(float), length)
    pauses = np.repeat(np.arange(n) * 7, length)
    behaviours = {"side": ("categorical", side, ("left", "right"))}
    return made(session, counts, behaviours, pauses=pauses)


def with_split(recording, **parts):
    """The same recording with other parts, each (first, stop)."""
    split = {**recording.state.split, **{name: list(part) for name, part in parts.items()}}
    state = msgspec.structs.replace(recording.state, split=split)
    return type(recording)(**{**vars(recording), "state": state})


def changed_from(recording, row):
    """The recording with other counts and behaviours from a row on."""
    counts = recording.counts.clone()
    counts[row:] = counts[row:].flip(0) + 1
    encoded = [e.clone() for e in recording.encoded]
    values = {name: v.copy() for name, v in recording.values.items()}
    for e in encoded:
        e[row:] = e[row:].flip(0)
    for v in values.values():
        v[row:] = v[row:][::-1]
    known = recording.known.clone()
    return type(recording)(**{**vars(recording), "counts": counts, "encoded": encoded,
                              "values": values, "known": known})
