"""The tape: what was recorded is read back whatever happened to the file, and no loss is silent."""

import itertools
import os
import random
import signal
import struct

import pytest

from neds_rt.errors import BadInput, StartError
from neds_rt.recording import flight as flights
from neds_rt.recording.header import open_recording
from neds_rt.recording.tape import FRAME, TapeReader
from neds_rt.wire import decode_message
from tests.rt.flights import Flight, chunk, read, record, verify
from tests.rt.serving import small_bundle
from tests.rt.spike_frames import Sender
from tests.rt.test_server import BIN, frames, recording


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("model") / "x.neds")


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(flights, "DRAIN_S", 0.002)


def stream(n_bins=20, seed=0):
    samples, units, _ = recording(n_bins, seed=seed)
    return list(frames(Sender(), samples, units, 0, n_bins * BIN))


@pytest.fixture
def taped(tmp_path, model, fast):
    """A recording of ten chunks and more; its folder, what was fed, the bytes of its tape."""
    sent = stream()
    with Flight(tmp_path / "r", model) as flight:
        for start in range(0, len(sent), 5):
            flight.feed(*sent[start : start + 5])
            flight.settle()
    return tmp_path / "r", sent, (tmp_path / "r/tape").read_bytes()


def test_everything_in_and_out_is_read_back(tmp_path, model):
    sent = stream()
    with Flight(tmp_path / "r", model) as flight:
        said = flight.feed(*sent)
        flight.recorder.event("told", b"something")
        size = flight.pipeline.nothing(3, 77)
        stale = flight.encoder.buffer[:size].tobytes()
        flight.feed((b"h" * 5000, b"p" * 10), (b"", b""))
    records, holes, reader = read(tmp_path / "r")
    assert reader.complete
    assert (holes, reader.tail_bytes) == ([], 0)
    of = {kind: [(r.head, r.body) for r in records if r.kind == kind]
          for kind in (b"F", b"D", b"N", b"E")}
    # A header that no assembler accepts is clipped to one byte more than it would accept.
    assert of[b"F"] == [*sent, (b"h" * 513, b"p" * 10), (b"", b"")]
    assert [body for _, body in of[b"D"]] == [*said, stale]
    assert (of[b"N"], of[b"E"]) == ([(b"", b"\x03")], [(b"told", b"something")])
    decodes = [r for r in records if r.kind == b"D"]
    for r in decodes[:-1]:
        received, assembled, stepped, encoded, sent_ns = struct.unpack("<5q", r.head)
        message = decode_message(r.body)
        assert (received, encoded) == (message.recv_ns, message.pub_ns)
        assert received <= assembled <= stepped <= encoded <= sent_ns
        assert r.ns == message.pub_ns


def test_the_documented_layout_is_that_of_the_file(taped):
    """Chunks made by other means, from the same records, are read as the recorder's own."""
    path, _, _ = taped
    before, _, _ = read(path)
    opened = open_recording(path)
    bodies = [record(b"S", body=opened.digest)]
    bodies += [record(r.kind, r.head, r.body, r.ns) for r in before]
    bodies.append(record(b"Z", body=bytes(24)))
    (path / "tape").write_bytes(
        b"".join(chunk(opened.tape_id, k, body) for k, body in enumerate(bodies)))
    after, holes, reader = read(path)
    assert after == before
    assert (holes, reader.complete, reader.tail_bytes) == ([], True, 0)


def test_a_tape_cut_at_any_byte_opens(taped):
    path, _, whole = taped
    before, _, _ = read(path)
    for length in range(0, len(whole), 61):
        (path / "tape").write_bytes(whole[:length])
        after, holes, reader = read(path)
        assert after == before[: len(after)]
        assert (holes, reader.complete) == ([], False)
        assert reader.tail_bytes < length + 1
    assert len(after) > len(before) - 20


def test_a_flipped_byte_anywhere_is_never_silent(taped):
    path, _, whole = taped
    before, _, intact = read(path)
    assert intact.chunks > 8
    for at in range(0, len(whole), 43):
        spoiled = bytearray(whole)
        spoiled[at] ^= 0x10
        (path / "tape").write_bytes(spoiled)
        after, holes, reader = read(path)
        assert holes or reader.tail_bytes, at
        assert reader.chunks == intact.chunks - 1
        left = iter(before)
        assert all(r in left for r in after)  # those that are there are in order and unchanged
        report = verify(path)
        assert report["different"] == 0
        assert report["equal"] + report["unverifiable"] <= 20


def test_a_damaged_header_is_named(taped):
    path, _, _ = taped
    text = (path / "recording.json").read_text()
    for spoiled, field in ((text.replace("512", "511"), "sha256"), (text[:-9], "JSON"),
                           (text.replace('"version": 1', '"version": 9'), "format"),
                           (text + " " * (1 << 20), "size")):
        (path / "recording.json").write_text(spoiled)
        with pytest.raises(BadInput, match=f"recording.json: {field}: "):
            read(path)


