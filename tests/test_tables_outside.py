"""Tables of the wheel and of BrainWideBench's scorer, on small made results."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.tables import outside

ROOT = Path(__file__).parents[1]


def wheel_result(**more):
    return {"wheel": "neds-0.1.0-cp311-manylinux.whl", "bytes": 1_250_000, "seconds": 5.0,
            "runs_on": "manylinux_2_35_x86_64", "compilers": [], "decodes": 250,
            "expected_decodes": 250, "r2": {"wheel": 0.91734, "whisker": 0.8},
            "machine": {"system": "Linux"}, "commit": "0123456789abcdef", **more}


def bwb_result():
    def row(task, metric, seed, ours, scorer, difference=0.0):
        return {"label": "neds", "task": task, "recording": "r", "seed": seed, "metric": metric,
                "ours": ours, "scorer": scorer, "difference": difference}

    return {"files": 3, "synthetic": True, "largest_difference": 2e-7, "tolerance": 1e-6,
            "scorer_versions": {"ibl-bwb-eval": "0.1.0", "torch": "2.13.0"},
            "rows": [row("ts1-wheel_speed", "r2", 43, 0.4, 0.4000002, 2e-7),
                     row("ts1-wheel_speed", "r2", 44, 0.6, 0.6),
                     row("ts1-choice", "bacc", 43, None, None)]}


def test_the_wheel():
    bare, windows = outside.wheel_table(
        [wheel_result(), wheel_result(runs_on="", compilers=["cl"], r2={}, decodes=249,
                                      machine={"system": "Windows"})]).splitlines()[2:]
    assert bare == ("| `neds-0.1.0-cp311-manylinux.whl` | manylinux_2_35_x86_64 | 1.2 | none | "
                    "250 of 250 | wheel 0.917, whisker 0.800 |")
    assert windows.endswith("| Windows | 1.2 | cl | 249 of 250 | – |")


def test_the_scorer():
    words, *table = outside.bwb_table([bwb_result()]).split("\n\n")
    assert words == ("3 files of synthetic animals by ibl-bwb-eval 0.1.0 with torch 2.13.0: the "
                     "largest difference is 2e-07, 1e-06 are allowed.")
    assert table[0].splitlines()[2:] == [
        "| ts1-choice | bacc | 1 | – | – | 0e+00 |",
        "| ts1-wheel_speed | R² | 2 | 0.5000 | 0.5000 | 2e-07 |"]


@pytest.mark.parametrize(("kind", "made"), [("wheel", wheel_result()), ("bwb", bwb_result())])
def test_they_go_to_their_place(kind, made, tmp_path):
    (tmp_path / f"{kind}.json").write_text(json.dumps(made))
    page = tmp_path / "page.md"
    page.write_text(f"Words.\n\n<!-- {kind}: to come -->\nNot yet.\n<!-- end: {kind} -->\n")
    tables = importlib.import_module("tools.make_tables")
    assert tables.main(["--results", str(tmp_path), "--readme", str(page)]) == 0
    text = page.read_text()
    assert f"<!-- {kind}: from bench/results ({kind}.json" in text
    assert "Not yet." not in text


@pytest.mark.parametrize("program", ["check_wheel", "bwb_score", "make_tables"])
def test_each_runs_as_a_program_from_anywhere(program, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tools" / f"{program}.py", "--help"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout or "--results" in done.stdout
