"""Splits in time, and what is fitted on the training part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neds.data import Binned
from neds.data.windows import fit_scaling, split, units_above
from neds_rt.errors import BadInput


def binned(bins, counts=None, size=0.02):
    bins = np.asarray(bins, dtype=np.int64)
    counts = np.ones((len(bins), 2), np.uint16) if counts is None else counts
    return Binned(bin=bins, counts=counts, values={}, bin_size_s=size)


def trials(n=100, length=40, pause=60):
    return binned((np.arange(n)[:, None] * (length + pause) + np.arange(length)).ravel())


def test_parts_lie_a_window_apart_and_the_test_part_is_whole():
    parts = split(binned(np.arange(10000)), (0.72, 0.08, 0.2), gap_bins=100)
    assert parts.train == (0, 7100)
    assert parts.val == (7200, 7900)
    assert parts.test == (8000, 10000)


def test_the_gap_counts_bins_of_the_clock():
    bins = np.r_[0:8000, 8300:10300]  # the pause of 300 bins is gap enough
    parts = split(binned(bins), (0.8, 0.0, 0.2), gap_bins=100)
    assert parts == ((0, 8000), (8000, 8000), (8000, 10000))


def test_no_cut_goes_through_a_trial():
    data = trials()
    parts = split(data, (0.725, 0.075, 0.2), gap_bins=50)
    assert all(row % 40 == 0 for part in parts for row in part)
    assert parts.test == (3200, 4000)
    assert parts.train[1] == parts.val[0]  # the pause between trials is longer than the gap
    longer = split(data, (0.725, 0.075, 0.2), gap_bins=100)
    assert all(row % 40 == 0 for part in longer for row in part)
    assert longer.train[1] == longer.val[0] - 40
    assert longer.test == parts.test


@pytest.mark.parametrize(
    ("fractions", "gap"),
    [((0.8, 0.2), 1), ((0.5, 0.1, 0.1), 1), ((1.1, -0.3, 0.2), 1), ((0.8, 0.2, 0.0), 1),
     ((float("nan"), 0.2, 0.2), 1), ((0.8, 0.0, 0.2), -1)],
)
def test_fractions_that_are_none(fractions, gap):
    with pytest.raises(BadInput, match="split"):
        split(binned(np.arange(100)), fractions, gap)


def test_a_recording_too_short_for_its_gaps():
    with pytest.raises(BadInput, match="val part: found no row left of 500"):
        split(binned(np.arange(500)), (0.72, 0.08, 0.2), gap_bins=100)


@given(
    n=st.integers(200, 3000), gap=st.integers(0, 60),
    jumps=st.lists(st.integers(1, 200), max_size=40), seed=st.integers(0, 1000),
)
def test_parts_never_touch(n, gap, jumps, seed):
    step = np.ones(n, dtype=np.int64)
    step[np.random.default_rng(seed).integers(0, n, len(jumps))] += np.array(jumps, dtype=np.int64)
    data = binned(np.cumsum(step))
    try:
        train, val, test = split(data, (0.6, 0.2, 0.2), gap)
    except BadInput:
        return
    assert 0 == train[0] < train[1] <= val[0] < val[1] <= test[0] < test[1] == n
    assert data.bin[val[0]] - data.bin[train[1] - 1] > gap
    assert data.bin[test[0]] - data.bin[val[1] - 1] > gap
    assert abs((test[1] - test[0]) - 0.2 * n) <= 0.05 * n  # moved by a short run at most


def test_scaling_leaves_unknown_rows_out_and_constants_as_they_are():
    values = np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 5.0]], np.float32)
    mean, sd = fit_scaling("velocity", "continuous", values)
    assert mean.tolist() == [2, 5]
    assert sd.tolist() == [1, 1]


@pytest.mark.parametrize(("kind", "length"), [("circular", 2), ("categorical", 0)])
def test_angles_and_categories_are_not_scaled(kind, length):
    mean, sd = fit_scaling("b", kind, np.array([[0.0], [1.0], [1.0]], np.float32))
    assert mean.tolist() == [0.0] * length
    assert sd.tolist() == [1.0] * length


def test_a_behaviour_never_known_is_named():
    with pytest.raises(BadInput, match="behaviour wheel: training rows"):
        fit_scaling("wheel", "continuous", np.full((3, 1), np.nan, np.float32))


def test_unit_filter_is_fitted_on_the_part():
    counts = np.zeros((100, 3), np.uint16)
    counts[:50, 0] = 1  # silent later
    counts[50:, 1] = 1  # silent before
    counts[::10, 2] = 1  # 5 Hz
    data = binned(np.arange(100), counts)
    assert units_above(data, (0, 50), 5.0).tolist() == [0, 2]
    assert units_above(data, (50, 100), 5.1).tolist() == [1]
    assert units_above(data, (0, 50), 0.0).tolist() == [0, 1, 2]
