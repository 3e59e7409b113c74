"""Linear baselines: block sums, lags, trials, strengths, the pretrained ridge."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neds.baselines import BASELINES, fit, rows
from neds.baselines.linear import add_runs
from neds.baselines.logistic import is_trial_like, solve_trials, spans_of
from neds.baselines.ridge import Sums, tune
from neds.baselines.rows import apply_lags, lagged_blocks, tuning_runs
from neds.metrics import score
from neds_rt.errors import BadInput
from tests.neds.planted import driven, made, trials, with_split


def scores(recording, predictions, part="test"):
    at = rows.rows_of(recording.runs_within(part))
    return {b.name: next(iter(score(b.kind, recording.values[b.name][at], p).values()))
            for b, p in zip(recording.state.behaviours, predictions, strict=True)}


def dense(x, runs, lags):
    """The lagged matrix of the runs, whole, row by row."""
    out = []
    for first, stop in runs:
        for row in range(first, stop):
            past = [x[row - lag] if row - lag >= first else np.zeros(x.shape[1])
                    for lag in range(lags)]
            out.append(np.concatenate(past))
    return np.array(out)


@pytest.mark.parametrize("block", [500, 100_000])
def test_block_sums_give_the_dense_ridge(monkeypatch, block):
    monkeypatch.setattr(rows, "BLOCK_NUMBERS", block)
    rng = np.random.default_rng(0)
    x = rng.poisson(1.0, (700, 3)).astype(np.float32)
    y = torch.from_numpy(rng.standard_normal((700, 2)).astype(np.float32))
    known = torch.from_numpy(rng.random(700) < 0.8)
    runs, lags, strength = [(0, 290), (300, 302), (310, 700)], 4, 0.3
    sums = Sums.zeros(12, 2)
    add_runs(sums, lambda a, b: torch.from_numpy(x[a:b]), runs, y, known)
    weights, intercept = sums.solve(12, strength)

    kept = known.numpy()[rows.rows_of(runs)]
    matrix, target = dense(x, runs, lags)[kept], y.numpy()[rows.rows_of(runs)][kept]
    centred, mean = matrix - matrix.mean(0), target.mean(0)
    gram = centred.T @ centred
    ridge = gram + strength * np.diag(gram).mean() * np.eye(12)
    expected = np.linalg.solve(ridge, centred.T @ (target - mean))
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(intercept, mean - matrix.mean(0) @ expected, atol=1e-5)
    fewer, _ = sums.solve(6, strength)  # two lags: the leading columns
    assert fewer.shape == (6, 2)


def test_lags_applied_are_the_lagged_matrix_times_the_weights(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_NUMBERS", 300)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(900, 3, generator=generator)
    weights = torch.rand(5, 3, 2, generator=generator)
    runs = [(10, 600), (610, 613), (620, 900)]
    got = apply_lags(lambda a, b: x[a:b], runs, weights)
    expected = dense(x.numpy(), runs, 5) @ weights.reshape(15, 2).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    blocks = torch.cat([b for _, _, b in lagged_blocks(lambda a, b: x[a:b], runs, 5, 3)])
    np.testing.assert_array_equal(blocks, dense(x.numpy(), runs, 5).astype(np.float32))


def test_a_planted_linear_relation_is_found_over_its_lags():
    rng = np.random.default_rng(1)
    counts = rng.poisson(2.0, (2000, 6))
    weights = rng.standard_normal((4, 6, 2))
    y = sum(np.roll(counts, lag, 0) @ weights[lag] for lag in range(4))
    y = y + 0.05 * y.std(0) * rng.standard_normal(y.shape)
    recording = made("made", counts, {"velocity": ("continuous", y, ())})
    fitted = fit("linear", [recording], seed=0)
    assert scores(recording, fitted.decode_part(recording, "test"))["velocity"] > 0.98


def test_every_kind_is_decoded_and_missing_values_are_left_out():
    recording = driven(unknown=0.2)
    predictions = fit("linear", [recording], seed=0, budget="quick").decode_part(recording, "test")
    found = scores(recording, predictions)
    assert found["velocity"] > 0.85
    assert found["side"] > 0.85
    assert found["heading"] > 0.8
    np.testing.assert_allclose(predictions[1].sum(1), 1, atol=1e-5)
    assert all(np.isfinite(p).all() for p in predictions)


def test_a_trial_label_is_decoded_from_the_whole_trial():
    recording = trials()
    assert is_trial_like(recording, 0)
    predictions = fit("linear", [recording], seed=0).decode_part(recording, "test")
    assert scores(recording, predictions)["side"] > 0.9
    bins = predictions[0].reshape(-1, 10, 2)  # one prediction for all bins of a trial
    np.testing.assert_array_equal(bins, np.broadcast_to(bins[:, :1], bins.shape))
    assert not is_trial_like(driven(), 1)


def test_bins_of_a_span_share_their_weights_on_trials():
    recording = trials()
    assert spans_of(recording, "full") == [2, 1]  # bins of 50 ms; 4 do not divide 10
    runs, keys = recording.runs_within("train"), [(1e-2, True)]
    units = recording.counts.shape[1]
    (one,) = solve_trials(recording, 0, runs, keys, "cpu", 2)
    weights = one.weights.view(5, 2, units, 2)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert not torch.allclose(weights[0], weights[4])
    # The same as fitting one bin apiece to the sums; strengths are relative to a row's variance,
    # and there are half as many rows.
    counts = recording.counts.view(-1, 2, units).int().sum(1)
    encoded = [e[::2] for e in recording.encoded]
    coarse = replace(recording, counts=counts, encoded=encoded, known=recording.known[:, ::2],
                     runs=recording.runs // 2)
    (same,) = solve_trials(coarse, 0, [(a // 2, b // 2) for a, b in runs], [(5e-3, True)], "cpu")
    torch.testing.assert_close(weights[:, 0], same.weights.view(5, units, 2), atol=1e-3, rtol=1e-2)


def test_pretrained_ridge_decodes_a_new_session_with_and_without_calibration():
    fitted = fit("ridge_pretrained", [driven(f"s{i}", seed=i) for i in range(3)], seed=0)
    new = driven("new", seed=7)
    start, stop = new.part("train")
    without = with_split(new, train=(0, 0), val=(0, 0))
    little = with_split(new, train=(start, 60), val=(60, 80))
    zero = scores(new, fitted.adapt(without, seed=0).decode_part(without, "test"))
    some = scores(new, fitted.adapt(little, seed=0).decode_part(little, "test"))
    whole = scores(new, fitted.adapt(new, seed=0).decode_part(new, "test"))
    alone = scores(new, fit("linear", [little], seed=0, budget="quick").decode_part(new, "test"))
    assert zero["velocity"] > 0.7
    assert some["velocity"] > alone["velocity"]
    assert whole["velocity"] >= zero["velocity"]
    assert min(zero["side"], zero["heading"]) > 0.7
    assert stop > 80


def test_ridge_towards_weights_keeps_them_where_nothing_is_known():
    prior = torch.ones(3, 2, dtype=torch.float64)
    sums = Sums.zeros(3, 2)
    assert torch.equal(sums.solve(3, 1.0, prior)[0], prior)
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    sums.add(x, torch.tensor([[3.0, 3.0], [-3.0, -3.0]]))
    weights, _ = sums.solve(3, 1e-6, prior)  # the first column is seen, the others are not
    np.testing.assert_allclose(weights, [[3, 3], [1, 1], [1, 1]], atol=1e-4)


def test_strengths_are_tuned_and_scores_that_do_not_exist_never_win():
    best = tune(lambda lags, strength: -abs(lags - 15) - abs(strength - 10), (5, 10, 15))
    assert best == (15, 10.0)
    assert tune(lambda lags, strength: float("nan"), (5, 10, 15)) == (10, 1.0)


def test_without_a_validation_part_the_end_of_training_chooses():
    recording = with_split(driven(), train=(100, 200), val=(200, 200))
    assert tuning_runs(recording) == ([(100, 180)], [(180, 200)])
    nothing = with_split(driven(), train=(0, 0), val=(0, 0))
    assert tuning_runs(nothing) == ([], [])
    with pytest.raises(BadInput, match="calibration data: found none"):
        fit("linear", [driven("other")], seed=0, budget="quick").adapt(nothing, seed=0)


def test_what_cannot_be_fitted_is_named():
    recording = driven(rows=400)
    with pytest.raises(BadInput, match="one of linear, ridge_pretrained"):
        fit("magic", [recording], seed=0)
    with pytest.raises(BadInput, match="given twice"):
        fit("linear", [recording, recording], seed=0)
    with pytest.raises(BadInput, match="driven: train part: found no rows"):
        fit("gru", [with_split(recording, train=(0, 0))], seed=0)
    fitted = fit("linear", [recording], seed=0, budget="quick")
    with pytest.raises(BadInput, match="encodes"):
        fitted.encode_part(recording, "test")
    with pytest.raises(BadInput, match="not fitted"):
        fitted.decode_part(driven("else", rows=400), "test")
    assert {row.direction for row in BASELINES.values()} == {"decoding", "encoding"}
