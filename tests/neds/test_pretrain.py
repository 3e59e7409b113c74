"""`neds pretrain`: many sessions, what is left out, and going on after a kill at any step."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from neds.cli import main as neds
from neds.config import load_recipe
from neds.data.store import write_session
from neds.dataset import describe, to_recording
from neds.losses import training_loss
from neds.optimise import half_precision
from neds.resume import NAME, read_progress
from neds.runlog import RunLog, open_log, trackers
from neds.train import Run, train
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session

SETS = ("data.bin_size_s=0.05", "model.hidden=16", "model.window=10", "model.shared=channels",
        "train.bins=10", "train.batch=4", "train.sessions_per_batch=2", "train.validate_every=20",
        "train.own_dropout=0.3")


def words(steps, *more):
    sets = [w for pair in (*SETS, f"train.steps={steps}") for w in ("--set", pair)]
    return ["--recipe", "smoke", "--device", "cpu", "--threads", "1", *sets, *map(str, more)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three sessions that can be trained on, and two that cannot."""
    folder = tmp_path_factory.mktemp("pretrain")
    for i in range(3):
        session = make_session(bins=500, units=8 + i, seed=i, name=f"s{i}")
        write_session(session, folder / f"s{i}.h5")
    write_session(make_session(bins=30, seed=7, name="short"), folder / "short.h5")
    still = make_session(bins=500, seed=8, name="still")
    values = np.ones_like(still.behaviours["velocity"].values)
    object.__setattr__(still.behaviours["velocity"], "values", values)
    write_session(still, folder / "still.h5")
    return folder


def good(home):
    return [str(home / f"s{i}.h5") for i in range(3)]


