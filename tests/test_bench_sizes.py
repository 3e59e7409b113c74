"""Cost against size: sizes that are varied one at a time, turns, the file, what is refused."""

import json

import pytest

from bench import sizes
from neds_rt.engines import load_engine
from neds_rt.latency.random_model import MODALITIES, make_random, parse_sizes
from neds_rt.latency.steps import fill_window, make_rows, paced_us, summary, tight_us

SMALL = {"units": 30, "window": 12, "hidden": 64}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("sizes") / "sizes.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "BASE", SMALL)
        assert sizes.main(["--units", "20,30", "--window", "6", "--hidden", "32", "--layers", "1",
                           "--rounds", "2", "--paced", "3", "--tight", "5", "--period", "0.001",
                           "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_one_size_is_varied_at_a_time(report):
    found = [(r["units"], r["window"], r["hidden"], r["name"]) for r in report["rows"]]
    points = [(30, 12, 64), (20, 12, 64), (30, 6, 64), (30, 12, 32)]
    assert found == [(*point, engine) for point in points for engine in ("native", "onnx")]
    assert report["base"] == SMALL
    assert report["command"].startswith("python bench/sizes.py")


def test_every_row_has_all_turns(report):
    for row in report["rows"]:
        assert row["step_us"]["steps"] == 2 * 3  # those that settle are not counted
        assert row["step_hot_us"]["steps"] == 2 * 5
        assert 0 < row["step_us"]["p50"] <= row["step_us"]["p999"]
    by_width = {r["hidden"]: r["parameters"] for r in report["rows"] if r["units"] == 30}
    assert by_width[64] > by_width[32]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--units", "0"], "--units"),
        (["--hidden", "100"], "multiples of 32"),
        (["--window", "many"], "many"),
        (["--rounds", "0"], "--rounds"),
        (["--engine", "coffee", "--layers", "1"], "coffee"),
    ],
)
def test_refuses_in_one_line(arguments, text, capsys):
    assert sizes.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error


def test_steps_are_stopped_by_number_and_by_time():
    bundle = make_random(parse_sizes("hidden=32,layers=1,heads=1,mlp=32,units=10,window=5"), 0.02)
    assert [m.name for m in bundle.manifest.modalities] == [m.name for m in MODALITIES]
    engine, rows = load_engine("native", bundle), make_rows(bundle, 10.0, 7)
    assert len(rows) == 7
    fill_window(engine, bundle, rows)
    assert len(tight_us(engine, rows, 20, 60.0)) == 20
    assert len(tight_us(engine, rows, 20, 0.0)) == 1  # the step that finds the time over
    assert len(paced_us(engine, rows, 4, 0.001, 0.0004)) == 4
    assert summary([]) == {"steps": 0}
