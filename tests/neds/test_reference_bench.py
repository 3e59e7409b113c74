"""The programs that measure training throughput and memory, at sizes of a test."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
SMALL = ("--sessions", "2", "--units", "10", "20", "--seconds", "40", "--hidden", "16", "--heads",
         "2", "--mlp", "16", "--layers", "1", "--batch", "4", "--rounds", "2")


@pytest.fixture
def throughput():
    """The program's `main`, run here: a process of its own takes seconds to import torch."""
    spec = importlib.util.spec_from_file_location("throughput", BENCH / "throughput.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module.main
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


def test_throughput_reports_ratios_round_by_round(throughput, tmp_path, capsys):
    out = tmp_path / "new" / "throughput.json"
    assert throughput([*SMALL, "--at-least", "0", "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert set(result["models"]) == {"reference", "neds", "neds_as_paper"}
    assert result["units"] == [10, 20]
    assert result["behaviours"] == ["wheel", "whisker", "choice", "block"]
    for row in result["models"].values():
        rate = row["samples_per_s"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert row["parameters"]["total"] > 0
    ratio = result["speedup"]["neds"]
    assert ratio["min"] <= ratio["median"] <= ratio["max"]
    assert {"command", "commit", "machine", "sizes", "rounds"} <= set(result)


def test_throughput_below_what_was_asked_is_a_failed_check(throughput):
    words = ("--models", "reference,neds", "--at-least", "1e9", "--rounds", "1")
    assert throughput([*SMALL, *words]) == 4


@pytest.mark.parametrize(
    ("words", "named"),
    [(("--models", "ndt2"), "--models: name"), (("--rounds", "0"), "--rounds"),
     (("--data", "/nowhere"), "/nowhere: archives"), (("--heads", "3"), "heads")],
)
def test_throughput_names_bad_input_in_one_line(throughput, capsys, words, named):
    assert throughput([*SMALL, *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert named in error
    assert error.count("\n") == 1


def test_memory_counts_what_sessions_cost(tmp_path):
    out = tmp_path / "memory.json"
    words = ("--sessions", "1", "3", "--seconds", "40", "--units", "10", "--steps",
             "1", "--set", "model.hidden=16", "--set", "model.window=20", "--set",
             "train.bins=20", "--at-most", "1000", "--json", "--out", str(out))
    done = subprocess.run([sys.executable, BENCH / "memory.py", *words], capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(out.read_text())
    assert [run["sessions"] for run in result["runs"]] == [1, 3]
    few, many = result["runs"]
    assert 0 < few["anonymous_mb"] <= few["peak_mb"]
    assert many["parameters_mb"] > few["parameters_mb"]
    assert set(result["mb_a_session"]) == {"peak_mb", "anonymous_mb", "parameters_mb",
                                           "beyond_parameters"}
