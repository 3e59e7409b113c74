"""NWB: sessions there and back to the bit, other people's layouts, and files that are not whole."""

from datetime import UTC, datetime

import numpy as np
import pytest

from neds.data.build import NAMES
from neds.data.dropped import dropped
from neds.data.parts import Behaviour, Spikes, Units
from neds.data.presets import read_preset
from neds.data.reader import SeriesOptions
from neds.data.session import Session
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session
from tests.neds.reader_cases import event_session, same

pynwb = pytest.importorskip("pynwb")

from neds.data.nwb import nwb_reader, read_nwb  # noqa: E402
from neds.data.nwb_write import write_decodes, write_nwb  # noqa: E402

SINCE = datetime(2024, 5, 6, 7, 8, tzinfo=UTC)


def test_events_there_and_back(tmp_path):
    session = event_session()
    write_nwb(session, tmp_path / "a.nwb", start_time=SINCE)
    again = read_nwb(tmp_path / "a.nwb")
    same(session, again)
    assert again.metadata["nwb"]["session_start_time"] == SINCE.isoformat()
    write_nwb(again, tmp_path / "b.nwb")
    third = read_nwb(tmp_path / "b.nwb")
    same(session, third)
    assert third.metadata["nwb"] == again.metadata["nwb"]
    assert dropped(third) == []


def test_counts_there_and_back(tmp_path):
    session = make_session(bins=60, gap=True)
    write_nwb(session, tmp_path / "a.nwb")
    same(session, read_nwb(tmp_path / "a.nwb"))


@pytest.mark.parametrize(("file", "preset"), [
    ("place_cells/animal1.npz", "place-cells"), ("indy/indy_20160407_02.npz", "indy"),
    ("steinmetz/session1.npz", "steinmetz"), ("ibl/ef3d059a_30_trials.npz", "ibl-sample"),
])
def test_real_recordings_there_and_back(recordings, tmp_path, file, preset):
    session = read_preset(recordings / file, preset)
    write_nwb(session, tmp_path / "a.nwb")
    same(session, read_nwb(tmp_path / "a.nwb", SeriesOptions(keep_silent=True)))


def test_decodes_are_added(tmp_path):
    session = event_session()
    write_nwb(session, tmp_path / "a.nwb", start_time=SINCE)
    times = np.arange(1, 20) * 0.02
    decode = Behaviour(kind="continuous", timestamps=times, values=np.sin(times), unit="rad/s")
    write_decodes(tmp_path / "a.nwb", tmp_path / "b.nwb", {"wheel": decode}, "bundle x")
    with pynwb.NWBHDF5IO(str(tmp_path / "b.nwb"), "r") as io:
        series = io.read().processing["decoding"]["wheel"]
        assert series.description == "bundle x"
        assert series.unit == "rad/s"
        np.testing.assert_array_equal(series.timestamps[:], times)
        np.testing.assert_array_equal(series.data[:], decode.values[:, 0])
    same(session, read_nwb(tmp_path / "b.nwb"))  # the rest of the file is what it was
    with pytest.raises(BadInput, match="not there yet"):
        write_decodes(tmp_path / "b.nwb", tmp_path / "b.nwb", {"wheel": decode}, "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nwb", "b.nwb"]


