"""Parts of the demo that need no server: the synthetic probe, the score keeping, the pictures."""

import io
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from rich.console import Console

from neds_rt.bundle import ModalityOut, Shape, random_bundle
from neds_rt.children import Child
from neds_rt.demo.plot import bar, curve_dots, plot
from neds_rt.demo.state import DemoState
from neds_rt.demo.view import render
from neds_rt.errors import StartError
from neds_rt.sources.synthetic import synthetic_blocks
from neds_rt.synthetic import SyntheticAnimal
from neds_rt.wire import SPIKE_DTYPE, Decode, Value, decode_header

UNITS, SECONDS = 30, 4.0
MODALITIES = [
    ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s"),
    ModalityOut(name="choice", kind="categorical", n_outputs=2, classes=["right", "left"]),
]


@pytest.fixture(scope="module")
def animal():
    return SyntheticAnimal(3, UNITS)


@pytest.fixture
def state(animal):
    shape = Shape(hidden=16, layers=1, heads=2, mlp=16, window=10)
    manifest = random_bundle(shape, UNITS, MODALITIES).manifest
    return DemoState(manifest, animal, 5, SECONDS)


def message(state, row, pub_ns=10**9, *, wheel=None, valid=True, reason="ok", bin=None):
    truth = float(state.truth["wheel"][row])
    code = state.truth["choice"][row]
    p = [0.9, 0.1] if code == 0 else [0.1, 0.9]
    return Decode(
        v=1, seq=row, session="s", bin=row if bin is None else bin, t_s=0.0, spike_age_us=0.0,
        service_us=100.0 + row, recv_ns=0, pub_ns=pub_ns, model="", valid=valid, reason=reason,
        values={"wheel": Value(mean=[truth if wheel is None else wheel]), "choice": Value(p=p)},
    )


def test_blocks_hold_the_whole_session(animal):
    recording = animal.simulate(SECONDS, 5)
    parts = synthetic_blocks(animal, 5, SECONDS, 300)
    assert [(b.t0, b.watermark) for b in parts] == [(i * 300, i * 300 + 300) for i in range(400)]
    joined = np.concatenate([b.spikes for b in parts])
    np.testing.assert_array_equal(joined["sample"], recording.sample)
    np.testing.assert_array_equal(joined["unit"], recording.unit)
    for b in parts:
        assert len(b.spikes) == 0 or b.t0 <= b.spikes["sample"][0] <= b.spikes["sample"][-1]
        assert len(b.spikes) == 0 or b.spikes["sample"][-1] < b.watermark


def test_probe_process_plays_what_the_client_draws(animal):
    with Child("probe", "neds_rt.sources.synthetic", "--animal", "3", "--units", str(UNITS),
               "--session", "5", "--seconds", "0.4", "--stream", "p") as probe:
        uri = probe.json(60)["uri"]
        context = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVTIMEO, 20_000)
        socket.subscribe(b"")
        socket.connect(uri.removeprefix("zmq+"))
        probe.tell({"go": True})
        frames = [socket.recv_multipart() for _ in range(40)]
        socket.close(0)
        context.term()
        start = probe.json(20)["start_ns"]
        report = probe.finish(20)
    headers = [decode_header(header) for header, _ in frames]
    spikes = np.concatenate([np.frombuffer(payload, SPIKE_DTYPE) for _, payload in frames])
    np.testing.assert_array_equal(spikes["sample"], animal.simulate(0.4, 5).sample)
    assert headers[-1].watermark == report["last_watermark"] == 12_000
    assert all(h.sent_mono_ns >= start + h.watermark / 30_000 * 1e9 - 1 for h in headers)


def test_truth_is_the_session_played(state, animal):
    recording = animal.simulate(SECONDS, 5)
    np.testing.assert_array_equal(state.truth["wheel"], recording.steps.wheel)
    assert state.bins == recording.n_steps == 200


def test_scores_of_a_perfect_and_a_constant_decoder(state):
    for row in range(state.bins):
        state.add(message(state, row))
    assert state.scores()["r2"]["wheel"] == 1.0
    assert state.scores()["accuracy"]["choice"] == 1.0
    assert state.decodes == 200
    assert state.scores()["service_us"]["max"] == 299.0
    state.decoded["wheel"][:] = state.truth["wheel"].mean()
    assert state.r2("wheel") == pytest.approx(0.0, abs=1e-3)


