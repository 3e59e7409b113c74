"""Rounds compared with those beside them, and what is above a bound by more than chance."""

import numpy as np
import pytest

from bench.paired import above, outside, ratios


def rounds_of(*medians):
    """A round a number: 50 times whose median is that, the p99 ten times it."""
    return [[m] * 49 + [10.0 * m] for m in medians]


def test_a_round_is_compared_with_the_one_beside_it():
    # The machine is ten times slower in the last two rounds, for both.
    rounds = {"off": rounds_of(100, 100, 1000, 1000), "on": rounds_of(110, 120, 1100, 1300)}
    found = ratios(rounds, "on", "off")
    assert found["p50"] == {"median": 1.15, "low": 1.1, "high": 1.3, "rounds": 4}
    assert found["p99"]["median"] == pytest.approx(1.15)


def test_rounds_that_nobody_answered_are_left_out():
    assert ratios({"off": [[1.0], [1.0]], "on": [[], [2.0]]}, "on", "off")["p50"]["rounds"] == 1
    assert ratios({"off": [[1.0]], "on": [[]]}, "on", "off") == {}
    assert above("on", {}, "p99", 1.25) == ["on: no round was answered"]


def test_the_interval_holds_the_median_as_often_as_it_says():
    # Binomial: the chance that fewer than k of n are below the median.
    assert [outside(n) for n in (1, 5, 8, 9, 20, 36)] == [0, 0, 0, 1, 5, 11]
    rng = np.random.default_rng(0)
    values = np.sort(rng.lognormal(size=(4000, 20)), axis=1)
    inside = (values[:, outside(20)] <= 1) & (values[:, -1 - outside(20)] >= 1)
    assert 0.94 <= inside.mean() <= 0.98


@pytest.mark.parametrize(("median", "low", "lines"), [
    (1.2, 1.1, 0), (1.3, 0.9, 0), (1.3, 1.0, 0), (1.3, 1.01, 1)])
def test_only_what_is_above_and_not_by_chance_is_told(median, low, lines):
    found = {"p99": {"median": median, "low": low, "high": 9.0}}
    told = above("on", found, "p99", 1.25)
    assert len(told) == lines
    assert all(line == "on: p99 of the service is 1.3 times that without, at most 1.25 expected"
               for line in told)
