"""Reader `arrays`: mappings, presets, real recordings, and archives it refuses."""

import numpy as np
import pytest

from neds.data import Counts, Spikes
from neds.data.arrays import grid, load_archive, read_arrays
from neds.data.mapping import load_mapping, parse_mapping
from neds.data.presets import PRESETS, arrays_reader, read_preset
from neds_rt.errors import BadInput

EVENTS = ["spike_times=t", "spike_units=u", "n_units=3", "behaviour.wheel=wheel:wheel_t"]
COUNTS = ["counts=c", "bin_size=0.1", "bin_start=start", "behaviour.xy=xy:bins:continuous:cm"]


def archive(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def events(**changes):
    fields = {"t": np.array([0.1, 0.25, 0.9]), "u": np.array([0, 2, 1]),
              "wheel": np.array([1.0, 2.0]), "wheel_t": np.array([0.0, 1.0])}
    return fields | changes


def counted(**changes):
    rng = np.random.default_rng(0)
    fields = {"c": rng.poisson(1, (20, 4)).astype(np.uint8), "start": 5.03 + np.arange(20) * 0.1,
              "xy": rng.standard_normal((20, 2)).astype(np.float32)}
    return fields | changes


def read(tmp_path, words, arrays):
    return read_arrays(archive(tmp_path / "a.npz", **arrays), parse_mapping(words))


def test_events(tmp_path):
    session = read(tmp_path, [*EVENTS, "unit.region=r"], events(r=np.array(["a", "b", "c"])))
    assert isinstance(session.spikes, Spikes)
    assert session.spikes.sample.tolist() == [3000, 7500, 27000]
    assert session.units.region.tolist() == ["a", "b", "c"]
    assert session.intervals.tolist() == [[0.0, 1.0]]
    assert session.session == "a"


def test_counts_start_at_zero(tmp_path):
    arrays = counted(session_id=np.array("rec-1"), subject_id=np.array("rat"))
    session = read(tmp_path, COUNTS, arrays)
    assert isinstance(session.spikes, Counts)
    binned = session.binned(0.1)
    assert binned.bin.tolist() == list(range(20))
    np.testing.assert_array_equal(binned.values["xy"], arrays["xy"])
    np.testing.assert_array_equal(binned.counts, arrays["c"])
    assert session.metadata["time_offset_s"] == 5.03
    assert (session.session, session.subject) == ("rec-1", "rat")


def test_counts_with_a_gap_and_trials(tmp_path):
    start = np.r_[np.arange(10) * 0.1, 3.02 + np.arange(10) * 0.1] + 5.0
    session = read(tmp_path, [*COUNTS, "trials.start=ts", "trials.n=tn"],
                   counted(start=start, ts=np.array([5.0, 8.0]), tn=np.array([5, 8])))
    assert session.binned(0.1).bin.tolist() == [*range(10), *range(30, 40)]
    np.testing.assert_allclose(session.trials["start"], [0, 3])  # a time, so on the new clock
    assert session.trials["n"].tolist() == [5, 8]


def test_counts_of_trials(tmp_path):
    rng = np.random.default_rng(0)
    start = np.array([1.0, 2.004])[:, None] + np.arange(5) * 0.1
    session = read(tmp_path, COUNTS, {
        "c": rng.poisson(1, (2, 5, 3)), "start": start, "xy": rng.standard_normal((2, 5, 2))})
    assert session.binned(0.1).bin.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert session.binned(0.1).values["xy"].shape == (10, 2)
    assert len(session.intervals) == 2


@pytest.mark.parametrize("drift", [0.0, 1e-9])
def test_grid_keeps_runs_together(drift):
    starts = np.concatenate([10.003 + np.arange(40) * (0.01 + drift),
                             13.4567 + np.arange(40) * 0.01])
    bins, offset = grid(starts, 0.01)
    assert offset == 10.003
    assert bins.tolist() == [*range(40), *range(345, 385)]


def test_toml_mapping(tmp_path):
    text = """
    spike_times = "t"
    spike_units = "u"
    n_units = 3
    [behaviour.side]
    values = "s"
    timestamps = "wheel_t"
    kind = "categorical"
    levels = [-1, 1]
    classes = ["left", "right"]
    gaps = true
    [behaviour.second]
    values = "two"
    timestamps = "wheel_t"
    columns = [1]
    """
    (tmp_path / "m.toml").write_text(text)
    arrays = events(s=np.array([1.0, 0.0]), two=np.array([[1.0, 2.0], [3.0, 4.0]]))
    session = read(tmp_path, [str(tmp_path / "m.toml")], arrays)
    side = session.behaviours["side"]
    assert side.classes == ("left", "right")
    np.testing.assert_array_equal(side.values[:, 0], [1, np.nan])
    assert session.behaviours["second"].values[:, 0].tolist() == [2, 4]


def test_categorical_levels_are_found(tmp_path):
    words = [*EVENTS, "behaviour.a=a:wheel_t:categorical", "behaviour.b=b:wheel_t:categorical"]
    session = read(tmp_path, words, events(a=np.array([0.8, 0.2]), b=np.array(["x", "w"])))
    assert session.behaviours["a"].classes == ("0.2", "0.8")
    assert session.behaviours["a"].values[:, 0].tolist() == [1, 0]
    assert session.behaviours["b"].classes == ("w", "x")


BAD_EVENTS = {
    "unequal lengths": (events(u=np.array([0, 1])), "spikes.unit_index length"),
    "nan times": (events(t=np.array([0.1, np.nan, 0.3])), "nan at index 1"),
    "unsorted times": (events(t=np.array([0.1, 0.3, 0.2])), "sorted"),
    "negative times": (events(t=np.array([-0.1, 0.3, 0.4])), "before time 0"),
    "unit out of range": (events(u=np.array([0, 3, 1])), "0 to 2"),
    "negative unit": (events(u=np.array([0, -1, 1])), "0 to 2"),
    "fractional unit": (events(u=np.array([0, 0.5, 1])), "whole numbers"),
    "behaviour lengths": (events(wheel=np.array([1.0])), "behaviour wheel"),
    "behaviour nan": (events(wheel=np.array([1.0, np.nan])), "behaviour wheel"),
    "behaviour time nan": (events(wheel_t=np.array([1.0, np.nan])), "behaviour wheel"),
    "behaviour time unsorted": (events(wheel_t=np.array([1.0, 0.0])), "sorted"),
    "text": (events(t=np.array(["a", "b", "c"])), "numbers"),
    "matrix": (events(t=np.zeros((3, 2))), "1 dimension"),
    "missing array": ({"t": np.zeros(3), "u": np.zeros(3, int)}, "'wheel', expected one of t, u"),
}
BAD_COUNTS = {
    "negative counts": (counted(c=np.full((20, 4), -1)), "found -1"),
    "no units": (counted(c=np.zeros((20, 0), np.uint8)), "at least one unit"),
    "no bins": (counted(c=np.zeros((0, 4)), start=np.zeros(0), xy=np.zeros((0, 2))), "no bins"),
    "nan counts": (counted(c=np.full((20, 4), np.nan)), "whole numbers"),
    "one dimension": (counted(c=np.zeros(20, int)), "(bins, units)"),
    "bins unequal": (counted(start=np.arange(19) * 0.1), "shape (19,), expected (20,)"),
    "bins nan": (counted(start=np.full(20, np.nan)), "finite times"),
    "bins unsorted": (counted(start=-np.arange(20) * 0.1), "sorted bins"),
    "bins overlap": (counted(start=np.arange(20) * 0.05), "0.1 s apart"),
    "behaviour rows": (counted(xy=np.zeros((19, 2))), "behaviour xy"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_refuses_events(tmp_path, name):
    arrays, expected = BAD_EVENTS[name]
    with pytest.raises(BadInput) as caught:
        read(tmp_path, EVENTS, arrays)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", BAD_COUNTS)
def test_refuses_counts(tmp_path, name):
    arrays, expected = BAD_COUNTS[name]
    with pytest.raises(BadInput) as caught:
        read(tmp_path, COUNTS, arrays)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(("words", "expected"), [
    (["spike_times=t", "spike_units=u", "n_units=0"], "at least one unit"),
    (["spike_times=t", "spike_units=u", "n_units=t2"], "whole number"),
    (["spike_times=t", "spike_units=u", "n_units=wheel"], "one number"),
    (["spike_times=t", "spike_units=u", "fs=0"], "spikes.fs"),
    (["spike_times=t", "spike_units=u", "behaviour.a=wheel:bins"], "for spike events"),
    (["spike_times=t", "spike_units=u", "behaviour.a=wheel:wheel_t:odd"], "one of continuous"),
    (["spike_times=t", "spike_units=u", "unit.region=wheel"], "spikes.unit_index"),
    (["spike_times=t", "spike_units=u", "domain_start=wheel", "domain_end=t"], "2 starts and 3"),
    (["spike_times=t", "spike_units=u", "session=wheel"], "one string"),
    (["spike_times=t", "spike_units=u", "trials.a=t", "trials.b=wheel"], "one length"),
])
def test_refuses_what_a_mapping_finds(tmp_path, words, expected):
    with pytest.raises(BadInput) as caught:
        read(tmp_path, words, events(t2=np.array(2.5)))
    assert expected in str(caught.value)


@pytest.mark.parametrize(("words", "expected"), [
    (["spike_times=t"], "spike_units"),
    (["counts=c"], "bin_size"),
    (["counts=c", "bin_size=1", "spike_times=t", "spike_units=u"], "found both"),
    (["behaviour.a=b:c"], "found neither"),
    (["spike_times"], "m.toml"),
    (["spike_times=", "spike_units=u"], "KEY=VALUE"),
    ([*EVENTS, "wings=w"], "wings"),
    ([*EVENTS, "fs=fast"], "fs"),
    ([*EVENTS, "behaviour.a=b"], "VALUES:TIMESTAMPS"),
    ([*EVENTS, "behaviour.a=b:c:d:e:f"], "VALUES:TIMESTAMPS"),
    ([*EVENTS, "unit.colour=c"], "unit column"),
    ([*EVENTS, "domain_start=a"], "domain_start and domain_end"),
])
def test_refuses_mappings(words, expected):
    with pytest.raises(BadInput) as caught:
        parse_mapping(words if words != ["spike_times"] else ["absent-m.toml"])
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["spike_times = 3", "x = 1", "[", 'counts = "c"',
                                  '[behaviour.a]\nvalues = "v"'])
def test_refuses_toml(tmp_path, text):
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"m\.toml"):
        load_mapping(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_archive(tmp_path, share):
    path = archive(tmp_path / "a.npz", **counted())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match=r"a\.npz"):
        load_archive(path)


def test_damaged_archive(tmp_path):
    path = archive(tmp_path / "a.npz", **counted(c=np.random.default_rng(0).poisson(1, (500, 90))))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 3 : len(whole) // 3 + 64] = bytes(64)
    path.write_bytes(whole)
    with pytest.raises(BadInput, match=r"a\.npz"):
        load_archive(path)


def test_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(BadInput, match="without pickles"):
        load_archive(tmp_path / "a.npz")


def test_files_that_are_no_archive(tmp_path):
    with pytest.raises(BadInput, match="nothing there"):
        load_archive(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy"):
        with pytest.raises(BadInput, match=name):
            load_archive(tmp_path / name)


def steinmetz_archive(path, **changes):
    rng = np.random.default_rng(0)
    n = 6
    fields = {
        "spike_counts": rng.poisson(0.1, (n, 40, 5)).astype(np.uint8),
        "bin_start_s": (70.003 + np.arange(n) * 2.4567)[:, None] + np.arange(40) * 0.01,
        "bin_size_s": 0.01, "brain_area": np.array(["CA1", "DG", "VISp", "root", "MOs"]),
        "contrast_left": np.array([1, 0, 0.5, 0, 0.5, 0], np.float32),
        "contrast_right": np.array([0, 1, 0.5, 0, 0.25, 0], np.float32),
        "feedback": np.array([1, 1, 1, 1, -1, -1], np.int8),
        "session_id": np.array("Cori_1"), "subject_id": np.array("Cori"),
    }
    return archive(path, **(fields | changes))


def test_steinmetz_labels_follow_from_the_contrasts(tmp_path):
    session = read_preset(steinmetz_archive(tmp_path / "s.npz"), "steinmetz")
    binned = session.binned(0.01)
    assert len(session.intervals) == 6
    first = binned.runs()[:, 0]
    assert binned.bin[first].tolist() == [round(i * 245.67) for i in range(6)]
    left, right, unknown = 0, 1, np.nan
    np.testing.assert_array_equal(binned.values["stimulus"][first, 0],
                                  [left, right, unknown, unknown, left, unknown])
    np.testing.assert_array_equal(binned.values["response"][first, 0],
                                  [0, 2, unknown, 1, unknown, unknown])
    # every bin of a trial has the trial's label, and the trials table its borders
    for i, (a, b) in enumerate(binned.runs()):
        for values in binned.values.values():
            assert len(np.unique(values[a:b])) == 1
        assert session.trials["start"][i] == pytest.approx(binned.bin[a] * 0.01)
        assert session.trials["end"][i] == pytest.approx((binned.bin[b - 1] + 1) * 0.01)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"contrast_left": np.zeros(4)}, "shapes as in the steinmetz set"),
    ({"bin_start_s": np.zeros((6, 40))}, "bin starts"),
    ({"bin_start_s": np.full((6, 40), np.nan)}, "finite"),
    ({"bin_start_s": np.zeros(6)}, "2 dimensions"),
    ({"bin_size_s": np.array([0.01, 0.02])}, "shapes"),
    ({"bin_size_s": 0.0}, "bin_size_s"),
    ({"brain_area": np.array(["CA1"])}, "units.region"),
    ({"spike_counts": np.zeros((6, 39, 5))}, "(6, 39)"),
])
def test_steinmetz_refuses(tmp_path, changes, expected):
    path = steinmetz_archive(tmp_path / "s.npz", **changes)
    with pytest.raises(BadInput) as caught:
        read_preset(path, "steinmetz")
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_refuse_foreign_archives(tmp_path, preset):
    path = archive(tmp_path / "x.npz", anything=np.zeros(3))
    with pytest.raises(BadInput, match=r"x\.npz"):
        read_preset(path, preset)


