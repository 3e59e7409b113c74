"""Trials and session preparation on a Ray instance of this machine.

The commands run in processes of their own: Ray keeps threads, sockets and log files of its own.
"""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from neds.data.store import read_session, write_session
from tests.neds.conftest import make_session

pytest.importorskip("ray")

pytestmark = pytest.mark.timeout(280)
MAP = ["--map", "counts=c", "bin_size=0.1", "behaviour.x=x:bins", "session=name"]


@pytest.fixture
def neds(tmp_path):
    """Run the command in a process with a home of its own; Ray writes an access token there."""
    def run(*words):
        environment = {**os.environ, "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0",
                       "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-m", "neds", *map(str, words)],
                              capture_output=True, text=True, timeout=240, env=environment)

    return run


def archive(path, name, seed, bad=False):
    rng = np.random.default_rng(seed)
    np.savez(path, c=rng.poisson(1.0, (30, 3)).astype(np.uint8), name=name,
             x=np.full(30, np.nan) if bad else rng.standard_normal(30))
    return path


def test_prepare_on_ray_gives_what_one_process_gives(tmp_path, neds):
    files = [archive(tmp_path / "a.npz", "one", 0), archive(tmp_path / "b.npz", "two", 1, bad=True),
             archive(tmp_path / "c.npz", "one", 2), archive(tmp_path / "d.npz", "three", 3)]
    reports = []
    for name, options in (("here", []), ("there", ["--ray", "local"])):
        done = neds("prepare", *files, "--out", tmp_path / name, *MAP, *options, "--json")
        assert done.returncode == 2, done.stderr
        text = done.stdout.splitlines()[-1].replace(str(tmp_path / name), "OUT")
        reports.append(json.loads(text))
        assert "Traceback" not in done.stderr
    assert reports[0] == reports[1]
    assert [row["session"] for row in reports[1]["sessions"]] == ["one", "three"]
    assert len(reports[1]["failed"]) == 2
    assert "a name no other file" in reports[1]["failed"][1]["error"]
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["one.h5", "three.h5"]
    for name in ("one.h5", "three.h5"):
        here, there = (read_session(tmp_path / f / name) for f in ("here", "there"))
        assert (here.spikes.counts == there.spikes.counts).all()
        assert here.metadata == there.metadata
        with h5py.File(tmp_path / "there" / name) as file:
            assert json.loads(file.attrs["provenance"])["source"] in ("a.npz", "d.npz")


def test_sweep_on_ray_trains_trials_and_resumes_without_it(tmp_path, neds):
    write_session(make_session(bins=600), tmp_path / "made.h5")
    (tmp_path / "space.toml").write_text("[sweep.train]\nlearning_rate = [1e-3, 1e30, 3e-3]\n")
    words = ["sweep", tmp_path / "made.h5", "--recipe", "smoke", "--set", "train.steps=4", "--set",
             "train.validate_every=2", "--set", "data.bin_size_s=0.05", "--threads", "1",
             "--space", tmp_path / "space.toml", "--out", tmp_path / "study", "--json"]
    done = neds(*words, "--trials", "3", "--jobs", "2", "--ray", "local")
    assert done.returncode == 0, done.stderr
    trials = json.loads(done.stdout.splitlines()[-1])["trials"]
    assert trials["complete"] + trials["failed"] == 3
    assert trials["complete"] >= 1
    done = neds(*words, "--trials", "4")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert sum(report["trials"].values()) == 4
    assert report["best"]["params"]["train.learning_rate"] < 1


def test_an_address_without_a_cluster_is_one_line(tmp_path, neds):
    file = archive(tmp_path / "a.npz", "one", 0)
    done = neds("prepare", file, "--out", tmp_path / "out", *MAP, "--ray", "127.0.0.1:1")
    assert done.returncode == 3
    assert [line for line in done.stderr.splitlines() if line.startswith("neds prepare: ")]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
