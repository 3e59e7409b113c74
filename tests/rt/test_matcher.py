"""Matching templates on the raw band: planted spikes found, apart, in any blocking, under drift."""

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.match_model import depth_order, matcher_model
from neds_rt.templates import MatchOptions, decode_templates, make_templates, read_templates
from tests.rt.raw_band import CHANNELS, FS, NAMES, plant, recording, templates, trains

STAY = MatchOptions(drift_gain=0, adapt_gain=0)


def push_all(matcher, data, block=150, first=0):
    """(sample, unit) and amplitudes of all spikes, in the order they were told."""
    found, sizes = [], []
    for begin in range(0, len(data), block):
        n = matcher.push(np.ascontiguousarray(data[begin : begin + block]), first + begin)
        found.append(np.c_[matcher.samples[:n], matcher.where[:n]])
        sizes.append(matcher.amplitude[:n].copy())
    return np.concatenate(found), np.concatenate(sizes)


def hits(found, samples, units, unit, tolerance=3):
    """How many spikes of a unit were found, how many it has, how many were told."""
    told = found[found[:, 1] == unit, 0]
    wanted = samples[units == unit]
    near = np.abs(told[None] - wanted[:, None]) <= tolerance if len(told) else np.zeros((1, 1))
    return int(near.any(-1).sum()), len(wanted), len(told)


def alone(samples, units, n=3000, **more):
    """Spikes found among the planted ones where there is no noise (of one step)."""
    data = plant(np.array(samples), np.array(units), n, noise=0.6, **more)
    return push_all(templates().matcher(STAY), data)


def test_spikes_are_found_with_their_units_and_no_others():
    data, samples, units = recording(seed=2)
    matcher = templates().matcher()
    found, _ = push_all(matcher, data)
    live = (samples >= matcher.live_from) & (samples < len(data) - matcher.hold)
    for unit in range(len(NAMES)):
        hit, wanted, told = hits(found, samples[live], units[live], unit)
        assert wanted > 40
        assert hit >= 0.97 * wanted
        assert told <= 1.03 * wanted + 1
    assert matcher.overflow == 0
    assert matcher.peaks >= len(found) + matcher.unmatched


def test_blocks_of_any_size_give_the_same_spikes():
    data, _, _ = recording(seed=2)
    data = data[:60_000]
    whole, sizes = push_all(templates().matcher(), data, block=len(data))
    assert len(whole) > 100
    for block in (1, 77, 1000):
        part = data if block > 1 else data[:8000]
        found, found_sizes = push_all(templates().matcher(), part, block)
        n = len(found)
        np.testing.assert_array_equal(found, whole[:n])
        np.testing.assert_array_equal(found_sizes, sizes[:n])
        assert block == 1 or n == len(whole)


@pytest.mark.parametrize("unit", range(len(NAMES)))
def test_one_spike_on_many_channels_is_told_once_at_its_sample(unit):
    found, sizes = alone([1500], [unit])
    np.testing.assert_array_equal(found, [[1500, unit]])
    assert abs(sizes[0] - 1) < 0.15


@pytest.mark.parametrize("apart", [0, 2, 5, 9, 14, 25])
def test_overlapping_spikes_of_neighbours_are_told_apart(apart):
    found, _ = alone([1500, 1500 + apart], [2, 3])
    assert len(found) == 2
    assert sorted(found[:, 1].tolist()) == [2, 3]
    for unit, sample in ((2, 1500), (3, 1500 + apart)):
        assert abs(int(found[found[:, 1] == unit, 0][0]) - sample) <= 1


def test_a_spike_of_nobody_is_left_alone():
    rng = np.random.default_rng(0)
    data = rng.normal(0, 8, (4000, CHANNELS)).astype(np.int16)
    data[2000:2012, 36] -= 150  # too far from all units, and of another shape
    matcher = templates().matcher()
    found, _ = push_all(matcher, data)
    assert len(found) == 0
    assert matcher.unmatched > 0


def test_spikes_are_told_within_the_samples_held_back():
    data, _, _ = recording(seed=2)
    matcher = templates().matcher()
    ages = []
    for i in range(12_000):
        n = matcher.push(data[i], i)
        ages += (i - matcher.samples[:n]).tolist()
    assert len(ages) > 20
    assert max(ages) <= matcher.hold < 100
    assert min(ages) > 0


def test_after_a_gap_it_begins_anew():
    data, _, _ = recording(seed=2)
    matcher = templates().matcher()
    assert matcher.live_from == -1
    push_all(matcher, data[:9000])
    assert 600 < matcher.live_from < 600 + 200
    matcher.reset()
    assert matcher.live_from == -1
    found, _ = push_all(matcher, data[20_000:29_000], first=20_000)
    fresh, _ = push_all(templates().matcher(STAY), data[20_000:29_000], first=20_000)
    assert matcher.live_from > 20_600
    assert found[:, 0].min() > 20_500
    np.testing.assert_array_equal(found[:3], fresh[:3])