def test_reader_takes_a_preset_or_a_mapping():
    for preset, words in ((None, []), ("indy", EVENTS)):
        with pytest.raises(BadInput, match="--preset or --map"):
            arrays_reader(preset, words)
    with pytest.raises(BadInput, match="indy, place-cells, steinmetz, ibl-sample"):
        read_preset("x.npz", "monkeys")


# Real recordings.


def test_indy(recordings):
    path = sorted((recordings / "indy").glob("*.npz"))[0]
    session = read_preset(path, "indy")
    raw = load_archive(path)
    binned = session.binned(0.064)
    np.testing.assert_array_equal(binned.counts, raw["spike_counts"])
    np.testing.assert_array_equal(binned.values["velocity"], raw["finger_velocity_cm_s"][:, :2])
    np.testing.assert_array_equal(binned.values["position"], raw["finger_position_cm"][:, :2])
    np.testing.assert_array_equal(binned.bin, np.arange(len(binned)))
    np.testing.assert_array_equal(session.units.channel, raw["unit_channel"])
    assert session.behaviours["velocity"].unit == "cm/s"
    assert session.session == path.stem


def test_place_cells(recordings):
    path = recordings / "place_cells" / "animal1.npz"
    session = read_preset(path, "place-cells")
    raw = load_archive(path)
    assert session.n_units == 49
    binned = session.binned(0.1)
    assert binned.counts.sum() == (raw["spike_times_s"] < len(binned) * 0.1).sum()
    at = 5000
    expected = [np.interp((at + 1) * 0.1, raw["position_times_s"], column)
                for column in raw["position_xy"].T.astype(float)]
    np.testing.assert_allclose(binned.values["position"][at], expected, atol=1e-6)


