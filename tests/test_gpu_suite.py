"""The GPU suite where there is no GPU: arguments, models, timing, parity, the file it writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools import gpu_measure, gpu_plan, gpu_suite

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "deep" / "dry.json"
    words = [sys.executable, str(ROOT / "tools/gpu_suite.py"), "--dry-run", "--out", str(out),
             "--only", ",".join(gpu_suite.PARTS), "--commit", "abc"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_file_of_a_dry_run(dry_run):
    data, _ = dry_run
    assert data["dry_run"] is True
    assert data["commit"] == "abc"
    assert "--dry-run" in data["command"]
    assert data["machine"]["cores"] >= 1
    assert set(data["seconds"]) == set(gpu_suite.PARTS)
    assert data["tests"][-1].get("failed", 0) == 0
    assert sum(data["tests"][-1].get(word, 0) for word in ("passed", "skipped")) > 10
    floor = {row["name"]: row["value"] for row in data["floor"]}
    assert 0 < floor["floor_us_tiny_bfloat16"] < floor["floor_us_tiny_float32"]
    assert len(data["engines"]) == len(gpu_plan.dry_run())
    for row in data["engines"]:
        assert row["parity"] < (1e-5 if row["precision"] == "float32" else 0.1)
        assert 0 < row["step_us"]["p50"] <= row["step_us"]["p99"] <= row["step_us"]["max"]
        assert row["paced_us"]["steps"] == 20
    native = data["engines"][0]
    assert (native["engine"], native["parity"], native["step_us"]["steps"]) == (
        "native (CPU)", 0.0, 200)
    assert [(r["steps"], r["period_s"], r["warm_every_s"]) for r in data["paced"]] == [
        (20, 0.001, 0.0), (20, 0.001, 0.0005)]


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


@pytest.mark.parametrize("option", ["--only", "--models"])
def test_unknown_names_are_refused(capsys, option):
    with pytest.raises(SystemExit) as caught:
        gpu_suite.main(["--out", "x.json", option, "coffee"])
    assert caught.value.code == 2
    assert "coffee" in capsys.readouterr().err


def test_budgets_leave_time_to_build():
    parts = [gpu_plan.BUDGETS_S[p] for p in gpu_suite.PARTS if p != "spread"]
    assert sum(parts) + 80 <= gpu_suite.parse(["--out", "x"]).limit_s < 9 * 60


@pytest.mark.parametrize("quick", [False, True])
def test_most_wanted_comes_first_and_nothing_twice(quick):
    chosen = gpu_plan.wanted(["3.2M", "1M", "12M"], quick)
    names = [(w.model, w.candidate.name, w.candidate.form, w.candidate.precision) for w in chosen]
    assert len(set(names)) == len(names)
    assert names[0] == ("3.2M", "cuda", "step", "bfloat16")
    for model in ("3.2M", "1M", "12M"):
        engines = {(name, form) for m, name, form, _ in names if m == model}
        assert {("cuda", "step"), ("tensorrt_rtx", "step"), ("torch cudagraph", "step")} <= engines
    if quick:
        return
    assert chosen[0].steps == 20_000
    assert {form for m, _, form, _ in names if m == "12M"} == {"step", "window"}
    compiled = [i for i, name in enumerate(names) if "compile" in name[1]]
    assert [names[i][0] for i in compiled] == ["12M", "3.2M"]
    # What the targets are about fits even when building took its time.
    assert sum(w.seconds for w in chosen[: compiled[0] + 1]) < 1.3 * gpu_plan.BUDGETS_S["engines"]


def test_paced_steps_are_fewer_when_time_is_short():
    one = gpu_plan.Wanted("3.2M", gpu_measure.native_candidate(), 20_000, 0.001, build_s=2.0)
    assert one.steps_within(100.0) == 20_000
    assert one.steps_within(one.fixed_s + 5.0) == 5000
    assert one.steps_within(one.fixed_s + 1.0) is None
    few = gpu_plan.Wanted("3.2M", gpu_measure.native_candidate(), 500, 0.005)
    assert few.steps_within(few.fixed_s + 2.6) == 500
    assert few.steps_within(few.fixed_s + 2.0) is None


def test_an_engine_without_time_is_a_row_that_says_so(capsys, monkeypatch):
    from tools import gpu_parts

    monkeypatch.setattr(gpu_parts, "wanted", lambda *_: gpu_plan.dry_run()[:1])
    monkeypatch.setattr(gpu_parts, "make_model", lambda name, units: gpu_measure.make_model(
        "tiny", 20))
    args = gpu_suite.parse(["--out", "x"])
    rows = []
    gpu_parts.engines(args, rows, gpu_plan.Budget(0.0))
    (row,) = rows
    assert row["engine"] == "native (CPU)"
    assert row["error"].startswith("no time left")
    assert "step_us" not in row


def test_bytes_of_a_step_leave_out_the_input_matrix():
    bundle = gpu_measure.make_model("tiny", 20)
    matrix = bundle.weights["input.weight"].size
    rings = 2 * 4 * 2 * 10 * 16  # keys and values, float32, layers, bins, width
    expected = 2 * (gpu_measure.n_parameters(bundle) - matrix) + rings
    assert gpu_measure.step_bytes(bundle, 2) == expected


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
