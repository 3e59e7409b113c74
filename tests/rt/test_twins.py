"""The twins against other people's clients, so that they are not only true to ours."""

import json
import sys
import threading

import numpy as np
import pytest
import zmq

from tests.rt.foreign import free_port
from tools.twins import openephys, spikeglx
from tools.twins.feed import random_feed
from tools.twins.generated import generate
from tools.twins.oebroadcast import EventBroadcaster
from tools.twins.openephys import ZmqInterface

FEED = random_feed(n_units=5, rate_hz=20.0, seconds=1.0, seed=4)


def test_open_ephys_own_listener_hears_the_event_broadcaster(capsys):
    streaming = pytest.importorskip("open_ephys.streaming")
    spikes, events = [], []
    with EventBroadcaster(FEED, port=free_port(), stream="Sonde-µ", hwm=0) as twin:
        listener = streaming.EventListener(port=twin.port)
        thread = threading.Thread(target=listener.start, kwargs={
            "ttl_callback": events.append, "spike_callback": spikes.append})
        thread.start()
        twin.wait()
        twin.send_ttl(5, 3, True)
        twin.play(0, 30_000)
        for _ in range(600):
            if len(spikes) == twin.spikes:
                break
            threading.Event().wait(0.05)
        listener.stop()
        thread.join()
        listener.context.destroy(linger=0)
    assert "Error" not in capsys.readouterr().out
    assert [(e["line"], e["state"], e["sample_number"]) for e in events] == [(3, True, 5)]
    heard = sorted((s["sample_number"], s["electrode"], s["sorted_id"]) for s in spikes)
    named = [(int(s), f"Electrode {FEED.channel[u]}", int(FEED.cluster[u]))
             for s, u in zip(FEED.samples, FEED.units, strict=True)]
    assert heard == sorted(named)[: len(heard)]
    assert {s["stream"] for s in spikes} == {"Sonde-µ"}


def test_a_plain_client_reads_the_zmq_interface_as_the_documentation_says():
    """As the plugin's own sample client does: three parts, JSON, float32 of `data_size` bytes."""
    with ZmqInterface(FEED, port=free_port(), hwm=0) as twin:
        context = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(f"tcp://127.0.0.1:{twin.port}")
        socket.subscribe(b"")
        twin.wait()
        twin.send_ttl(7, 2, 1)
        twin.play(0, 30_000)
        messages = [socket.recv_multipart() for _ in range(twin.sent.messages)]
        context.destroy(linger=0)
    headers = [json.loads(parts[1]) for parts in messages]
    assert [h["message_num"] for h in headers] == list(range(1, len(headers) + 1))
    for (envelope, _, payload), h in zip(messages, headers, strict=True):
        if h["type"] == "spike":
            assert envelope == b"EVENT\0"
            assert "data_size" not in h
            assert len(np.frombuffer(payload, "<f4")) == h["spike"]["num_samples"] == 40
        else:
            assert len(payload) == h["data_size"]
            assert envelope == (b"DATA\0" if h["type"] == "data" else b"EVENT\0")
    ttl = np.frombuffer(messages[0][2], [("line", "u1"), ("state", "u1"), ("word", "<u8")])
    assert ttl.tolist() == [(2, 1, 4)]
    blocks = [h["content"] for h in headers if h["type"] == "data"]
    ends = [b["sample_num"] + b["num_samples"] for b in blocks]
    assert [b["sample_num"] for b in blocks[1:]] == ends[:-1]


@pytest.mark.parametrize(("kind", "step"), [(np.int16, 0.25), (np.float32, 1.0)])
def test_continuous_channels_hold_the_traces_over_and_over(kind, step):
    traces = np.random.default_rng(0).integers(-500, 500, (1000, 3)).astype(kind)
    with ZmqInterface(FEED, port=free_port(), hwm=0, traces=traces, step_uv=0.25,
                      stream="100 %") as twin:
        context = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(f"tcp://127.0.0.1:{twin.port}")
        socket.subscribe(b"DATA")
        assert twin._socket.poll(10_000)
        twin.play(0, 3000)
        found = [[], [], []]
        for number in range(3 * 4):
            _, header, payload = socket.recv_multipart()
            content = json.loads(header)["content"]
            assert content["channel_num"] == number % 3
            assert content["channel_name"] == f"AP{number % 3}"
            assert content["stream"] == "100 %"
            found[number % 3].append(np.frombuffer(payload, "<f4"))
        context.destroy(linger=0)
    samples = np.array([np.concatenate(channel) for channel in found]).T
    expected = traces[np.arange(len(samples)) % 1000] * np.float32(step)
    np.testing.assert_array_equal(samples, expected)


@pytest.mark.filterwarnings("ignore")
def test_generated_samples_hold_the_spikes_that_they_are_said_to():
    pytest.importorskip("spikeinterface.core")
    made = generate(6, 2.0, seed=3)
    assert (made.traces.shape, made.traces.dtype) == ((60_000, 6), np.float32)
    lowest = made.traces.min(axis=1)
    inside = made.samples[(made.samples > 30) & (made.samples < 59_970)]
    around = np.array([lowest[s - 30 : s + 30].min() for s in inside])
    assert len(inside) > 20
    assert np.median(around) < 2 * np.median(lowest)  # microvolts, and below the noise
    np.testing.assert_allclose(made.steps(0.5) * 0.5, made.traces, atol=0.25)


@pytest.mark.parametrize("twin", [openephys, spikeglx])
def test_without_the_generator_one_line_says_so(twin, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "spikeinterface.core", None)
    monkeypatch.setattr(sys, "argv", ["twin", "--generate", "--port=0", "--channels=4"])
    assert twin.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install spikeinterface" in error


def test_the_default_queue_drops_in_silence():
    feed = random_feed(n_units=5, rate_hz=1000.0, seconds=10.0, seed=5)
    with ZmqInterface(feed, port=free_port()) as twin:
        context = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, 10)
        socket.setsockopt(zmq.RCVBUF, 4096)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.connect(f"tcp://127.0.0.1:{twin.port}")
        socket.subscribe(b"")
        twin.wait()
        twin.play(0, 300_000)  # the client does not read
        heard = []
        while socket.poll(1000):
            heard.append(json.loads(socket.recv_multipart()[1])["message_num"])
        assert 1000 <= len(heard) < twin.sent.messages
        assert heard[:1000] == list(range(1, 1001))
        sent = twin.number
        twin.play(0, 700)
        assert json.loads(socket.recv_multipart()[1])["message_num"] == sent + 1 > heard[-1] + 1
        context.destroy(linger=0)
