"""`neds calibrate`: from minutes of a new session to a bundle that the server loads."""

import json

import msgspec
import numpy as np
import pytest

from neds.calibrate import calibration_recording
from neds.checkpoint import CHECKPOINT_SCHEMA, CheckpointInfo, created_by, save_checkpoint
from neds.cli import main as neds
from neds.commands.calibrate import seconds
from neds.data.store import write_session
from neds.dataset import describe, to_recording
from neds.train import train
from neds_rt.bundle import read_bundle
from neds_rt.engines import load_engine
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session


@pytest.fixture(scope="module")
def home(small_config, tmp_path_factory):
    """A checkpoint of two sessions of one implant, and a third session's file."""
    config = msgspec.structs.replace(
        small_config, model=msgspec.structs.replace(small_config.model, shared="channels"),
        train=msgspec.structs.replace(small_config.train, own_dropout=0.3, steps=100))
    folder = tmp_path_factory.mktemp("calibrate")
    recordings = []
    for i in range(2):
        session = make_session(bins=900, seed=i, tuning=5, name=f"day{i}")
        recordings.append(to_recording(*describe(session, config.data, config.model.window)))
    result = train(config, recordings, progress=False)
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [r.state for r in recordings],
                          result.best_step, {})
    save_checkpoint(folder / "base", result.model, info)
    write_session(make_session(bins=1500, seed=2, tuning=5, name="today"), folder / "today.h5")
    return folder, info


def calibrated(capsys, folder, out, *more, recording="today.h5"):
    command = ["calibrate", folder / recording, "--init", folder / "base", "--out", out,
               "--threads", "1", "--set", "train.steps=40", *more, "--json"]
    capsys.readouterr()
    assert neds([str(word) for word in command]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def decodes(path, bins=30):
    """The bundle's outputs (bins, n) in the native engine."""
    bundle = read_bundle(path)
    engine = load_engine("native", bundle)
    rng = np.random.default_rng(0)
    return bundle, np.stack([
        engine.step(rng.poisson(1.0, len(bundle.manifest.units)).astype(np.uint16)).copy()
        for _ in range(bins)])


def test_half_a_minute_gives_a_bundle_and_what_to_expect(home, tmp_path, capsys):
    folder, _ = home
    report = calibrated(capsys, folder, tmp_path / "today.neds", "--minutes", "0.5",
                        "--set", "train.validate_every=40")
    assert report["calibration_s"] == 30.0
    assert report["held_back"]
    assert report["held_back_s"] == pytest.approx(75 - 30 - 1.0, abs=0.1)
    value = report["metrics"]["velocity"]["r2"]
    low, high = report["intervals"]["velocity"]["r2"]
    assert low < value < high
    assert value > 0.3
    assert set(report["baselines"]) == {"not calibrated", "linear"}
    assert report["seconds"] < 120
    bundle, outputs = decodes(tmp_path / "today.neds")
    assert bundle.manifest.session == "today"
    assert bundle.manifest.model_hash == report["model_hash"]
    assert bundle.manifest.provenance["expected"]["velocity"]["r2"] == pytest.approx(value)
    assert np.isfinite(outputs).all()
    assert outputs.std(0).min() > 0
    assert [p.name for p in tmp_path.iterdir()] == ["today.neds"]


def test_all_of_a_short_recording_is_used_and_the_report_says_so(home, tmp_path, capsys):
    folder, _ = home
    report = calibrated(capsys, folder, tmp_path / "x.neds", "--minutes", "10",
                        "--set", "train.steps=4")
    assert report["calibration_s"] == 75.0
    assert not report["held_back"]
    assert report["held_back_s"] == 15.0
    command = ["calibrate", str(folder / "today.h5"), "--init", str(folder / "base"), "--out",
               str(tmp_path / "y.neds"), "--budget", "1s", "--threads", "1"]
    assert neds(command) == 0
    said = capsys.readouterr()
    assert "also chose when to stop" in said.out
    assert "velocity" in said.out


def test_without_a_minute_and_without_behaviour_what_is_shared_decodes(home, tmp_path, capsys):
    folder, _ = home
    report = calibrated(capsys, folder, tmp_path / "zero.neds", "--minutes", "0")
    assert report["calibration_s"] == 0
    assert report["metrics"]["velocity"]["r2"] > 0.2
    assert report["baselines"] == {}
    silent = make_session(bins=300, seed=2, tuning=5, name="silent")
    silent.behaviours.clear()
    write_session(silent, tmp_path / "silent.h5")
    report = calibrated(capsys, folder, tmp_path / "silent.neds", "--minutes", "0", "--behaviours",
                        "velocity", recording=tmp_path / "silent.h5")
    assert report["metrics"]["velocity"]["r2"] is None
    assert decodes(tmp_path / "silent.neds")[1].shape[1] == 2


def test_what_is_fitted_sees_the_calibration_data_alone(home):
    _, info = home
    session = make_session(bins=1000, seed=2, tuning=5, name="today")
    first = calibration_recording(session, info, 0.5, ["velocity"])
    assert first.state.split == {"train": [0, 480], "val": [480, 600], "test": [620, 1000]}
    values = session.behaviours["velocity"].values.copy()
    values[480:] += 100
    counts = session.spikes.counts.copy()
    counts[480:] = 0
    object.__setattr__(session.behaviours["velocity"], "values", values)
    object.__setattr__(session.spikes, "counts", counts)
    assert calibration_recording(session, info, 0.5, ["velocity"]).state == first.state


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--minutes", "-1"), "--minutes"),
        (("--minutes", "nan"), "--minutes"),
        (("--budget", "soon"), "--budget"),
        (("--behaviours", "wheel"), "velocity"),
        (("--device", "tpu"), "--device"),
        (("--out", "/proc/neds/x.neds"), "/proc/neds"),
        (("--recipe", "nowhere"), "nowhere"),
    ],
)
def test_calibrate_refuses(home, tmp_path, capsys, more, named):
    folder, _ = home
    command = ["calibrate", str(folder / "today.h5"), "--init", str(folder / "base"), "--out",
               str(tmp_path / "x.neds"), "--set", "train.steps=1", "--minutes", "0.2", *more,
               "--json"]
    capsys.readouterr()
    assert neds(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_recording_shorter_than_a_window_is_refused(home):
    _, info = home
    with pytest.raises(BadInput, match="one window of 20"):
        calibration_recording(make_session(bins=15, tuning=5), info, 1.0, [])


def test_budgets():
    assert [seconds(text) for text in ("90s", "2m", "45")] == [90, 120, 45]
    for text in ("0s", "s", "-3", "1h", "inf", "nan"):
        with pytest.raises(BadInput, match="--budget"):
            seconds(text)
