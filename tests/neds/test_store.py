"""The session store: round trips, and files it refuses."""

import json
import os

import h5py
import numpy as np
import pytest

from neds.data import Behaviour, Counts, Session, Spikes, Units
from neds.data import store as store_module
from neds.data.store import (
    SCHEMA,
    file_sha256,
    provenance,
    read_session,
    session_path,
    write_session,
)
from neds_rt.errors import BadInput


def event_session():
    rng = np.random.default_rng(1)
    return Session(
        session="mouse-1", subject="mouse",
        spikes=Spikes.from_seconds(np.sort(rng.uniform(0, 9, 30000)), rng.integers(0, 4, 30000)),
        units=Units.of(4, region=["CA1", "", "VISa2/3", "µ"], probe=["a", "a", "b", "b"],
                       depth_um=[0, 20, np.nan, 40], channel=[1, 2, 3, 4]),
        behaviours={
            "wheel": Behaviour(kind="continuous", timestamps=[0.5, 1.5], values=[[0, 1], [2, 3]],
                               unit="rad/s"),
            "choice": Behaviour(kind="categorical", timestamps=[0.5, 1.5], values=[0, np.nan],
                                classes=("left", "right"), gaps=True),
            "angle": Behaviour(kind="circular", timestamps=[0.5, 1.5], values=[0, 3]),
        },
        trials={"start": np.array([0.5, np.nan]), "side": np.array(["left", "right"]),
                "correct": np.array([True, False]), "number": np.array([1, 2])},
        domain=np.array([[0.0, 5.0], [5.0, 9.5]]),
        metadata={"lab": "a", "numbers": [1, 2.5]},
    )


def count_session():
    counts = np.random.default_rng(2).poisson(1.0, (500, 3)).astype(np.uint8)
    bins = np.r_[0:200, 300:600]
    return Session(session="counts", units=Units.of(3),
                   spikes=Counts(counts=counts, bin=bins, bin_size_s=0.064))


def assert_same(a, b):
    assert (a.session, a.subject) == (b.session, b.subject)
    assert type(a.spikes) is type(b.spikes)
    for name, value in vars(a.spikes).items():
        np.testing.assert_array_equal(value, getattr(b.spikes, name))
        assert np.asarray(value).dtype == np.asarray(getattr(b.spikes, name)).dtype
    for name in store_module.UNIT_COLUMNS:
        np.testing.assert_array_equal(getattr(a.units, name), getattr(b.units, name))
    assert list(a.behaviours) == list(b.behaviours)
    for name, one in a.behaviours.items():
        other = b.behaviours[name]
        assert (one.kind, one.unit, one.classes, one.gaps) == (
            other.kind, other.unit, other.classes, other.gaps)
        np.testing.assert_array_equal(one.timestamps, other.timestamps)
        np.testing.assert_array_equal(one.values, other.values)
    assert list(a.trials) == list(b.trials)
    for name in a.trials:
        np.testing.assert_array_equal(a.trials[name], b.trials[name])
        assert a.trials[name].dtype.kind == b.trials[name].dtype.kind
    np.testing.assert_array_equal(a.intervals, b.intervals)


@pytest.mark.parametrize("make", [event_session, count_session])
def test_round_trip(tmp_path, make):
    session = make()
    path = session_path(tmp_path / "deep" / "folder", session.session)
    write_session(session, path, provenance={"reader": "test"})
    found = read_session(path)
    assert_same(session, found)
    assert found.metadata["provenance"] == {"reader": "test"}
    assert {k: v for k, v in found.metadata.items() if k != "provenance"} == session.metadata
    again = tmp_path / "again.h5"
    write_session(found, again)  # provenance travels along
    assert read_session(again).metadata == found.metadata


def test_the_layout_others_read(tmp_path):
    write_session(event_session(), tmp_path / "e.h5")
    write_session(count_session(), tmp_path / "c.h5")
    with h5py.File(tmp_path / "e.h5") as file:
        assert file.attrs["schema"] == SCHEMA
        assert file["spikes/sample"].dtype == np.int64
        assert file["spikes/unit_index"].dtype == np.int32
        assert file["spikes"].attrs["fs"] == 30000.0
        assert file["units/probe"].asstr()[0] == "a"
        assert json.loads(file["behaviour/choice"].attrs["classes"]) == ["left", "right"]
        assert file["behaviour/wheel/values"].shape == (2, 2)
        assert file["domain/start"][:].tolist() == [0.0, 5.0]
        assert file["domain/end"][:].tolist() == [5.0, 9.5]
        assert file["units"].attrs["object"] == "ArrayDict"
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["counts/counts"].dtype == np.uint8
        assert file["counts/bin"].dtype == np.int64
        assert file["counts"].attrs["bin_size_s"] == 0.064


def test_provenance_says_where_it_came_from(tmp_path):
    source = tmp_path / "raw"
    source.write_bytes(b"abc")
    sha = file_sha256(source)
    assert sha == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    origin = provenance("arrays", {"preset": "indy"}, "raw", sha)
    assert origin["sha256"] == sha
    assert origin["arguments"] == {"preset": "indy"}
    assert set(origin["versions"]) >= {"neds", "numpy", "h5py", "python"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_file(tmp_path, share):
    path = tmp_path / "s.h5"
    write_session(event_session(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadInput, match=r"s\.h5"):
        read_session(path)


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match="nothing there"):
        read_session(tmp_path / "absent.h5")
    with pytest.raises(BadInput, match="nothing there"):
        read_session(tmp_path)


def test_file_of_another_format(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"not at all HDF5" * 100)
    with pytest.raises(BadInput, match="whole session file"):
        read_session(path)


def change(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)


def drop(name):
    return lambda file: file.__delitem__(name)


def put(name, value):
    return lambda file: file[name].__setitem__(0, value)


def attribute(group, name, value):
    return lambda file: file[group].attrs.__setitem__(name, value)


DAMAGE = {
    "schema": (attribute("/", "schema", "neds-session-2"), "found neds-session-2"),
    "no schema": (lambda f: f.attrs.__delitem__("schema"), "found no schema"),
    "no units": (drop("units"), "content"),
    "no column": (drop("units/depth_um"), "content"),
    "no spikes": (drop("spikes"), "content"),
    "no domain": (drop("domain"), "content"),
    "bad metadata": (attribute("/", "metadata", "{"), "content"),
    "unit out of range": (put("spikes/unit_index", 9), "0 to 3"),
    "unsorted": (put("spikes/sample", 10**6), "sorted"),
    "nan time": (put("behaviour/wheel/timestamps", np.nan), "behaviour wheel"),
    "kind": (attribute("behaviour/wheel", "kind", "strange"), "behaviour wheel"),
    "fs": (attribute("spikes", "fs", 0.0), "spikes.fs"),
    "group for column": (lambda f: (drop("spikes/sample")(f), f.create_group("spikes/sample")),
                         "content"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_content_is_named(tmp_path, name):
    path = tmp_path / "s.h5"
    write_session(event_session(), path)
    edit, expected = DAMAGE[name]
    change(path, edit)
    with pytest.raises(BadInput) as caught:
        read_session(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    path = tmp_path / "s.h5"
    write_session(count_session(), path)
    before = path.read_bytes()

    def fails(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_column", fails)
    with pytest.raises(BadInput, match="No space left"):
        write_session(event_session(), path)
    assert os.listdir(tmp_path) == ["s.h5"]
    assert path.read_bytes() == before


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="folder that can be written"):
        write_session(count_session(), tmp_path / "file" / "s.h5")
