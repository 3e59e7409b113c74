"""The commands `neds prepare` and `neds synth`."""

import json

import numpy as np
import pytest

from neds.cli import main
from neds.data.store import file_sha256, read_session

MAP = ["--map", "counts=c", "bin_size=0.1", "behaviour.x=x:bins"]


def archive(path, bins=30, **changes):
    arrays = {"c": np.ones((bins, 3), np.uint8), "x": np.arange(float(bins))}
    np.savez(path, **(arrays | changes))
    return str(path)


def test_prepare(tmp_path, capsys):
    files = [archive(tmp_path / f"r{i}.npz") for i in range(2)]
    assert main(["prepare", *files, "--out", str(tmp_path / "out"), *MAP, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["session"] for row in report["sessions"]] == ["r0", "r1"]
    assert report["failed"] == []
    session = read_session(report["sessions"][1]["path"])
    assert session.binned(0.1).values["x"][:, 0].tolist() == list(range(30))
    origin = session.metadata["provenance"]
    assert origin["sha256"] == file_sha256(tmp_path / "r1.npz")
    assert origin["reader"] == "arrays"
    assert origin["arguments"]["map"] == MAP[1:]


def test_one_bad_file_of_three(tmp_path, capsys):
    files = [archive(tmp_path / "a.npz"), archive(tmp_path / "b.npz", x=np.full(30, np.nan)),
             archive(tmp_path / "c.npz")]
    out = tmp_path / "out"
    assert main(["prepare", *files, "--out", str(out), *MAP, "--json"]) == 2
    assert sorted(path.name for path in out.iterdir()) == ["a.h5", "c.h5"]
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert [row["session"] for row in report["sessions"]] == ["a", "c"]
    assert report["failed"][0]["source"] == files[1]
    errors = [line for line in printed.err.splitlines() if line.startswith("neds prepare: ")]
    assert len(errors) == 1
    assert "b.npz: behaviour x: session: values: found [nan] at row 0" in errors[0]
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("options", [
    [], ["--preset", "monkeys"], ["--preset", "indy", *MAP], ["--map", "counts=c"],
    ["--map", "counts=absent", "bin_size=0.1"], ["--map", "absent.toml"], ["--preset", "steinmetz"],
])
def test_bad_options(tmp_path, capsys, options):
    out = tmp_path / "out"
    code = main(["prepare", archive(tmp_path / "a.npz"), "--out", str(out), *options])
    assert code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "neds prepare: " in line]
    assert len(errors) == 1
    assert not out.exists() or not list(out.iterdir())


def test_unknown_reader_and_missing_out(tmp_path, capsys):
    for options in (["--reader", "tape", "--out", "o", *MAP], MAP):
        with pytest.raises(SystemExit) as caught:
            main(["prepare", archive(tmp_path / "a.npz"), *options])
        assert caught.value.code == 2
    capsys.readouterr()


def test_two_files_of_one_session(tmp_path, capsys):
    name = np.array("same")
    files = [archive(tmp_path / f"r{i}.npz", session_id=name, bins=20 + i) for i in range(2)]
    out = tmp_path / "out"
    assert main(["prepare", *files, "--out", str(out), *MAP]) == 2
    assert len(read_session(out / "same.h5").spikes.bin) == 20
    assert "a name no other file" in capsys.readouterr().err


def test_session_id_cannot_leave_the_folder(tmp_path, capsys):
    path = archive(tmp_path / "a.npz", session_id=np.array("../escaped"))
    assert main(["prepare", path, "--out", str(tmp_path / "out"), *MAP]) == 2
    assert not (tmp_path / "escaped.h5").exists()
    assert "usable as a file name" in capsys.readouterr().err


def test_out_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    code = main(["prepare", archive(tmp_path / "a.npz"), "--out", str(tmp_path / "out"), *MAP])
    assert code == 2
    assert "folder that can be written" in capsys.readouterr().err


def test_preset_on_recordings(recordings, tmp_path, capsys):
    files = [str(path) for path in sorted((recordings / "indy").glob("*.npz"))[:2]]
    out = str(tmp_path / "out")
    assert main(["prepare", "--reader", "arrays", "--preset", "indy", *files, "--out", out]) == 0
    assert len(list((tmp_path / "out").glob("indy_*.h5"))) == 2
    assert "velocity, position" in capsys.readouterr().out


def test_synth(tmp_path, capsys):
    options = ["synth", "--animals", "2", "--seconds", "10", "--units", "20", "--seed", "5"]
    assert main([*options, "--out", str(tmp_path / "a"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["sessions"]
    assert [row["session"] for row in rows] == ["synthetic-0005-00", "synthetic-0006-00"]
    sessions = [read_session(row["path"]) for row in rows]
    assert [s.n_units for s in sessions] == [20, 20]
    assert set(sessions[0].behaviours) == {"wheel", "whisker", "choice", "block"}
    assert sessions[0].duration_s == pytest.approx(10.0)
    assert not np.array_equal(sessions[0].spikes.sample, sessions[1].spikes.sample)
    assert main([*options, "--out", str(tmp_path / "b")]) == 0
    again = read_session(tmp_path / "b" / "synthetic-0005-00.h5")
    np.testing.assert_array_equal(again.spikes.sample, sessions[0].spikes.sample)


@pytest.mark.parametrize("options", [
    ["--animals", "0"], ["--seconds", "0"], ["--seconds", "nan"], ["--seconds", "inf"],
    ["--units", "0"], ["--units", "3", "--probes", "4"], ["--seed", "-1"],
])
def test_synth_refuses(tmp_path, capsys, options):
    assert main(["synth", *options, "--out", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "o").exists()