def test_steinmetz(recordings):
    path = sorted((recordings / "steinmetz").glob("*.npz"))[0]
    session = read_preset(path, "steinmetz")
    raw = load_archive(path)
    binned = session.binned(0.01)
    n = len(raw["contrast_left"])
    assert len(session.intervals) == len(binned.runs()) == n
    np.testing.assert_array_equal(binned.counts.reshape(n, 40, -1), raw["spike_counts"])
    unknown = np.isnan(binned.values["stimulus"].reshape(n, 40))
    np.testing.assert_array_equal(unknown.all(1), raw["contrast_left"] == raw["contrast_right"])


def test_ibl_spikes(recordings):
    path = recordings / "ibl" / "ef3d059a_30_trials.npz"
    session = read_preset(path, "ibl-sample")
    raw = load_archive(path)
    assert session.n_units == 262
    assert len(session.spikes.sample) == len(raw["spike_times_s"])
    assert len(session.intervals) == 3
    binned = session.binned(0.02)
    ends = (binned.bin + 1) * 0.02
    start, end = raw["trials_trial_start"], raw["trials_trial_end"]
    trial = np.searchsorted(start, ends) - 1
    inside = ends <= end[trial]
    wheel, choice = binned.values["wheel"][:, 0], binned.values["choice"][:, 0]
    assert np.isnan(wheel[~inside]).all()
    assert np.isfinite(wheel[inside]).mean() > 0.97
    np.testing.assert_array_equal(np.isnan(choice), ~inside)
    np.testing.assert_array_equal(choice[inside] * 2 - 1, raw["trials_choice"][trial[inside]])
    assert not np.isnan(binned.values["block"]).any()


