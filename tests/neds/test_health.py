"""What is fitted of the training spikes: from training data alone, and good for an alarm."""

from dataclasses import replace

import numpy as np
import pytest

from neds.config import load_recipe
from neds.data.synthetic import synthetic_session
from neds.dataset import describe, to_recording
from neds.health import (
    FIT_SHARE,
    HIGHEST_LIMIT,
    MARGIN,
    SMOOTH_S,
    Seen,
    fit_arrays,
    fit_health,
    limit,
    longest_silence,
    scores,
    student,
    watch,
)
from neds_rt import _core
from neds_rt.bundle import make_bundle, random_bundle
from neds_rt.health import make_health, read_arrays
from neds_rt.synthetic import SyntheticAnimal
from tests.rt.serving import MODALITIES, SHAPE

SECONDS = 420.0


@pytest.fixture(scope="module")
def fitted():
    """A synthetic animal, a bundle of random weights of its size, and its statistics."""
    config = load_recipe("single", [])
    session = synthetic_session(SyntheticAnimal(3, 24), SECONDS)
    binned, state = describe(session, config.data, 75)
    recording = to_recording(binned, state)
    bundle = random_bundle(SHAPE, len(state.units), MODALITIES, bin_size_s=0.02)
    health, data = fit_health(bundle, recording)
    m = bundle.manifest
    whole = make_bundle(session=m.session, subject=m.subject, bin_size_s=0.02, shape=m.shape,
                        units=m.units, modalities=m.modalities, weights=bundle.weights,
                        health=health, files={health.file: data})
    return recording, bundle, whole


def test_the_test_part_plays_no_part(fitted):
    recording, bundle, whole = fitted
    first, stop = recording.part("test")
    counts = recording.counts.clone()
    counts[first:stop] = 77
    health, data = fit_health(bundle, replace(recording, counts=counts))
    assert (health, data) == (whole.manifest.health, whole.files[health.file])


def test_rates_and_silences_are_those_of_the_first_part_of_training(fitted):
    recording, _, whole = fitted
    health = whole.manifest.health
    arrays = read_arrays(whole.manifest, whole.files, "x")
    first, stop = recording.part("train")
    part = recording.counts[first : first + int(FIT_SHARE * (stop - first))].numpy()
    assert health.fitted_s == pytest.approx(0.02 * len(part), abs=0.05)
    np.testing.assert_allclose(arrays["rate"], part.mean(0), rtol=1e-5)
    for unit in range(part.shape[1]):
        fired = np.flatnonzero(part[:, unit])
        gaps = np.diff(np.concatenate([[-1], fired, [len(part)]])) - 1
        expected = MARGIN * gaps.max()
        assert arrays["quiet"][unit] == (expected if expected <= 1500 else 0)
    assert (arrays["rate.sd"] >= np.sqrt(arrays["rate"] * 0.02 / SMOOTH_S / 2) * 0.999).all()
    assert health.held_back_s >= 80
    assert health.bits_per_spike > 0  # random weights keep enough of the past for that


def test_limits_are_above_what_was_held_back_and_below_what_half_the_units_cause(fitted):
    recording, _, whole = fitted
    first, stop = recording.part("test")
    counts = recording.counts[first:stop].numpy().astype(np.uint16)
    natural = scores(make_health(whole), watch(whole, recording, [(first, stop)]))
    assert natural["drift"].max() < 1
    assert natural["silent"].max() < 1
    counts[:, ::2] = 0
    changed = recording.counts.clone()
    changed[first:stop] = recording.counts.new_tensor(counts.astype(np.int64))
    dropped = scores(make_health(whole),
                     watch(whole, replace(recording, counts=changed), [(first, stop)]))
    assert dropped["drift"][-1] > 1
    assert dropped["silent"][-1] > 1


def test_a_recording_too_short_for_limits_has_none(fitted):
    recording, bundle, _ = fitted
    split = {"train": [0, 4000], "val": [4000, 4500], "test": [4500, 5000]}
    short = replace(recording, state=_with_split(recording.state, split))
    assert fit_health(bundle, short) is None
    nothing = replace(recording, state=_with_split(recording.state, split | {"train": [0, 0]}))
    assert fit_health(bundle, nothing) is None


def _with_split(state, split):
    from msgspec.structs import replace as changed

    return changed(state, split=split)


def test_predictions_do_not_reach_across_the_end_of_a_run():
    seen = Seen(np.zeros((10, 2), np.uint16), np.zeros((10, 3), np.float32), np.array([4, 10]))
    assert seen.pairs().tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert seen.part(2, 7).pairs().tolist() == [0, 2, 3]
    assert longest_silence(seen).tolist() == [6, 6]
    rng = np.random.default_rng(0)
    seen = Seen(rng.poisson(1.0, (400, 2)).astype(np.uint16),
                rng.standard_normal((400, 3)).astype(np.float32), np.array([200, 400]))
    assert set(fit_arrays(seen, 0.02)) == set(_arrays_named())


def _arrays_named():
    from neds_rt.health import array_shapes

    return array_shapes(2, 3)


def test_limits_follow_students_t():
    # Tables of the distribution: t(0.975, 10) = 2.228, t(0.995, 5) = 4.032, t(0.9, 30) = 1.310.
    for p, freedom, expected in ((0.975, 10, 2.228), (0.995, 5, 4.032), (0.9, 30, 1.310)):
        assert student(p, freedom) == pytest.approx(expected, rel=0.02)
    score = np.exp(0.3 * np.random.default_rng(0).standard_normal(20_000))
    assert limit(score, 1e6, 0.01) == pytest.approx(np.quantile(score, 0.99), rel=0.06)
    assert limit(score, 5, 0.01) > 1.3 * limit(score, 1e6, 0.01)
    score[score < np.quantile(score, 0.45)] /= 1e5  # how quiet the quiet times were plays no part
    assert limit(score, 1e6, 0.01) == pytest.approx(np.quantile(score, 0.99), rel=0.06)
    assert limit(score**9, 5, 0.01) == HIGHEST_LIMIT


def test_the_watch_is_deterministic(fitted):
    recording, _, whole = fitted
    seen = watch(whole, recording, [recording.part("val")])
    first, second = (scores(make_health(whole), seen) for _ in range(2))
    assert list(first) == list(_core.HEALTH)
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
