"""Pulses that all probes record, from every source that delivers them, and clocks aligned by them.

Each source hears its twin over true sockets; only the clock of this machine is told by the test.
"""

import contextlib

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.aligning import Aligner
from neds_rt.errors import BadInput
from neds_rt.manifest import Unit
from neds_rt.sources import open_source
from neds_rt.sources.edges import EdgeFinder, edge_queue
from neds_rt.sources.frame import Frame
from neds_rt.sources.units import UnitMap
from neds_rt.wire import decode_header
from tests.rt.foreign import Rig, free_port
from tests.rt.serving import wait_for
from tools.twins.feed import Block, Feed
from tools.twins.oebroadcast import EventBroadcaster
from tools.twins.openephys import ZmqInterface
from tools.twins.spikeglx import SpikeGlxTwin, make_ap_band, sync_words
from tools.twins.trodes import TrodesTwin

FS = 30_000.0
LINE = 2
STEP_S, SECONDS = 0.1, 12
PULSES_S = np.arange(0.513, SECONDS, 0.97)
BAND = make_ap_band(4, 1.0)[0]
EMPTY = Feed(np.zeros(0, np.int64), np.zeros(0, np.int64), FS, np.arange(4), np.ones(4, np.int64))


class Probe:
    """One probe of a rig: `rate` samples of it to a second of the true time, `zero` at its start.

    What differs between programs is `twin`, `uri`, `send` and `taken`.
    """

    def __init__(self, name, ppm, zero):
        self.name, self.rate, self.zero = name, FS * (1 + ppm * 1e-6), zero
        self.twin, uri = self.open()
        units = UnitMap([Unit("p", c, 1) for c in range(4)])
        self.source, self.frame = open_source(name, uri, units=units), Frame()
        self.borders = []  # watermarks as they were sent and as they became

    def begin(self):
        self.twin.wait()

    def sample(self, seconds):
        return self.zero + np.int64(np.floor(seconds * self.rate))

    def advance(self, begin_s, end_s):
        """Send what the probe records in this time, pulses of 10 ms with it."""
        pulses = PULSES_S[slice(*np.searchsorted(PULSES_S, (begin_s, end_s)))]
        self.send(int(self.sample(begin_s)), int(self.sample(end_s)),
                  [int(s) for s in self.sample(pulses)])

    def take(self, aligner, now_ns):
        """Receive until everything was taken, and pass it on as a server does."""
        def step():
            while self.source.receive(self.frame):
                before = decode_header(bytes(self.frame.header)).watermark
                if aligner.take(self.frame, now_ns):
                    after = decode_header(bytes(self.frame.header)).watermark
                    self.borders.append((before, after))
            return self.taken()
        wait_for(step)

    def taken(self):
        return self.source.counters["messages"] >= self.messages

    @property
    def messages(self):
        return self.twin.messages

    def close(self):
        self.source.close()
        self.twin.close()


class Broadcast(Probe):
    raw, module = False, "oebroadcast"

    def open(self):
        samples = self.zero + np.arange(0, int(SECONDS * FS * 1.01), 60)
        feed = Feed(samples, np.zeros_like(samples), FS, EMPTY.channel, EMPTY.cluster)
        twin = EventBroadcaster(feed, port=free_port(), raw=self.raw, hwm=0)
        return twin, f"oe-events://127.0.0.1:{twin.port}?rate=30000&sync={LINE}"

    def send(self, begin, end, pulses):
        for sample in pulses:
            self.twin.send_ttl(sample, LINE, True)
            self.twin.send_ttl(sample + 300, LINE, False)
        for row in range(*np.searchsorted(self.twin.feed.samples, (begin, end))):
            self.twin.send_spike(row)


class RawBroadcast(Broadcast):
    raw = True


class Interface(Probe):
    module = "openephys"

    def open(self):
        twin = ZmqInterface(EMPTY, port=free_port(), hwm=0)
        return twin, f"oe://127.0.0.1:{twin.port}?sync={LINE}"

    def send(self, begin, end, pulses):
        for sample in pulses:
            self.twin.send_ttl(sample, LINE, 1)
            self.twin.send_ttl(sample + 300, LINE, 0)
        self.twin.send_block(Block(begin, end, np.zeros(0, np.int64)))

    @property
    def messages(self):
        return self.twin.sent.messages


class RawInterface(Interface):
    module = "oe_raw"

    def open(self):
        twin = ZmqInterface(EMPTY, port=free_port(), hwm=0, traces=BAND)
        return twin, f"oe://127.0.0.1:{twin.port}?mode=threshold&sync={LINE}"


