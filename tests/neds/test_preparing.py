"""Many sources into the store: resumed, in parallel, and none that ends the run of the others."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from neds.cli import main
from neds.data.store import read_session
from neds.preparing import STAGING, Job, finished, prepare
from neds_rt.errors import BadInput

ODD = Job("odd", "tests.neds.odd_readers:odd_reader")


def sources(folder, *texts):
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"s{i}.txt").write_text(text)
    return [str(folder / f"s{i}.txt") for i in range(len(texts))]


def kept(out):
    return sorted(path.name for path in out.iterdir())


def test_what_is_there_is_not_read_again(tmp_path):
    files = sources(tmp_path / "in", "a", "b", "c")
    out = tmp_path / "out"
    first = prepare(files, ODD, out)
    assert [row["skipped"] for row in first.done] == [False] * 3
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (tmp_path / "in" / "s1.txt").write_text("b, changed")
    second = prepare(files, ODD, out)
    assert [row["skipped"] for row in second.done] == [True, False, True]
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["s1.h5"]
    assert [d.reason for d in second.report().drops] == ["no spikes"] * 3  # skipped ones too
    other = Job("odd", ODD.maker, words=("x=1",))
    assert not any(row["skipped"] for row in prepare(files, other, out).done)
    assert not any(row["skipped"] for row in prepare(files, other, out, again=True).done)
    (out / "s0.h5").write_bytes(b"cut short")
    assert [row["skipped"] for row in prepare(files, other, out).done] == [False, True, True]


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_sources_do_not_end_the_run(tmp_path, jobs):
    texts = ["a", "divide", "b", "kill" if jobs > 1 else "divide", "c"]
    outcome = prepare([*sources(tmp_path / "in", *texts), "absent"], ODD, tmp_path / "out",
                      jobs=jobs)
    assert kept(tmp_path / "out") == ["s0.h5", "s2.h5", "s4.h5"]
    assert [row["session"] for row in outcome.done] == ["s0", "s2", "s4"]
    errors = [row["error"] for row in outcome.failed]
    assert "ZeroDivisionError" in errors[0]
    assert ("code -9" if jobs > 1 else "ZeroDivision") in errors[1]
    assert "nothing there" in errors[2]
    report = outcome.report()
    assert (report.count("session"), report.count("unit")) == (3, 3)


def test_the_first_of_two_sources_of_one_session_wins(tmp_path):
    files = sources(tmp_path / "in", "slow name=same", "name=same", "name=same")
    outcome = prepare(files, ODD, tmp_path / "out", jobs=2)
    assert [row["source"] for row in outcome.done] == files[:1]
    assert len(outcome.failed) == 2
    origin = read_session(tmp_path / "out" / "same.h5").metadata["provenance"]
    assert origin["source"] == "s0.txt"


def test_killed_and_resumed(tmp_path):
    files = sources(tmp_path / "in", "a", "b", "wait", "c")
    out = tmp_path / "out"
    code = ("import sys; from pathlib import Path; from neds.preparing import Job, prepare\n"
            f"prepare({files!r}, Job('odd', {ODD.maker!r}), Path({str(out)!r}))")
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", code],
                               env={**os.environ, "PYTHONPATH": path})
    try:
        while not (tmp_path / "in" / "s2.waiting").exists():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [name for name in kept(out) if not name.startswith(".")] == ["s0.h5", "s1.h5"]
    assert any(name.startswith(STAGING) for name in kept(out))
    (tmp_path / "in" / "s2.txt").write_text("no more")
    outcome = prepare(files, ODD, out)
    assert [row["skipped"] for row in outcome.done] == [True, True, False, False]
    assert kept(out) == ["s0.h5", "s1.h5", "s2.h5", "s3.h5"]


def test_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    files = []
    for i in range(3):
        folder = tmp_path / f"rec{i}"
        folder.mkdir()
        np.save(folder / "spike_times.npy", np.sort(rng.integers(0, 30000, 50)))
        np.save(folder / "spike_clusters.npy", rng.integers(0, 3, 50))
        files.append(str(folder))
    (tmp_path / "list.txt").write_text(f"# recordings\n{files[1]}\n\n{files[2]}  # last\n")
    words = ["prepare", files[0], str(tmp_path / "absent"), "--eids", str(tmp_path / "list.txt"),
             "--reader", "phy", "--set", "seconds=1", "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 2
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["session"] for row in facts["sessions"]] == ["rec0", "rec1", "rec2"]
    assert (facts["skipped"], facts["dropped"]["sessions"]) == (0, 1)
    assert facts["dropped"]["columns"] == 6  # sample_rate and channel of each
    assert main([*words[:2], *words[3:]]) == 0
    shown = capsys.readouterr().out
    assert shown.count("(was there)") == 3
    assert "30000 samples/s taken" in shown
    assert len(finished(tmp_path / "out")) == 3


@pytest.mark.parametrize("words", [[], ["x", "--jobs", "0"], ["--eids", "absent.txt"],
                                   ["x", "--set", "colour=red"], ["x", "--preset", "indy"]])
def test_refused(tmp_path, capsys, words):
    assert main(["prepare", *words, "--reader", "phy", "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(BadInput, match="folder that can be written"):
        prepare(sources(tmp_path / "in", "a"), ODD, tmp_path / "out")
