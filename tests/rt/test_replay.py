"""Replay: a prepared session comes out of a real socket whole, in order and on time."""

import json
import subprocess
import sys
import threading
import time
from itertools import pairwise

import h5py
import numpy as np
import pytest
import zmq

from neds_rt.binning import bin_edges
from neds_rt.errors import BadInput
from neds_rt.player import Block, Player, empty_spikes
from neds_rt.sources.replay import bin_axis, blocks, read_recording, spread_counts
from neds_rt.wire import SPIKE_DTYPE, decode_header

FS = 30_000.0


def write_session(path, *, n_units=5, probes=("a",), counts=None, bins=None, **spikes):
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "neds-session-1"
        file.attrs["session"] = "s1"
        file["units/probe"] = [probes[i % len(probes)].encode() for i in range(n_units)]
        file["units/channel"] = np.arange(n_units) * 2
        file["units/cluster"] = np.arange(n_units) + 100
        if counts is not None:
            file["counts/counts"] = counts
            file["counts/bin"] = bins
            file["counts"].attrs["bin_size_s"] = 0.064
        else:
            file["spikes/sample"] = spikes["sample"]
            file["spikes/unit_index"] = spikes["unit"].astype(np.int32)
            file["spikes"].attrs["fs"] = FS
            file["domain/start"] = np.asarray(spikes["start"], float)
            file["domain/end"] = np.asarray(spikes["end"], float)
    return path


@pytest.fixture
def events(tmp_path):
    rng = np.random.default_rng(0)
    sample = np.sort(rng.integers(0, 60_000, 3000))
    sample = sample[(sample < 30_000) | (sample >= 36_000)]
    unit = rng.integers(0, 5, len(sample))
    path = write_session(
        tmp_path / "e.h5", sample=sample, unit=unit, start=[0.0, 1.2], end=[1.0, 2.0]
    )
    return path, sample, unit


@pytest.fixture
def counts(tmp_path):
    rng = np.random.default_rng(1)
    bins = np.r_[3:20, 30:45]
    table = rng.poisson(2.0, (len(bins), 5)).astype(np.uint8)
    return write_session(tmp_path / "c.h5", counts=table, bins=bins), bins, table


def start_replay(path, *options):
    command = "import sys; from neds_rt.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", command, "replay", str(path), "--wait", "20", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


@pytest.fixture
def listen(tmp_path):
    context = zmq.Context()

    def receive(path, *options):
        """Run the command against an address, return (headers, spikes, report, exit code)."""
        address = f"ipc://{tmp_path}/probe"
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RCVTIMEO, 30_000)
        socket.subscribe(b"")
        socket.connect(address)
        process = start_replay(path, "--to", f"zmq+{address}", "--json", *options)
        out = {}
        reader = threading.Thread(target=lambda: out.update(done=process.communicate(timeout=60)))
        reader.start()
        headers, parts = [], []
        while process.poll() is None or socket.poll(200):
            if socket.poll(50):
                header, payload = socket.recv_multipart()
                headers.append(decode_header(header))
                parts.append(np.frombuffer(payload, SPIKE_DTYPE))
        reader.join()
        socket.close(0)
        assert out["done"][1] == ""
        report = json.loads(out["done"][0].splitlines()[-1])
        return headers, np.concatenate(parts), report, process.returncode

    yield receive
    context.term()


def binned(spikes, bins, n_units, fs, size):
    first, after = bin_edges(bins, fs, size), bin_edges(bins + 1, fs, size)
    table = np.zeros((len(bins), n_units), int)
    for row, (a, b) in enumerate(zip(first, after, strict=True)):
        inside = (spikes["sample"] >= a) & (spikes["sample"] < b)
        np.add.at(table[row], spikes["unit"][inside], 1)
    return table


