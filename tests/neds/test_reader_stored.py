"""Reader `session`: recorded session files through `neds prepare`, whole or refused."""

import json

import h5py
import numpy as np
import pytest

from neds.cli import main
from neds.data.store import read_session, write_session
from neds_rt.recording.session import write_sessions
from neds_rt.recording.spool import Spool
from tests.neds.conftest import make_session
from tests.neds.reader_cases import event_session, same
from tests.rt.spike_frames import Sender


@pytest.fixture
def recorded(tmp_path):
    """A file as `neds-rt record` writes it."""
    with Spool(tmp_path / "spool", "monday", "mouse") as spool:
        spool.edge("a", 20, 90)
        spool.frame(*Sender("a").frame(0, 6000, [5, 700, 5000], [0, 1, 0]), 100)
    write_sessions(tmp_path / "spool", tmp_path / "today.h5", {"reader": "neds-rt record"})
    return tmp_path / "today.h5"


def prepare(capsys, *arguments, code=0):
    assert main(["prepare", "--reader", "session", *map(str, arguments)]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("made", [event_session, lambda: make_session(bins=60, gap=True)])
def test_a_session_comes_through_as_it_is(tmp_path, capsys, made):
    write_session(made(), tmp_path / "in.h5", provenance={"reader": "other"})
    prepare(capsys, tmp_path / "in.h5", "--out", tmp_path / "out")
    found = read_session(tmp_path / "out" / f"{made().session}.h5")
    same(made(), found)
    assert found.metadata["origin"] == {"reader": "other"}
    assert found.metadata["provenance"]["reader"] == "session"
    assert found.metadata["dropped"] == []


def test_a_recorded_file_is_prepared_with_a_report(tmp_path, capsys, recorded):
    out = prepare(capsys, recorded, "--out", tmp_path / "out", "--json").out
    report = json.loads(out.splitlines()[-1])
    assert [row["session"] for row in report["sessions"]] == ["monday"]
    assert "times of receipt stay in the recorded file" in json.dumps(report["dropped"])
    one, two = (read_session(p) for p in (recorded, tmp_path / "out" / "monday.h5"))
    np.testing.assert_array_equal(one.spikes.sample, two.spikes.sample)
    assert two.metadata["source_units"] == one.metadata["source_units"]
    assert two.subject == "mouse"
    again = prepare(capsys, recorded, "--out", tmp_path / "out")
    assert "(was there)" in again.out
    prepare(capsys, recorded, "--out", tmp_path / "out", "--set", "session=b", "subject=c")
    assert read_session(tmp_path / "out" / "b.h5").subject == "c"


def test_the_recorded_file_is_never_overwritten(tmp_path, capsys, recorded):
    place = recorded.rename(tmp_path / "monday.h5")
    before = place.read_bytes()
    err = prepare(capsys, place, "--out", tmp_path, code=2).err
    assert "another folder than the source's own" in err
    assert place.read_bytes() == before


@pytest.mark.parametrize("spoil", [
    lambda file: file["spikes/sample"].__setitem__(0, 9000),
    lambda file: file["spikes/unit_index"].__setitem__(0, 7),
    lambda file: file.pop("units"),
    lambda file: file.attrs.__setitem__("schema", "neds-session-9"),
])
def test_what_is_no_session_is_refused(tmp_path, capsys, recorded, spoil):
    with h5py.File(recorded, "r+") as file:
        spoil(file)
    err = prepare(capsys, recorded, "--out", tmp_path / "out", code=2).err
    assert err.count(str(recorded)) == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("word", ["fs=3", "keep=x=1", "nothing"])
def test_options_of_other_readers_are_refused(tmp_path, capsys, recorded, word):
    err = prepare(capsys, recorded, "--out", tmp_path / "out", "--set", word, code=2).err
    assert err.count("\n") == 1
