"""The benches of sources and of probes, short: real senders, a real server, every bin."""

import json
import subprocess
import sys

from tests.rt.serving import ROOT


def test_two_probes_are_decoded_without_a_loss():
    done = subprocess.run(
        [sys.executable, "bench/probes.py", "--probes=2", "--seconds=2", "--units=20", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert (row["units"], row["bins"], row["decodes_missed"], row["bins_lost"]) == (40, 100, 0, 0)


def test_two_seconds_of_a_lossy_probe_pass(tmp_path):
    out = tmp_path / "sources.json"
    done = subprocess.run(
        [sys.executable, "bench/sources.py", "--sources=oe", "--seconds=2", "--units=20",
         "--loss=0.01", "--json", f"--out={out}"],
        cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads(out.read_text())
    [row] = report["rows"]
    assert report["passed"]
    assert (row["bins_wrong"], row["decodes_missed"]) == (0, 0)
    assert row["gaps_detected"] == row["gaps_injected"] > 0
    assert row["bins_lost"] > 0
    assert row["messages_missed"] <= row["messages_dropped"]  # nobody hears of the last one


def test_raw_channels_of_open_ephys_give_the_detectors_bins():
    done = subprocess.run(
        [sys.executable, "bench/sources.py", "--sources=oe-raw", "--seconds=3", "--channels=12",
         "--loss=0", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert (row["bins_equal_percent"], row["bins_lost"], row["gaps_detected"]) == (100.0, 0, 0)
    assert row["bins"] > 80
    assert row["source_counters"]["spikes"] > 50
