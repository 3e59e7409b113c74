"""Sinks over real sockets: what arrives, what a rule does, and that none can hold up a server."""

import contextlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import time

import numpy as np
import pytest
import zmq

from neds_rt.errors import BadInput, StartError
from neds_rt.sinks.guard import LATE_S, UNKNOWN_BIN_S, Guard
from neds_rt.sinks.oe_events import ANSWER_S, Rule, Trigger, TtlOutlet
from neds_rt.sinks.outlet import OUTLETS, open_outlet
from neds_rt.sinks.udp import HEADER, LOCKED_OUT, SILENT, UdpOutlet
from neds_rt.sinks.values import REASON_CODES, labels, numbers
from neds_rt.wire import Decode, Value
from tests.rt.serving import COMMAND, ROOT, Publisher, Serving, small_bundle, wait_for
from tests.rt.spike_frames import Sender
from tools.twins.network_events import NetworkEventsTwin

REASONS = __import__("neds_rt.assemble", fromlist=["REASONS"]).REASONS


def decode(p=0.5, *, seq=7, valid=True, reason="ok", **changes):
    values = {
        "velocity": Value(mean=[1.5, -2.0], sd=[]),
        "heading": Value(angle=0.25, r=0.9),
        "choice": Value(p=[1 - p, p], label="left"),
    }
    fields = {"v": 1, "seq": seq, "session": "s", "bin": 41, "t_s": 0.84, "spike_age_us": 1234.5,
              "service_us": 90.0, "recv_ns": 1, "pub_ns": time.monotonic_ns(), "model": "6f1c",
              "valid": valid, "reason": reason, "values": values}
    return Decode(**(fields | changes))


def listener():
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.bind(("127.0.0.1", 0))
    found.settimeout(10)
    return found, found.getsockname()[1]


def test_every_reason_of_the_server_has_a_code():
    assert list(REASON_CODES) == list(REASONS)
    assert list(REASON_CODES.values()) == list(range(len(REASONS)))


def test_values_are_named_and_in_order():
    assert labels(decode()) == ["velocity.0", "velocity.1", "heading.angle", "heading.r",
                                "choice.p0", "choice.p1"]
    assert numbers(decode(0.75)) == [1.5, -2.0, 0.25, 0.9, 0.25, 0.75]
    invalid = numbers(decode(valid=False, reason="gap"))
    assert len(invalid) == 6
    assert all(map(math.isnan, invalid))


def test_a_datagram_byte_by_byte():
    receiver, port = listener()
    with receiver:
        outlet = UdpOutlet(f"udp://127.0.0.1:{port}")
        outlet.write(decode(0.75, seq=2**32 + 5), 0.0)
        data = receiver.recv(2048)
        outlet.write(decode(valid=False, reason="stale", bin=-1, t_s=math.nan, spike_age_us=-1.0),
                     0.0)
        stale = receiver.recv(2048)
        outlet.close()
    assert data[:4] == b"NEDS"
    assert data[4:8] == bytes([1, 1, 0, 6])  # version, valid, reason ok, values
    assert struct.unpack("<IIqd", data[8:32]) == (5, 1234, 41, 0.84)
    assert struct.unpack("<6f", data[32:]) == tuple(
        np.array([1.5, -2.0, 0.25, 0.9, 0.25, 0.75], np.float32).tolist())
    assert len(data) == len(stale) == HEADER.size + 24
    assert stale[5:7] == bytes([0, 3])
    assert struct.unpack("<I", stale[12:16])[0] == 2**32 - 1
    assert np.isnan(np.frombuffer(stale[32:], "<f4")).all()


def test_datagrams_go_on_when_decodes_stop_and_are_never_valid():
    receiver, port = listener()
    with receiver:
        outlet = UdpOutlet(f"udp://127.0.0.1:{port}?lockout=0.03")
        sent = [(0.0, True), (0.02, True), (0.04, True)]
        for t, valid in sent:
            outlet.write(decode(valid=valid), t)
        for t in (0.05, 0.062):  # not yet silent
            outlet.tick(t)
        for t in (0.064, 0.070, 0.084, 0.104, 0.5):
            outlet.tick(t)
        outlet.write(decode(), 0.51)
        found = [receiver.recv(2048) for _ in range(8)]
        outlet.close()
    assert [data[5:7] for data in found] == [bytes([0, LOCKED_OUT])] * 2 + [bytes([1, 0])] + [
        bytes([0, SILENT])] * 4 + [bytes([0, LOCKED_OUT])]
    for data in found[3:7]:
        assert HEADER.unpack(data[:32])[6:8] == (2**32 - 1, -1)
        assert np.isnan(np.frombuffer(data[32:], "<f4")).all()


