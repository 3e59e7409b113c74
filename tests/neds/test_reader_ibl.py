"""IBL sessions: ALF folders, the paper's preprocessing item by item, and ONE in local mode."""

import shutil
from uuid import UUID

import numpy as np
import pytest

from neds.data.alf import Alf, wheel_velocity
from neds.data.alf_write import write_alf
from neds.data.dropped import dropped
from neds.data.ibl import IblOptions, ibl_reader, read_alf
from neds.data.ibl_one import LISTS
from neds.data.ibl_trials import BINS, settle, trial_traces
from neds.data.presets import read_preset
from neds_rt.errors import BadInput
from tests.neds.alf_cases import BAD, DATE, SUBJECT, TRIALS, make_alf, trials_table
from tests.neds.conftest import make_session
from tests.neds.reader_cases import event_session, same

KEPT = [k for k in range(TRIALS) if k not in BAD]


def drops(session, level):
    return [d for d in dropped(session) if d.level == level]


def raw(folder, name):
    return np.load(next(folder.rglob(f"*{name}.npy")))


def test_continuous_form(tmp_path):
    folder = make_alf(tmp_path)
    session = read_alf(folder)
    assert session.session == f"{SUBJECT}_{DATE}_001"
    assert session.subject == SUBJECT
    assert session.n_units == 10
    assert session.units.probe.tolist() == ["probe00"] * 5 + ["probe01"] * 5
    assert session.units.region.tolist() == ["CA1"] * 3 + ["DG"] * 2 + [""] * 5
    assert session.units.cluster.tolist() == [0, 1, 2, 3, 5] * 2
    assert len(session.spikes.sample) == 8000
    assert set(session.behaviours) == {"wheel", "whisker", "choice", "block"}
    assert session.behaviour("whisker").values.max() < 2  # the left camera
    assert drops(session, "unit")[0].name == "4, 10"
    assert "no histology" in drops(session, "column")[0].reason
    found = {int(d.name): d.reason for d in drops(session, "trial")}
    assert found.keys() == BAD.keys()
    assert all(found[k].startswith(reason) for k, reason in BAD.items())
    np.testing.assert_allclose(session.trials["stimOn_times"], trials_table()["stimOn_times"][KEPT])
    stim, choice = session.trials["stimOn_times"], session.behaviour("choice")
    assert choice.classes == ("right", "left")
    np.testing.assert_array_equal(choice.at(stim)[:, 0], (session.trials["choice"] > 0))
    assert np.isnan(choice.at(stim[:1] - 0.51)).all()
    assert choice.at(stim[:1] - 0.49)[0, 0] == 0
    assert session.behaviour("block").at(stim)[-1, 0] == 2


def test_wheel_velocity_follows_a_known_turn():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 10, 20000))
    at, velocity = wheel_velocity(times, np.sin(times))
    inside = (at > 1) & (at < 9)
    np.testing.assert_allclose(velocity[inside], np.cos(at[inside] - 5e-4), atol=2e-3)
    with pytest.raises(BadInput, match="one length"):
        wheel_velocity(times, times[:-1])
    with pytest.raises(BadInput, match="rising"):
        wheel_velocity(times[::-1], times)


def reference_line(times, values, start, end):
    """As the release interpolates: between samples inside the window, extrapolated at its ends."""
    from scipy.interpolate import interp1d

    use = (times > start) & (times < end)
    line = interp1d(times[use], values[use], kind="linear", fill_value="extrapolate")
    return line(np.linspace(start + 0.02, end, 100))


def test_traces_are_the_references_interpolation():
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, 9, 5000))
    values = rng.standard_normal(5000)
    window = np.array([[1.0, 3.0], [np.nan, np.nan], [7.5, 9.5], [4.01, 6.01]])
    out, there = trial_traces(times, values, window)
    assert there.tolist() == [True, False, False, True]
    for k in (0, 3):
        np.testing.assert_allclose(out[k], reference_line(times, values, *window[k]), rtol=1e-9,
                                   atol=1e-9)


