"""brainsets HDF5: there and back by ourselves, and both ways with the package temporaldata."""

import h5py
import numpy as np
import pytest

from neds.data.brainsets import brainset_reader, read_brainset, write_brainset
from neds.data.dropped import dropped
from neds.data.parts import Spikes, Units
from neds.data.presets import read_preset
from neds.data.reader import SeriesOptions
from neds.data.session import Session
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session
from tests.neds.reader_cases import event_session, same


@pytest.mark.parametrize("session", [event_session(), make_session(bins=60, gap=True)],
                         ids=["events", "counts"])
def test_there_and_back(tmp_path, session):
    write_brainset(session, tmp_path / "a.h5")
    again = read_brainset(tmp_path / "a.h5")
    same(session, again)
    assert dropped(again) == []


@pytest.mark.parametrize(("file", "preset"), [
    ("place_cells/animal1.npz", "place-cells"), ("indy/indy_20160407_02.npz", "indy"),
    ("steinmetz/session1.npz", "steinmetz"), ("ibl/ef3d059a_30_trials.npz", "ibl-sample"),
])
def test_real_recordings_there_and_back(recordings, tmp_path, file, preset):
    session = read_preset(recordings / file, preset)
    write_brainset(session, tmp_path / "a.h5")
    same(session, read_brainset(tmp_path / "a.h5", SeriesOptions(keep_silent=True)))


@pytest.mark.parametrize("lazy", [False, True])
def test_temporaldata_reads_what_we_write(tmp_path, lazy):
    temporaldata = pytest.importorskip("temporaldata")
    session = event_session()
    write_brainset(session, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r") as file:
        data = temporaldata.Data.from_hdf5(file, lazy=lazy)
        part = data.slice(2.0, 5.0, reset_origin=False)
        inside = session.slice(2.0, 5.0)
        np.testing.assert_array_equal(part.spikes.timestamps, inside.spikes.sample / 30000)
        np.testing.assert_array_equal(part.spikes.unit_index, inside.spikes.unit_index)
        np.testing.assert_array_equal(data.units.region, session.units.region)
        np.testing.assert_array_equal(data.wheel.values, session.behaviour("wheel").values)
        np.testing.assert_array_equal(data.trials.choice, session.trials["choice"])
        np.testing.assert_array_equal(data.domain.end, session.intervals[:, 1])
        assert (data.session.id, data.subject.id) == ("made-1", "mouse-1")


def test_we_read_what_temporaldata_writes(tmp_path):
    temporaldata = pytest.importorskip("temporaldata")
    from temporaldata import (
        ArrayDict,
        Data,
        Interval,
        IrregularTimeSeries,
        RegularTimeSeries,
    )
    data = Data(
        spikes=IrregularTimeSeries(timestamps=np.array([0.1, 0.2, 0.35]),
                                   unit_index=np.array([0, 2, 0]), domain="auto"),
        units=ArrayDict(id=np.array(["a", "b", "c"]), brain_region=np.array(["CA1", "DG", "PO"])),
        wheel=IrregularTimeSeries(timestamps=np.arange(4) / 4, vel=np.arange(4.0), domain="auto"),
        pose=RegularTimeSeries(sampling_rate=10.0, paw=np.arange(20.0).reshape(10, 2),
                               lick=np.arange(10) % 2, domain_start=0.5),
        trials=Interval(start=np.array([0.0, 0.5]), end=np.array([0.4, 1.0]),
                        choice=np.array(["l", "r"])),
        session=Data(id="ses"), subject=Data(id="mouse", species="M"),
        domain=Interval(0.0, 1.0),
    )
    with h5py.File(tmp_path / "t.h5", "w") as file:
        data.to_hdf5(file)
    session = read_brainset(tmp_path / "t.h5")
    assert temporaldata.__name__ == "temporaldata"
    assert (session.session, session.subject) == ("ses", "mouse")
    assert session.spikes.sample.tolist() == [3000, 6000, 10500]
    assert session.spikes.unit_index.tolist() == [0, 1, 0]
    assert session.units.region.tolist() == ["CA1", "PO"]
    assert session.intervals.tolist() == [[0.0, 1.0]]
    assert set(session.behaviours) == {"wheel", "pose.paw"}
    np.testing.assert_allclose(session.behaviour("pose.paw").timestamps, 0.5 + np.arange(10) / 10)
    assert session.trials["choice"].tolist() == ["l", "r"]
    assert {(d.level, d.name) for d in dropped(session)} == {("unit", "1"),
                                                             ("behaviour", "pose.lick")}
    words = ["behaviour.speed=wheel.vel:continuous:rad/s", "behaviour.choice=trials.choice",
             "behaviour.lick=pose.lick:categorical", "behaviour.gone=pose.tail", "fs=1000"]
    chosen = brainset_reader(None, words).read(str(tmp_path / "t.h5"))
    assert set(chosen.behaviours) == {"speed", "choice", "lick"}
    assert chosen.behaviour("speed").unit == "rad/s"
    assert chosen.behaviour("choice").classes == ("l", "r")
    assert chosen.spikes.fs == 1000
    assert [d.name for d in dropped(chosen) if d.level == "behaviour"] == ["gone"]


def test_text_beyond_ascii_is_refused(tmp_path):
    session = Session(session="s", units=Units.of(1, region=["é"]), domain=np.array([[0.0, 1.0]]),
                      spikes=Spikes.from_seconds([0.5], [0]))
    with pytest.raises(BadInput, match="ASCII"):
        write_brainset(session, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["spikes", "units", "unit_index", "timestamps"])
def test_incomplete_files(tmp_path, change):
    path = tmp_path / "a.h5"
    write_brainset(event_session(), path)
    with h5py.File(path, "a") as file:
        if change == "unit_index":
            file["spikes/unit_index"][0] = 77
        else:
            del file[change if change in file else f"spikes/{change}"]
    with pytest.raises(BadInput, match=r"a\.h5"):
        read_brainset(path)


def test_not_a_file(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"no")
    for name in ("x.h5", "absent.h5"):
        with pytest.raises(BadInput, match=name):
            read_brainset(tmp_path / name)