def test_udp_to_nobody_is_counted_and_survived():
    receiver, port = listener()
    receiver.close()
    outlet = UdpOutlet(f"udp://127.0.0.1:{port}")
    for _ in range(10):
        outlet.write(decode(), 0.0)
        time.sleep(0.002)
    assert outlet.counters["dropped"] > 0
    assert sum(outlet.counters.values()) == 10
    outlet.write(decode(values={"v": Value(mean=[0.0] * 300, sd=[])}), 0.0)
    assert outlet.counters["too_many_values"] == 1
    outlet.close()


@pytest.mark.parametrize(("uri", "word"), [
    ("http://127.0.0.1:80", "URI"),
    ("udp://127.0.0.1", "HOST:PORT"),
    ("udp://127.0.0.1:0", "HOST:PORT"),
    ("udp://127.0.0.1:99999", "URI"),
    ("udp://127.0.0.1:9000/path", "URI"),
    ("udp://192.0.2.1:9000", "--insecure"),
    ("udp://127.0.0.1:9000?rate=3", "rate"),
    ("oe-events+tcp://127.0.0.1:5556", "value"),
    ("oe-events+tcp://127.0.0.1:5556?value=x&above=high", "above"),
    ("oe-events+tcp://127.0.0.1:5556?value=x&above=nan", "above"),
    ("oe-events+tcp://127.0.0.1:5556?value=x&above=1&below=2", "below"),
    ("oe-events+tcp://127.0.0.1:5556?value=x&above=1&pulse=2", "pulse"),
    ("oe-events+tcp://127.0.0.1:5556?value=x&above=1&line=0", "line"),
    ("oe-events+tcp://127.0.0.1:5556?value=x&value=y&above=1", "URI"),
])
def test_bad_uris_are_one_line(uri, word):
    with pytest.raises(BadInput, match=word) as error:
        open_outlet(uri)
    assert "\n" not in str(error.value)


def test_a_remote_host_is_taken_when_asked_for():
    open_outlet("udp://192.0.2.1:9000", insecure=True).close()


class TestTrigger:
    def trigger(self, **options):
        return Trigger(Rule(**({"value": "x", "above": 0.8, "refractory": 0.1} | options)))

    def test_hysteresis(self):
        t = self.trigger(below=0.5)
        raised = [t.see(x, i) for i, x in enumerate([0.7, 0.8, 0.9, 0.6, 0.9, 0.4, 0.81])]
        assert raised == [False, True, False, False, False, False, True]

    def test_refractory_delays_a_crossing_that_lasts_and_drops_one_that_does_not(self):
        t = self.trigger(refractory=1.0)
        assert t.see(0.9, 0.0)
        assert not t.see(0.1, 0.2)
        assert not t.see(0.9, 0.4)
        assert t.see(0.9, 1.0)
        t.see(0.1, 1.2)
        assert not t.see(0.9, 1.4)
        assert not t.see(0.1, 1.6)
        assert not t.see(0.1, 2.5)

    def test_pulse_ends_by_itself(self):
        t = self.trigger(pulse=0.02)
        t.see(0.9, 0.0)
        t.tick(0.019)
        assert t.up
        t.see(0.1, 0.0195)
        assert t.up
        t.tick(0.0201)
        assert not t.up

    def test_level_follows_the_decode(self):
        t = self.trigger(pulse=0.0)
        t.see(0.9, 0.0)
        t.tick(0.4)
        assert t.up
        t.see(0.1, 0.45)
        assert not t.up