@pytest.mark.parametrize("bugs", ["", "all"])
def test_trial_form_item_by_item(tmp_path, bugs):
    folder = make_alf(tmp_path)
    session = read_alf(folder, IblOptions(form="trials", min_rate_hz=6.3, bugs=bugs))
    table = trials_table()
    stim = table["stimOn_times"][KEPT]
    counts = session.spikes.counts.reshape(len(KEPT), BINS, -1)
    # Bins: [start + 20 ms k, + 20 ms) of every window, by counting one spike after the other.
    expected = np.zeros((TRIALS, BINS, 12), int)
    for probe in range(2):
        at = folder / "alf" / f"probe{probe:02d}" / "pykilosort"
        times, clusters = np.load(at / "spikes.times.npy"), np.load(at / "spikes.clusters.npy")
        for k, on in enumerate(table["stimOn_times"]):
            for t, c in zip(times, clusters, strict=True):
                if on - 0.5 <= t < on + 1.5:
                    expected[k, min(int((t - (on - 0.5)) / 0.02), 99), c + 6 * probe] += 1
    rate = expected[:] if bugs else expected[KEPT]
    use = rate.mean((0, 1)) / 0.02 > 6.3
    assert 0 < use.sum() < 12
    np.testing.assert_array_equal(counts, expected[KEPT][:, :, use])
    # Traces: right bin edges, unscaled or by one range; the camera.
    times = raw(folder, "rightCamera.times" if bugs else "leftCamera.times")
    energy = raw(folder, "rightCamera.ROIMotionEnergy" if bugs else "leftCamera.ROIMotionEnergy")
    whisker = np.stack([reference_line(times, energy, on - 0.5, on + 1.5) for on in stim])
    if bugs:
        whisker = (whisker - whisker.min()) / np.ptp(whisker)
    values = session.binned(0.02).values["whisker"].reshape(len(KEPT), BINS)
    np.testing.assert_allclose(values, whisker, rtol=1e-5, atol=1e-6)
    wheel = session.binned(0.02).values["wheel"]
    assert wheel.min() >= 0
    assert (wheel.max() == 1) == bool(bugs)
    # Labels, one a trial; the moved clock keeps onset at bin 25 of a run of 100.
    binned = session.binned(0.02)
    assert np.diff(binned.runs())[:, 0].tolist() == [BINS] * len(KEPT)
    first = binned.bin[binned.runs()[:, 0]] * 0.02
    np.testing.assert_allclose(session.trials["stimOn_times"], first + 0.5)
    np.testing.assert_allclose(session.trials["stimOn_times"] - session.trials["clock_shift_s"],
                               stim)
    choice = binned.values["choice"].reshape(len(KEPT), BINS)
    np.testing.assert_array_equal(choice, np.tile((table["choice"][KEPT] > 0)[:, None], BINS))
    block = binned.values["block"].reshape(len(KEPT), BINS)[:, 0]
    place = {0.2: 0, 0.5: 1, 0.8: 2}
    assert block.tolist() == [place[p] for p in table["probabilityLeft"][KEPT].tolist()]
    assert session.trials["reward"].tolist() == (table["rewardVolume"][KEPT] > 1).tolist()


def test_a_trace_missing_in_some_trials(tmp_path):
    folder = make_alf(tmp_path, cameras=("right",))
    path = next(folder.rglob("_ibl_rightCamera.times.npy"))
    times = np.load(path)
    hole = (times > 40) & (times < 46)  # two or three trials
    np.save(path, times[~hole])
    energy = next(folder.rglob("rightCamera.ROIMotionEnergy.npy"))
    np.save(energy, np.load(energy)[~hole])
    session = read_alf(folder, IblOptions(form="trials"))
    lost = [d for d in drops(session, "trial") if "no whisker" in d.reason]
    assert lost[0].count in (2, 3)
    assert len(session.trials["choice"]) == len(KEPT) - lost[0].count
    with pytest.raises(BadInput, match="bug switch session"):
        read_alf(folder, IblOptions(form="trials", bugs="session"))


def test_too_often_missing_traces_and_the_skipped_check():
    there, some, none = np.ones(10, bool), np.arange(10) < 6, np.zeros(10, bool)
    zero = np.zeros((10, BINS))
    traces = {"wheel": (zero, some), "whisker": (zero, none)}
    kept_traces, kept, _, left = settle(traces, there, frozenset())
    assert (list(kept_traces), sorted(left), kept.sum()) == ([], ["wheel", "whisker"], 10)
    with pytest.raises(BadInput):  # the release does not look at the trace after a removed one
        settle(traces, there, frozenset({"session"}))


def test_missing_and_broken_files_degrade(tmp_path):
    folder = make_alf(tmp_path, cameras=())
    alf = folder / "alf"
    np.save(alf / "_ibl_trials.stimOff_times.npy", np.zeros(7))  # of another length
    (alf / "_ibl_wheel.position.npy").unlink()
    np.save(alf / "probe01" / "pykilosort" / "spikes.clusters.npy", np.zeros(3, int))
    session = read_alf(folder)
    assert session.n_units == 5
    assert {d.name: d.count for d in drops(session, "behaviour")} == {
        "wheel": 1, "whisker (left)": 0, "whisker": 1}
    assert "stimOff_times" in [d.name for d in drops(session, "column")]
    assert drops(session, "probe")[0].name == "probe01"
    np.save(alf / "_ibl_trials.choice.npy", np.zeros(7))
    poorer = read_alf(folder)
    assert not poorer.behaviours
    with pytest.raises(BadInput, match="no choice"):
        read_alf(folder, IblOptions(form="trials"))
    for path in list(alf.rglob("spikes.times.npy")):
        path.write_bytes(b"no array")
    with pytest.raises(BadInput, match="2 probes, none usable"):
        read_alf(folder)


