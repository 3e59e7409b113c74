"""`bench/floor.py`: what it takes for the bytes of a step, and that it runs."""

import json

import pytest

from bench import floor
from bench.output import as_text
from neds_rt.bundle import ModalityOut, Shape, random_bundle


def test_bytes_of_a_step_are_those_of_its_weights_and_rings():
    shape = Shape(hidden=8, layers=1, heads=2, mlp=16, window=5)
    bundle = random_bundle(shape, 10, [ModalityOut("wheel", "continuous", 1)])
    matrices, rows = 8 * (24 + 8 + 16) + 16 * 8, 24 + 8 + 16 + 8
    vectors = 3 * 8 + rows + 4 * 8 + 2 * 8 + 8 + 1  # input, biases, norms, heads
    ring = 2 * 5 * 8
    found = {p: floor.bytes_of_step(bundle, p, active=2.0) for p in ("float32", "bf16", "int8")}
    assert found["float32"] == 4 * (matrices + vectors + ring + 16)
    assert found["bf16"] == 2 * (matrices + ring + 16) + 4 * vectors
    assert found["int8"] == matrices + 16 + 4 * rows + 2 * ring + 4 * vectors


def test_it_measures_every_precision(capsys):
    assert floor.main(["--sizes", "hidden=16,layers=1,heads=2,mlp=16,window=5,units=10",
                       "--rounds", "1", "--paced", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["precision"] for row in report["precisions"]] == ["float32", "bf16", "int8"]
    for row in report["precisions"]:
        assert set(row["us"]) == {"read", "step", "read_cold", "step_cold", "step_warmed"}
        assert all(0 < t["min"] <= t["p50"] <= t["p99"] for t in row["us"].values())


@pytest.mark.parametrize("text", ["hidden", "wide=3", "hidden=-1"])
def test_it_refuses_other_sizes(text):
    with pytest.raises(SystemExit, match="--sizes"):
        floor.main(["--sizes", text])


def test_results_are_written_a_line_a_row_and_read_back_as_they_were():
    result = {"command": "a  b", "rows": [{"name": "x  {y}", "value": 1.5}, {"name": "z\n"}],
              "machine": {"versions": {"numpy": "2"}}, "nothing": {}}
    text = as_text(result)
    assert json.loads(text) == result
    assert '{ "name": "z\\n" }' in text
