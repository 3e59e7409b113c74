"""The fault table, short: a real server, real sockets, and a judge that has to be able to fail."""

import json
import math
import socket
import subprocess
import sys
from itertools import groupby

import numpy as np
import pytest
import zmq
from msgspec import structs

from neds_rt.subscribe import subscribe
from tests.rt.foreign import free_port
from tests.rt.serving import ROOT, wait_for
from tools import fault_sinks, faults
from tools.fault_judge import judge
from tools.fault_proxy import Proxy
from tools.fault_rig import BIN_S, Episode, Rig
from tools.fault_sinks import Datagram, validity_lost_s, wrong_datagrams
from tools.fault_table import FAULTS
from tools.fault_wire import Wire
from tools.faults import findings, get_well, kept, outputs_passed, passed
from tools.tables.trust import faults_table
from tools.twins.feed import random_feed
from tools.twins.openephys import ZmqInterface

ANY_TIME = {"floor_ms": math.inf}  # how soon alarms come is for the table, not for tests


def groups():
    """All faults, those together that one rig can go through."""
    def key(name):
        fault = FAULTS[name]
        return fault.rig.__name__, fault.engine, fault.alarm, fault.options

    for at, names in groupby(sorted(FAULTS, key=lambda name: str(key(name))), key=key):
        yield pytest.param(list(names), id="-".join(map(str, at)))


@pytest.mark.parametrize("names", list(groups()))
def test_nothing_wrong_is_called_valid(names, monkeypatch):
    monkeypatch.setattr(Rig, "some_bins", lambda rig, low=2, high=20: min(low, 10))
    monkeypatch.setattr(faults, "CLOCKS_KNOWN", 250 if "samples leap ahead" in names else 60)
    first = FAULTS[names[0]]
    with first.rig(3, *first.options, engine=first.engine) as rig:
        faults.settle(rig)
        episodes, failed = [], 0
        for name in names:
            for _ in range(int(rig.rng.integers(12, 16))):
                rig.tick()
            episodes.append(FAULTS[name].do(rig))
            failed += not get_well(rig)
        rig.end()
        row = findings(rig, first, episodes, failed) | ANY_TIME | {"runs": len(episodes)}
    assert passed(row), row
    assert row["valid_checked"] > 15 * len(names)
    if first.options:
        assert row["recordings"]["replayed"] == len(rig.lives)
        assert row["recordings"]["decodes"] > 50


@pytest.fixture(scope="module")
def well():
    """A rig that lost one frame and was well otherwise, with all that the judge needs."""
    with Rig(7) as rig:
        assert get_well(rig)
        for _ in range(15):
            rig.tick()
        episode = FAULTS["one frame lost"].do(rig)
        assert get_well(rig)
        for _ in range(15):
            rig.tick()
        rig.end()
        yield rig, episode


@pytest.fixture
def doctored(well, monkeypatch):
    """That rig with copies of what it sent and heard, and the row that is made of it."""
    rig, episode = well
    monkeypatch.setattr(rig, "decodes", list(rig.decodes))
    monkeypatch.setattr(rig, "truth", {k: v.copy() for k, v in rig.truth.items()})

    def row():
        return findings(rig, FAULTS["one frame lost"], [episode], 0) | ANY_TIME | {"runs": 1}

    return rig, row


def test_the_judge_finds_nothing_wrong_with_what_was_published(doctored):
    rig, row = doctored
    assert judge(rig) == (sum(d.valid for d in rig.decodes), [], 0)
    assert passed(row())


def test_one_spike_more_in_the_truth_is_noticed(doctored):
    rig, row = doctored
    one = [d for d in rig.decodes if d.valid][5]
    rig.truth[(one.session, one.bin)][3] += np.uint16(1)
    assert judge(rig).wrong[0] == one.seq
    assert not passed(row())


@pytest.mark.parametrize("which", [0, 20, -1])
def test_one_other_value_in_one_valid_decode_is_noticed(doctored, which):
    rig, row = doctored
    one = [d for d in rig.decodes if d.valid][which]
    velocity = one.values["velocity"]
    moved = [velocity.mean[0], velocity.mean[1] + 0.01]
    other = structs.replace(one, values={"velocity": structs.replace(velocity, mean=moved)})
    rig.decodes[rig.decodes.index(one)] = other
    assert judge(rig).wrong == [one.seq]
    assert row()["wrong_and_valid"] == 1
    assert not passed(row())


