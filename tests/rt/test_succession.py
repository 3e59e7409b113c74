"""Recordings in which a model was swapped or an engine failed over: they replay to the bit."""

import json
import shutil
import subprocess

import pytest

from neds_rt.bundle import read_bundle
from neds_rt.errors import BadInput
from neds_rt.recording.changes import SERVES, scan
from neds_rt.recording.header import open_recording
from neds_rt.recording.tape import DECODE, EVENT
from tests.rt.flights import chunk, read, record, verify
from tests.rt.serving import COMMAND, ROOT, small_bundle, wait_for
from tests.rt.spike_frames import Sender
from tests.rt.test_swap import Rig, other_bundle

ENGINES = "--engine=tests.rt.failing_engine:"


@pytest.fixture
def model(tmp_path):
    return small_bundle(tmp_path / "x.neds")


@pytest.fixture
def other(tmp_path):
    return other_bundle(tmp_path / "y.neds")


def hash_of(path):
    return read_bundle(path).manifest.model_hash


def whole(found, rig, summary, tolerance=0.0):
    """Every decode of the rig was replayed and is the same."""
    assert found["different"] == found["unverifiable"] == 0, found["differences"]
    assert found["equal"] == len(rig.counts) + summary["stale_decodes"]
    assert (found["tolerance"], found["unknown_events"]) == (tolerance, [])
    assert found["complete"]


def swapped(tmp_path, model, other, *options, before=30):
    """A recording with a swap, a rollback and a swap; its folder, the rig and the summary."""
    where = tmp_path / "r"
    with Rig(tmp_path, model, f"--record={where}", *options) as rig:
        rig.bins(before)
        rig.change("load", other)
        rig.bins(8)
        rig.change("rollback")
        rig.bins(5)
        rig.change("load", other)
        rig.bins(12)
        summary = rig.server.end()
    return where, rig, summary


@pytest.mark.parametrize("engine", ["native", "native:int8", "onnx"])
def test_swaps_replay_to_the_bit(tmp_path, model, other, engine):
    where, rig, summary = swapped(tmp_path, model, other, f"--engine={engine}")
    x, y = hash_of(model), hash_of(other)
    model.unlink()
    other.unlink()  # the recording has copies of both
    found = verify(where)
    whole(found, rig, summary)
    assert [(c["kind"], c["model"]) for c in found["changes"]] == [
        ("model swapped", hash_) for hash_ in (y, x, y)]
    firsts = [now for now, before in zip(rig.seen[1:], rig.seen, strict=False)
              if now.model != before.model]
    assert [(c["decode"], c["bin"]) for c in found["changes"]] == [
        (decode.seq, decode.bin) for decode in firsts]


def test_a_model_that_began_in_mid_stream_replays_to_the_bit(tmp_path, model, other):
    """More bins than the server keeps: its history does not reach back to the first."""
    where, rig, summary = swapped(tmp_path, model, other, before=3700)
    found = verify(where)
    whole(found, rig, summary)
    assert all(c["begun"] > 0 for c in found["changes"])


def replay(*options):
    return subprocess.run([*COMMAND, "replay", *map(str, options)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)


def test_without_the_other_bundle_it_is_one_line_and_with_it_verified(tmp_path, model, other):
    where, rig, _ = swapped(tmp_path, model, other)
    shutil.rmtree(where / "models")
    done = replay(where, "--verify")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    first = next(d.seq for d in rig.seen if d.model == hash_of(other))
    assert (f"the model from decode {first} on: found no bundle of {hash_of(other)[:12]}…, "
            "expected --bundle with it") in done.stderr
    done = replay(where, "--verify", "--json", "--bundle", model, "--bundle", other)
    assert done.returncode == 0
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["different"], found["unverifiable"], len(found["changes"])) == (0, 0, 3)
    assert f"model swapped at decode {first} (bin " in done.stdout
    third = other_bundle(tmp_path / "z.neds", seed=9)
    with pytest.raises(BadInput, match="expected a model that serves in this recording"):
        verify(where, bundles=[other, third])
    (where / "models").mkdir()
    shutil.copy(third, where / "models" / f"{hash_of(other)}.neds")
    with pytest.raises(BadInput, match="as its name says"):
        verify(where)
    alone = replay(where, "--bundle", other)
    assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(("kind", "options", "at"), [
    ("RaisingEngine", (), 8), ("WrongOutputs", (), 0),
    ("Slowing", ("--budget-ms=40", "--overruns=3"), 11),
])
def test_fail_overs_replay_to_the_bit(tmp_path, model, kind, options, at):
    where = tmp_path / "r"
    with Rig(tmp_path, model, f"--record={where}", ENGINES + kind, *options) as rig:
        rig.bins(20)
        summary = rig.server.end()
    found = verify(where, "native")
    (event,) = summary["failovers"]
    exact = open_recording(where).header.engine.name == "native"
    whole(found, rig, summary, 0.0 if exact else 1e-3)
    (change,) = found["changes"]
    assert (change["kind"], change["decode"], change["bin"]) == ("failed over", event["decode"], at)
    assert change["engine"]["name"] == "native"
    assert found["largest_error"] == 0
    with pytest.raises(BadInput, match="if you trust it"):
        verify(where)


