"""A small raw recording with units whose spikes are known, and templates measured on it."""

from functools import cache

import numpy as np

from neds.templates import Raw, Sorted, measure_templates

FS, CHANNELS = 30_000.0, 40
POSITION = np.zeros((CHANNELS, 3), np.float32)
POSITION[:, 0] = np.tile([0, 32], CHANNELS // 2)
POSITION[:, 1] = np.repeat(np.arange(CHANNELS // 2) * 20, 2)
NAMES = np.array([(4, 7), (9, 1), (16, 3), (19, 2), (24, 5), (31, 0)])  # channel, cluster
WHERE = np.array([(5.0, 41.0), (25.0, 82.0), (4.0, 161.0), (30.0, 188.0), (10.0, 243.0),
                  (28.0, 301.0)])
SIZE = np.array([160.0, 120.0, 180.0, 140.0, 220.0, 110.0])
ROWS, TROUGH = 60, 20


def field(unit, moved_um=0.0):
    """How large a unit's spike is on each channel, 1 right beside it."""
    away = POSITION[:, :2] - WHERE[unit] - [0.0, moved_um]
    return np.exp(-((away**2).sum(1)) / (2 * 28.0**2))


def spike(unit, moved_um=0.0):
    """(ROWS, CHANNELS) of one spike, its trough at row TROUGH."""
    t = (np.arange(ROWS) - TROUGH) / FS * 1e3
    width = 0.11 + 0.02 * (unit % 3)
    shape = -np.exp(-((t / width) ** 2)) + 0.35 * np.exp(-(((t - 0.45) / (2.5 * width)) ** 2))
    return SIZE[unit] * shape[:, None] * field(unit, moved_um)


def plant(samples, units, n, *, noise=8.0, moved=lambda s: 0.0, seed=0):
    """(n, CHANNELS) int16 with these spikes; `moved` tells where a unit is at a sample."""
    rng = np.random.default_rng(seed)
    data = rng.normal(0, noise, (n, CHANNELS)).astype(np.float32) if noise else np.zeros(
        (n, CHANNELS), np.float32)
    data += rng.integers(-100, 100, CHANNELS)
    for s, u in zip(samples.tolist(), units.tolist(), strict=True):
        data[s - TROUGH : s - TROUGH + ROWS] += spike(u, moved(s))
    return np.rint(data).astype(np.int16)


def trains(seconds, rate_hz=12.0, seed=0):
    """Sorted samples and units of spikes that keep away from both ends."""
    rng = np.random.default_rng(seed)
    samples, units = [], []
    for u in range(len(NAMES)):
        gaps = rng.exponential(1 / rate_hz, int(3 * rate_hz * seconds) + 5) + 0.003
        s = (np.cumsum(gaps) * FS).astype(np.int64) + 100
        samples.append(s[s < seconds * FS - 100])
        units.append(np.full(len(samples[-1]), u))
    order = np.argsort(np.concatenate(samples), kind="stable")
    return np.concatenate(samples)[order], np.concatenate(units)[order]


def raw(data, name="made"):
    return Raw(lambda a, b: data[a:b], len(data), FS, POSITION, name)


@cache
def recording(seed=0, seconds=6.0):
    """(data, samples, units) of ordinary spikes."""
    samples, units = trains(seconds, seed=seed)
    return plant(samples, units, int(seconds * FS), seed=seed), samples, units


@cache
def templates():
    """The templates of all units, from a recording of its own."""
    data, samples, units = recording(seed=1)
    found, missing = measure_templates(raw(data), Sorted(samples, units, NAMES), probe="a")
    assert missing == []
    return found
