"""`tools/bwb_score.py`: the benchmark's scorer beside ours, where there is one; its checks."""

import functools
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from neds.bwb.files import (
    about,
    encode_ids,
    prediction_path,
    truth_tensors,
    write_tensors,
    write_truth,
)
from neds.bwb.source import read_source
from neds.bwb.synthetic import write_synthetic
from neds.bwb.tasks import TASKS
from neds_rt.errors import BadInput, CheckFailed, StartError
from neds_rt.synthetic import SyntheticAnimal
from tools import bwb_score


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Predictions that know a little of the truth, of every task, and the truth."""
    folder = tmp_path_factory.mktemp("score")
    write_synthetic(SyntheticAnimal(3, 20), 240, folder / "a.h5", chunk_s=40, gap_s=5)
    source = read_source(folder / "a.h5")
    rng = np.random.default_rng(0)
    write_truth(folder / "truth", [source], TASKS)
    for task in TASKS:
        recording = "" if task.suite == "ts3" else source.recording
        tensors = guess(source, task, rng)
        for seed in (43, 44):
            write_tensors(prediction_path(folder / "made", "made", task, recording, seed), tensors,
                          about(source, task, "made", seed, 1.0))
    return folder / "made", folder / "truth"


def guess(source, task, rng):
    if task.suite == "ts3":
        return {"pred_proba": rng.random((source.n_units, 10)).astype(np.float32),
                "entity_ids": encode_ids(source.id)}
    truth = truth_tensors(source, task)
    if task.suite == "ts2":
        mean = np.log(0.1 + truth["targets"].mean((0, 1)))
        noise = rng.normal(0, 0.2, truth["targets"].shape)
        return {"predictions": (mean + noise).astype(np.float16),
                "window_timestamps": truth["window_timestamps"], "unit_ids": truth["unit_ids"]}
    n = len(truth["trial_id"])
    values = rng.normal(0, 1, (n, 1, task.dim)) if task.kind == "label" else (
        0.7 * truth["values"] + rng.normal(0, 0.3, truth["values"].shape))
    return {"predictions": values.astype(np.float32), "trial_id": truth["trial_id"]}


def test_the_scorer_agrees_with_us(folders, monkeypatch):
    pytest.importorskip("ibl_bwb_eval")
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr(bwb_score, "_run", functools.cache(bwb_score._run))
    report = bwb_score.compare(*folders, Path(sys.executable))
    assert report["files"] == 2 * 11
    assert {row["task"] for row in report["rows"]} == {task.id for task in TASKS}
    assert report["largest_difference"] <= 1e-6
    assert report["scorer_versions"]["ibl-bwb-eval"] == "0.1.0"
    assert any("ts1-wheel_speed" in line for line in report["scorer_output"])
    whole = bwb_score.score_folder

    def wrong(*arguments):
        rows = whole(*arguments)
        rows[0]["scores"]["bacc"] += 1e-4
        return rows

    monkeypatch.setattr(bwb_score, "score_folder", wrong)
    with pytest.raises(CheckFailed, match="differs"):
        bwb_score.compare(*folders, Path(sys.executable))


def test_differences():
    key = ("neds", "ts1-wheel_speed", "r", 43)
    (row,) = bwb_score.differences({key: {"r2": 0.5}}, {key: {"r2": 0.5 + 1e-7}})
    assert row["difference"] == pytest.approx(1e-7)
    (row,) = bwb_score.differences({key: {"mae": 200.0}}, {key: {"mae": 200.0001}})
    assert row["difference"] == pytest.approx(5e-7)
    (row,) = bwb_score.differences({key: {"r2": float("nan")}}, {key: {"r2": float("nan")}})
    assert (row["ours"], row["difference"]) == (None, 0.0)
    (row,) = bwb_score.differences({key: {"r2": float("nan")}}, {key: {"r2": 0.1}})
    assert row["difference"] == float("inf")
    for ours, theirs in (({"r2": 0.1}, {"r2": 0.1, "mae": 1.0}),
                         ({"CB/recall": 0.5}, {"CB/recall": 0.6})):
        with pytest.raises(CheckFailed):
            list(bwb_score.differences({key: ours}, {key: theirs}))


def test_an_environment_that_is_there_is_used(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(bwb_score.venv, "create", lambda folder, **_: built.append(folder))
    monkeypatch.setattr(bwb_score, "_pip", lambda python, *what: built.append(what))
    python = bwb_score.environment(tmp_path, False, "2.13.0")
    packages = built[1:]
    assert packages[0][0] == "torch==2.13.0"
    assert packages[1] == ("--no-deps", "ibl-bwb-eval==0.1.0")
    python.parent.mkdir(parents=True)
    os.symlink(sys.executable, python)
    built.clear()
    assert bwb_score.environment(tmp_path, False, "") == python
    assert built == []
    bwb_score.environment(tmp_path, True, "")  # the exact versions are another environment
    assert built[1:] == [("ibl-bwb-eval==0.1.0",)]


def test_what_goes_wrong_is_one_line(tmp_path, capsys, monkeypatch):
    with pytest.raises(BadInput, match="nowhere"):
        bwb_score.compare(tmp_path / "nowhere", tmp_path, Path(sys.executable))
    with pytest.raises(StartError, match="the scorer"):
        bwb_score._run(Path(sys.executable), "-c", "raise SystemExit('no')")
    monkeypatch.setattr(sys, "argv", ["bwb_score.py", "--predictions", str(tmp_path)])
    assert bwb_score.main() == 2
    assert capsys.readouterr().err.startswith("bwb_score: ")
