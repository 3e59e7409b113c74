"""Synthetic animals: the same by seed, Poisson of the stated rates, and decodable."""

from itertools import islice

import numpy as np
import pytest

from neds.data.synthetic import synthetic_session
from neds_rt.errors import BadInput
from neds_rt.synthetic import BLOCK_STEPS, REGIONS, SyntheticAnimal
from neds_rt.synthetic_task import STEP_S, TRIAL_COLUMNS

STEP_SAMPLES = 600


@pytest.fixture(scope="module")
def animal():
    return SyntheticAnimal(3, 100)


@pytest.fixture(scope="module")
def recording(animal):
    return animal.simulate(240, 0)


def counts_of(recording):
    shape = recording.rates.shape
    cell = (recording.sample // STEP_SAMPLES) * shape[1] + recording.unit
    return np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)


def test_the_same_seed_is_the_same_animal(recording):
    again = SyntheticAnimal(3, 100).simulate(240, 0)
    np.testing.assert_array_equal(recording.sample, again.sample)
    np.testing.assert_array_equal(recording.unit, again.unit)
    np.testing.assert_array_equal(recording.rates, again.rates)


def test_other_seeds_differ(animal, recording):
    assert not np.array_equal(animal.simulate(240, 1).steps.wheel, recording.steps.wheel)
    other = SyntheticAnimal(4, 100)
    assert not np.array_equal(other.weights, animal.weights)
    assert not np.array_equal(other.simulate(240, 0).steps.wheel, recording.steps.wheel)


@pytest.mark.parametrize("seconds", [0.02, 1.0, 7.3, 60.0])
def test_a_recording_does_not_depend_on_how_it_is_read(animal, recording, seconds):
    part = animal.simulate(seconds, 0)
    n = round(seconds / STEP_S)
    assert part.n_steps == n
    np.testing.assert_array_equal(part.rates, recording.rates[:n])
    keep = recording.sample < n * STEP_SAMPLES
    np.testing.assert_array_equal(part.sample, recording.sample[keep])
    np.testing.assert_array_equal(part.unit, recording.unit[keep])
    for one, other in zip(part.steps, recording.steps, strict=True):
        np.testing.assert_array_equal(one, other[:n])


def test_blocks_of_a_stream_join_to_the_recording(animal, recording):
    blocks = list(islice(animal.stream(0), 240))
    for index, block in enumerate(blocks):
        assert block.first == index * BLOCK_STEPS
        start = block.first * STEP_SAMPLES
        assert ((block.sample >= start) & (block.sample < start + BLOCK_STEPS * STEP_SAMPLES)).all()
        assert block.timestamps[-1] == pytest.approx((block.first + BLOCK_STEPS) * STEP_S)
    np.testing.assert_array_equal(np.concatenate([b.sample for b in blocks]), recording.sample)
    np.testing.assert_array_equal(np.concatenate([b.steps.wheel for b in blocks]),
                                  recording.steps.wheel)
    started = np.concatenate([b.trials["intervals_0"] for b in blocks])
    np.testing.assert_array_equal(started[: len(recording.trials["choice"])],
                                  recording.trials["intervals_0"])


def test_spikes_are_poisson_of_the_rates(recording):
    counts, expected = counts_of(recording), recording.rates * STEP_S
    per_unit, mean = counts.sum(0), expected.sum(0, dtype=np.float64)
    assert (np.abs(per_unit - mean) < 5 * np.sqrt(mean) + 5).all()
    # Dispersion of the residuals is that of Poisson counts, in all and in the busiest bins.
    for chosen in (expected > 0, expected > np.quantile(expected, 0.99)):
        z = (counts - expected)[chosen] ** 2 / expected[chosen]
        assert z.mean() == pytest.approx(1.0, abs=6 * z.std() / np.sqrt(z.size))
    # No history: the residual of a bin says nothing about the next one's.
    residual = (counts - expected) / np.sqrt(expected)
    lagged = (residual[1:] * residual[:-1]).mean()
    assert abs(lagged) < 6 / np.sqrt(residual.size)


def test_samples_are_sorted_and_even_within_a_step(recording):
    assert (np.diff(recording.sample) >= 0).all()
    within = recording.sample % STEP_SAMPLES
    assert within.mean() == pytest.approx((STEP_SAMPLES - 1) / 2, abs=2)
    assert within.min() == 0
    assert within.max() == STEP_SAMPLES - 1


def test_rates_are_neuropixels_like():
    rates = SyntheticAnimal(5, 600).simulate(60, 0).rates.mean(0)
    assert 5 < rates.mean() < 12
    assert np.median(rates) < 0.75 * rates.mean()  # most units are slow
    assert (rates < 1).mean() > 0.02


def test_unit_table(animal):
    two = SyntheticAnimal(3, 101, n_probes=2).units
    assert set(two["region"]) <= set(REGIONS)
    assert sorted(set(two["probe"])) == ["probe00", "probe01"]
    assert all(len(column) == 101 for column in two.values())
    assert (two["channel"] < 384).all()
    lowest = {r: two["depth_um"][two["region"] == r].min() for r in set(two["region"])}
    assert lowest["PO"] < lowest["LP"] < lowest["DG"] < lowest["CA1"] < lowest["VISa"]


