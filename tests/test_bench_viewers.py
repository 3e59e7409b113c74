"""The measurement of what watching costs: a real run of few bins."""

import json
import os
import signal

import pytest

pytest.importorskip("bokeh")

from bench import viewers
from tests.tables import table_of


def test_every_server_answers_every_bin_however_it_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(viewers, "SETTLE_S", 0.2)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # put back afterwards
    for way in ("unwatched", "viewer stalled"):  # of parts that the others have
        monkeypatch.delitem(viewers.WAYS, way)
    sent, real = [], viewers._signal

    def note(child, number):
        sent.append((child.name, number))
        real(child, number)

    monkeypatch.setattr(viewers, "_signal", note)
    out = tmp_path / "viewers.json"
    code = viewers.main(["--synthetic", "hidden=16,layers=1,heads=2,mlp=16,units=20,window=10",
                         "--bins", "8", "--round", "4", "--at-most", "1e9", "--out", str(out)])
    report = json.loads(out.read_text())
    assert (code, report["passed"], report["at_most"]) == (0, True, 1e9)
    assert [row["name"] for row in report["engines"]] == list(viewers.WAYS)
    assert [row["lost"] for row in report["engines"]] == [0] * len(viewers.WAYS)
    assert report["engines"][0]["to_off"] == {"p50": 1.0, "p99": 1.0, "p999": 1.0}
    assert report["engines"][2]["to_off_by_round"]["p99"]["rounds"] == 2
    stops = [name for name, number in sent if number == signal.SIGSTOP]
    # All are stopped at first, those that work after each of their two turns as well.
    assert sorted(stops) == ["dashboard"] * 3 + ["sink"] + ["top"] * 3
    assert "| a stopped `sink` |" in table_of("viewers", out)


def row_of(way, p99=1.0, low=0.9, lost=0):
    return {"name": way, "lost": lost,
            "to_off_by_round": {"p99": {"median": p99, "low": low, "high": 9.0}}}


def test_what_stands_still_may_not_slow_the_server():
    good = {"at_most": 1.25, "engines": [row_of(way) for way in viewers.WAYS]}
    assert viewers.broken(good) == []
    # What works beside the server takes its share of the machine, and that is measured alone.
    slow = good | {"engines": [row_of(way, 1.5, 1.2) for way in viewers.WAYS]}
    assert {line.partition(":")[0] for line in viewers.broken(slow)} == {
        "viewer stalled", "subscriber stalled"}
    lost = good | {"engines": [row_of("watched", lost=2)]}
    assert viewers.broken(lost) == ["watched: 2 bins lost"]


def test_impossible_amounts_are_one_line(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    assert viewers.main(["--bins", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
