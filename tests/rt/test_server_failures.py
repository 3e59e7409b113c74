"""How a server ends when its engine fails, and that no start-up failure ends in a traceback."""

import numpy as np
import pytest

from neds_rt.bundle import read_bundle, write_bundle
from tests.rt.failing_engine import GOOD_STEPS
from tests.rt.serving import Publisher, Serving, fail, outputs, small_bundle
from tests.rt.spike_frames import Sender

BIN = 600
ENGINES = "tests.rt.failing_engine:"


@pytest.fixture
def model(tmp_path):
    return small_bundle(tmp_path / "x.neds")


@pytest.fixture
def uri(tmp_path):
    return f"zmq+ipc://{tmp_path}/probe"


def serve_until_failure(model, uri, engine, n_decodes):
    """Send bins to an engine that fails; returns (last message, summary, lines on stderr)."""
    options = (f"--engine={ENGINES}{engine}", "--fail-over=off")
    with Publisher(uri) as probe, Serving(model, {"a": uri}, *options) as server:
        probe.wait()
        send = Sender()
        probe.send(*(send.frame(k * BIN, (k + 1) * BIN, [k * BIN], [0]) for k in range(12)))
        decodes = server.decodes(n_decodes + 1)
        summary = server.end(None, code=4)
    assert [d.bin for d in decodes] == [*range(n_decodes), -1]
    assert all(np.isfinite(outputs(d)).all() for d in decodes[:-1])
    return decodes[-1], summary, server.lines


def test_an_engine_that_raises_ends_the_server_with_a_last_invalid_decode(model, uri):
    last, summary, lines = serve_until_failure(model, uri, "RaisingEngine", GOOD_STEPS)
    assert (last.reason, last.valid) == ("engine failed", False)
    assert np.isnan(outputs(last)).all()
    assert last.values["choice"].label == ""
    failure = "engine raising failed: RuntimeError: the device is gone"
    assert lines[1:] == [f"neds-rt serve: {failure}"]
    assert summary["failure"] == failure
    assert summary["decodes"] == GOOD_STEPS
    assert summary["reasons"]["engine failed"] == 1
    assert summary["latency"]["step_us"]["p50"] > 0


def test_outputs_of_another_shape_end_the_server_too(model, uri):
    last, summary, lines = serve_until_failure(model, uri, "WrongOutputs", 0)
    assert last.reason == "engine failed"
    assert "n_outputs" in summary["failure"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("engine", "code", "text"),
    [
        (ENGINES + "RaisingWarm", 3, "engine native failed: OSError: no such device"),
        (ENGINES + "Unbuildable", 3, "No module named 'no_such_package_anywhere'"),
        (ENGINES + "Shapeless", 2, "found no name, precision, n_units"),
        (ENGINES + "Missing", 2, "an importable engine"),
        ("tests.rt.broken_module:Engine", 2, "an importable engine"),
    ],
)
def test_an_engine_that_cannot_start_is_one_line(model, uri, engine, code, text):
    found, err = fail(f"--probe=a={uri}", f"--model={model}", f"--engine={engine}",
                      "--out=tcp://127.0.0.1:*")
    assert (found, err.count("\n")) == (code, 1), err
    assert text in err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_not_installed_is_one_line(model, uri, tmp_path, monkeypatch, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{package}'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, err = fail(f"--probe=a={uri}", f"--model={model}", "--engine=onnx",
                     "--out=tcp://127.0.0.1:*")
    assert (code, err.count("\n")) == (3, 1), err
    assert f"'{package}'" in err


def test_a_graph_that_onnx_runtime_refuses_is_one_line(model, uri, tmp_path):
    m, weights = read_bundle(model).manifest, read_bundle(model).weights
    write_bundle(tmp_path / "bad.neds", session=m.session, subject=m.subject,
                 bin_size_s=m.bin_size_s, shape=m.shape, units=m.units, modalities=m.modalities,
                 weights=weights, files={"model.onnx": b"no graph"})
    code, err = fail(f"--probe=a={uri}", f"--model={tmp_path / 'bad.neds'}", "--engine=onnx",
                     "--out=tcp://127.0.0.1:*")
    assert (code, err.count("\n")) == (2, 1), err
    assert "model.onnx" in err


@pytest.mark.parametrize("damage", ["cut short", "not a zip", "a folder", "empty", "one bit"])
def test_a_bundle_that_cannot_be_read_is_one_line(model, uri, damage):
    raw = bytearray(model.read_bytes())
    if damage == "a folder":
        model.unlink()
        model.mkdir()
    else:
        raw[len(raw) // 2] ^= 1
        model.write_bytes({"cut short": raw[: len(raw) // 2], "not a zip": b"what is this",
                           "empty": b"", "one bit": raw}[damage])
    code, err = fail(f"--probe=a={uri}", f"--model={model}", "--out=tcp://127.0.0.1:*")
    assert (code, err.count("\n")) == (2, 1), err
    assert str(model) in err
