"""`bench/accuracy.py` on a small made archive in the format of the Indy set."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from neds.baselines import sequence
from tests.neds.planted import TINY as TINY_NET

ROOT = Path(__file__).parents[1]
TINY = ("--recipe", "smoke", "--behaviours", "velocity", "--preset", "indy",
        *(word for pair in ("model.hidden=16", "model.window=10", "train.steps=4",
                            "train.bins=20", "train.batch=4", "train.validate_every=2")
          for word in ("--set", pair)))


@pytest.fixture(scope="module")
def accuracy():
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "bench" / "accuracy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def archive(path, seed, bins=600, units=6):
    """Counts that follow a slow velocity, in the arrays of the Indy set."""
    rng = np.random.default_rng(seed)
    kernel = np.hanning(31) / np.hanning(31).sum()
    noise = rng.standard_normal((2, bins + 30))
    velocity = np.stack([np.convolve(n, kernel, "valid") for n in noise], 1)
    velocity = 5 * velocity / velocity.std(0)
    rates = np.exp(0.5 + 0.15 * velocity @ rng.standard_normal((2, units)))
    start = np.arange(bins) * 0.064
    np.savez(
        path,
        spike_counts=rng.poisson(rates.clip(max=20)).astype(np.uint8),
        bin_start_s=start, bin_size_s=0.064,
        unit_channel=np.arange(units), unit_id=np.arange(units),
        finger_velocity_cm_s=velocity, finger_position_cm=np.cumsum(velocity, 0) * 0.064,
    )


@pytest.fixture(scope="module")
def result(accuracy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy")
    for seed, name in enumerate(("indy_1", "indy_2")):
        archive(folder / f"{name}.npz", seed)
    out = folder / "results" / "accuracy-made.json"
    patch = pytest.MonkeyPatch()
    patch.setattr(sequence, "for_budget", lambda recipe, budget: TINY_NET)
    code = accuracy.main(["--data", str(folder), *TINY, "--seeds", "2", "--out", str(out)])
    patch.undo()
    assert code == 0
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    return json.loads(out.read_text())


def test_every_model_session_and_seed_has_its_rows(result):
    rows = result["rows"]
    keys = {(r["session"], r["model"], r["seed"]) for r in rows if r["modality"] == "velocity"}
    sessions = ("indy_1", "indy_2")
    assert keys == {(s, "ridge", 0) for s in sessions} | {
        (s, model, seed) for s in sessions for model in ("gru", "neds") for seed in (101, 102)}
    metrics = {(r["model"], r["modality"], r["metric"]) for r in rows}
    assert ("neds", "spikes", "bps_pooled") in metrics
    assert ("ridge", "velocity", "r2") in metrics
    ridge = [r["value"] for r in rows if r["model"] == "ridge" and r["metric"] == "r2"]
    assert min(ridge) > 0.3  # the made rates do follow the velocity
    assert set(result) >= {"protocol", "command", "commit", "rows", "mean", "machine"}


def test_a_mean_is_over_sessions_of_the_mean_over_seeds(result):
    for model, means in result["mean"].items():
        per_session = [
            np.mean([r["value"] for r in result["rows"] if r["metric"] == "r2"
                     and (r["model"], r["session"]) == (model, session)])
            for session in ("indy_1", "indy_2")
        ]
        assert means["velocity.r2"] == pytest.approx(np.mean(per_session))


def test_means_do_not_count_a_session_with_more_seeds_twice(accuracy):
    def row(session, value):
        return {"session": session, "model": "neds", "modality": "velocity", "metric": "r2",
                "value": value}

    rows = [row("a", 0.2), row("a", 0.4), row("b", 0.9)]
    assert accuracy.means(rows) == {"neds": {"velocity.r2": pytest.approx(0.6)}}


def test_json_is_the_last_line(accuracy, tmp_path, capsys):
    archive(tmp_path / "indy_3.npz", 3)
    archive(tmp_path / "left_out.npz", 4)
    words = ["--data", str(tmp_path), *TINY, "--models", "ridge", "--sessions", "indy", "--json"]
    assert accuracy.main(words) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {r["session"] for r in printed["rows"]} == {"indy_3"}
    assert set(printed["mean"]) == {"ridge"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--models", "ridge,magic"], "'magic'"),
        (["--seeds", "0"], "--seeds"),
        (["--sessions", "nobody"], "none to score"),
        (["--preset", "nowhere"], "nowhere"),
        (["--out", "/proc/neds/x.json"], "/proc/neds"),
    ],
)
def test_refusals_are_one_line(accuracy, tmp_path, capsys, words, named):
    archive(tmp_path / "indy_5.npz", 5)
    assert accuracy.main(["--data", str(tmp_path), *TINY, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]
