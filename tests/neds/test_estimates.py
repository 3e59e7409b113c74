"""Scores over blocks against scikit-learn and sums by hand; intervals that cover what they should.
"""

import warnings

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    d2_tweedie_score,
    r2_score,
)

from neds import metrics
from neds.metrics import (
    Estimate,
    RateSums,
    Resampling,
    behaviour_estimates,
    mean_estimate,
    psth_r2,
    trial_estimates,
)

RNG = np.random.default_rng(1)


def blocks(rows, size=10, replicates=50):
    return Resampling.draw(np.arange(rows) // size, replicates, 0)


def values(estimates):
    return {name: e.value for name, e in estimates.items()}


@pytest.mark.parametrize("kind", ["continuous", "circular", "categorical"])
def test_estimates_equal_the_single_scores_with_unknown_rows(kind):
    truth = RNG.standard_normal((203, 2 if kind == "continuous" else 1))
    if kind == "categorical":
        truth = RNG.integers(0, 3, (203, 1)).astype(float)
    outputs = RNG.standard_normal((203, 3 if kind == "categorical" else 2))
    truth[[0, 7, 100]] = np.nan
    found = behaviour_estimates(kind, truth, outputs, blocks(203))
    assert values(found) == pytest.approx(metrics.score(kind, truth, outputs))
    assert all(len(e.values) == 51 for e in found.values())


def test_a_replicate_is_the_score_of_its_drawn_blocks():
    truth, predicted = RNG.standard_normal((2, 100, 2))
    resampling = blocks(100, replicates=7)
    found = behaviour_estimates("continuous", truth, predicted, resampling)
    for i in range(1, 8):
        drawn = np.repeat(np.arange(10), resampling.weights[i].astype(int))
        rows = (drawn[:, None] * 10 + np.arange(10)).ravel()
        assert found["r2"].values[i] == pytest.approx(r2_score(truth[rows], predicted[rows]))
    angles = RNG.uniform(-3, 3, (100, 1))
    outputs = np.c_[np.cos(angles + predicted[:, :1]), np.sin(angles + predicted[:, :1])]
    found = behaviour_estimates("circular", angles, outputs, resampling)
    drawn = np.repeat(np.arange(10), resampling.weights[3].astype(int))
    rows = (drawn[:, None] * 10 + np.arange(10)).ravel()
    expected = metrics.score("circular", angles[rows], outputs[rows])
    assert {k: e.values[3] for k, e in found.items()} == pytest.approx(expected)


def test_rates_agree_with_scikit_learn_and_with_sums_by_hand():
    rates = np.exp(0.5 * RNG.standard_normal((300, 4)) - 1)
    counts = RNG.poisson(rates).astype(float)
    counts[:, 3] = 0  # a unit that never fires has no deviance and no bits
    null = np.array([0.3, 0.5, 0.2, 0.1])
    found = values(RateSums.of(counts, rates, null, blocks(300)).estimates())
    fired = range(3)
    assert found["poisson_d2"] == pytest.approx(np.mean(
        [d2_tweedie_score(counts[:, n], rates[:, n], power=1) for n in fired]))
    assert found["single_trial_r2"] == pytest.approx(
        np.mean([r2_score(counts[:, n], rates[:, n]) for n in fired]))
    assert (found["bps_neuron_mean"], found["bps_pooled"]) == pytest.approx(
        metrics.bits_per_spike(counts, rates, null))
    own = metrics.bits_per_spike(counts, rates, counts.mean(0))[0]
    assert found["bps_test_mean_null"] == pytest.approx(own)


def test_rates_of_some_units_are_those_units_alone():
    rates = np.exp(0.5 * RNG.standard_normal((300, 5)))
    counts = RNG.poisson(rates).astype(float)
    null, units = rates.mean(0), np.array([1, 4])
    whole = RateSums.of(counts, rates, null, blocks(300))
    alone = RateSums.of(counts[:, units], rates[:, units], null[units], blocks(300))
    assert values(whole.estimates(units)) == pytest.approx(values(alone.estimates()))
    fast = np.array([False, True, True, True, False])
    r2 = whole.estimates(units, fast)["single_trial_r2"].value
    assert r2 == pytest.approx(r2_score(counts[:, 1], rates[:, 1]))


def test_psth_r2_is_one_r2_over_the_condition_means():
    condition = np.array([0, 1, 1, 0, 2, 2, 2])
    truth = RNG.standard_normal((7, 12))
    predicted = truth + RNG.standard_normal((7, 12))
    truth[3, :4] = np.nan
    truth[4:, 9] = np.nan  # a bin that no trial of condition 2 knows
    masked = np.where(np.isnan(truth), np.nan, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the empty bin
        means = [np.concatenate([np.nanmean(x[condition == c], 0) for c in range(3)])
                 for x in (truth, masked)]
    known = ~np.isnan(means[0])
    weights = np.ones((2, 7))
    weights[1] = [2, 0, 1, 1, 1, 1, 1]
    found = psth_r2(truth, predicted, condition, weights)
    assert found[0] == pytest.approx(r2_score(means[0][known], means[1][known]))
    rows = [0, 0, 2, 3, 4, 5, 6]
    again = psth_r2(truth[rows], predicted[rows], condition[rows], np.ones((1, 7)))
    assert found[1] == pytest.approx(again[0])


def test_scores_that_do_not_exist_are_nan_without_a_warning():
    still = np.full((60, 1), 0.1)
    found = behaviour_estimates("continuous", still, RNG.standard_normal((60, 1)), blocks(60))
    assert np.isnan(found["r2"].value)
    assert np.isnan(found["correlation"].value)
    assert found["r2"].interval() is None
    unknown = np.full((60, 1), np.nan)
    for kind in ("continuous", "circular", "categorical"):
        found = behaviour_estimates(kind, unknown, RNG.standard_normal((60, 2)), blocks(60))
        assert all(np.isnan(v) for v in values(found).values())
    constant = behaviour_estimates("circular", still, RNG.standard_normal((60, 2)), blocks(60))
    assert np.isnan(constant["circular_r2"].value)
    silent = RateSums.of(np.zeros((60, 2)), np.ones((60, 2)), np.ones(2), blocks(60)).estimates()
    assert all(np.isnan(v) for v in values(silent).values())
    assert np.isnan(psth_r2(np.ones((4, 5)), np.zeros((4, 5)), np.zeros(4, int), np.ones((1, 4))))


def test_a_class_absent_from_the_rows_does_not_count():
    truth = RNG.choice([0, 2], 200)
    outputs = RNG.random((200, 3))
    found = values(behaviour_estimates("categorical", truth[:, None].astype(float), outputs,
                                       blocks(200)))
    chosen = outputs.argmax(1)
    share = np.mean([np.mean(chosen[truth == c] == c) for c in (0, 2)])
    assert found["balanced_accuracy"] == pytest.approx(share)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, chosen))