class TestDrift:
    SECONDS, FAR = 20.0, 24.0

    def drifted(self):
        samples, units = trains(self.SECONDS, rate_hz=8, seed=5)
        moved = lambda s: min(1.0, s / FS / (0.8 * self.SECONDS)) * self.FAR  # noqa: E731
        return plant(samples, units, int(self.SECONDS * FS), moved=moved, seed=5), samples, units

    def test_units_that_move_along_the_probe_are_followed(self):
        data, samples, units = self.drifted()
        late = (samples > 16 * FS) & (samples < (self.SECONDS - 0.1) * FS)
        share = {}
        for name, options in (("follows", MatchOptions()), ("stays", STAY)):
            matcher = templates().matcher(options)
            found, _ = push_all(matcher, data, block=3000)
            found = found[found[:, 0] > 16 * FS]
            parts = [hits(found, samples[late], units[late], u) for u in range(len(NAMES))]
            share[name] = sum(p[0] for p in parts) / sum(p[1] for p in parts)
            wrong = sum(p[2] - p[0] for p in parts) / sum(p[1] for p in parts)
            if name == "follows":
                np.testing.assert_allclose(matcher.drift * 5, self.FAR, atol=6)
                assert wrong < 0.05
        assert share["follows"] > 0.95
        assert share["stays"] < share["follows"] - 0.02


class TestFile:
    def test_what_is_written_is_read(self, tmp_path):
        path = tmp_path / "t"
        path.write_bytes(templates().encode())
        again = read_templates(path)
        assert again.settings == templates().settings
        assert again.names == [tuple(n) for n in NAMES.tolist()]
        for name, tensor in templates().tensors.items():
            np.testing.assert_array_equal(again.tensors[name], tensor)

    def test_files_that_are_no_templates_are_refused_in_one_line(self, tmp_path):
        from neds_rt.safetensors_io import encode_tensors

        tensors, text = templates().tensors, '{"version": 1, "fs": 3e4}'
        for data in (b"", encode_tensors(tensors), encode_tensors(tensors, {"unit_templates": "{"}),
                     encode_tensors(tensors, {"unit_templates": text})):
            with pytest.raises(BadInput, match=r"^f: "):
                decode_templates(data, "f")
        with pytest.raises(BadInput, match=r"No such file"):
            read_templates(tmp_path / "none")

    @pytest.mark.parametrize(("name", "value"), [
        ("noise", -np.ones(CHANNELS)), ("noise", np.ones(3)), ("site", np.full((6, 40), 40.0)),
        ("waveform", np.zeros((6, 60))), ("unit", np.zeros((6, 2))),
        ("amplitude", np.full((6, 2), np.nan)), ("unit", np.full((6, 2), 2.0**24)),
    ])
    def test_tensors_that_do_not_fit_are_refused(self, name, value):
        with pytest.raises(BadInput, match=r"^f: "):
            make_templates(templates().settings, templates().tensors | {name: value}, "f")

    def test_streams_that_they_are_not_for_are_refused(self):
        templates().check_stream("w", CHANNELS, 29_999.95)
        for channels, fs in ((384, FS), (CHANNELS, 25_000.0)):
            with pytest.raises(BadInput, match=r"^w: stream: .*as the templates have"):
                templates().check_stream("w", channels, fs)


class TestModel:
    def test_order_is_by_depth_whatever_the_wiring(self):
        order = np.random.default_rng(0).permutation(CHANNELS)
        t, data = templates().tensors, recording(seed=2)[0][:45_000]
        wired = {
            **t, "site": np.argsort(order)[t["site"].astype(int)], "noise": t["noise"][order],
            "correlation": t["correlation"][np.ix_(order, order)], "position": t["position"][order],
        }
        other = make_templates(templates().settings, wired, "f").matcher()
        found, _ = push_all(other, np.ascontiguousarray(data[:, order]))
        whole, _ = push_all(templates().matcher(), data)
        assert len(whole) > 60
        np.testing.assert_array_equal(found, whole)
        assert depth_order(t["position"]).tolist() == list(range(CHANNELS))

    def test_a_dead_channel_is_left_out(self):
        t = templates().tensors
        noise = t["noise"].copy()
        noise[16] = 0
        data, samples, units = recording(seed=2)
        data = data.copy()
        data[:, 16] = 0
        matcher = make_templates(templates().settings, t | {"noise": noise}, "f").matcher()
        found, _ = push_all(matcher, data)
        hit, wanted, _ = hits(found, samples, units, 3)
        assert hit > 0.9 * wanted

    @pytest.mark.parametrize(("name", "value"), [
        ("order", np.full(CHANNELS, CHANNELS)), ("first", np.full(6, 9)), ("part", np.full(6, 9)),
        ("near", np.array([99])), ("trough", np.full(6, -1)), ("waveform", np.zeros(5)),
    ])
    def test_arrays_that_do_not_fit_together_are_refused(self, name, value):
        model = matcher_model(templates().tensors, before=20, drift_um=10)
        model[name] = value.astype(model[name].dtype)
        with pytest.raises(ValueError, match="fit together"):
            _core.TemplateMatcher(
                CHANNELS, FS, model, highpass_hz=300, reference=True, threshold=4, least_share=0.5,
                shifts=2, guard=10, reach=8, refractory=20, rescans=4, drift_gain=0, adapt_gain=0)
