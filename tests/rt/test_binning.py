"""The bin grid and offline binning, against plain numpy."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neds_rt import _core
from neds_rt.binning import bin_edge, bin_of, bin_spikes
from neds_rt.errors import BadInput

rates = st.sampled_from([30_000.0, 29_999.954, 24_414.0625, 1000.0, 32_552.083333])
sizes = st.sampled_from([0.02, 0.01, 1 / 60, 0.0123, 0.064, 0.1])


@given(rates, sizes, st.integers(-(10**9), 10**9))
def test_edges_follow_the_formula(fs, size, index):
    assert bin_edge(index, fs, size) == int(np.floor(index * (fs * size) + 0.5))
    exact = Fraction(fs * size) * index
    assert abs(bin_edge(index, fs, size) - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


@given(rates, sizes, st.integers(-(2**52), 2**52))
def test_every_sample_lies_in_its_bin(fs, size, sample):
    index = bin_of(sample, fs, size)
    assert bin_edge(index, fs, size) <= sample < bin_edge(index + 1, fs, size)


@given(st.data(), rates, sizes, st.integers(-5, 50), st.integers(0, 30), st.integers(1, 6))
def test_counts_equal_a_histogram(data, fs, size, first, n_bins, n_units):
    n = data.draw(st.integers(0, 200))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    samples = rng.integers(-2000, int(60 * fs * size), n)
    units = rng.integers(0, n_units, n)
    edges = [bin_edge(first + k, fs, size) for k in range(n_bins + 1)]
    expected = np.zeros((n_bins, n_units), np.uint16)
    for k in range(n_bins):
        inside = (samples >= edges[k]) & (samples < edges[k + 1])
        np.add.at(expected[k], units[inside], 1)
    found = bin_spikes(samples, units, n_units, fs, size, first, n_bins)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    order = np.argsort(samples, kind="stable")
    again = bin_spikes(samples[order], units[order], n_units, fs, size, first, n_bins)
    np.testing.assert_array_equal(again, expected)


def test_counts_stop_at_65535():
    n = 70_000
    counts = bin_spikes(np.full(n, 5), np.zeros(n, int), 1, 30_000.0, 0.02, 0, 1)
    assert counts.tolist() == [[65535]]


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint8])
def test_any_integer_type_is_taken(dtype):
    counts = bin_spikes(np.array([1, 100], dtype), np.array([0, 1], dtype), 2, 1000.0, 0.05, 0, 3)
    assert counts.tolist() == [[1, 0], [0, 0], [0, 1]]


def test_empty_lists_are_no_spikes():
    assert bin_spikes([], [], 2, 1000.0, 0.05, 0, 1).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("samples", "units", "fs", "size"),
    [
        ([1, 2], [0], 30_000.0, 0.02),  # lengths differ
        ([1], [2], 30_000.0, 0.02),  # no such unit
        ([1], [-1], 30_000.0, 0.02),
        ([2**60], [0], 30_000.0, 0.02),  # beyond any recording
        ([1.5], [0], 30_000.0, 0.02),  # times instead of samples
        ([[1]], [[0]], 30_000.0, 0.02),
        ([1], [0], 30.0, 0.02),  # a bin shorter than a sample
        ([1], [0], float("nan"), 0.02),
        ([1], [0], -30_000.0, -0.02),
    ],
)
def test_bad_input_is_refused(samples, units, fs, size):
    with pytest.raises(BadInput, match="bin_spikes"):
        bin_spikes(np.array(samples), np.array(units), 2, fs, size, 0, 2)


def test_clock_is_pythons_monotonic_clock():
    import time

    before = time.monotonic_ns()
    stamp = _core.monotonic_ns()
    assert before <= stamp <= time.monotonic_ns()