def add_sorting(at, unit):
    """Write a sorting of two spikes, of cluster `unit`."""
    at.mkdir(parents=True, exist_ok=True)
    np.save(at / "spikes.times.npy", np.array([1.0, 2.0]))
    np.save(at / "spikes.clusters.npy", np.array([unit, unit]))


def first_probe(folder, *words):
    units = ibl_reader(None, words).read(str(folder)).units
    return units.cluster[units.probe == "probe00"].tolist()


def test_revisions(tmp_path):
    folder = make_alf(tmp_path)
    at = folder / "alf" / "probe00" / "pykilosort"
    for name, unit in (("#2024-01-01#", 1), ("#2025-01-01#", 2)):
        add_sorting(at / name, unit)
    assert first_probe(folder) == [2]
    assert first_probe(folder, "revision=2025-01-01") == [2]
    assert first_probe(folder, "revision=2024-12-31") == [1]
    assert first_probe(folder, "revision=2024-01-01") == [1]
    assert first_probe(folder, "revision=2023-12-31") == [0, 1, 2, 3, 5]
    assert {f.revision for f in Alf(folder).files if f.place.startswith("alf/probe00")} == {
        "", "#2024-01-01#", "#2025-01-01#"}
    read = ibl_reader(None, []).files(str(folder))
    assert at / "#2025-01-01#" / "spikes.times.npy" in read
    assert not {at / "spikes.times.npy", at / "#2024-01-01#" / "spikes.times.npy"} & set(read)


def test_several_sortings_of_one_probe(tmp_path):
    folder = make_alf(tmp_path)
    probe = folder / "alf" / "probe00"
    add_sorting(probe, 1)
    add_sorting(probe / "ks2_matlab", 2)
    assert first_probe(folder) == [0, 1, 2, 3, 5]  # pykilosort's, deeper than that of probe00
    shutil.rmtree(probe / "pykilosort")
    assert first_probe(folder) == [1]
    add_sorting(probe / "iblsorter", 3)
    add_sorting(probe / "pykilosort" / "#2025-01-01#", 4)
    session = ibl_reader(None, []).read(str(folder))
    assert session.units.probe.tolist() == ["probe00"] + ["probe01"] * 5
    assert session.units.cluster[0] == 3
    others = [d for d in drops(session, "column") if "another sorting" in d.reason]
    assert [d.name for d in others] == [f"alf/probe00{place}/spikes" for place in
                                        ("/pykilosort", "", "/ks2_matlab")]
    assert all(d.reason.endswith("that in alf/probe00/iblsorter") for d in others)


@pytest.mark.parametrize(("file", "values"), [
    ("brainLocationIds_ccf_2017", [382, 10703, 123456789, 0, 382, 997]),
    ("brainLocationAcronyms_ccf_2017", ["CA1", "DG-mo", "Atlantis", "void", "CA1", "root"])])
def test_regions_of_the_beryl_atlas(tmp_path, file, values):
    pytest.importorskip("iblatlas.regions")
    folder = make_alf(tmp_path)
    at = folder / "alf" / "probe00" / "pykilosort"
    (at / "channels.brainLocationAcronyms_ccf_2017.npy").unlink()
    np.save(at / f"channels.{file}.npy", np.repeat(values, 2))  # a cluster on every other channel
    plain = ibl_reader(None, []).read(str(folder))
    fine = [str(v) if file.startswith("brainLocationA") else "" for v in values]
    assert plain.units.region[:3].tolist() == ["CA1", "DG-mo", fine[2]]
    session = ibl_reader(None, ["regions=beryl"]).read(str(folder))
    first = session.units.probe == "probe00"
    assert session.units.cluster[first].tolist() == [0, 1, 2, 3, 5]
    assert session.units.region[first].tolist() == ["CA1", "DG", "", "void", "root"]
    assert set(session.units.region[~first]) == {""}  # no histology
    unknown = [d for d in drops(session, "column") if "none of the Allen atlas" in d.reason]
    assert [(d.name, d.count) for d in unknown] == [("2" if fine[2] else "probe00 region", 1)]


