"""The measurement of the flight recorder: its verdict on made figures, and a real run of few."""

import json
import os
import shutil

import pytest

from bench import blackbox
from bench.output import lend_path
from tests.rt.serving import SHAPE
from tests.tables import table_of


def report(**changes):
    """What a run in which all holds has found."""
    ratio = {key: {"median": 1.0, "low": 0.9, "high": 1.1} for key in ("p50", "p99")}
    replayed = {"different": 0, "equal": 9, "holes": 0, "complete": True}
    good = {
        "servers": {name: {"lost": 0} for name in blackbox.SERVERS},
        "to_off_by_round": {name: ratio for name in blackbox.SERVERS[1:]},
        "verified": {name: replayed | {"complete": name != "full"}
                     for name in blackbox.SERVERS[1:]},
        "kills": [{"moment_s": 1.5, "reopened": True, "different": 0, "lost_ms": 60.0}],
        "at_most": 1.1, "at_most_p99": 1.25, "lost_at_most_ms": 100.0,
    }
    for path, value in changes.items():
        part, *rest, last = path.split("__")
        inner = good[part] = json.loads(json.dumps(good[part]))
        for key in rest:
            inner = inner[int(key) if isinstance(inner, list) else key]
        inner[last] = value
    return good


SLOW = {"median": 1.3, "low": 1.2, "high": 1.4}


@pytest.mark.parametrize(("path", "value", "line"), [
    ("servers__stalled__lost", 2, "stalled: 2 bins lost"),
    ("to_off_by_round__full__p99", SLOW, "full: p99 of the service is 1.3 times that without"),
    ("to_off_by_round__on__p50", SLOW, "on: p50 of the service is 1.3 times that without"),
    ("verified__on__different", 1, "on: of the recording 1 decodes differ"),
    ("verified__full__equal", 0, "full: of the recording 0 decodes differ and 0 are equal"),
    ("verified__on__holes", 1, "on: 1 holes in the recording"),
    ("verified__full__complete", True, "full: the disk never was"),
    ("kills__0__different", 3, "killed after 1.5 s: 3 decodes differ"),
    ("kills__0__lost_ms", 101.0, "killed after 1.5 s: the last 101 ms are lost, at most 100"),
])
def test_each_thing_that_does_not_hold_is_a_line(path, value, line):
    assert blackbox.broken(report()) == []
    (said,) = blackbox.broken(report(**{path: value}))
    assert said.startswith(line)


def test_a_recording_that_does_not_open_is_told_with_why():
    killed = {"moment_s": 0.5, "reopened": False, "error": "x: tape: found none", "different": 0,
              "lost_ms": 10.0}
    assert blackbox.broken(report() | {"kills": [killed]}) == [
        "killed after 0.5 s: the recording does not open: x: tape: found none"]


def test_children_import_what_we_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", f"/a{os.pathsep}/b")
    for _ in range(2):
        lend_path(tmp_path)
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), "/a", "/b"]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
def test_a_run_records_fills_a_disk_and_kills(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # put back afterwards
    monkeypatch.setattr(blackbox, "SHAPE", SHAPE)
    out = tmp_path / "blackbox.json"
    # How long things take is the machine's: no bound on that here.
    code = blackbox.main(["--bins", "30", "--units", "40", "--stall-s", "0.2", "--kills", "1",
                          "--at-most", "1e9", "--at-most-p99", "1e9", "--lost-at-most", "1e9",
                          "--disk", str(tmp_path), "--out", str(out)])
    assert (code, capsys.readouterr().err) == (0, "")
    found = json.loads(out.read_text())
    assert found["passed"]
    assert found["command"].startswith("python bench/blackbox.py")
    assert found["machine"]["cores"]
    assert found["verified"]["on"]["complete"]
    assert 0 < found["verified"]["full"]["equal"] < found["verified"]["on"]["equal"]
    assert found["kills"][0]["reopened"]
    assert set(found["to_off_by_round"]) == {"on", "stalled", "full"}
    assert "| full half way |" in table_of("blackbox", out)