class TestGuard:
    def test_silence_of_a_bin_and_a_little_ends_validity(self):
        guard = Guard(None, 0.0)
        assert not guard.silent(1e9)  # nothing was ever said, so nothing was ever valid
        assert guard.see(decode(bin=9, t_s=0.5), 1.0)  # bins of 50 ms
        assert guard.bin_s == pytest.approx(0.05)
        assert not guard.silent(1.052)
        assert guard.silent(1.054)
        assert guard.due_s <= 1.0 + 0.05 + 0.005

    def test_after_a_loss_validity_has_to_last(self):
        guard = Guard(0.5, 0.1)
        found = [guard.see(decode(valid=valid), t) for t, valid in (
            (0.0, True), (0.09, True), (0.11, True), (0.12, False), (0.13, True), (0.22, True),
            (0.24, True), (0.9, True), (0.99, True), (1.01, True))]
        assert found == [False, False, True, False, False, False, True, False, False, True]

    def test_stale_decodes_say_nothing_of_the_bins_length(self):
        guard = Guard(None, 0.0)
        assert not guard.see(decode(valid=False, bin=-1, t_s=math.nan), 0.0)
        assert guard.due_s == pytest.approx(UNKNOWN_BIN_S + LATE_S)


def ttl_outlet(twin, **options):
    options = {"value": "choice.p1", "above": 0.8, "line": 5} | options
    query = "&".join(f"{name}={value}" for name, value in options.items())
    outlet = TtlOutlet(f"oe-events+{twin.endpoint}?{query}")
    wait_for(lambda: outlet._socket.poll(10, zmq.POLLOUT))  # connected
    return contextlib.closing(outlet)


def settle(outlet, condition, p=None):
    """Tick (and write p, if given) at real time until the condition holds."""
    def step():
        now = time.monotonic()
        outlet.tick(now)
        if p is not None:
            outlet.write(decode(p), now)
        return condition()
    wait_for(step)


def test_a_crossing_becomes_one_pulse_in_the_gui():
    with NetworkEventsTwin() as twin, ttl_outlet(twin, pulse=0.02, refractory=0.05) as outlet:
        settle(outlet, lambda: len(twin.ttls) == 2, p=0.9)
        for _ in range(20):
            outlet.write(decode(0.95), time.monotonic())
        outlet.write(decode(0.99, valid=False, reason="gap"), time.monotonic())
        settle(outlet, lambda: outlet.counters["answered"] + outlet.counters["overtaken"] == 2)
        assert [(line, on) for _, line, on in twin.ttls] == [(5, True), (5, False)]
        assert twin.ttls[1][0] - twin.ttls[0][0] >= 0.018
        assert outlet.counters["events"] == 1


def test_a_raised_line_is_lowered_when_the_sink_ends():
    with NetworkEventsTwin() as twin:
        with ttl_outlet(twin, pulse=0) as outlet:
            settle(outlet, lambda: len(twin.ttls) == 1, p=0.9)
        wait_for(lambda: len(twin.ttls) == 2)
        assert twin.ttls[-1][2] is False


def test_silence_lowers_the_line():
    with NetworkEventsTwin() as twin, ttl_outlet(twin, pulse=0, stale=0.1, lockout=0) as outlet:
        settle(outlet, lambda: len(twin.ttls) == 1, p=0.9)
        settle(outlet, lambda: len(twin.ttls) == 2)
        assert twin.ttls[-1][2] is False
        assert outlet.counters["silences"] == 1


def test_an_invalid_decode_lowers_the_line_at_once_and_locks_it():
    """No clock but the one handed in: what is asked of the GUI follows from the decodes alone."""
    with NetworkEventsTwin() as twin, ttl_outlet(
            twin, pulse=0, stale=60, lockout=0.5, refractory=0) as outlet:
        def heard(n, now):
            wait_for(lambda: outlet.tick(now) or outlet.counters["answered"] == n)

        for t in (0.0, 0.4):
            outlet.write(decode(0.9), t)
        assert outlet.counters["events"] == 0  # valid, but not for long enough
        outlet.write(decode(0.9), 0.6)
        heard(1, 0.6)
        outlet.write(decode(0.9, valid=False, reason="stream missing"), 0.7)
        heard(2, 0.7)
        assert [on for _, _, on in twin.ttls] == [True, False]
        outlet.write(decode(0.1), 0.8)  # still locked
        outlet.write(decode(0.9), 1.2)
        assert outlet.counters["events"] == 1
        outlet.write(decode(0.1), 1.4)  # armed once more, by a decode that counts
        outlet.write(decode(0.9), 1.45)
        heard(3, 1.45)
        assert [on for _, _, on in twin.ttls] == [True, False, True]
        outlet.write(decode(0.9, valid=False, reason="drift"), 1.5)
        heard(4, 1.5)