@pytest.mark.parametrize("speed", ["max", "10"])
def test_every_spike_arrives_once_and_in_order(events, listen, speed):
    path, sample, unit = events
    headers, spikes, report, code = listen(path, "--speed", speed)
    assert code == 0
    np.testing.assert_array_equal(spikes["sample"], sample)
    np.testing.assert_array_equal(spikes["unit"], unit)
    assert [h.seq for h in headers] == list(range(len(headers)))
    assert {(h.stream, h.fs, h.version) for h in headers} == {("a", FS, 1)}
    assert len({h.session for h in headers}) == 1
    # Two spans of 1 s and 0.8 s in blocks of 10 ms; the jump is the recording's gap.
    assert len(headers) == 180
    jumps = [(a.watermark, b.t0_sample) for a, b in pairwise(headers)]
    assert [jump for jump in jumps if jump[0] != jump[1]] == [(30_000, 36_000)]
    assert headers[-1].watermark == 60_000
    assert (report["frames"], report["spikes"], report["unheard"]) == (180, len(sample), 0)


def test_paced_play_never_runs_ahead(events, monkeypatch):
    sent = []
    monkeypatch.setattr(Player, "send", lambda self, block: sent.append(time.monotonic_ns()))
    parts = list(blocks(read_recording(events[0]), 0, 15_000, 300))
    with Player("zmq+tcp://127.0.0.1:*", stream="a", fs=FS) as player:
        before = time.monotonic_ns()
        played = player.play(parts, speed=20)
    due = before + np.array([b.watermark for b in parts]) / FS * 1e9 / 20
    assert len(sent) == 50
    assert np.all(np.array(sent) >= due - 1)
    assert played.late_us.min() >= 0


def test_counts_come_back_unchanged(counts, listen):
    path, bins, table = counts
    headers, spikes, report, code = listen(path, "--speed", "max")
    assert (code, report["first_bin"]) == (0, 3)
    np.testing.assert_array_equal(binned(spikes, bins, 5, FS, 0.064), table)
    assert len(spikes) == table.sum()
    assert headers[0].t0_sample == 3 * 1920
    assert headers[-1].watermark == 45 * 1920


@pytest.mark.parametrize(
    "option", [("--from-bin", "17"), ("--from", "43.75%"), ("--from", "1.088")]
)
def test_start_points_name_the_same_bin(counts, listen, option):
    path, bins, table = counts  # row 14 of 32 is 43.75 % and bin 17, at 17 * 0.064 s
    headers, spikes, report, _ = listen(path, "--speed", "max", *option)
    assert (headers[0].t0_sample, report["first_bin"]) == (17 * 1920, 17)
    np.testing.assert_array_equal(binned(spikes, bins[14:], 5, FS, 0.064), table[14:])


def test_until_a_percentage_splits_without_overlap(counts, listen):
    path, _, table = counts
    _, before, _, _ = listen(path, "--speed", "max", "--until", "43.75%")
    _, after, _, _ = listen(path, "--speed", "max", "--from", "43.75%")
    assert before["sample"].max() < after["sample"].min()
    assert len(before) + len(after) == table.sum()