def test_parquet_tables(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    folder = make_alf(tmp_path)
    for path in (folder / "alf").glob("_ibl_trials.*"):
        path.unlink()
    table = trials_table()
    table["intervals_0"], table["intervals_1"] = table.pop("intervals").T
    pandas.DataFrame(table).to_parquet(folder / "alf" / "_ibl_trials.table.pqt")
    at = folder / "alf" / "probe00" / "pykilosort"
    label = pandas.DataFrame({"cluster_id": [5, 0, 1, 2], "label": [1.0, 1.0, 0.3, 0.6]})
    label.to_parquet(at / "clusters.metrics.pqt")  # no row for 3 and 4
    label.assign(cluster_id=range(4)).to_parquet(
        folder / "alf" / "probe01" / "pykilosort" / "clusters.metrics.pqt")
    session = ibl_reader(None, ["keep=label>=1"]).read(str(folder))
    assert session.units.cluster.tolist() == [0, 5, 0, 1]
    assert session.units.probe.tolist() == ["probe00"] * 2 + ["probe01"] * 2
    assert len(session.trials["intervals_0"]) == len(KEPT)
    (at / "clusters.metrics.pqt").write_bytes(b"no table")
    other = ibl_reader(None, ["keep=label>=1"]).read(str(folder))
    assert other.units.probe.tolist() == ["probe01"] * 2
    assert "clusters.metrics.pqt" in drops(other, "probe")[0].reason


def test_there_and_back(tmp_path):
    session = event_session()
    write_alf(session, tmp_path / "a")
    same(session, read_alf(tmp_path / "a"))
    with pytest.raises(BadInput, match="there already"):
        write_alf(session, tmp_path / "a")
    with pytest.raises(BadInput, match="no place for counts"):
        write_alf(make_session(bins=60), tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("file", "preset"), [
    ("place_cells/animal1.npz", "place-cells"), ("ibl/ef3d059a_30_trials.npz", "ibl-sample")])
def test_real_recordings_there_and_back(recordings, tmp_path, file, preset):
    session = read_preset(recordings / file, preset)
    write_alf(session, tmp_path / "a")
    same(session, read_alf(tmp_path / "a", IblOptions(keep_silent=True)))


def fixtures_folder(recordings, root):
    """An ALF session of the IBL's own test fixtures: spikes, a wheel, a trials table."""
    from tests.neds.alf_cases import write

    z = np.load(recordings / "ibl" / "ibllib_fixtures.npz")
    folder = root / "lab" / "Subjects" / "fixture" / "2020-08-26" / "001"
    write(folder / "alf" / "probe00", "", {"spikes.times": z["spike_times_s"],
                                           "spikes.clusters": z["spike_clusters"]})
    write(folder / "alf", "_ibl_wheel.", {"timestamps": z["wheel1_timestamps_s"],
                                          "position": z["wheel1_position_rad"]})
    prefix = "trials_2020-08-26_"
    columns = {k.removeprefix(prefix): z[k] for k in z.files if k.startswith(prefix)}
    on = columns["stimOn_times"]  # the fixtures lack what follows: made from what they have
    columns |= {"goCue_times": on, "feedback_times": columns["response_times"],
                "firstMovement_times": columns["response_times"]}
    write(folder / "alf", "_ibl_trials.", columns)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of ONE's own calls into pandas
def test_real_fixtures_through_one(recordings, tmp_path):
    pytest.importorskip("one.api")
    from one.alf.cache import make_parquet_db
    from one.api import One

    folder = fixtures_folder(recordings, tmp_path)
    make_parquet_db(tmp_path, hash_files=False)
    eid = str(One(cache_dir=tmp_path, mode="local").search(subject="fixture")[0])
    reader = ibl_reader(None, ["mode=local", f"cache={tmp_path}"])
    session = reader.read(eid)
    assert session.session == eid
    assert session.subject == "fixture"
    z = np.load(recordings / "ibl" / "ibllib_fixtures.npz")
    np.testing.assert_array_equal(np.sort(session.spikes.sample),
                                  np.sort(np.rint(z["spike_times_s"] * 30000)))
    assert session.n_units == len(np.unique(z["spike_clusters"]))
    assert {"wheel", "choice", "block"} <= set(session.behaviours)
    assert {p.name for p in reader.files(eid)} >= {"spikes.times.npy", "_ibl_wheel.position.npy"}
    same(session, read_alf(folder, session=eid))
    with pytest.raises(BadInput, match=r"unknown id|an id that"):
        reader.read("00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize("words", [["form=film"], ["bugs=all"], ["form=trials", "bugs=wings"],
                                   ["regions=cosmos"], ["revision=may"], ["colour=red"]])
def test_refused_options(words):
    with pytest.raises(BadInput):
        ibl_reader(None, words)


def test_the_papers_lists():
    eids = {name: path.read_text().split() for name, path in LISTS.items()}
    assert {name: len(set(ids)) for name, ids in eids.items()} == {
        "paper-train": 74, "paper-test": 10}
    both = [str(UUID(eid)) for ids in eids.values() for eid in ids]
    assert len(both) == len(set(both)) == 84
    assert both == [eid for ids in eids.values() for eid in ids]