def test_forged_sizes_and_records_are_refused(taped):
    path, sent, _ = taped
    opened = open_recording(path)
    start = chunk(opened.tape_id, 0, record(b"S", body=opened.digest))
    frame = record(b"F", *sent[0])
    huge = bytearray(chunk(opened.tape_id, 1, frame))
    for body in (frame[:-1], frame[:10], b"\xff" * 40, record(b"?"), record(b"H", body=b"x"),
                 record(b"S", body=b"short"), record(b"D", b"h", b"b"),
                 struct.pack("<IHcBq", 4, 9, b"F", 0, 0) + b"abcd"):
        (path / "tape").write_bytes(start + chunk(opened.tape_id, 1, frame + body)
                                    + chunk(opened.tape_id, 2, frame))
        records, holes, _ = read(path)
        assert [r.kind for r in records] == [FRAME, FRAME]
        assert "does not know" in holes[0].why
    huge[24:28] = struct.pack("<I", 1 << 31)
    (path / "tape").write_bytes(start + bytes(huge))
    assert TapeReader(opened).tail_bytes == 0
    records, holes, reader = read(path)
    assert (records, reader.tail_bytes) == ([], len(huge))


def test_a_full_ring_loses_records_but_not_silently(tmp_path, model, monkeypatch):
    monkeypatch.setattr(flights, "RING_BYTES", 8192)
    monkeypatch.setattr(flights, "DRAIN_S", 0.05)
    sent = stream(60)
    with Flight(tmp_path / "r", model) as flight:
        said = flight.feed(*sent[:-20])  # more than fits, at once
        lost = flight.recorder.counters["lost_records"]
        assert lost > 0
        flight.settle()
        flight.feed(*sent[-20:])
        assert flight.recorder.counters["lost_records"] >= lost
    records, holes, reader = read(tmp_path / "r")
    assert reader.complete
    assert sum(hole.records for hole in holes) == flight.recorder.counters["lost_records"]
    assert len(records) + lost >= len(sent) + len(said)
    report = verify(tmp_path / "r")
    assert report["different"] == 0
    assert report["unverifiable"] > 0


def test_after_a_restart_what_follows_a_hole_is_verified_again(tmp_path, model, monkeypatch):
    monkeypatch.setattr(flights, "RING_BYTES", 16384)
    monkeypatch.setattr(flights, "DRAIN_S", 0.05)
    samples, units, _ = recording(80)
    again = list(frames(Sender("a", "s2"), samples, units, 0, 10 * BIN))
    with Flight(tmp_path / "r", model) as flight:
        flight.feed(*frames(Sender(), samples, units, 0, 80 * BIN))
        assert flight.recorder.counters["lost_records"] > 0
        flight.settle()
        flight.feed(Sender(seq=900).frame(80 * BIN, 81 * BIN))  # lost to verification
        flight.feed(*again)
    report = verify(tmp_path / "r")
    assert report["different"] == 0
    assert report["unverifiable"] > 0
    assert report["equal"] >= 10 - 1


def test_a_recording_needs_a_new_folder(tmp_path, model):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/notes").write_text("mine")
    with pytest.raises(BadInput, match="which exists"):
        Flight(tmp_path / "r", model)
    with pytest.raises(StartError, match="MB free, and"):
        Flight(tmp_path / "s", model, record_reserve_mb=1 << 30)


def fly_until_killed(path, model, pipe):
    """Record for ever and say now and then how many frames have left the ring."""
    samples, units, _ = recording(50)
    with Flight(path, model) as flight:
        for session in itertools.count():
            for frame in frames(Sender("a", str(session)), samples, units, 0, 50 * BIN):
                flight.feed(frame)
                if flight.fed % 3 == 0:
                    flight.settle()
                    os.write(pipe, struct.pack("<q", flight.fed))


def test_killed_at_any_moment_a_recording_opens_and_has_what_was_written(tmp_path, model, fast):
    """Killed 20 times. What had left the ring is there: the rest came in the last drain period."""
    rng = random.Random(0)
    for run in range(20):
        path = tmp_path / str(run)
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                fly_until_killed(path, model, theirs)
            finally:
                os._exit(1)
        os.close(theirs)
        wanted, told = rng.randrange(1, 20), b""
        while len(told) < 8 * wanted and (piece := os.read(ours, 8)):
            told += piece
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while piece := os.read(ours, 1 << 16):
            told += piece
        os.close(ours)
        written = struct.unpack("<q", told[-8:])[0]
        records, holes, reader = read(path)
        assert (holes, reader.complete) == ([], False)
        assert sum(r.kind == FRAME for r in records) >= written >= 1
        report = verify(path)
        assert (report["different"], report["unverifiable"]) == (0, 0)