def test_counters_tell_late_lost_repeated_and_invalid_apart(state):
    state.start_ns = 10**12
    due = state.due_ns()
    assert due[0] == 10**12 + 20_000_000
    state.add(message(state, 0, int(due[0]) + 1_000_000, valid=False, reason="warming up"))
    state.add(message(state, 1, int(due[1]) + 19_000_000))
    state.add(message(state, 2, int(due[2]) + 21_000_000))
    state.add(message(state, 2, int(due[2]) + 22_000_000))
    state.add(message(state, 3, int(due[3]), valid=False, reason="stale", bin=-1))
    state.add(message(state, 4, int(due[4]), bin=10_000))
    assert state.decodes == 3
    assert state.missed(4) == 2  # bin 2 late, bin 3 lost
    scores = state.scores()
    assert (scores["invalid"], scores["repeated"]) == (1, 1)
    assert scores["spike_to_publish_us"]["max"] == 21_000.0


@pytest.mark.parametrize("rows", [0, 1, 150])
@pytest.mark.parametrize("width", [30, 120])
def test_view_draws_at_every_stage(state, rows, width):
    for row in range(rows):
        state.add(message(state, row, wheel=0.5 * row))
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(render(state, "native", SECONDS, width))
    text = console.file.getvalue()
    assert "wheel" in text
    assert "choice" in text
    assert f"{rows}" in text


def test_curve_rises_to_the_right_and_leaves_holes():
    values = np.r_[np.linspace(0, 1, 20), np.nan, np.nan]
    lit = curve_dots(values, columns=11, rows=4, low=0.0, high=1.0)
    assert lit.shape == (16, 22)
    tops = lit[:, :20].argmax(axis=0)
    assert np.all(np.diff(tops) <= 0)
    assert (tops[0], tops[-1]) == (15, 0)
    assert lit[:, :20].any(axis=0).all()
    assert not lit[:, 20:].any()


def test_plot_puts_decoded_over_truth():
    truth, decoded = np.zeros(8), np.ones(8)
    text = plot(truth, decoded, columns=4, rows=2)
    lines = text.plain.split("\n")
    assert [len(line) for line in lines] == [4, 4]
    assert "⠉" in lines[0]  # decoded: top row of dots
    assert "⣀" in lines[1]  # truth: bottom row of dots
    assert bar(0.5, 10).plain == "█████     "
    assert bar(7.0, 3).plain == "███"


def test_child_that_fails_says_why():
    with (
        Child("broken", "neds_rt.sources.synthetic", "--units", "many") as child,
        pytest.raises(StartError, match=r"broken: ended with code 2.*invalid int value"),
    ):
        child.json(60)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent")
def test_child_ends_with_a_parent_that_was_killed():
    code = (
        "from neds_rt.children import Child\n"
        "with Child('s', 'neds_rt.latency.sender', '--targets', '1', '--units', '5',"
        " '--bin-size', '0.02') as child:\n"
        "    child.json(60)\n"
        "    print(child.pid, flush=True)\n"
        "    child.line(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        status = Path(f"/proc/{pid}/stat")
        assert "neds_rt.latency.sender" in Path(f"/proc/{pid}/cmdline").read_text()
        parent.kill()
    for _ in range(400):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":  # ended, not yet collected
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")


def test_echo_answers_each_frame_at_the_asked_length():
    with Child("sender", "neds_rt.latency.sender", "--targets", "1", "--units", "10",
               "--bin-size", "0.02") as sender:
        uri = sender.json(60)["uris"][0]
        with Child("echo", "neds_rt.latency.echo", "--probe", uri, "--reply-bytes", "412") as echo:
            context = zmq.Context()
            socket = context.socket(zmq.SUB)
            socket.setsockopt(zmq.RCVTIMEO, 20_000)
            socket.subscribe(b"")
            monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            socket.connect(echo.json(60)["out"])
            assert monitor.poll(20_000)
            socket.disable_monitor()
            monitor.close(0)
            sender.tell({"target": 0, "bins": 20, "speed": 4})
            assert sender.json(20)["first_bin"] == 0
            replies = [socket.recv() for _ in range(20)]
            assert sender.json(20)["frames"] == 20
            sender.tell({"target": 0, "bins": 5, "speed": 0})
            assert sender.json(20)["first_bin"] == 20
            replies += [socket.recv() for _ in range(5)]
            socket.close(0)
            context.term()
    assert {len(reply) for reply in replies} <= set(range(404, 421))
    assert [msgspec.msgpack.decode(reply)["bin"] for reply in replies] == list(range(25))