def test_one_decision_a_trial_by_two_votes():
    truth = np.array([0, 1, 1, -1])
    last = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    mean = np.log([[0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.5, 0.5]])
    found = values(trial_estimates(truth, last, mean, blocks(4, 1)))
    assert found == pytest.approx({
        "trial_last_bin_accuracy": 2 / 3,
        "trial_last_bin_balanced_accuracy": balanced_accuracy_score([0, 1, 1], [0, 0, 1]),
        "trial_mean_log_probability_accuracy": 2 / 3,
        "trial_mean_log_probability_balanced_accuracy": balanced_accuracy_score(
            [0, 1, 1], [1, 1, 1]),
    })


def covered(block_size, experiments=150):
    """Share of experiments whose interval holds the true accuracy; rows err ten at a time."""
    rng = np.random.default_rng(5)
    hits = 0
    for i in range(experiments):
        right = np.repeat(rng.random(60) < 0.7, 10)
        outputs = np.where(right[:, None], [1.0, 0.0], [0.0, 1.0])
        resampling = Resampling.draw(np.arange(600) // block_size, 200, i)
        found = behaviour_estimates("categorical", np.zeros((600, 1)), outputs, resampling)
        low, high = found["accuracy"].interval()
        hits += low <= 0.7 <= high
    return hits / experiments


def test_block_intervals_cover_and_single_rows_do_not():
    assert 0.88 <= covered(10) <= 0.99
    assert covered(1) < 0.65  # why rows are never resampled alone


def test_psth_intervals_hold_the_score_though_resampled_trials_repeat():
    condition = np.repeat([0, 1], 15)
    trace = np.stack([np.sin(np.arange(40) / 6), np.cos(np.arange(40) / 6)])[condition]
    truth = trace + 2 * RNG.standard_normal(trace.shape)
    resampling = Resampling.draw(np.arange(30), 200, 0)
    e = Estimate(psth_r2(truth, trace, condition, resampling.weights), upper=1.0)
    assert e.values[1:].mean() < e.value - 0.02  # the bias that is taken out
    low, high = e.interval()
    assert low < e.value < high <= 1


def test_intervals_repeat_with_the_seed_and_need_blocks():
    truth, predicted = RNG.standard_normal((2, 100, 1))
    a, b = (behaviour_estimates("continuous", truth, predicted, blocks(100))["r2"].interval()
            for _ in range(2))
    assert a == b
    few = behaviour_estimates("continuous", truth, predicted, blocks(100, size=30))["r2"]
    assert few.interval() is None
    assert few.value == pytest.approx(r2_score(truth, predicted))


def test_the_mean_over_sessions_has_a_narrower_interval():
    rng = np.random.default_rng(2)
    sessions = [Estimate(np.r_[0.5, 0.5 + 0.1 * rng.standard_normal(400)]) for _ in range(4)]
    mean = mean_estimate([*sessions, Estimate(np.full(1, np.nan))])
    width = np.diff(mean.interval())[0] / np.diff(sessions[0].interval())[0]
    assert mean.value == pytest.approx(0.5)
    assert 0.4 < width < 0.6  # 1 / sqrt(4)
    assert mean_estimate([sessions[0], Estimate(np.array([0.3]))]).interval() is None
    assert np.isnan(mean_estimate([]).value)
