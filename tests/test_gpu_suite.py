"""The GPU suite where there is no GPU: arguments, models, timing, parity, the file it writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import gpu_measure, gpu_suite

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "deep" / "dry.json"
    words = [sys.executable, str(ROOT / "tools/gpu_suite.py"), "--dry-run", "--out", str(out),
             "--only", "floor,spread,engines,paced", "--commit", "abc"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_file_of_a_dry_run(dry_run):
    data, _ = dry_run
    assert data["dry_run"] is True
    assert data["commit"] == "abc"
    assert "--dry-run" in data["command"]
    assert data["machine"]["cores"] >= 1
    assert set(data["seconds"]) == {"floor", "spread", "engines", "paced"}
    (row,) = data["engines"]
    assert row["parity"] == 0.0
    assert row["step_us"]["steps"] == 200
    assert 0 < row["step_us"]["p50"] <= row["step_us"]["p99"] <= row["step_us"]["max"]
    (row,) = data["paced"]
    assert (row["steps"], row["period_s"], row["warm_every_s"]) == (20, 0.001, 0.0005)


def test_table_of_a_dry_run(dry_run):
    _, text = dry_run
    lines = [line for line in text.splitlines() if line.startswith(("tiny", " "))]
    assert any("tight loop" in line and "native (CPU)" in line for line in lines)
    assert "failed parts: none" in text


def test_a_part_that_fails_is_kept_and_the_next_runs(tmp_path):
    report = gpu_suite.Report(tmp_path / "a.json", {})
    report.part("bad", lambda rows: rows.append(1 / 0))
    report.part("good", lambda rows: rows.append(1))
    data = json.loads((tmp_path / "a.json").read_text())
    assert "ZeroDivisionError" in data["bad"][0]["error"]
    assert data["good"] == [1]
    assert report.failed == ["bad"]


def test_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        gpu_suite.main(["--out", "x.json", "--only", "tests,coffee"])
    assert caught.value.code == 2
    assert "coffee" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "low", "high"), [("1M", 0.9, 1.3), ("3.2M", 3.0, 3.4),
                                                   ("12M", 11.5, 12.8)])
def test_sizes_of_the_models(name, low, high):
    assert low < gpu_measure.n_parameters(gpu_measure.make_model(name)) / 1e6 < high


def test_parity_sees_an_engine_that_is_wrong():
    from neds_rt.engines import load_engine

    bundle = gpu_measure.make_model("tiny", 20)

    class Wrong:
        def __init__(self):
            self.engine = load_engine("native", bundle)

        def reset(self):
            self.engine.reset()

        def step(self, counts, present=True):
            return self.engine.step(counts, True) * np.float32(1.01)

    assert gpu_measure.parity(Wrong(), bundle, 40) > 1e-3