def test_ceiling_is_the_gain_of_the_true_rates(recording):
    counts = counts_of(recording)

    def log_likelihood(rates):
        rates = np.maximum(rates, 1e-12)
        return (counts * np.log(rates) - rates).sum()

    null = np.broadcast_to(counts.mean(0), counts.shape)
    true = log_likelihood(recording.rates.astype(np.float64) * STEP_S)
    expected = (true - log_likelihood(null)) / np.log(2) / counts.sum()
    assert recording.ceiling() == pytest.approx(expected, rel=1e-6)
    assert recording.ceiling() > 0.1


def test_behaviour_is_that_of_the_task(recording):
    trials, steps = recording.trials, recording.steps
    assert set(trials) == set(TRIAL_COLUMNS)
    assert (trials["intervals_0"][1:] == pytest.approx(trials["intervals_1"][:-1]))
    assert set(trials["choice"]) == {-1.0, 1.0}
    # Contrasts that are easy are mostly answered right, and feedback says so.
    easy = np.nanmax([trials["contrastLeft"], trials["contrastRight"]], axis=0) == 1.0
    assert (trials["feedbackType"][easy] == 1).mean() > 0.8
    on_left = ~np.isnan(trials["contrastLeft"])
    correct = (trials["choice"] == 1) == on_left
    np.testing.assert_array_equal(trials["feedbackType"] == 1, correct)
    # The wheel turns the way of the choice, after the stimulus.
    first = np.round(trials["firstMovement_times"] / STEP_S).astype(int)
    turned = steps.wheel[first[:, None] + np.arange(13)].sum(axis=1)
    assert (np.sign(turned) == trials["choice"]).mean() > 0.85
    labels = steps.choice[np.round(trials["response_times"] / STEP_S).astype(int)]
    np.testing.assert_array_equal(labels * 2 - 1, trials["choice"])
    before = steps.choice[np.round(trials["intervals_0"] / STEP_S).astype(int)]
    assert np.isnan(before).all()
    assert np.corrcoef(np.abs(steps.wheel), steps.whisker)[0, 1] > 0.5


def ridge_r2(counts, target, train, test, lags=8, strength=300.0):
    x = np.sqrt(counts)
    x = np.concatenate([np.roll(x, lag, axis=0) for lag in range(lags)], axis=1)
    x = np.c_[x, np.ones(len(x))]
    gram = x[train].T @ x[train] + strength * np.eye(x.shape[1])
    predicted = x[test] @ np.linalg.solve(gram, x[train].T @ target[train])
    residual = ((target[test] - predicted) ** 2).sum()
    return 1 - residual / ((target[test] - target[test].mean()) ** 2).sum()


def test_wheel_can_be_decoded(recording):
    counts = counts_of(recording)
    train, test = slice(0, 9000), slice(9100, None)
    assert ridge_r2(counts, recording.steps.wheel, train, test) > 0.6


def test_animals_share_their_laws():
    """What drives a region's units is alike in two animals, and unlike another region's."""
    def profile(seed):
        animal = SyntheticAnimal(seed, 600)
        return np.array([np.abs(animal.weights[:8, animal.units["region"] == region]).mean(1)
                         for region in REGIONS])

    a, b = profile(1), profile(2)
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(len(REGIONS)))


@pytest.mark.parametrize(("units", "probes"), [(0, 1), (-3, 1), (1, 2), (5, 0)])
def test_animal_without_units(units, probes):
    with pytest.raises(BadInput, match="units"):
        SyntheticAnimal(0, units, n_probes=probes)


def test_no_time():
    with pytest.raises(BadInput, match="seconds"):
        SyntheticAnimal(0, 5).simulate(0.001, 0)


def test_session_of_an_animal(animal, recording):
    session = synthetic_session(animal, 60.0)
    binned = session.binned(STEP_S)
    assert len(binned) == 3000
    np.testing.assert_array_equal(binned.counts, counts_of(recording)[:3000])
    for name in ("wheel", "whisker", "choice", "block"):
        truth = getattr(recording.steps, name)[:3000]
        np.testing.assert_array_equal(binned.values[name][:, 0], truth)
    again = session.metadata["synthetic"]
    same = SyntheticAnimal(again["animal_seed"], again["units"], n_probes=again["probes"])
    np.testing.assert_array_equal(
        same.simulate(again["seconds"], again["session_seed"]).sample, session.spikes.sample)


def test_synthetic_behaviours_are_rows_of_the_modality_table():
    from neds.modalities import MODALITIES

    session = synthetic_session(SyntheticAnimal(1, 10), 60)
    for name, behaviour in session.behaviours.items():
        row = MODALITIES[name]
        assert (behaviour.kind, behaviour.unit, behaviour.classes) == (
            row.kind, row.unit, row.classes)
