"""The measurement of swaps and fail-overs: its verdict on made decodes, and a real run of few."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from bench import swap, swap_rig
from bench.swap_judge import AFTER_BINS, at_failure, broken
from tests.tables import table_of

BIN_NS = 20_000_000
TINY = "hidden=16,layers=1,heads=2,mlp=16,units=20,window=10"


def rig_of(reasons, late_ms=(), sent_late_ms=()):
    """A run whose decode k is written a millisecond after bin k was sent, or as late as said."""
    late, held = dict(late_ms), dict(sent_late_ms)
    sent = np.arange(1, len(reasons) + 1) * BIN_NS + np.array(
        [held.get(k, 0) * 1e6 for k in range(len(reasons))])
    rows = [SimpleNamespace(decode=SimpleNamespace(
        bin=k, reason=reason, service_us=900.0, pub_ns=int(sent[k] + late.get(k, 1) * 1e6)))
        for k, reason in enumerate(reasons)]
    return SimpleNamespace(rows=rows, sent_ns=sent)


REASONS = ["ok"] * 10 + ["failed over"] + ["ok"] * 9


def test_bins_late_around_a_fail_over_are_counted_and_others_are_not():
    found = at_failure(rig_of(REASONS, {10: 25, 5: 99, 10 + AFTER_BINS: 99}), 0)
    assert (found["reported"], found["late_at_failure"], found["late_unreported"]) == (1, 1, 0)
    assert found["late_reasons"] == {"failed over": 1}
    found = at_failure(rig_of(REASONS, {8: 21, 10: 25, 11: 22}), 3)
    assert (found["late_at_one_failure"], found["late_unreported"]) == (3, 2)
    assert found["late_reasons"] == {"failed over": 1, "ok": 2}


def test_a_late_decode_that_says_so_is_told():
    reasons = [*REASONS[:9], "deadline missed", *REASONS[10:]]
    found = at_failure(rig_of(reasons, {9: 30}), 3)
    assert (found["late_at_failure"], found["late_unreported"]) == (1, 0)


def test_the_lateness_of_the_sender_is_not_that_of_the_server():
    assert at_failure(rig_of(REASONS, sent_late_ms={10: 50}), 3)["late_at_failure"] == 0


def part(**changes):
    good = {"asked": 2, "missed": 0, "twice": 0, "wrong_model": 0, "swaps": 2, "failed_over": 2,
            "reported": 2, "late_at_failure": 1, "late_at_one_failure": 1, "late_unreported": 0}
    return good | changes


@pytest.mark.parametrize(("name", "change", "line"), [
    ("swaps", {"missed": 3}, "swaps: 3 decodes missed"),
    ("swaps", {"swaps": 1}, "swaps: 1 of 2 seen in the decodes"),
    ("failovers", {"wrong_model": 1}, "engines killed: 1 decodes that are not those of the model"),
    ("failovers", {"failed_over": 1}, "engines killed: 1 of 2 ended in a fail-over"),
    ("slow", {"reported": 0}, "slow engines: 0 of 2 are told by a decode"),
    ("slow", {"late_at_one_failure": 2}, "slow engines: 2 bins late at one fail-over, at most 1"),
    ("slow", {"late_unreported": 1}, "slow engines: 1 late bins at a fail-over that said they"),
])
def test_each_thing_that_does_not_hold_is_a_line(name, change, line):
    report = {"swaps": part(), "failovers": part(), "slow": part()}
    assert broken(report) == []
    (said,) = broken(report | {name: part(**change)})
    assert said.startswith(line)
    assert broken({"swaps": part(), "failovers": None, "slow": None}) == []


@pytest.fixture
def tiny(monkeypatch):
    """The programs with little to wait for."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # put back afterwards
    monkeypatch.setattr(swap, "SIZES", {"paper": TINY, "small": f"{TINY},hidden=8"})
    monkeypatch.setattr(swap, "SETTLE_S", 0.1)
    for name, value in (("FILL_BINS", 20), ("ORDER_BINS", 20), ("PAUSE_S", (0.05, 0.1))):
        monkeypatch.setattr(swap_rig, name, value)


def test_a_run_swaps_kills_and_slows_and_misses_nothing(tiny, tmp_path, capsys):
    out = tmp_path / "swap.json"
    code = swap.main(["--swaps", "1", "--failovers", "1", "--slow", "1", "--out", str(out)])
    report = json.loads(out.read_text())
    said = capsys.readouterr()
    for name in ("swaps", "failovers", "slow"):
        found = report[name]
        assert (found["missed"], found["twice"], found["wrong_model"]) == (0, 0, 0)
        assert f"1 {name}: {found['decodes']} decodes" in said.out
    assert report["swaps"]["swaps"] == 1
    for name in ("failovers", "slow"):
        assert (report[name]["failed_over"], report[name]["reported"]) == (1, 1)
    assert "| engines too slow | 1 |" in table_of("swap", out)
    # Whether a bin came late is the machine's; that the code and the lines say so is ours.
    assert code == (0 if report["passed"] else 1)
    assert said.err.count("bench/swap.py: failed:") == len(broken(report))


def test_an_engine_that_never_fails_over_is_exit_code_1(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(swap, "OVERRUNS", 10_000)
    monkeypatch.setattr(swap, "FAILOVER_S", 0.3)
    out = tmp_path / "swap.json"
    code = swap.main(["--swaps", "0", "--failovers", "0", "--slow", "1", "--out", str(out)])
    assert (code, json.loads(out.read_text())["passed"]) == (1, False)
    assert "slow engines: 0 of 1 ended in a fail-over" in capsys.readouterr().err