class SpikeGlx(Probe):
    module = "spikeglx"

    def open(self):
        words = np.zeros(int(self.rate * SECONDS) + 1000, np.int16)
        for sample in self.sample(PULSES_S) - self.zero:
            words[sample : sample + 300] = 1 << 6 | 1
        words[: len(words) // 2] |= 1 << 3  # another bit
        twin = SpikeGlxTwin(BAND, paced=False, lf=4, sync=np.roll(words, self.zero % len(words)))
        twin.advance(self.zero + 1)
        return twin, f"spikeglx://127.0.0.1:{twin.port}?block_ms=20&sync=6"

    def begin(self):
        wait_for(lambda: self.source.tend().startswith("fetching"))

    def send(self, begin, end, pulses):
        self.end = end
        self.twin.advance(end - begin)

    def taken(self):
        return self.source.counters["samples"] >= self.end - self.zero


class Trodes(Probe):
    module = "trodes"

    def open(self):
        twin = TrodesTwin(EMPTY)
        twin.offer_digital()
        self.digital = 0
        return twin, f"trodes://127.0.0.1:{twin.port}?sync=9"

    def begin(self):
        wait_for(lambda: self.source.tend() and not self.source.receive(self.frame) and (
            self.source._connected))
        self.twin.wait()
        self.twin.wait(digital=True)

    def send(self, begin, end, pulses):
        for sample in pulses:
            for at, inputs in ((sample - 1, (3,)), (sample, (3, 9)), (sample + 300, (8,))):
                self.twin.send_inputs(at, *inputs)
                self.digital += 1
        for sample in range(begin, end, 60):
            self.twin.send({"nTrodeId": 1, "cluster": 1, "localTimestamp": sample})

    def taken(self):
        return super().taken() and self.source.counters["digital_messages"] == self.digital


@pytest.mark.parametrize("kind", [Interface, RawInterface, Broadcast, RawBroadcast, SpikeGlx,
                                  Trodes])
def test_two_probes_40_ppm_apart_are_aligned_by_their_pulses(kind, monkeypatch):
    now = [0]
    monkeypatch.setattr(f"neds_rt.sources.{kind.module}.now_ns", lambda: now[0])
    monkeypatch.setattr("neds_rt.sources.trodes_digital.now_ns", lambda: now[0])
    aligner = Aligner("ab")
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(contextlib.closing(kind(*probe)))
                  for probe in (("a", 0.0, 0), ("b", 40.0, 1_000_000))]
        for probe in probes:
            probe.begin()
        for k in range(int(SECONDS / STEP_S)):
            now[0] = int(((k + 1) * STEP_S + 0.01) * 1e9)
            for probe in probes:
                probe.advance(k * STEP_S, (k + 1) * STEP_S)
                probe.take(aligner, now[0])
            state = aligner.tend([probe.source for probe in probes])
        assert state == "b: aligned by edges"
        report = aligner.report()["b"]
        assert report["ppm"] == pytest.approx(-40, abs=3)
        assert (report["unmatched_edges"], report["rejected"]) == (0, 0)
        borders = np.array(probes[1].borders[-20:])
        true = (borders[:, 0] - 1_000_000) / (1 + 40e-6)
        np.testing.assert_allclose(borders[:, 1], true, atol=2)


@pytest.mark.parametrize("raw", [False, True])
def test_only_rising_edges_of_the_line_and_of_the_stream_count(raw):
    with EventBroadcaster(EMPTY, port=free_port(), raw=raw, hwm=0) as twin, Rig(
            f"oe-events://127.0.0.1:{twin.port}?rate=30000&sync=3&stream={65 if raw else 'A'}",
            EMPTY) as live:
        twin.wait()
        for stream, number, sample, line, state in (
                ("A", 65, 600, 3, True), ("A", 65, 700, 3, False), ("A", 65, 800, 2, True),
                ("B", 66, 850, 3, True), ("A", 65, 900, 3, True), ("A", 65, 2**62, 3, True)):
            twin.stream, twin.stream_id = stream, number
            twin.send_ttl(sample, line, state)
        live.take(twin.messages)
        assert [sample for sample, _ in live.source.edges] == [600, 900]
        assert live.trouble == {"bad_range": 1}
        assert live.source.counters["ttl_events"] == 6


def test_only_rising_edges_of_the_line_count_beside_raw_channels():
    with ZmqInterface(EMPTY, port=free_port(), hwm=0, traces=BAND, stream="A") as twin:
        uri = f"oe://127.0.0.1:{twin.port}?mode=threshold&sync=3"
        source = open_source("a", uri, units=UnitMap([]))
        try:
            twin.wait()
            twin.send_block(Block(0, 690, EMPTY.samples))  # tells which stream it is
            for stream, sample, line, state in (
                    ("A", 600, 3, 1), ("A", 700, 3, 0), ("A", 800, 2, 1), ("B", 850, 3, 1),
                    ("A", 900, 3, 1), ("A", 2**62, 3, 1)):
                twin.stream = stream
                twin.send_ttl(sample, line, state)
            wait_for(lambda: source.counters["messages"] == twin.sent.messages)
            wait_for(lambda: source.counters["bad_range"] == 1)
            assert [sample for sample, _ in source.edges] == [600, 900]
            assert (source.counters["bad_header"], source.counters["ttl_events"]) == (0, 6)
        finally:
            source.close()


