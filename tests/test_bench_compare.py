"""The comparison with other makes: a real run of few bins, its parts, and what it refuses."""

import json
import os
import time

import numpy as np
import pytest

pytest.importorskip("torch")

from bench import compare
from bench.competitors.script import Script, Window
from bench.competitors.window_model import WindowModel
from neds_rt.bundle import ModalityOut, Shape, random_bundle
from neds_rt.latency.report import Seen, above_echo, engine_row, values_of
from neds_rt.machine import cpu_seconds
from neds_rt.stats import percentiles
from neds_rt.wire import SPIKE_DTYPE, SpikeHeader, decode_message, encode_spikes

SIZES = "hidden=16,layers=1,heads=2,mlp=16,units=20,window=10"
PERCENTILES = {"p50", "p99", "p999", "max"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All alternatives that are installed, and one whose package does not exist."""
    out = tmp_path_factory.mktemp("compare") / "deep" / "compare.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        patch.setitem(compare.ALTERNATIVES, "nobody", compare.Alternative(("torch", "no_such")))
        names = [*filter(lambda n: compare.missing_package(n) is None, compare.ALTERNATIVES)]
        if "ezmsg_torch" in names:  # the same decoder; importing torch once less is worth it
            names.remove("zmq_torch")
        code = compare.main(["--synthetic", SIZES, "--engine", "native", "--bins", "12", "--round",
                             "6", "--against", ",".join([*names, "nobody"]), "--out", str(out)])
    return code, json.loads(out.read_text()), names


def test_every_server_answers_every_bin_with_the_same_outputs(run):
    code, report, names = run
    assert code == 0
    assert [row["name"] for row in report["engines"]] == ["native", *names]
    assert [row["kind"] for row in report["engines"]] == ["engine"] + ["alternative"] * len(names)
    for row in report["engines"]:
        assert row["lost"] == 0
        assert row["difference"] < 1e-5
        assert row["precision"] == "float32"
        for key in ("step_us", "service_us", "arrival_to_publish_us"):
            assert set(row[key]) == PERCENTILES
            assert 0 < row[key]["p50"] <= row[key]["p99"] <= row[key]["p999"] <= row[key]["max"]
        assert row["cpu_us_a_bin"] > 0
        assert set(row["above_echo"]) == {"median_us", "median_steps", "tail_ratio", "within"}


def test_what_is_not_installed_is_a_row_of_its_own(run):
    _, report, _ = run
    assert report["not_installed"] == [{"name": "nobody", "package": "no_such"}]


def test_file_says_how_it_was_made(run):
    _, report, _ = run
    assert report["command"].startswith("python bench/compare.py")
    assert report["machine"]["cores"] >= 1
    assert "torch" in report["versions"]
    assert report["model"]["hidden"] == 16
    assert report["rounds"] == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--against", "coffee"], "coffee"),
        (["--bins", "0"], "--bins"),
        (["--synthetic", "wide=3"], "wide"),
        (["--model", "none.neds"], "none.neds"),
    ],
)
def test_refuses_in_one_line(arguments, text, capsys):
    assert compare.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert text in error


def test_window_holds_the_last_bins_newest_last():
    window = Window(4, 3)
    rng = np.random.default_rng(0)
    pushed = []
    for _ in range(11):
        spikes = np.zeros(5, SPIKE_DTYPE)
        spikes["unit"] = rng.integers(0, 3, 5)
        pushed.append(np.bincount(spikes["unit"], minlength=3))
        found = window.push(spikes.tobytes())
        assert found.shape == (4, 3)
        held = np.array(pushed[-4:])
        np.testing.assert_array_equal(found[-len(held):], held)


def test_script_answers_with_a_decode_of_the_frames_bin():
    bundle = random_bundle(
        Shape(hidden=16, layers=1, heads=2, mlp=16, window=3), 4,
        [ModalityOut("wheel", "continuous", 2),
         ModalityOut("choice", "categorical", 2, classes=["left", "right"])])
    outputs = np.array([0.5, -1.0, 0.25, 0.75], np.float32)
    script = Script(bundle.manifest, lambda window: outputs, "float32")
    for k in range(3):
        header = SpikeHeader(version=1, stream="probe00", session="s", seq=k, t0_sample=600 * k,
                             watermark=600 * (k + 1), fs=30_000.0, sent_mono_ns=1, sent_real_ns=1,
                             n_spikes=0)
        frame = encode_spikes(header, np.zeros(0, SPIKE_DTYPE))
        raw = script.answer(*frame, time.monotonic_ns())
        decode = decode_message(raw)
        assert (decode.bin, decode.seq, decode.valid) == (k, k, k == 2)
    assert decode.values["wheel"].mean == [0.5, -1.0]
    assert decode.values["choice"].label == "right"
    np.testing.assert_array_equal(values_of(raw), outputs)
    assert script.summary()["latency"]["step_us"]["p50"] > 0


def test_window_model_is_the_batch_computation():
    torch = pytest.importorskip("torch")
    bundle = random_bundle(Shape(hidden=16, layers=2, heads=2, mlp=16, window=6, recurrent=True), 5,
                           [ModalityOut("wheel", "continuous", 2)])
    counts = torch.arange(30.0).view(1, 6, 5) % 4
    model = WindowModel(bundle)
    with torch.no_grad():
        found = model(counts)
        every_bin = model.decoder(counts, torch.zeros(1, 6, dtype=torch.bool))
    assert every_bin.shape == (1, 6, 2)
    torch.testing.assert_close(found, every_bin[0, -1])


def row_of(arrival, step):
    return {"arrival_to_publish_us": dict.fromkeys(PERCENTILES, arrival),
            "step_us": dict.fromkeys(PERCENTILES, step)}


@pytest.mark.parametrize(("arrival", "steps", "ratio", "within"), [
    (1100.0, 1.0, 1.1, True), (1160.0, 1.6, 1.16, False), (1300.0, 3.0, 1.3, False)])
def test_what_is_above_the_echo(arrival, steps, ratio, within):
    echo = dict.fromkeys(PERCENTILES, 1000.0)
    found = above_echo(row_of(arrival, 100.0), echo)
    assert found == {"median_us": arrival - 1000, "median_steps": pytest.approx(steps),
                     "tail_ratio": pytest.approx(ratio), "within": within}
    assert above_echo(row_of(arrival, 100.0), None) is None


def test_difference_is_of_the_largest_output():
    echo = Seen("echo", arrival_us=[10.0])
    first = Seen("a", arrival_us=[20.0], full_window=np.array([1.0, -4.0]))
    other = Seen("b", arrival_us=[20.0], full_window=np.array([1.2, -4.0]))
    summary = {"precision": "float32", "latency": {"step_us": percentiles(np.ones(3))}}
    assert engine_row(other, summary, echo, first)["difference"] == pytest.approx(0.05)
    assert engine_row(Seen("c", arrival_us=[1.0]), summary, echo, first)["difference"] is None


def test_cpu_seconds_count_work_and_not_waiting():
    before = cpu_seconds(os.getpid())
    if before is None:
        pytest.skip("only Linux says")
    time.sleep(0.2)
    waited = cpu_seconds(os.getpid())
    sum(i * i for i in range(1_000_000))
    worked = cpu_seconds(os.getpid())
    assert waited - before < worked - waited
    assert cpu_seconds(2**22 + 1) is None  # above the largest process id