def test_ibl_prestim(recordings):
    path = recordings / "ibl" / "56956777_behaviour_425_trials.npz"
    session = read_preset(path, "ibl-sample")
    raw = load_archive(path)
    binned = session.binned(0.5)
    assert len(binned) == len(session.trials["choice"]) == 422
    np.testing.assert_array_equal(binned.counts, raw["prestim_counts"][:422])
    np.testing.assert_allclose(binned.values["wheel"][0, 0], raw["wheeling"][0, 20:45].mean(),
                               rtol=1e-6)
    levels = np.array([0.2, 0.5, 0.8])[binned.values["block"][:, 0].astype(int)]
    np.testing.assert_array_equal(levels, raw["trials_probabilityLeft"][:422])


def test_ibl_fixtures_are_not_one_session(recordings):
    with pytest.raises(BadInput, match="different sessions"):
        read_preset(recordings / "ibl" / "ibllib_fixtures.npz", "ibl-sample")


def test_ibl_fixtures_read_with_a_mapping(recordings):
    words = ["spike_times=spike_times_s", "spike_units=spike_clusters",
             "behaviour.position=wheel1_position_rad:wheel1_timestamps_s:continuous:rad"]
    session = read_arrays(recordings / "ibl" / "ibllib_fixtures.npz", parse_mapping(words))
    assert session.n_units == 500
    binned = session.binned(0.02)  # the first and last bin are recorded in part, so left out
    inside = (session.spikes.sample >= 600) & (session.spikes.sample < (binned.bin[-1] + 1) * 600)
    assert binned.counts.sum() == inside.sum() > 120000