def test_edges_of_a_bit_are_found_across_pieces_and_not_across_gaps():
    words = np.array([64, 64, 0, 64, 64 + 1, 1, 1, -1, 0, 64], np.int16)  # bit 6: 11011 00101
    whole = EdgeFinder(6, edge_queue("", 6, 16))
    whole.take(words, 100, 5)
    assert list(whole.edges) == [(103, 5), (107, 5), (109, 5)]
    pieces = EdgeFinder(6, edge_queue("", 6, 16))
    for k, word in enumerate(words):
        pieces.take(np.array([word]), 100 + k, 5)
    assert pieces.edges == whole.edges
    gap = EdgeFinder(6, edge_queue("", 6, 16))
    gap.take(words[:3], 100, 5)
    gap.take(words[3:3], 103, 5)
    gap.take(words[3:], 104, 5)
    assert list(gap.edges) == [(108, 5), (110, 5)]


def test_the_sync_word_is_fetched_behind_lf_and_kept_from_the_detector():
    with SpikeGlxTwin(BAND, paced=False, lf=3, sync=sync_words()) as twin:
        twin.advance(100)
        uri = f"spikeglx://127.0.0.1:{twin.port}?sync=6"
        source = open_source("a", uri, units=UnitMap([Unit("p", c, 0) for c in range(4)]))
        try:
            wait_for(lambda: source.tend() == (
                f"fetching 4 channels at 30000 Hz from 127.0.0.1:{twin.port}"))
            twin.advance(100_000)
            wait_for(lambda: source.counters["samples"] == 100_000)
            assert [sample for sample, _ in source.edges] == [15_000, 45_000, 75_000]
            without = _core.ThresholdDetector(4, FS)
            found = without.push(np.ascontiguousarray(twin.samples(100, 100_000)), 100)
            assert source.counters["spikes"] == found > 0
        finally:
            source.close()


def test_a_stream_without_a_sync_word_says_so(monkeypatch):
    with SpikeGlxTwin(BAND, paced=False) as twin:
        monkeypatch.setattr(twin, "_answer", lambda command, words: "4 0 0" if (
            command == "GETSTREAMACQCHANS") else SpikeGlxTwin._answer(twin, command, words))
        twin.advance(100)
        source = open_source("a", f"spikeglx://127.0.0.1:{twin.port}?sync=6", units=UnitMap([]))
        try:
            wait_for(lambda: source.counters["wrong_stream"] >= 1)
            assert "no sync word" in source.tend()
        finally:
            source.close()


def test_digital_inputs_are_found_followed_and_read_through_bad_messages():
    good = {"localTimestamp": 5, "digitalData": [b"\x00\x02"]}
    with TrodesTwin(EMPTY, offer=False) as twin:
        source = open_source("a", f"trodes://127.0.0.1:{twin.port}?sync=9", units=UnitMap([]))
        try:
            first = twin.offer_digital()
            twin.wait(digital=True)
            twin.send_inputs(10, 9)  # high from the start: no edge
            twin.send_inputs(20)
            twin.send_inputs(30, 9)
            bad = [b"", b"\xc1", good | {"digitalData": []}, good | {"digitalData": [b"\x01"]},
                   good | {"digitalData": b"\x00\x02"}, good | {"localTimestamp": -1},
                   good | {"localTimestamp": 2**62}, {"localTimestamp": 5}]
            for message in bad:
                twin.send_digital(message)
            twin.send_inputs(40, 8)
            twin.send_inputs(50, 8, 9)
            wait_for(lambda: source.counters["digital_messages"] == 5 + len(bad))
            assert source.counters["bad_digital"] == len(bad)
            assert [sample for sample, _ in source.edges] == [30, 50]
            assert source.report()["digital_endpoint"] == first
            second = twin.offer_digital()  # as a start of Trodes does; heard of after a silence
            twin.wait(digital=True)
            wait_for(lambda: source.report()["digital_endpoint"] == second != first)
            twin.send_inputs(60, 9)  # nothing is known of what came before
            twin.send_inputs(70)
            twin.send_inputs(80, 9)
            wait_for(lambda: [sample for sample, _ in source.edges] == [30, 50, 80])
        finally:
            source.close()


@pytest.mark.parametrize("uri", ["oe-events://127.0.0.1?sync=64", "oe-events://127.0.0.1?sync=-1",
                                 "oe://127.0.0.1?mode=threshold&sync=64",
                                 "oe-events://127.0.0.1?sync=x", "spikeglx://127.0.0.1?sync=16",
                                 "trodes://127.0.0.1?sync=4096"])
def test_a_line_that_there_cannot_be_is_refused(uri):
    with pytest.raises(BadInput, match=r"^--probe a: URI option"):
        open_source("a", uri, units=UnitMap([]))