def test_the_safe_state_does_not_wait_for_an_answer():
    with NetworkEventsTwin() as twin, ttl_outlet(twin, pulse=0, stale=60, lockout=0) as outlet:
        twin.mute = True
        outlet.write(decode(0.9), 1.0)
        outlet.write(decode(0.9, valid=False, reason="gap"), 1.0)  # the same moment
        assert (outlet.counters["events"], outlet.counters["overtaken"]) == (1, 1)
        twin.mute = False
        wait_for(lambda: outlet.tick(1.0) or outlet.counters["answered"] == 1)
        assert [on for _, _, on in twin.ttls] == [True, False]


def test_a_decode_without_the_rules_value_is_counted():
    with NetworkEventsTwin() as twin, ttl_outlet(twin, lockout=0) as outlet:
        outlet.write(decode(0.9, values={"other": Value(mean=[1.0], sd=[])}), time.monotonic())
        assert outlet.counters["no_value"] == 1


def test_a_gui_that_never_answers_blocks_nothing_and_is_asked_anew():
    with NetworkEventsTwin() as twin, ttl_outlet(twin, refractory=0.02) as outlet:
        settle(outlet, lambda: outlet.counters["answered"] >= 2, p=0.9)
        twin.mute = True
        outlet.write(decode(0.1), time.monotonic())
        time.sleep(0.03)
        longest, end = 0.0, time.monotonic() + 1.3 * ANSWER_S
        while time.monotonic() < end:
            for p in (0.9, 0.1):
                began = time.perf_counter()
                outlet.write(decode(p), time.monotonic())
                longest = max(longest, time.perf_counter() - began)
            time.sleep(0.005)
        assert outlet.counters["unanswered"] >= 1
        assert outlet.counters["dropped"] > 10
        assert longest < ANSWER_S / 2
        twin.mute = False
        before = outlet.counters["answered"]
        settle(outlet, lambda: outlet.counters["answered"] > before)


def test_no_gui_at_all_drops_events_at_once():
    outlet = TtlOutlet("oe-events+tcp://127.0.0.1:9?value=choice.p1&above=0.8")
    outlet.write(decode(0.9), 0.0)
    assert outlet.counters["dropped"] == 0  # locked out at first
    for k in range(1, 12):
        outlet.write(decode(0.9), 0.01 * k)
    assert outlet.counters["dropped"] > 0
    outlet.close()


def test_the_plugin_twin_answers_as_the_plugin():
    with NetworkEventsTwin(acquiring=False) as twin:
        assert twin.answer("TTL Line=5 State=1") == "TTLHandled: Channel=5 on=1"
        assert twin.answer("IsAcquiring") == "0"
        assert twin.answer("TTL Line=0 State=1") == "InvalidLine"
        assert twin.answer("TTL") == "NotHandled"
        assert twin.ttls == []


def test_lsl_stream_as_another_program_reads_it():
    pylsl = pytest.importorskip("pylsl")
    outlet = open_outlet(f"lsl://Neds-{os.getpid()}", insecure=True)
    outlet.write(decode(0.75), 0.0)
    found = pylsl.resolve_byprop("name", f"Neds-{os.getpid()}", timeout=10)
    if not found:
        outlet.close()
        pytest.skip("this machine lets no LSL stream be found")
    inlet = pylsl.StreamInlet(found[0], max_buflen=10)
    inlet.open_stream(timeout=10)
    wait_for(lambda: outlet._outlet.have_consumers())
    outlet.write(decode(0.75), 0.0)
    sample, stamp = inlet.pull_sample(timeout=10)
    assert sample == [1.0, 0.0, 41.0, 1.5, -2.0, 0.25, 0.9, 0.25, 0.75]
    assert abs(pylsl.local_clock() - stamp) < 5
    info, names = inlet.info(timeout=10), []
    channel = info.desc().child("channels").child("channel")
    while not channel.empty():
        names.append(channel.child_value("label"))
        channel = channel.next_sibling()
    assert names == ["valid", "reason", "bin", *labels(decode())]
    outlet.write(decode(model="another"), 0.0)
    assert outlet.counters == {"sent": 3, "opened": 2}
    inlet.close_stream()
    outlet.close()


