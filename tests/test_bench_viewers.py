"""The measurement of what watching costs: a real run of few bins."""

import json
import signal

import pytest

pytest.importorskip("bokeh")

from bench import viewers


def test_every_server_answers_every_bin_however_it_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(viewers, "SETTLE_S", 0.2)
    for way in ("unwatched", "viewer stalled"):  # of parts that the others have
        monkeypatch.delitem(viewers.WAYS, way)
    sent, real = [], viewers._signal

    def note(child, number):
        sent.append((child.name, number))
        real(child, number)

    monkeypatch.setattr(viewers, "_signal", note)
    out = tmp_path / "viewers.json"
    code = viewers.main(["--synthetic", "hidden=16,layers=1,heads=2,mlp=16,units=20,window=10",
                         "--bins", "8", "--round", "4", "--out", str(out)])
    report = json.loads(out.read_text())
    assert code == 0
    assert [row["name"] for row in report["engines"]] == list(viewers.WAYS)
    assert [row["lost"] for row in report["engines"]] == [0] * len(viewers.WAYS)
    assert report["engines"][0]["to_off"] == {"p50": 1.0, "p99": 1.0, "p999": 1.0}
    stops = [name for name, number in sent if number == signal.SIGSTOP]
    # All are stopped at first, those that work after each of their two turns as well.
    assert sorted(stops) == ["dashboard"] * 3 + ["sink"] + ["top"] * 3


def test_impossible_amounts_are_one_line(capsys):
    assert viewers.main(["--bins", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