def test_a_swapped_model_that_fails_over_replays(tmp_path, model, other):
    where = tmp_path / "r"
    with Rig(tmp_path, model, f"--record={where}", ENGINES + "LoadedRaisingLater") as rig:
        rig.bins(3)
        rig.change("load", other)
        wait_for(lambda: (rig.bins(20), any(d.reason == "failed over" for d in rig.seen))[1])
        rig.bins(5)
        rig.change("load", model)
        rig.bins(12)  # and fails over again
        summary = rig.server.end()
    found = verify(where, "native")
    whole(found, rig, summary)
    assert [c["kind"] for c in found["changes"]] == ["model swapped", "failed over"] * 2


def test_a_gap_and_a_restart_around_a_swap_replay(tmp_path, model, other):
    where = tmp_path / "r"
    with Rig(tmp_path, model, f"--record={where}") as rig:
        rig.bins(20)
        rig.counts += [None, None]  # lost
        rig.bins(1)
        rig.seen += rig.server.decodes(2)
        rig.change("load", other)
        rig.bins(4)
        rig.send, rig.counts, rig.seen = Sender("a", "again"), [], []
        rig.bins(10)
        rig.change("rollback")
        rig.bins(5)
        rig.server.end()
    found = verify(where)
    assert (found["different"], found["unverifiable"], len(found["changes"])) == (0, 0, 2)
    assert found["equal"] > 40


def rewrite(where, change):
    """Write the tape anew, each record as `change` has it: bytes to take its place, or None."""
    opened = open_recording(where)
    bodies = [record(b"S", body=opened.digest)]
    for r in read(where)[0]:
        body = change(r)
        bodies.append(record(r.kind, r.head, r.body, r.ns) if body is None else body)
    (where / "tape").write_bytes(b"".join(
        chunk(opened.tape_id, k, body) for k, body in enumerate(filter(None, bodies))))


@pytest.mark.parametrize("data", [
    b"", b"{}", b"junk", json.dumps({"model": "../" * 20, "engine": {"name": "n", "precision": "p"},
                                     "begun": 0, "decode": 1}).encode()])
def test_a_swap_of_which_nothing_is_told_is_unverifiable_and_not_wrong(
    tmp_path, model, other, data
):
    where, rig, summary = swapped(tmp_path, model, other)
    rewrite(where, lambda r: record(EVENT, r.head, data) if r.head == SERVES.encode() else None)
    assert scan(open_recording(where)) == []
    found = verify(where)
    assert found["different"] == 0
    assert found["unknown_events"] == ["model swapped", "serves"]
    first = next(d.seq for d in rig.seen if d.model == hash_of(other))
    assert (found["equal"], found["changes"]) == (first, [])
    assert found["unverifiable"] == len(rig.counts) + summary["stale_decodes"] - first


def test_entries_that_are_none_are_unverifiable(tmp_path, model, other):
    where, _, _ = swapped(tmp_path, model, other)

    def later(r):
        if r.head != SERVES.encode():
            return None
        return record(EVENT, r.head, json.dumps(json.loads(r.body) | {"begun": 10**6}).encode())

    rewrite(where, later)
    found = verify(where)
    assert (found["different"], found["changes"]) == (0, [])
    assert found["unverifiable"] > 0


def test_a_swap_in_a_hole_is_unverifiable_and_not_wrong(tmp_path, model, other):
    where = tmp_path / "r"
    with Rig(tmp_path, model, f"--record={where}") as rig:
        rig.bins(10)
        rig.change("load", other)
        rig.bins(3)
        swap = next(d.seq for d in rig.seen if d.model == hash_of(other))
        rig.send, rig.counts, rig.seen = Sender("a", "again"), [], []
        rig.bins(10)  # after a restart all is known again, but for the model
        rig.server.end()
    seen = [0]

    def hide(r):
        seen[0] += r.kind == DECODE
        if r.kind == EVENT and r.head == b"model swapped":
            return record(b"H", body=b"".join(n.to_bytes(8, "little") for n in (1, 1, 16)))
        return b"" if r.kind == EVENT else None

    rewrite(where, hide)
    found = verify(where)
    assert (found["equal"], found["different"]) == (swap, 0)
    assert found["unverifiable"] == seen[0] - swap
    assert found["unknown_events"] == ["another model, in a hole"]


def test_a_copy_that_cannot_be_made_is_a_warning(tmp_path, model, other):
    where = tmp_path / "r"
    with Rig(tmp_path, model, f"--record={where}") as rig:
        rig.bins(5)
        (where / "models").write_text("in the way")
        rig.change("load", other)
        rig.bins(3)
        wait_for(lambda: any("a replay needs it by --bundle" in line for line in rig.server.lines))
        summary = rig.server.end()
    whole(verify(where, bundles=[other]), rig, summary)