def test_probe_is_chosen_and_renumbered(tmp_path, events):
    _, sample, unit = events
    path = write_session(
        tmp_path / "two.h5", probes=("a", "b"), sample=sample, unit=unit, start=[0.0], end=[2.0]
    )
    recording = read_recording(path, "b")
    spikes = recording.spikes(0, 60_000)
    np.testing.assert_array_equal(spikes["unit"], unit[unit % 2 == 1] // 2)
    with pytest.raises(BadInput, match="one of a, b"):
        read_recording(path)


def test_units_follow_the_order_of_a_model(events):
    path, sample, unit = events
    recording = read_recording(path, order=[("a", 6, 103), ("a", 0, 100)])
    spikes = recording.spikes(0, 60_000)
    kept = np.isin(unit, (3, 0))
    np.testing.assert_array_equal(spikes["sample"], sample[kept])
    np.testing.assert_array_equal(spikes["unit"], np.where(unit[kept] == 3, 0, 1))
    with pytest.raises(BadInput, match="every unit of the model"):
        read_recording(path, order=[("a", 6, 999)])


def test_spreading_uses_distinct_samples_and_keeps_each_bin(counts):
    rng = np.random.default_rng(2)
    table = rng.poisson(3.0, (50, 40)).astype(np.uint16)
    start = np.arange(50) * 300 + 7
    spikes = spread_counts(table, start, start + 300)
    assert len(np.unique(spikes["sample"])) == len(spikes)
    assert np.all(np.diff(spikes["sample"]) > 0)
    row = (spikes["sample"] - 7) // 300
    again = np.zeros_like(table)
    np.add.at(again, (row, spikes["unit"]), 1)
    np.testing.assert_array_equal(again, table)
    np.testing.assert_array_equal(spikes, spread_counts(table, start, start + 300))


def test_more_spikes_than_samples_stay_in_their_bin():
    spikes = spread_counts(np.array([[50], [0]], np.uint16), np.array([0, 10]), np.array([10, 20]))
    assert len(spikes) == 50
    assert spikes["sample"].max() < 10


def test_blocks_cover_each_span_whatever_the_block_length(events):
    path, sample, _ = events
    recording = read_recording(path)
    for length in (1, 77, 300, 29_999, 10**9):
        parts = list(blocks(recording, 5, 59_000, length))
        assert all(b.watermark - b.t0 <= length for b in parts)
        inside = (sample >= 5) & (sample < 59_000)
        got = np.concatenate([b.spikes["sample"] for b in parts])
        np.testing.assert_array_equal(got, sample[inside])
        edges = [(b.t0, b.watermark) for b in parts]
        assert sum(b - a for a, b in edges) == (30_000 - 5) + (59_000 - 36_000)


def test_bin_axis_holds_whole_bins_only(events):
    bins = bin_axis(read_recording(events[0]), 0.02)
    np.testing.assert_array_equal(bins, np.r_[0:50, 60:100])


def fail(path, *options):
    done = start_replay(path, "--json", *options)
    out, err = done.communicate(timeout=60)
    assert (out, err.count("\n")) == ("", 1), err
    return done.returncode, err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--to", "http://127.0.0.1:1"], "URI scheme"),
        (["--to", "zmq+tcp://127.0.0.1:99999"], "endpoint"),
        (["--to", "zmq+tcp://0.0.0.0:5570"], "--insecure"),
        (["--speed", "fast"], "--speed"),
        (["--speed", "-1"], "--speed"),
        (["--from", "80%"], "--bin-size"),
        (["--from", "soon"], "seconds or a percentage"),
        (["--from", "7"], "ends at 2.000 s"),
        (["--probe", "z"], "--probe"),
        (["--block-ms", "0"], "--block-ms"),
        (["--model", "missing.neds"], "missing.neds"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(events, options, text):
    code, err = fail(events[0], *options)
    assert code == 2
    assert text in err


def test_files_that_are_no_session(tmp_path, counts):
    (tmp_path / "x.h5").write_bytes(b"not hdf5")
    assert fail(tmp_path / "x.h5")[0] == 2
    assert fail(tmp_path / "missing.h5")[0] == 2
    with h5py.File(counts[0], "r+") as file:
        file["counts/bin"][0] = 400
    code, err = fail(counts[0])
    assert code == 2
    assert "counts/bin" in err


def test_nobody_subscribes(events, tmp_path):
    code, err = fail(events[0], "--to", f"zmq+ipc://{tmp_path}/lonely", "--wait", "0.2")
    assert code == 3
    assert "no subscriber" in err


def test_a_slow_subscriber_loses_nothing(tmp_path):
    """More frames than the queues hold, and a reader that starts late: the player waits for it."""
    n = 8000
    spikes = empty_spikes(40)
    uri = f"zmq+ipc://{tmp_path}/slow"
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 10)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.subscribe(b"")
    with Player(uri, stream="a", fs=FS) as player:
        socket.connect(player.uri.removeprefix("zmq+"))
        player.wait(20)
        feed = (Block(i * 300, (i + 1) * 300, spikes) for i in range(n))
        played = []
        sender = threading.Thread(target=lambda: played.append(player.play(feed, float("inf"))))
        sender.start()
        sender.join(0.3)
        assert sender.is_alive(), "the queues took everything: nothing was pushed back"
        seqs = [decode_header(socket.recv_multipart()[0]).seq for _ in range(n)]
        sender.join()
    assert seqs == list(range(n))
    assert played[0].frames == n
    socket.close(0)
    context.term()