def foreign(path, *, ragged_trials=False, spike_times=True):
    """A file as pynwb's own tutorials make it: electrodes, groups, series of several kinds."""
    nwb = pynwb.NWBFile(session_description="d", identifier="id/1", session_start_time=SINCE,
                        session_id="ses/1")
    nwb.subject = pynwb.file.Subject(subject_id="mouse-7")
    device = nwb.create_device(name="np1")
    groups = [nwb.create_electrode_group(name=f"shank{i}", description="d", location=place,
                                         device=device) for i, place in enumerate(["CA1", "VISp"])]
    for i in range(4):
        nwb.add_electrode(group=groups[i // 2], location=groups[i // 2].location)
    nwb.add_unit_column(name="quality", description="q")
    trains = [[0.5, 1.5, 1.5], [], [0.25, np.nan, -1.0, 2.0]]
    for i, train in enumerate(trains):
        times = {"spike_times": train} if spike_times else {}
        nwb.add_unit(**times, electrodes=[i + 1, 0], electrode_group=groups[i // 2],
                     quality="good" if i != 1 else "noise", id=10 + i)
    nwb.add_trial_column(name="choice", description="c")
    if ragged_trials:
        nwb.add_trial_column(name="licks", description="l", index=True)
    for i in range(3):
        extra = {"licks": [0.1] * i} if ragged_trials else {}
        nwb.add_trial(start_time=float(i), stop_time=i + 0.8, choice=["left", "right"][i % 2],
                      **extra)
    module = nwb.create_processing_module("behavior", "b")
    at = np.arange(30) / 10
    add = pynwb.TimeSeries
    module.add(pynwb.behavior.BehavioralTimeSeries(time_series=[
        add(name="speed", data=np.arange(30.0), unit="cm/s", rate=10.0, starting_time=0.0,
            conversion=2.0)]))
    head = pynwb.behavior.SpatialSeries(name="head", data=at * 10, timestamps=at, unit="degrees",
                                        reference_frame="north")
    module.add(pynwb.behavior.CompassDirection(spatial_series=head))
    module.add(add(name="phase", data=at, timestamps=at, unit="radians"))
    module.add(add(name="state", data=np.arange(30) % 2, timestamps=at, unit="n"))
    module.add(add(name="empty", data=np.zeros(0), timestamps=np.zeros(0), unit="n"))
    nwb.add_acquisition(add(name="voltage", data=at, timestamps=at, unit="V"))
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


def test_a_file_of_others(tmp_path):
    session = read_nwb(foreign(tmp_path / "f.nwb", ragged_trials=True))
    assert (session.session, session.subject) == ("ses-1", "mouse-7")
    assert session.spikes.sample.tolist() == [7500, 15000, 45000, 45000, 60000]
    assert session.units.cluster.tolist() == [10, 12]
    assert session.units.region.tolist() == ["CA1", "VISp"]
    assert session.units.probe.tolist() == ["shank0", "shank1"]
    assert session.units.channel.tolist() == [1, 3]
    assert session.trials["start"].tolist() == [0.0, 1.0, 2.0]
    assert session.trials["choice"].tolist() == ["left", "right", "left"]
    assert set(session.behaviours) == {"speed", "head"}
    assert session.behaviour("speed").values[3, 0] == 6.0  # conversion applied
    assert session.behaviour("head").kind == "circular"
    assert session.behaviour("head").values[9, 0] == pytest.approx(np.pi / 20)
    found = {(d.level, d.name): (d.count, d.reason) for d in dropped(session)}
    assert found["column", "licks"][1] == "more than one value a trial"
    assert found["unit", "1"] == (1, "no spikes")
    reasons = sorted(r for (level, _), (_, r) in found.items() if level == "spike")
    assert len(reasons) == 1  # one entry a name: the later of NaN and before 0
    assert {name for level, name in found if level == "behaviour"} == {"phase", "state", "empty"}
    assert "behaviour.NAME=state:KIND" in found["behaviour", "state"][1]
    assert sum(d.count for d in dropped(session) if d.level == "spike") == 2


def unit_table(path, columns, n=3, electrodes=None):
    """A file whose units have these columns {name: (n,)} and two spikes each; `electrodes` are
    {id: (group, location)}, which no unit refers to."""
    nwb = pynwb.NWBFile(session_description="d", identifier="i", session_start_time=SINCE)
    groups = {}
    for number, (group, location) in (electrodes or {}).items():
        if group not in groups:
            groups[group] = nwb.create_electrode_group(
                name=group, description="d", location="VIS", device=nwb.create_device(name=group))
        nwb.add_electrode(id=number, group=groups[group], location=location)
    for name in columns:
        nwb.add_unit_column(name=name, description=name)
    for i in range(n):
        nwb.add_unit(spike_times=[0.5 + i, 1.5 + i], id=950_000 + i,
                     **{name: column[i] for name, column in columns.items()})
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


@pytest.mark.parametrize("peak", ["peak_channel_id", "peak_electrode_id"])
def test_units_that_name_their_electrode_by_id(tmp_path, peak):
    """As the Allen Institute's files on DANDI: nothing else says where a unit is."""
    electrodes = {850_126_378: ("probeA", "CA1"), 850_126_380: ("probeA", "VISp"),
                  850_135_036: ("probeB", "LGd")}
    path = unit_table(tmp_path / "a.nwb", {
        peak: [850_135_036, 850_126_378, 7], "cluster_id": [4, 0, 2],
        "quality": ["good", "good", "noise"]}, electrodes=electrodes)
    session = read_nwb(path)
    assert session.units.channel.tolist() == [850_135_036, 850_126_378, -1]  # 7 is none of them
    assert session.units.region.tolist() == ["LGd", "CA1", ""]
    assert session.units.probe.tolist() == ["probeB", "probeA", ""]
    assert session.units.cluster.tolist() == [4, 0, 2]
    assert read_nwb(path, SeriesOptions(keep="quality=good")).units.cluster.tolist() == [4, 0]


def test_units_with_columns_of_their_own(tmp_path):
    """As the International Brain Laboratory's files on DANDI: three atlases, depth on the probe."""
    session = read_nwb(unit_table(tmp_path / "a.nwb", {
        "probe_name": ["probe00", "probe01", "probe00"], "max_electrode": [11, 383, 0],
        "cluster_id": [5, 6, 9], "distance_from_probe_tip_in_um": [120.0, 3840.0, 20.0],
        "cosmos_location": ["HPF", "TH", "void"], "allen_location": ["CA1sp", "PO", "void"],
        "beryl_location": ["CA1", "PO", "void"]}, electrodes={3: ("other", "CB")}))
    assert session.units.probe.tolist() == ["probe00", "probe01", "probe00"]
    assert session.units.channel.tolist() == [11, 383, 0]
    assert session.units.cluster.tolist() == [5, 6, 9]
    assert session.units.depth_um.tolist() == [120.0, 3840.0, 20.0]
    assert session.units.region.tolist() == ["CA1", "PO", "void"]  # Beryl's of the three


COLUMN_NAMES = (
    {"probe": "probe", "channel": "channel", "cluster": "cluster", "region": "region",
     "depth_um": "depth_um"},
    {"probe": "probe_name", "channel": "peak_channel", "cluster": "cluster_id",
     "region": "brain_region", "depth_um": "depth"},
    {"probe": "group_name", "channel": "max_electrode", "cluster": "original_cluster_id",
     "region": "brain_area", "depth_um": "distance_from_probe_tip_in_um"},
    {"channel": "ch", "region": "beryl_location", "depth_um": "distance_from_probe_tip"},
    {"region": "location"}, {"region": "allen_location"}, {"region": "cosmos_location"},
)


def test_no_name_of_a_column_goes_without_a_test():
    for field, dialects in NAMES.items():
        assert set(dialects) == {names[field] for names in COLUMN_NAMES if field in names}, field


@pytest.mark.parametrize("names", COLUMN_NAMES)
def test_every_name_of_a_column_is_read(tmp_path, names):
    made = {"probe": ["p1", "p0", "p1"], "channel": [7, 3, 5], "cluster": [30, 10, 20],
            "region": ["DG", "CA3", "PO"], "depth_um": [1.5, 2.5, 0.5]}
    session = read_nwb(unit_table(
        tmp_path / "a.nwb", {name: made[field] for field, name in names.items()}))
    for field, name in names.items():
        assert getattr(session.units, field).tolist() == made[field], name


def test_options(tmp_path):
    path = foreign(tmp_path / "f.nwb")
    read = nwb_reader(None, ["behaviour.choice=trials.choice", "behaviour.state=state:categorical",
                             "behaviour.v=acquisition/voltage:continuous:mV", "keep=quality=good",
                             "behaviour.gone=nowhere", "fs=1000", "session=mine"]).read
    session = read(str(path))
    assert session.session == "mine"
    assert session.spikes.sample.tolist() == [250, 500, 1500, 1500, 2000]
    choice = session.behaviour("choice")
    assert choice.classes == ("left", "right")
    assert choice.at(np.array([0.5, 0.9, 1.1]))[:, 0].tolist()[::2] == [0.0, 1.0]
    assert np.isnan(choice.at(np.array([0.9]))).all()
    assert session.behaviour("state").kind == "categorical"
    assert session.behaviour("v").unit == "mV"
    gone = [d for d in dropped(session) if d.name == "gone"]
    assert "0 series" in gone[0].reason
    assert any(d.reason == "not quality=good" and d.name == "1" for d in dropped(session))


@pytest.mark.parametrize(("words", "named"), [
    (["colour=red"], "colour"), (["behaviour.x"], "KEY=VALUE"), (["fs=fast"], "fs"),
    (["behaviour=x"], "behaviour"), (["absent.toml"], "absent.toml"),
])
def test_refused_options(words, named):
    with pytest.raises(BadInput, match=named):
        nwb_reader(None, words)


def test_refused_files(tmp_path):
    with pytest.raises(BadInput, match="nothing there"):
        read_nwb(tmp_path / "absent.nwb")
    (tmp_path / "bad.nwb").write_bytes(b"not hdf5")
    with pytest.raises(BadInput, match=r"bad\.nwb: content"):
        read_nwb(tmp_path / "bad.nwb")
    with pytest.raises(BadInput, match=r"units\.spike_times"):
        read_nwb(foreign(tmp_path / "f.nwb", spike_times=False))
    nwb = pynwb.NWBFile(session_description="d", identifier="i", session_start_time=SINCE)
    with pynwb.NWBHDF5IO(str(tmp_path / "none.nwb"), "w") as io:
        io.write(nwb)
    with pytest.raises(BadInput, match="no table of units"):
        read_nwb(tmp_path / "none.nwb")
    with pytest.raises(BadInput, match="snr"):
        read_nwb(foreign(tmp_path / "g.nwb"), SeriesOptions(keep="snr>=5"))


def test_a_ragged_index_that_does_not_fit(tmp_path):
    import h5py

    path = foreign(tmp_path / "f.nwb")
    with h5py.File(path, "a") as file:
        file["units/spike_times_index"][-1] = 99
    with pytest.raises(BadInput, match="spike_times_index"):
        read_nwb(path)


def test_observed_intervals_are_the_domain(tmp_path):
    session = Session(
        session="s", units=Units.of(2), domain=np.array([[0.0, 1.0], [2.0, 3.0]]),
        spikes=Spikes.from_seconds([0.5, 2.5], [0, 1], fs=1000.0))
    write_nwb(session, tmp_path / "a.nwb")
    assert read_nwb(tmp_path / "a.nwb").intervals.tolist() == [[0.0, 1.0], [2.0, 3.0]]
