"""`neds-rt demo` and `neds-rt bench` as a user runs them: processes, sockets, one JSON line."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle
from neds_rt.demo import UNITS
from tools.faulty_engine import SLOW, SLOW_S

ROOT = Path(__file__).resolve().parents[2]
PERCENTILES = {"p50", "p99", "p999", "max"}
MODALITIES = [
    ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s"),
    ModalityOut(name="whisker", kind="continuous", n_outputs=1, unit="a.u."),
    ModalityOut(name="choice", kind="categorical", n_outputs=2, classes=["right", "left"]),
]


def neds_rt(*arguments, terminal=None):
    return subprocess.run(
        [sys.executable, "-P", "-m", "neds_rt", *arguments], text=True, timeout=200,
        stdout=subprocess.PIPE if terminal is None else terminal, stderr=subprocess.PIPE,
    )


def last_json(done):
    assert done.stderr == ""
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    shape = Shape(hidden=16, layers=2, heads=2, mlp=32, window=25, conv=3, recurrent=True)
    made = random_bundle(shape, UNITS, MODALITIES)
    path = tmp_path_factory.mktemp("live") / "random.neds"
    write_bundle(path, session="s", subject="s", bin_size_s=0.02, shape=shape,
                 units=made.manifest.units, modalities=MODALITIES, weights=made.weights)
    return path


def test_demo_answers_every_bin(bundle):
    done = neds_rt("demo", "--model", str(bundle), "--seconds", "2", "--json")
    report = last_json(done)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert report["decodes"] == report["expected_decodes"] == 100
    assert report["invalid"] == 24  # bins before the window is full
    assert report["repeated"] == 0
    assert set(report["service_us"]) == PERCENTILES
    assert set(report["r2"]) == {"wheel", "whisker"}
    assert set(report["accuracy"]) == {"choice"}
    assert all(value < 0.5 for value in report["r2"].values())  # random weights know nothing
    assert isinstance(report["missed_deadlines"], int)
    assert report["engine"] == "native"
    assert report["machine"]["cores"] == os.cpu_count()


def test_demo_in_a_terminal_draws_and_sums_up(bundle):
    ours, theirs = os.openpty()
    drawn = []

    def read_screen():
        with os.fdopen(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):
            while part := screen.read(65536):  # Linux raises OSError when the other end is closed
                drawn.append(part)

    reader = threading.Thread(target=read_screen)
    reader.start()
    done = neds_rt("demo", "--model", str(bundle), "--seconds", "1", terminal=theirs)
    os.close(theirs)
    reader.join()
    text = b"".join(drawn).decode()
    assert (done.returncode, done.stderr) == (0, "")
    assert any("\u2801" <= character <= "\u28ff" for character in text)  # dots of a plot
    assert "50 of 50 bins decoded by native" in text


def test_demo_refuses_what_it_cannot_play(bundle, tmp_path):
    for arguments in (
        ["--seconds", "0"], ["--model", str(tmp_path / "none.neds")],
        ["--model", str(bundle), "--engine", "nonsense"],
    ):
        done = neds_rt("demo", *arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def test_bench_measures_engines_beside_the_echo(bundle):
    done = neds_rt("bench", "--model", str(bundle), "--engine",
                   "native,neds_rt.engines.native:NativeEngine", "--bins", "45", "--round", "20",
                   "--bins-per-second", "100", "--json")
    report = last_json(done)
    assert done.returncode == 0
    assert [row["engine"] for row in report["engines"]] == [
        "native", "neds_rt.engines.native:NativeEngine"
    ]
    for row in report["engines"]:
        assert row["precision"] == "float32"
        assert row["lost"] == 0
        for key in ("step_us", "service_us", "arrival_to_publish_us", "step_hot_us"):
            assert set(row[key]) == PERCENTILES
            assert 0 < row[key]["p50"] <= row[key]["p99"] <= row[key]["p999"] <= row[key]["max"]
        # What is inside takes no longer than what is around it.
        assert row["service_us"]["p50"] < row["arrival_to_publish_us"]["p50"]
    assert set(report["echo_us"]) == PERCENTILES
    assert report["rounds"] == 3
    assert report["missed"] == sum(row["late"] + row["lost"] for row in report["engines"])
    assert report["model"]["units"] == UNITS
    assert report["machine"]["cpu"]


def test_bench_measures_a_slow_engine_and_not_what_would_take_over(bundle, tmp_path, monkeypatch):
    fault = tmp_path / "fault"
    fault.write_bytes(bytes([SLOW, *bytes(7)]))
    monkeypatch.setenv("NEDS_FAULT", str(fault))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = neds_rt("bench", "--model", str(bundle), "--engine", "tools.faulty_engine:FaultyEngine",
                   "--bins", "40", "--round", "20", "--json")
    row = last_json(done)["engines"][0]
    # Every one of them: a server that may replace its engine does so after a few such steps.
    assert row["lost"] == 0
    assert row["step_us"]["p50"] >= SLOW_S * 1e6


def test_bench_makes_a_synthetic_model_with_its_graph():
    done = neds_rt("bench", "--synthetic", "hidden=16,layers=1,heads=2,mlp=16,units=20,window=10,"
                   "recurrent=0", "--engine", "onnx", "--bins", "20", "--bins-per-second", "100",
                   "--json")
    report = last_json(done)
    assert report["model"]["synthetic"] is True
    assert report["model"]["hidden"] == 16
    assert report["model"]["recurrent"] is False
    assert report["engines"][0]["service_us"]["p50"] > 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--synthetic", "wide=3"], "wide"),
        (["--synthetic", "hidden=big"], "hidden"),
        (["--synthetic", "hidden=30,heads=4"], "heads"),
        (["--synthetic", "recurrent=2"], "0 or 1"),
        (["--bins", "0"], "--bins"),
        (["--engine", "native,"], "--engine"),
        (["--engine", "no.such:Engine", "--bins", "10"], "no.such"),
        (["--model", "none.neds"], "none.neds"),
    ],
)
def test_bench_refuses_in_one_line(arguments, text):
    done = neds_rt("bench", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert text in done.stderr