def test_a_lost_bin_that_is_called_valid_is_noticed(doctored):
    rig, row = doctored
    lost = next(d for d in rig.decodes if d.reason == "gap")
    rig.decodes[rig.decodes.index(lost)] = structs.replace(lost, valid=True, reason="ok")
    assert judge(rig).wrong[0] == lost.seq
    assert not passed(row())


def test_a_bin_that_nobody_told_of_is_noticed(doctored):
    rig, row = doctored
    rig.decodes.remove([d for d in rig.decodes if d.valid][-3])
    assert judge(rig).unreported >= 1
    assert not passed(row())


def test_an_alarm_that_never_came_is_noticed(well):
    rig, episode = well
    late = max(d.pub_ns for d in rig.decodes if not d.valid) + 1
    found = findings(rig, FAULTS["one frame lost"], [Episode(late, late)], 0)
    assert found["alarms"] == 0
    assert not passed(found | ANY_TIME | {"runs": 1})
    assert passed(findings(rig, FAULTS["one frame lost"], [episode], 0) | ANY_TIME | {"runs": 1})


@pytest.mark.parametrize("change", [
    {"wrong_and_valid": 1}, {"unreported_lost": 1}, {"never_recovered": 1}, {"valid_checked": 0},
    {"problems": ["the server did not come back"]}, {"alarms": 0}, {"floor_ms": -1e3},
    {"recordings": {"different": 1}}, {"recordings": {"not_held": 1}}], ids=str)
def test_one_broken_promise_fails_a_row(doctored, change):
    _, row = doctored
    good = row()
    assert passed(good)
    assert not passed(good | change)


def test_a_recording_that_lacks_a_decode_is_noticed():
    with Rig(9, *FAULTS["server killed"].options) as rig:
        assert get_well(rig)
        rig.end()
        assert faults.replay_all(rig)["not_held"] == 0
        rig.decodes.append(structs.replace(rig.decodes[-1], seq=rig.decodes[-1].seq + 1))
        assert faults.replay_all(rig)["not_held"] == 1


def test_the_program_measures_a_fault_and_its_outputs(tmp_path, monkeypatch):
    out = tmp_path / "faults.json"
    monkeypatch.setattr(faults, "CLOCKS_KNOWN", 60)
    monkeypatch.setattr(fault_sinks, "OPTIONS", "lockout=0&stale=0.5")  # for a busy machine
    monkeypatch.setattr(sys, "argv", [
        "tools/faults.py", "--runs=1", "--faults=one frame lost", "--outputs=one probe unplugged",
        f"--out={out}"])
    assert faults.main() in (0, 4)  # how long things took is not what is tested
    report = json.loads(out.read_text())
    [row], [outputs] = report["faults"], report["outputs"]
    assert kept(row)
    assert row["alarms"] == row["runs"] == 1
    assert kept(outputs)
    assert outputs["datagrams_checked"] > 3
    assert outputs["wrong_datagrams"] == outputs["missed"] == 0
    assert outputs_passed(outputs | {"limit_ms": math.inf})
    for change in ({"missed": 1}, {"wrong_datagrams": 1}, {"ttl_ms": None}, {"limit_ms": 0.0}):
        assert not outputs_passed(outputs | {"limit_ms": math.inf} | change)


