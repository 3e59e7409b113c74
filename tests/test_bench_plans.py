"""The plan benchmark builds what it says, and ends in one line when it cannot."""

import json

import pytest

from bench import plans


def test_a_row_for_every_combination(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "plans.json"
    assert plans.main(["--model", "tiny", "--precision", "fp16", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [(r["model"], r["form"]) for r in result["plans"]] == [
        ("tiny", "step"), ("tiny", "window")]
    assert result["product"] == "tensorrt-rtx"
    for row in result["plans"]:
        assert row["plan_bytes"] > row["graph_bytes"] > 10_000
        assert row["build_s"] > 0


def test_default_model_is_the_recipes():
    shape = plans.open_model("default").manifest.shape
    assert (shape.hidden, shape.layers, shape.conv, shape.recurrent) == (192, 4, 5, True)


@pytest.mark.parametrize(("option", "value"), [("--target", "sm90"), ("--product", "onnx")])
def test_bad_options_are_one_line(option, value, capsys):
    pytest.importorskip("tensorrt_rtx")
    assert plans.main([option, value]) == 2
    assert capsys.readouterr().err.count("\n") == 1
