"""The main job in separate processes: prepare, train, evaluate, export, serve, replay, decode.

What an outside client receives over ZeroMQ must be what `neds evaluate` predicts, bin for bin.
"""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from bench.served import compare, play_through_server


def neds(*words, code=0):
    """Run `neds` in its own process; returns the JSON object of its last line."""
    done = subprocess.run([sys.executable, "-m", "neds", *map(str, words)], text=True,
                          capture_output=True, timeout=250)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if code == 0 else done.stderr


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A trained and exported synthetic animal: folder, checkpoint scores, predictions."""
    folder = tmp_path_factory.mktemp("e2e")
    made = neds("synth", "--animals", 1, "--seconds", 150, "--units", 40, "--seed", 5,
                "--out", folder / "sessions", "--json")
    session = made["sessions"][0]["path"]
    neds("train", session, "--recipe", "smoke", "--out", folder / "ckpt", "--seed", 1, "--json")
    scores = neds("evaluate", folder / "ckpt", session, "--predictions", folder / "test.npz",
                  "--plot", folder / "test.png", "--json")
    exported = neds("export", folder / "ckpt", "--session", made["sessions"][0]["session"],
                    "--out", folder / "model.neds", "--json")
    assert exported["parity"]["native"]["max"] < 1e-4
    assert (folder / "test.png").stat().st_size > 10_000
    return folder, session, scores


@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_served_decodes_equal_evaluated_predictions(served, engine):
    folder, session, scores = served
    expected = np.load(folder / "test.npz")
    assert expected["bin"][0] == scores["first_bin"]
    bins = len(expected["bin"])
    messages, summary = play_through_server(
        folder / "model.neds", session, scores["first_bin"], bins, engine, "10")
    decodes = [m for m in messages if m.bin >= 0]  # others say that the input is stale
    assert [d.bin for d in decodes] == expected["bin"].tolist()
    assert [m.seq for m in messages] == list(range(messages[0].seq, messages[-1].seq + 1))
    differences = compare(decodes, folder / "test.npz")
    assert set(differences) == {"wheel", "whisker", "choice", "block"}
    assert max(differences.values()) <= 1e-4
    assert not decodes[0].valid
    assert decodes[0].reason == "warming up"
    # Played ten times as fast, a machine that is held up for a moment is truly late.
    reasons = Counter(d.reason for d in decodes[30:])
    assert set(reasons) <= {"ok", "deadline missed", "clock jump"}
    assert reasons["ok"] > bins / 2
    assert summary["engine"] == engine


def test_a_bundle_of_another_animal_is_refused(served, tmp_path):
    folder, _, _ = served
    made = neds("synth", "--animals", 1, "--seconds", 60, "--units", 30, "--seed", 6,
                "--out", tmp_path, "--json")
    error = neds("evaluate", folder / "ckpt", made["sessions"][0]["path"], "--json", code=2)
    assert error.count("\n") == 1
    assert "synthetic-0006-00" in error
