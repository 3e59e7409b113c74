"""The flight recorder of a real server, over real sockets, and its recordings replayed."""

import json
import os
import resource
import signal
import subprocess

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.assemble import make_encoder
from neds_rt.bundle import read_bundle, write_bundle
from neds_rt.engines import load_engine
from neds_rt.errors import BadInput
from neds_rt.recording import flight as flights
from neds_rt.recording import verify as verifying
from neds_rt.recording.compare import differing
from neds_rt.recording.header import MODEL, open_recording
from neds_rt.recording.replay_engine import is_exact, replay_engine, tolerance_for
from neds_rt.recording.tape import DECODE, FRAME
from neds_rt.wire import decode_message
from tests.rt.flights import Flight, chunk, read, record, verify
from tests.rt.serving import COMMAND, ROOT, WINDOW, Publisher, Serving, fail, small_bundle, wait_for
from tests.rt.spike_frames import Sender
from tests.rt.test_server import BIN, frames, recording


@pytest.fixture
def model(tmp_path):
    return small_bundle(tmp_path / "x.neds")


@pytest.fixture
def uri(tmp_path):
    return f"zmq+ipc://{tmp_path}/probe"


def replay(*options):
    done = subprocess.run([*COMMAND, "replay", *map(str, options)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done


def trouble_stream(samples, units):
    """Frames with a gap, a restart, junk and a repeated frame, and how many bins they make."""
    first, second = Sender(), Sender("a", "s2")
    sent = [*frames(first, samples, units, 0, 30 * BIN)]
    first.seq += 2
    sent += frames(first, samples, units, 34 * BIN, 60 * BIN)
    sent += [(b"junk", b""), sent[5], (b"x" * 5000, b"y" * 100)]
    sent += frames(second, samples, units, 0, 40 * BIN)
    return sent, 60 + 40


def test_a_server_records_what_replays_bit_for_bit(model, uri, tmp_path):
    samples, units, _ = recording(60)
    sent, n = trouble_stream(samples, units)
    where = tmp_path / "made/by/serve"
    with Publisher(uri) as probe, Serving(model, {"a": uri}, f"--record={where}") as server:
        probe.wait()
        probe.send(*sent)
        server.decodes(n)
        while server.next().reason != "stale":
            pass
        summary = server.end(signal.SIGTERM)
    state = summary["recording"]
    assert (state["state"], state["lost_records"]) == ("complete", 0)
    assert state["bytes"] == os.path.getsize(where / "tape")
    model.unlink()  # the recording has its own copy
    done = replay(where, "--verify", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["tolerance"], found["frames"]) == (0, 0, len(sent))
    assert found["different"] == found["unverifiable"] == found["holes"] == 0
    assert found["equal"] == n + summary["stale_decodes"]
    assert found["complete"]
    assert found["machine"]["cpu"]
    header = open_recording(where).header
    assert header.config.probe == {"a": uri}
    assert header.engine.isa == _core.supported_isas()[-1] or header.engine.isa
    assert header.machine["versions"]["neds"]


@pytest.mark.parametrize("engine", ["native:bf16", "native:int8", "onnx"])
def test_every_cpu_engine_replays_exactly(tmp_path, model, engine):
    samples, units, _ = recording(60)
    with Flight(tmp_path / "r", model, engine=engine) as flight:
        flight.feed(*trouble_stream(samples, units)[0])
    found = verify(tmp_path / "r")
    assert (found["equal"], found["different"], found["tolerance"]) == (100, 0, 0)


def test_two_probes_replay_exactly(tmp_path):
    model = small_bundle(tmp_path / "x.neds", ("a", "b"))
    samples, units, _ = recording(40, n_units=2)
    a = frames(Sender("a"), samples, units, 0, 40 * BIN)
    b = frames(Sender("b"), samples, 1 - units, 0, 40 * BIN, 400)
    with Flight(tmp_path / "r", model, ("a", "b")) as flight:
        flight.feed(*[frame for pair in zip(a, b, strict=False) for frame in pair], *a, *b)
    found = verify(tmp_path / "r")
    assert (found["different"], found["unverifiable"]) == (0, 0)
    assert found["equal"] > 30


def test_other_instruction_sets_and_precisions_agree_within_the_stated_tolerance(
    tmp_path, model, monkeypatch
):
    samples, units, _ = recording(300)
    sent = list(frames(Sender(), samples, units, 0, 300 * BIN))
    with Flight(tmp_path / "r", model) as flight:
        flight.feed(*sent)
    monkeypatch.setenv("NEDS_ISA", "baseline")
    for engine, tolerance in (("native", 1e-3), ("onnx", 1e-3), ("native:int8", 0.05)):
        if engine == "native" and flight.engine.isa == "baseline":
            continue
        found = verify(tmp_path / "r", engine)
        assert (found["tolerance"], found["different"], found["equal"]) == (tolerance, 0, 300)
        assert 0 < found["largest_error"] <= tolerance
        assert verify(tmp_path / "r", engine, 0.0)["different"] > 250


def other_weights(model, path):
    bundle = read_bundle(model)
    m = bundle.manifest
    weights = {k: v * np.float32(1.001) for k, v in bundle.weights.items()}
    write_bundle(path, session="s", subject="m", bin_size_s=m.bin_size_s, shape=m.shape,
                 units=m.units, modalities=m.modalities, weights=weights)
    return path


def test_a_decode_that_differs_is_exit_code_4(tmp_path, model):
    samples, units, _ = recording(20)
    with Flight(tmp_path / "r", model) as flight:
        flight.feed(*frames(Sender(), samples, units, 0, 20 * BIN))
    path, opened = tmp_path / "r", open_recording(tmp_path / "r")
    before, _, _ = read(path)
    bodies = [record(r.kind, r.head, r.body, r.ns) for r in before]
    decodes = [k for k, r in enumerate(before) if r.kind == DECODE]
    changed = before[decodes[7]]
    spoiled = changed.body[:-40] + bytes([changed.body[-40] ^ 1]) + changed.body[-39:]
    cases = [[*bodies], [*bodies], [*bodies]]
    cases[0][decodes[7]] = record(b"D", changed.head, spoiled, changed.ns)
    del cases[1][decodes[7]]  # as if it had never been published
    cases[2].insert(decodes[7], bodies[decodes[7]])  # published twice
    for case in cases:
        whole = [record(b"S", body=opened.digest), *case]
        (path / "tape").write_bytes(
            b"".join(chunk(opened.tape_id, k, body) for k, body in enumerate(whole)))
        found = verify(path)
        assert 1 <= found["different"] <= 20
    done = replay(path, "--verify")
    assert done.returncode == 4
    assert "decodes differ" in done.stderr
    wrong = replay(path, "--verify", f"--model={other_weights(model, tmp_path / 'other.neds')}")
    assert wrong.returncode == 2
    assert "model_hash" in wrong.stderr


def test_a_recording_of_an_engine_that_failed_replays(model, uri, tmp_path):
    samples, units, _ = recording(30)
    where = tmp_path / "r"
    engine = "tests.rt.failing_engine:RaisingEngine"
    with Publisher(uri) as probe, Serving(
        model, {"a": uri}, f"--record={where}", f"--engine={engine}", "--fail-over=off"
    ) as server:
        probe.wait()
        probe.send(*frames(Sender(), samples, units, 0, 30 * BIN))
        while server.next().reason != "engine failed":
            pass
        assert server.end(None, 4)["recording"]["state"] == "complete"
    assert any(r.kind == b"E" for r in read(where)[0])
    assert verify(where, "native", 1e-6)["different"] == 0
    # A recording may be anybody's: what it names is not imported.
    with pytest.raises(BadInput, match="if you trust it"):
        verify(where)


def test_a_decode_that_only_came_late_is_the_same_decode(model):
    engine = read_bundle(model)
    encoders = [make_encoder(engine.manifest, 1, deadline) for deadline in (None, 1e-9)]
    values = np.arange(6, dtype=np.float32)
    messages = [e.buffer[: e.encode(1, 2, 3.0, 4.0, 5, 0, values)].tobytes() for e in encoders]
    in_time, late = messages
    assert decode_message(late).reason == "deadline missed"
    assert differing(late, in_time) == ([], 0.0)
    assert differing(in_time, late)[0] == ["valid", "reason"]


def test_a_killed_server_leaves_a_recording_that_replays(model, uri, tmp_path):
    samples, units, _ = recording(200)
    where = tmp_path / "r"
    with Publisher(uri) as probe, Serving(model, {"a": uri}, f"--record={where}") as server:
        probe.wait()
        probe.send(*frames(Sender(), samples, units, 0, 200 * BIN))
        server.decodes(100)
        wait_for(lambda: os.path.getsize(where / "tape") > 10_000)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
    found = json.loads(replay(where, "--verify", "--json").stdout.splitlines()[-1])
    assert not found["complete"]
    assert found["different"] == found["unverifiable"] == 0
    assert found["equal"] > 0


def decoding_goes_on(server, probe, tape, sender):
    """Feed until the recorder gives up, then check that decodes come as before; the summary."""
    samples, units, _ = recording(40)
    k = 0

    def stopped():
        return any("recording: stopped" in line for line in server.lines)

    while not stopped():
        assert k < 200
        before = os.path.getsize(tape)
        probe.send(*frames(sender, samples + 40 * k * BIN, units, 40 * k * BIN,
                           40 * (k + 1) * BIN))
        assert [d.bin for d in server.decodes(40)] == list(range(40 * k, 40 * (k + 1)))
        wait_for(lambda size=before: os.path.getsize(tape) > size or stopped())
        k += 1
    probe.send(*frames(sender, samples + 40 * k * BIN, units, 40 * k * BIN, 40 * (k + 1) * BIN))
    assert all(d.valid for d in server.decodes(40))
    return server.end()


@pytest.mark.parametrize("how", ["limit", "tmpfs"])
def test_a_full_disk_ends_the_recording_and_not_the_decoding(model, uri, tmp_path, how):
    disk = tmp_path / "disk"
    disk.mkdir()
    if how == "tmpfs":
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk],
                                 capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("may not mount a small disk")
    where = disk / "r"
    try:
        with Publisher(uri) as probe, Serving(
            model, {"a": uri}, f"--record={where}", "--record-reserve-mb=0"
        ) as server:
            probe.wait()
            if how == "limit":  # no file of this process may grow past this
                pid, most = server.process.pid, os.path.getsize(where / "tape") + 50_000
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
            summary = decoding_goes_on(server, probe, where / "tape", Sender())
        why = "No space left on device" if how == "tmpfs" else "File too large"
        assert summary["recording"]["state"].startswith(f"stopped: {why}")
        told = [line for line in server.lines if "recording" in line]
        assert len(told) == 1  # one warning
        assert summary["recording"]["bytes"] == os.path.getsize(where / "tape")
        found = verify(where)
        assert found["equal"] > 10
        assert found["different"] == found["holes"] == found["tail_bytes"] == 0
    finally:
        if how == "tmpfs":
            subprocess.run(["umount", disk], check=True)


def test_too_little_space_is_said_before_the_experiment(model, uri, tmp_path):
    code, text = fail(f"--probe=a={uri}", f"--model={model}", f"--record={tmp_path}/r",
                      "--record-reserve-mb=1000000000", "--out=tcp://127.0.0.1:*")
    assert (code, text.count("\n")) == (3, 1)
    assert "--record-reserve-mb" in text


def test_a_folder_with_something_in_it_is_refused(model, uri, tmp_path):
    code, text = fail(f"--probe=a={uri}", f"--model={model}", f"--record={tmp_path}",
                      "--out=tcp://127.0.0.1:*")
    assert (code, text.count("\n")) == (2, 1)
    assert "a new folder" in text


def test_a_recording_plays_as_a_live_probe(model, uri, tmp_path):
    samples, units, _ = recording(30)
    with Flight(tmp_path / "r", model) as flight:
        said = flight.feed(*frames(Sender(), samples, units, 0, 30 * BIN))
    with Serving(model, {"a": uri}) as server:
        done = replay(tmp_path / "r", "--to", uri, "--speed=max", "--json")
        assert len(server.decodes(30)) == len(said) == 30
        server.end()
    played = json.loads(done.stdout)
    assert (played["spikes"], played["first_bin"]) == (len(samples), 0)


def test_unknown_events_make_what_follows_unverifiable(tmp_path, model):
    samples, units, _ = recording(20)
    sent = list(frames(Sender(), samples, units, 0, 20 * BIN))
    with Flight(tmp_path / "r", model) as flight:
        flight.feed(*sent[:25])
        flight.recorder.event("of the future", b"")
        flight.feed(*sent[25:])
    found = verify(tmp_path / "r")
    assert found["unknown_events"] == ["of the future"]
    assert (found["equal"], found["unverifiable"], found["different"]) == (10, 10, 0)


def test_lost_decodes_alone_leave_the_rest_verifiable(tmp_path, model):
    samples, units, _ = recording(20)
    with Flight(tmp_path / "r", model) as flight:
        flight.feed(*frames(Sender(), samples, units, 0, 20 * BIN))
    path, opened = tmp_path / "r", open_recording(tmp_path / "r")
    before, _, _ = read(path)
    bodies = [record(b"S", body=opened.digest)]
    seen = 0
    for r in before:
        seen += r.kind == DECODE
        lost = r.kind == DECODE and seen == 5
        hole = np.array([1, 0, 99], "<u8").tobytes()
        bodies.append(record(b"H", body=hole) if lost else record(r.kind, r.head, r.body, r.ns))
    (path / "tape").write_bytes(
        b"".join(chunk(opened.tape_id, k, body) for k, body in enumerate(bodies)))
    found = verify(path)
    assert (found["equal"], found["unverifiable"], found["different"]) == (19, 1, 0)


def test_what_is_exact_and_what_is_tolerated(tmp_path, model):
    with Flight(tmp_path / "r", model) as flight:
        flight.feed(Sender().frame(0, BIN))
    header = open_recording(tmp_path / "r").header
    bundle = read_bundle(model)
    assert is_exact(header, flight.engine)
    assert tolerance_for(header, load_engine("native:bf16", bundle), None) == 0.05
    assert tolerance_for(header, flight.engine, 0.25) == 0.25
    with pytest.raises(BadInput, match="--tolerance"):
        tolerance_for(header, flight.engine, float("nan"))
    assert replay_engine(header, bundle, None).precision == "float32"


def test_dates_in_the_name_are_filled_in():
    assert flights.recording_path("a/b").name == "b"
    assert flights.recording_path("a/%Y").name.isdigit()


def test_a_long_recording_is_not_verified_by_luck(tmp_path, model):
    """As many decodes compared as there were bins, none of them twice."""
    samples, units, _ = recording(500)
    with Flight(tmp_path / "r", model) as flight:
        flight.feed(*frames(Sender(), samples, units, 0, 500 * BIN))
    records, _, _ = read(tmp_path / "r")
    assert sum(r.kind == FRAME for r in records) == 1200
    found = verify(tmp_path / "r")
    assert (found["decodes"], found["frames"]) == (500, 1200)
    assert WINDOW < verifying.MAX_TOLD
    assert (tmp_path / "r" / MODEL).is_file()
