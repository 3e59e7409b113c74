"""The programs that write the README's tables and pictures, on small made results."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from neds_rt.errors import BadInput

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables():
    return importlib.import_module("tools.make_tables")


@pytest.fixture
def pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield importlib.import_module("make_pictures")
    for name in ("make_pictures", "make_tables"):
        sys.modules.pop(name, None)


def accuracy_result():
    values = {
        ("b", "ridge", 0): 0.5, ("a", "ridge", 0): 0.6,
        ("b", "gru", 101): 0.7, ("b", "gru", 102): 0.72,
        ("b", "neds", 101): 0.70, ("b", "neds", 102): 0.74,
        ("a", "neds", 101): 0.80, ("a", "neds", 102): 0.80,
    }
    rows = [{"session": s, "model": m, "seed": seed, "modality": "velocity", "metric": "r2",
             "value": v} for (s, m, seed), v in values.items()]
    rows.append({**rows[0], "metric": "correlation", "value": 0.123})
    rows.append({**rows[0], "session": "c", "value": float("nan")})
    return {"rows": rows, "commit": "0123456789abcdef"}


def latency_result():
    def figure(p50):
        return {"p50": p50, "p99": 2 * p50, "p999": 3 * p50, "max": 4 * p50}

    def engine(name, us, late):
        keys = ("arrival_to_publish_us", "service_us", "step_us", "step_hot_us")
        return {"engine": name, "late": late,
                **{k: figure(us / (i + 1)) for i, k in enumerate(keys)}}

    return {
        "engines": [engine("native", 400.0, 1), engine("neds.torch_engine:EagerWindow", 9e4, 99)],
        "echo_us": figure(120.0), "bins": 100, "commit": None,
        "model": {"units": 600, "hidden": 128, "layers": 5, "window": 100},
    }


README = """# Title

<!-- accuracy: to come -->
| old | table |
|---|---|
| x | – |

Words between.

<!-- latency: to come -->
| old |
|---|

Words after | with a bar.
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "accuracy-made.json").write_text(json.dumps(accuracy_result(), indent=1))
    # Kept as printed: JSON is the last line.
    (tmp_path / "latency.json").write_text("words first\n" + json.dumps(latency_result()) + "\n")
    return tmp_path


def run(module, folder, *words):
    return module.main(["--results", str(folder), *words])


def test_tables_are_written_between_the_words(tables, folder):
    readme = folder / "README.md"
    for _ in range(2):  # again gives the same
        assert run(tables, folder, "--readme", str(readme)) == 0
        text = readme.read_text()
        accuracy = [line for line in text.splitlines() if line.startswith("|")][:5]
        assert accuracy == [
            "| velocity R² | ridge | GRU | NEDS |",
            "| --- | --: | --: | --: |",
            "| a | 0.600 | – | 0.800 ± 0.000 |",
            "| b | 0.500 | 0.710 ± 0.014 | 0.720 ± 0.028 |",
            "| **mean of 2 sessions** | **0.550** | – | **0.760 ± 0.014** |",
        ]
        assert "<!-- accuracy: from bench/results (accuracy-made.json at 0123456789ab)" in text
        assert "Words between.\n\n<!-- latency: " in text
        assert text.endswith("\nWords after | with a bar.\n")
        assert "old" not in text
    assert [p.name for p in folder.glob(".*")] == []


def test_latency_has_a_row_per_figure_in_milliseconds(tables):
    lines = tables.latency_table([latency_result()]).splitlines()
    assert lines[0].startswith("| 600 units, width 128, 5 layers, window 100; milliseconds |")
    assert lines[2] == "| echo, arrival to publish | 0.120 | 0.240 | 0.360 | 0.480 |"
    assert lines[3] == "| native, arrival to publish | 0.400 | 0.800 | 1.200 | 1.600 |"
    assert lines[4] == "| native, service | 0.200 | 0.400 | 0.600 | 0.800 |"
    assert [line.split(" | ")[0] for line in lines[5:7]] == [
        "| native, step, paced", "| native, step, tight loop"]
    # Slower than the pace: its arrivals say how long the run was, not how late a decode is.
    assert lines[7] == "| eager torch recomputing the window, arrival to publish | – | – | – | – |"
    assert lines[8].startswith("| eager torch recomputing the window, service | 45.000 |")


def test_several_sets_have_a_mean_each(tables):
    results = [{**accuracy_result(), "name": name} for name in ("one", "two")]
    text = tables.accuracy_table(results, "velocity.r2")
    assert "mean of 2 sessions, one" in text
    assert "mean of 2 sessions, two" in text
    with pytest.raises(BadInput, match=r"wheel\.r2"):
        tables.accuracy_table(results, "wheel.r2")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda f: (f / "README.md").write_text("no marker"), "accuracy"),
        (lambda f: (f / "latency.json").write_text("no JSON"), "latency.json"),
        (lambda f: [p.unlink() for p in f.glob("*.json")], "none"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(tables, folder, capsys, spoil, named):
    spoil(folder)
    readme = folder / "README.md"
    before = readme.read_text()
    assert run(tables, folder, "--readme", str(readme)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert readme.read_text() == before


def test_the_front_page_has_both_places(tables):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind in ("accuracy", "latency"):
        assert "| new |" in tables.replace_table(text, kind, "made", "| new |\n", "README.md")


def test_pictures_of_results(pictures, folder, capsys):
    assert run(pictures, folder, "--demo-seconds", "0") == 0
    for name in ("accuracy.svg", "latency.svg"):
        assert (folder / name).read_text().startswith("<?xml")
    (folder / "latency.json").unlink()
    assert run(pictures, folder, "--demo-seconds", "0") == 0
    assert "latency" in capsys.readouterr().err


def test_a_still_of_the_demo(pictures):
    svg = pictures.demo_svg(2.0)
    assert svg.startswith("<svg")
    for word in ("wheel", "decoded", "latency"):
        assert word in svg