def test_lsl_without_its_package_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pylsl", None)
    with pytest.raises(StartError, match=r"pip install 'neds\[lsl\]'"):
        open_outlet("lsl://x", insecure=True)


def test_table_names_what_exists():
    for target in OUTLETS.values():
        module, _, name = target.partition(":")
        assert hasattr(__import__(module, fromlist=[name]), name)


class Sinks:
    """`neds-rt sink` in its own process."""

    def __init__(self, server, *uris):
        self.process = subprocess.Popen(
            [*COMMAND, "sink", *uris, "--from", server, "--json"], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr.readline().startswith("ready ")

    def end(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        assert (self.process.returncode, err) == (0, "")
        return json.loads(out.splitlines()[-1])


def test_a_stopped_sink_does_not_hold_up_the_server(tmp_path):
    """3000 bins while the sink's process is frozen: every decode reaches another client."""
    bundle = small_bundle(tmp_path / "m.neds")
    uri = f"zmq+ipc://{tmp_path}/spikes"
    receiver, port = listener()
    with receiver, Publisher(uri) as publisher, Serving(bundle, {"a": uri}) as server:
        publisher.wait()
        sinks = Sinks(server.lines[-1].split()[1], f"udp://127.0.0.1:{port}")
        while HEADER.unpack(receiver.recv(2048)[:32])[3] == SILENT:
            pass  # until it carries the server's stale decodes, and has a number to count from
        sinks.process.send_signal(signal.SIGSTOP)
        sender, n = Sender(), 3000
        for k in range(n):
            publisher.send(sender.frame(600 * k, 600 * (k + 1), [600 * k], [0]))
            if k % 50 == 49:
                assert [d.bin for d in server.decodes(50)] == list(range(k - 49, k + 1))
        sinks.process.send_signal(signal.SIGCONT)
        last = HEADER.unpack(receiver.recv(2048)[:32])
        while last[7] != -1:  # the stale ones after the last bin
            last = HEADER.unpack(receiver.recv(2048)[:32])
        report = sinks.end()
        summary = server.end()
    assert summary["decodes"] == n
    assert report["skipped"] > n / 2  # the last value, and not the backlog
    assert report["malformed"] == 0
    assert report["sinks"][f"udp://127.0.0.1:{port}"]["dropped"] == 0


def test_a_server_that_freezes_or_dies_leaves_its_sinks_safe(tmp_path):
    """Real processes: after the last valid decode, invalid datagrams and a line down."""
    bundle = small_bundle(tmp_path / "m.neds")
    uri = f"zmq+ipc://{tmp_path}/spikes"
    receiver, port = listener()
    with (receiver, Publisher(uri) as publisher, Serving(bundle, {"a": uri}) as server,
          NetworkEventsTwin() as twin):
        publisher.wait()
        sinks = Sinks(server.lines[-1].split()[1], f"udp://127.0.0.1:{port}",
                      f"oe-events+{twin.endpoint}?value=choice.p1&above=0&pulse=0&lockout=0"
                      "&refractory=0&stale=20")
        sender, k = Sender(), [0]

        def datagram():
            return receiver.recv(2048)[5:7]

        def raised():  # a rig that goes on
            publisher.send(sender.frame(600 * k[0], 600 * (k[0] + 1), [600 * k[0]], [0]))
            k[0] += 1
            server.next()
            return bool(twin.ttls)

        wait_for(raised)
        server.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: datagram() == bytes([0, SILENT]))
        assert {datagram() for _ in range(5)} == {bytes([0, SILENT])}
        server.process.send_signal(signal.SIGCONT)
        wait_for(lambda: datagram() == bytes([0, REASON_CODES["stale"]]))
        wait_for(lambda: len(twin.ttls) == 2)
        server.process.kill()
        wait_for(lambda: datagram() == bytes([0, SILENT]))
        report = sinks.end()
    assert [on for _, _, on in twin.ttls] == [True, False]
    assert report["sinks"][f"udp://127.0.0.1:{port}"]["silent"] >= 6


def test_bad_sinks_end_with_one_line_and_exit_2():
    for arguments in (["udp://127.0.0.1"], ["udp://127.0.0.1:9", "--from", "tcp://192.0.2.1:1"],
                      ["udp://127.0.0.1:9", "--seconds", "0"]):
        done = subprocess.run([*COMMAND, "sink", *arguments], cwd=ROOT, capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
