"""Scores against scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score

from neds import metrics

RNG = np.random.default_rng(0)


def test_r2_agrees_with_scikit_learn_and_skips_unknown_rows():
    truth = RNG.standard_normal((200, 2))
    predicted = truth + RNG.standard_normal((200, 2))
    assert metrics.r2(truth, predicted) == pytest.approx(r2_score(truth, predicted))
    gap = np.concatenate([truth, np.full((5, 2), np.nan)])
    assert metrics.r2(gap, np.concatenate([predicted, np.zeros((5, 2))])) == pytest.approx(
        r2_score(truth, predicted))


def test_r2_of_a_constant_is_nan():
    assert np.isnan(metrics.r2(np.ones(10), np.zeros(10)))


def test_correlation():
    truth = RNG.standard_normal(100)
    assert metrics.correlation(truth, -3 * truth + 1) == pytest.approx(-1)


def test_balanced_accuracy_agrees_with_scikit_learn():
    truth = RNG.choice(3, 300, p=[0.7, 0.2, 0.1])
    predicted = np.where(RNG.random(300) < 0.6, truth, RNG.choice(3, 300))
    assert metrics.balanced_accuracy(truth, predicted) == pytest.approx(
        balanced_accuracy_score(truth, predicted))
    assert metrics.accuracy(np.array([-1, 0, 1]), np.array([0, 0, 0])) == 0.5


def test_bits_per_spike_of_the_null_is_zero_and_of_the_truth_is_positive():
    rates = np.exp(RNG.standard_normal((4000, 5)) - 1)
    counts = RNG.poisson(rates).astype(float)
    null = rates.mean(0)
    assert metrics.bits_per_spike(counts, np.tile(null, (4000, 1)), null) == pytest.approx((0, 0))
    per_neuron, pooled = metrics.bits_per_spike(counts, rates, null)
    expected = [
        ((rates[:, n] * np.log2(rates[:, n] / null[n])).mean()) / null[n] for n in range(5)
    ]
    assert per_neuron == pytest.approx(np.mean(expected), rel=0.1)
    assert pooled > 0


def test_silent_neurons_are_left_out_of_the_mean():
    counts = np.array([[1.0, 0], [0, 0], [2, 0]])
    both = metrics.bits_per_spike(counts, counts + 0.1, np.array([1.0, 0.2]))[0]
    one = metrics.bits_per_spike(counts[:, :1], counts[:, :1] + 0.1, np.array([1.0]))[0]
    assert both == pytest.approx(one)


def test_circular_scores():
    truth = RNG.uniform(-np.pi, np.pi, 500)
    assert metrics.circular_r2(truth, truth + 2 * np.pi) == pytest.approx(1)
    assert metrics.median_error_deg(truth, truth - np.radians(10)) == pytest.approx(10)
    scores = metrics.score("circular", truth[:, None], np.c_[np.cos(truth), np.sin(truth)])
    assert scores["circular_r2"] == pytest.approx(1)


def test_categorical_scores_skip_unknown_rows():
    truth = np.array([[0.0], [1], [np.nan]])
    outputs = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]])
    assert metrics.score("categorical", truth, outputs) == {
        "balanced_accuracy": 1.0, "accuracy": 1.0}