def test_a_fault_that_nobody_knows_is_refused():
    done = subprocess.run([sys.executable, "tools/faults.py", "--faults=earthquake"], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("faults: --faults: fault: found 'earthquake'")
    assert len(done.stderr.splitlines()) == 1


def test_datagrams_are_held_against_decodes(doctored):
    rig, _ = doctored
    said = [d for d in rig.decodes if d.valid][:4]
    told = [Datagram(0.0, True, d.seq, d.bin, tuple(np.float32(d.values["velocity"].mean)))
            for d in said]
    assert wrong_datagrams(told, rig.decodes) == 0
    assert wrong_datagrams([told[0]._replace(values=(0.0, 0.0))], rig.decodes) == 1
    assert wrong_datagrams([told[0]._replace(seq=10**6)], rig.decodes) == 1
    assert wrong_datagrams([told[0]._replace(valid=False, values=())], rig.decodes) == 0


def test_validity_is_lost_with_the_last_valid_decode(doctored):
    rig, _ = doctored
    like = next(d for d in rig.decodes if d.valid)

    def lost(*said, safe=math.inf):
        made = [structs.replace(like, pub_ns=round(bins * BIN_S * 1e9), valid=valid)
                for bins, valid in said]
        return validity_lost_s(made, 0.5 * BIN_S, safe) / BIN_S

    assert lost((0, True), (1, True), (2, False)) == 1
    assert lost((0, True), (1, False), (2, True)) == 0
    assert lost((0, True), (1, True), (4, True)) == 1
    assert lost((0, True), (1, True), (2, True), safe=1.5 * BIN_S) == 1
    assert lost((0, True), (1, True)) == 1
    assert lost((0, False)) == math.inf


def test_a_proxy_carries_messages_and_heartbeats_and_mangles_when_told():
    feed = random_feed(5, 20.0, 1.0, 0)
    context = zmq.Context()
    with ZmqInterface(feed, port=free_port(), hwm=0) as twin, Proxy(twin.port) as proxy:
        twin.wait()
        server = subscribe(context, f"tcp://127.0.0.1:{proxy.port}", 30)
        beat = context.socket(zmq.REQ)
        beat.setsockopt(zmq.RCVTIMEO, 30_000)
        beat.connect(f"tcp://127.0.0.1:{proxy.port + 1}")
        beat.send(b'{"type": "heartbeat"}')
        assert beat.recv() == b"heartbeat received"

        def numbers(mangle=None):
            """Which of six messages come through, and in what order."""
            first = twin.number + 1
            if mangle is not None:
                proxy.begin(mangle)
            for row in range(6):
                twin.send_spike(row)
            wait_for(lambda: proxy.passed == twin.number)
            proxy.end()
            found = []
            while server.poll(200):
                found.append(json.loads(server.recv_multipart()[1])["message_num"] - first)
            return found

        assert (numbers(), proxy.harmed) == ([0, 1, 2, 3, 4, 5], 0)
        assert (numbers(lambda parts: []), proxy.harmed) == ([], 6)
        assert proxy.harmed_ns > 0
        assert numbers(lambda parts: [parts, parts])[:4] == [0, 0, 1, 1]
        proxy.unbind()
        assert numbers() == []
        proxy.bind()
        wait_for(lambda: numbers() == [0, 1, 2, 3, 4, 5])
    context.destroy(linger=0)


def test_a_wire_breaks_in_the_middle_of_what_passes():
    listener = socket.create_server(("127.0.0.1", 0))
    wire = Wire(listener.getsockname()[1])
    for cut in (False, True):
        dialled = socket.create_connection(("127.0.0.1", wire.port), 30)
        answered, _ = listener.accept()
        answered.settimeout(30)
        if cut:
            wire.cut()
        dialled.sendall(bytes(100))
        if cut:
            assert b"".join(iter(lambda: answered.recv(1000), b"")) == bytes(50)  # noqa: B023
            assert wire.cut_ns > 0
        else:
            assert answered.recv(1000) == bytes(100)
        dialled.close()
        answered.close()
    wire.close()
    listener.close()


def test_every_fault_says_what_it_does():
    assert len(FAULTS) >= 40
    assert all((fault.do.__doc__ or "").strip() for fault in FAULTS.values())


def test_the_table_shows_what_was_measured(doctored):
    _, row = doctored
    old = {"faults": [row() | {"fault": "one frame lost", "floor_ms": 1.5}]}
    assert "one frame lost | 1 | 0 of" in faults_table([old])
    assert "datagram" not in faults_table([old])
    both = [*old["faults"], row() | {"fault": "plugin: bursts", "floor_ms": 23.7}]
    assert "at most 1.5 ms" in faults_table([{"faults": both}])
    assert "later, it takes 23.7 ms." in faults_table([{"faults": both}])
    ms = {"p50": 23.5, "p99": 24.4, "max": 24.5}
    safe = {"fault": "server killed", "runs": 20, "ttl_ms": ms, "udp_ms": None, "limit_ms": 25.0,
            "missed": 1, "wrong_datagrams": 0, "datagrams_checked": 300}
    table = faults_table([old | {"outputs": [safe]}])
    assert table.startswith(faults_table([old]))
    assert "| server killed | 20 | 23.5 / 24.4 / 24.5 | – | 1 | 0 of 300 |" in table
    assert "25 ms." in table
