"""Two processes under torchrun train as one does with the whole batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from neds.cli import main as neds
from neds.data.store import write_session
from neds.processes import Processes
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session

# No dropout inside the layers, which every process draws for itself; all else is drawn together.
SETS = ("data.bin_size_s=0.05", "model.hidden=16", "model.window=10", "model.shared=channels",
        "model.dropout=0.0", "model.token_dropout=0.0", "train.unit_dropout=0.2",
        "train.own_dropout=0.3", "train.bins=10", "train.batch=8", "train.sessions_per_batch=2",
        "train.validate_every=3", "train.steps=12")


def test_two_processes_make_the_steps_of_one(tmp_path):
    paths = []
    for i in range(3):  # one session is left out of every batch
        path = tmp_path / f"s{i}.h5"
        write_session(make_session(bins=400, units=7 + i, seed=i, name=f"s{i}"), path)
        paths.append(str(path))
    words = [*paths, "--recipe", "smoke", "--device", "cpu", "--threads", "1", "--save-every", "5",
             "--json", *(w for pair in SETS for w in ("--set", pair))]
    assert neds(["pretrain", *words, "--out", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", "neds", "pretrain", *words,
               "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                          capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    # The first process alone speaks and writes.
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".h5"))
    assert left == ["one", "one.log.jsonl", "two", "two.log.jsonl"]
    one, two = (
        [json.loads(line) for line in (tmp_path / f"{name}.log.jsonl").read_text().splitlines()]
        for name in ("one", "two"))
    assert [line["step"] for line in two] == [3, 6, 9, 12]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["val"] == pytest.approx(a["val"], abs=1e-3)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key in a:
        # A step of Adam is the rate times a sign where gradients are rounding noise.
        torch.testing.assert_close(a[key], b[key], atol=2e-3, rtol=1e-3)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(BadInput, match=r"train\.batch"):
        Processes(0, 2).share(6, 2)
    shares = [Processes(rank, 2).share(8, 2).of_batch.tolist() for rank in range(2)]
    assert shares == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_one_process_alone_shares_with_nobody():
    alone = Processes()
    assert alone.mine([1, 2, 3]) == [1, 2, 3]
    assert alone.agreed(0.5, torch.device("cpu")) == 0.5
    assert Processes(1, 2).mine([1, 2, 3]) == [2]
    alone.wait()
    alone.leave()
