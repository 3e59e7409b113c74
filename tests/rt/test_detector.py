"""Threshold crossings: the C++ core against a plain reading of the same rules in numpy."""

import numpy as np
import pytest

from neds_rt._core import ThresholdDetector
from tools.twins.spikeglx import make_ap_band

FS = 30_000.0


def reference_crossings(data, fs=FS, highpass=300.0, threshold=5.0, refractory=30, median=True):
    """(sample, channel) of every crossing, the noise at the end, the first sample told."""
    k, f = np.tan(np.pi * highpass / fs), np.float32
    scale = 1 / (1 + np.sqrt(2) * k + k * k)
    b0, a1 = f(scale), f(2 * (k * k - 1) * scale)
    a2 = f((1 - np.sqrt(2) * k + k * k) * scale)
    x = data.astype(f)
    s1, s2 = -b0 * x[0], b0 * x[0]
    rows, noise, below, live = [], None, None, -1
    stride, settle = round(fs / 512), round(0.02 * fs)
    last = np.full(x.shape[1], -(10**9))
    found = []
    for i, row in enumerate(x):
        y = b0 * row + s1
        s1 = (f(-2) * b0 * row - a1 * y) + s2
        s2 = b0 * row - a2 * y
        if median:
            y = y - np.partition(y, len(y) // 2)[len(y) // 2]
        if i >= settle and (i - settle) % stride == 0:
            rows.append(np.abs(y))
            if len(rows) == 512:
                new = np.partition(np.array(rows), 256, axis=0)[256] / f(0.6745)
                noise = new if noise is None else noise + f(0.1) * (new - noise)
                rows = []
        if noise is None:
            continue
        now = y < -f(threshold) * noise
        if live < 0:
            live, below = i, now
        fresh = np.flatnonzero(now & ~below)
        below = now
        for channel in fresh[i - last[fresh] > refractory].tolist():
            last[channel] = i
            found.append((i, channel))
    return np.array(found).reshape(-1, 2), noise, live


def push_all(detector, data, block=150, first=0):
    found = []
    for begin in range(0, len(data), block):
        n = detector.push(np.ascontiguousarray(data[begin : begin + block]), first + begin)
        found.append(np.c_[detector.samples[:n], detector.where[:n]])
    return np.concatenate(found)


@pytest.mark.parametrize("median", [True, False])
def test_equal_to_the_reference_to_the_last_crossing(median):
    data, _, _ = make_ap_band(13, 1.6, rate_hz=40)
    detector = ThresholdDetector(13, FS, reference=median)
    found = push_all(detector, data)
    expected, noise, live = reference_crossings(data, median=median)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(detector.noise, noise)
    assert detector.live_from == live
    assert len(found) > 100


def test_blocks_of_any_size_give_the_same_crossings():
    data, _, _ = make_ap_band(9, 1.6, rate_hz=20)
    whole = push_all(ThresholdDetector(9, FS), data, block=len(data))
    assert len(whole) > 20
    for block in (1000, 77):
        np.testing.assert_array_equal(push_all(ThresholdDetector(9, FS), data, block), whole)


def test_planted_spikes_are_found_on_their_channel_and_little_else():
    data, sample, channel = make_ap_band(32, 3.0, rate_hz=10, seed=4)
    detector = ThresholdDetector(32, FS)
    found = push_all(detector, data)
    sample, channel = sample[sample > detector.live_from], channel[sample > detector.live_from]
    hits = 0
    for s, c in zip(sample.tolist(), channel.tolist(), strict=True):
        near = np.abs(found[:, 0] - s) <= 15
        hits += bool(np.any(near & (found[:, 1] == c)))
    assert hits / len(sample) > 0.97
    noise = detector.noise
    assert np.all((noise > 6) & (noise < 11))  # white noise of 8, filtered and re-referenced
    assert len(found) < 1.2 * len(sample)  # a quarter of a spike beside it stays under 5 sd


def test_common_waves_and_offsets_cross_nothing():
    rng = np.random.default_rng(0)
    t = np.arange(int(2 * FS))
    data = rng.normal(0, 5, (len(t), 24)) + np.arange(24) * 300
    data += (400 * (np.sin(t / 37) > 0.999))[:, None]  # spikes that all channels have alike
    found = push_all(ThresholdDetector(24, FS, threshold=6), data.astype(np.int16))
    assert len(found) < 5
    alone = push_all(ThresholdDetector(24, FS, threshold=6, reference=False),
                     data.astype(np.int16))
    assert len(alone) > 100


def test_a_dead_channel_crosses_nothing():
    data, _, _ = make_ap_band(4, 1.5, rate_hz=20)
    data[:, 2] = 123
    found = push_all(ThresholdDetector(4, FS, reference=False), data)
    assert set(found[:, 1].tolist()) == {0, 1, 3}


def test_refractory_time_is_kept():
    rng = np.random.default_rng(1)
    data = rng.normal(0, 5, (int(1.5 * FS), 8))
    data[40_000:40_400:20, 3] -= 300
    dense = push_all(ThresholdDetector(8, FS, refractory_s=0), data.astype(np.int16))
    sparse = push_all(ThresholdDetector(8, FS, refractory_s=0.002), data.astype(np.int16))
    mine = [f[f[:, 1] == 3][:, 0] for f in (dense, sparse)]
    assert len(mine[0]) >= 20
    assert np.diff(mine[1]).min() > 60
    assert 5 <= len(mine[1]) <= 8


def test_reset_keeps_the_noise_and_forgets_the_rest():
    data, _, _ = make_ap_band(8, 1.4, rate_hz=20)
    detector = ThresholdDetector(8, FS)
    push_all(detector, data)
    noise = detector.noise.copy()
    detector.reset()
    assert detector.live_from == -1
    detector.push(data[:300], 900_000)
    assert detector.live_from == -1
    detector.push(data[300:900], 900_300)
    assert detector.live_from == 900_600  # 20 ms later
    np.testing.assert_array_equal(detector.noise, noise)


@pytest.mark.parametrize("options", [
    {"channels": 0}, {"fs": 0.0}, {"fs": float("nan")}, {"highpass_hz": 15_000.0},
    {"threshold": 0.0}, {"refractory_s": -1.0},
])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="out of range"):
        ThresholdDetector(**({"channels": 4, "fs": FS} | options))


def test_a_part_of_a_sample_is_refused():
    with pytest.raises(ValueError, match="whole samples"):
        ThresholdDetector(4, FS).push(bytes(9), 0)