def test_what_cannot_be_trained_on_is_left_out_and_reported(home, tmp_path, capsys):
    paths = [*good(home), str(home / "short.h5"), str(home / "still.h5")]
    out = tmp_path / "run"
    assert neds(["pretrain", *paths, *words(20), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["dropped"]["sessions"] == 1
    assert said["dropped"]["behaviours"] == 1
    info = json.loads((out / "checkpoint.json").read_text())
    assert [s["session"] for s in info["sessions"]] == ["s0", "s1", "s2", "still"]
    assert set(info["provenance"]["sessions"]) == {"s0", "s1", "s2", "still"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.log.jsonl"]
    assert neds(["pretrain", *paths, *words(20), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "short" in shown.err
    assert "step/s" in shown.err  # the bar, with the time left
    assert shown.out.startswith("wrote ")


def test_a_killed_run_goes_on_to_the_same_weights(home, tmp_path, capsys):
    steps = 100
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert neds(["pretrain", *good(home), *words(steps), "--out", str(whole), "--json"]) == 0
    command = [sys.executable, "-m", "neds", "pretrain", *good(home),
               *words(steps, "--save-every", 3, "--out", cut)]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"},
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "cut.state" / NAME
    while not state.exists() and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    reached = read_progress(state.parent).step
    assert 0 < reached < steps
    assert not cut.exists()
    with (tmp_path / "cut.log.jsonl").open("a") as log:
        log.write('{"step":100000,"loss":0.1}\n{"step":12')  # made after the state, and cut short
    # Nobody goes on, or begins anew, by accident; nor with another recipe or other sessions.
    again = ["pretrain", *good(home), *words(steps, "--out", cut)]
    for more, named in (((), "--resume"), (("--resume", "--seed", "9"), "train.seed"),
                        (("--resume", "--behaviours", "choice"), "data.behaviours")):
        assert neds([*again, *more]) == 2
        assert named in capsys.readouterr().err
    assert neds([*again, "--resume", "--save-every", "50", "--json"]) == 0
    a, b = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [[json.loads(line) for line in (tmp_path / f"{name}.log.jsonl").read_text().splitlines()]
            for name in ("whole", "cut")]
    for x, y in zip(*logs, strict=True):
        assert (x["step"], x["loss"], x["val"]) == (y["step"], y["loss"], y["val"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "cut", "cut.log.jsonl", "whole", "whole.log.jsonl"]
    capsys.readouterr()
    assert neds([*again, "--resume"]) == 0  # a loop of restarts ends
    assert "nothing left to do" in capsys.readouterr().out


class Killed(Exception):
    pass


@pytest.mark.parametrize(("dies_at", "every"), [(1, 1), (4, 1), (6, 2), (8, 3)])
def test_a_stop_at_any_step_changes_nothing(small_config, tmp_path, monkeypatch, dies_at, every):
    binned, state = describe(make_session(bins=500), small_config.data, 20)
    recordings = [to_recording(binned, state)]
    knobs = msgspec.structs.replace(small_config.train, steps=9, validate_every=4, batch=4)
    config = msgspec.structs.replace(small_config, train=knobs)
    expected = train(config, recordings, progress=False)
    advance = Run.advance

    def dying(run, share=None):
        if run.step + 1 == dies_at:
            raise Killed
        advance(run, share)

    monkeypatch.setattr(Run, "advance", dying)
    log = io.StringIO()
    with pytest.raises(Killed):
        train(config, recordings, log, False, saved=tmp_path, save_every=every)
    monkeypatch.setattr(Run, "advance", advance)
    found = train(config, recordings, log, False, saved=tmp_path, save_every=every)
    assert found.best_step == expected.best_step
    for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_state_is_named(home, tmp_path, capsys):
    state = tmp_path / "run.state" / NAME
    state.parent.mkdir()
    state.write_bytes(b"nothing")
    command = ["pretrain", *good(home), *words(4), "--out", str(tmp_path / "run")]
    assert neds([*command, "--resume"]) == 2
    assert str(state) in capsys.readouterr().err
    assert neds([*command, "--overwrite", "--json"]) == 0
    assert not state.parent.exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--device", "tpu"), "--device"),
        (("--save-every", "-1"), "--save-every"),
        (("--set", "train.precision=fp8"), "train.precision"),
        (("--set", "data.bin_size_s=0.07"), "0.05"),
        (("--set", "train.freeze=2.0"), "train.freeze"),
    ],
)
def test_pretrain_refuses(home, tmp_path, capsys, more, named):
    assert neds(["pretrain", *good(home), *words(4), *more, "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.state").exists()


def test_finer_bins_are_added_up_when_asked(home, tmp_path, capsys):
    out = ("--set", "data.bin_size_s=0.1", "--out", str(tmp_path / "run"))
    assert neds(["pretrain", *good(home), *words(4), *out]) == 2
    assert "--rebin" in capsys.readouterr().err
    assert neds(["pretrain", *good(home), *words(4), *out, "--rebin", "--json"]) == 0
    # Evaluation takes the same finer recording as it is.
    assert neds(["evaluate", str(tmp_path / "run"), "--tasks", "decoding", "--plots", "none",
                 "--replicates", "20", "--json"]) == 0


def test_precision_is_float32_here_and_bf16_when_asked(trained):
    config, _, recording, _ = trained
    cpu = torch.device("cpu")
    assert not half_precision(config.train, cpu)
    half = msgspec.structs.replace(config.train, precision="bf16")
    assert half_precision(half, cpu)
    run = Run(config, [recording])
    full = training_loss(run.model, run.sampler, config, 1, run.processes)
    rough = training_loss(run.model, run.sampler, msgspec.structs.replace(config, train=half), 1,
                          run.processes)
    assert rough.dtype == torch.float32
    assert full.item() != rough.item()
    assert rough.item() == pytest.approx(full.item(), rel=0.03)


def test_trackers_get_every_validation(tmp_path, monkeypatch):
    seen = []

    class Writer:
        def __init__(self, log_dir):
            seen.append(log_dir)

        def add_scalar(self, name, value, step):
            seen.append((name, value, step))

        def close(self):
            seen.append("closed")

    board = type(sys)("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    log = RunLog(open_log(tmp_path / "x.jsonl"), trackers(tmp_path / "run", "", {}))
    log.write(5, loss=1.0, val=None)
    log.close()
    assert seen == [str(tmp_path / "run.tensorboard"), ("loss", 1.0, 5), "closed"]
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {"step": 5, "loss": 1.0, "val": None}
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match="pip install wandb"):
        trackers(tmp_path / "run", "project", {})


def test_the_packaged_recipes_hold():
    files = resources.files("neds").joinpath("recipes").iterdir()
    names = [f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")]
    assert {"pretrain", "finetune", "indy_many", "encoding"} <= set(names)
    for name in names:
        assert load_recipe(name).train.steps > 0
