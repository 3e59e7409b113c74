"""SpikeGLX against its twin over true TCP: crossings as bins, gaps, restarts, bad replies."""

import socket
import time

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.manifest import Unit
from neds_rt.sources import open_source
from neds_rt.sources.address import Address
from neds_rt.sources.frame import Frame
from neds_rt.sources.spikeglx_wire import Connection, Refused, Trouble
from neds_rt.sources.units import UnitMap
from tests.rt.serving import Serving, small_bundle, wait_for
from tests.rt.spike_frames import counters_of, drain
from tests.rt.test_detector import push_all
from tools.twins.spikeglx import SpikeGlxTwin, make_ap_band, sync_words

FS, CHANNELS = 30_000.0, 8
DATA, _, _ = make_ap_band(CHANNELS, 4.0, rate_hz=20)


class Rig:
    """The source on one assembler, for as many channels as the twin has."""

    def __init__(self, twin, options="", channels=range(CHANNELS), block_ms=1):
        self.twin = twin
        units = [Unit("p", c, 0) for c in channels]
        uri = f"spikeglx://127.0.0.1:{twin.port}?block_ms={block_ms}{options}"
        self.source = open_source("a", uri, units=UnitMap(units))
        self.assembler = _core.Assembler(0.02, [("a", list(range(len(units))))], len(units), 512)
        self.bins, self.frame = {}, Frame()

    def until(self, condition, seconds=20):
        def step():
            while self.source.receive(self.frame):
                self.assembler.push(self.frame.header, self.frame.payload)
                if self.assembler.available:
                    self.bins |= drain(self.assembler)
            return condition()
        wait_for(step, seconds)
        return self

    def fetched(self, n):
        """Until so many samples were fetched and all frames of them taken."""
        self.until(lambda: self.source.counters["samples"] >= n)
        time.sleep(0.05)
        return self.until(lambda: True)

    @property
    def trouble(self):
        normal = ("fetches", "samples", "spikes")
        return {k: v for k, v in self.source.counters.items() if v and k not in normal}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()


def start(twin, n=100, **options):
    """A rig that has begun to fetch; the twin has `n` samples that came before."""
    twin.advance(n)
    made = Rig(twin, **options)
    wait_for(lambda: made.source.tend().startswith("fetching"))
    return made


def offline(data, first):
    """Bins of the same crossings, detected over the whole recording at once."""
    detector = _core.ThresholdDetector(data.shape[1], FS)
    found = push_all(detector, data, block=len(data), first=first)
    begin = -(-detector.live_from // 600)
    end = (first + len(data)) // 600
    return begin, _core.bin_spikes(found[:, 0].copy(), found[:, 1].copy(), data.shape[1], FS,
                                   0.02,
                                   begin, end - begin)


def test_bins_equal_offline_detection_bit_for_bit():
    with SpikeGlxTwin(DATA, paced=False) as twin, start(twin) as live:
        for n in (7, 3000, 11_111, 40_000, 35_000):
            twin.advance(n)
        live.fetched(89_118)
        begin, counts = offline(twin.samples(100, 89_118), 100)
        assert list(live.bins) == list(range(begin, begin + len(counts)))
        for index, row in live.bins.items():
            np.testing.assert_array_equal(row, counts[index - begin])
        assert counts.sum() > 100
        assert live.trouble == {}
        report = live.source.report()
        assert (report["channels"], report["fs"], report["units"]["heard"]) == (8, FS, 8)
        assert 6 < report["noise"] < 11


def test_channels_that_the_model_lacks_are_counted_and_order_is_the_models():
    with SpikeGlxTwin(DATA, paced=False) as twin, start(twin, channels=(5, 2)) as live:
        twin.advance(80_000)
        live.fetched(80_000)
        _, counts = offline(twin.samples(100, 80_000), 100)
        found = np.array([live.bins[k] for k in sorted(live.bins)])
        np.testing.assert_array_equal(found, counts[:, [5, 2]])
        others = counts[:, [0, 1, 3, 4, 6, 7]].sum()
        assert others <= live.source.counters["unknown_spikes"] < others + 20  # in part bins


@pytest.mark.parametrize(("js", "channels"), [(-2, CHANNELS), (1, 3)])
def test_another_stream_is_fetched_where_it_is_asked_for(js, channels):
    other, _, _ = make_ap_band(channels, 4.0, rate_hz=20, seed=5)
    with SpikeGlxTwin(DATA, paced=False, lf=4, others={js: other}, sync=sync_words()) as twin, \
            start(twin, options=f"&js={js}&sync=6", channels=range(channels)) as live:
        assert live.source.tend().startswith(f"fetching {channels} channels at 30000 Hz")
        twin.advance(80_000)
        live.fetched(80_000)
        _, counts = offline(twin.samples(100, 80_000, js), 100)
        np.testing.assert_array_equal([live.bins[k] for k in sorted(live.bins)], counts)
        assert counts.sum() > 50
        assert [sample for sample, _ in live.source.edges] == [15_000, 45_000, 75_000]
        assert live.trouble == {}


@pytest.mark.parametrize(("js", "reason"), [(-2, "not enabled"), (1, "ip must be in range")])
def test_a_stream_that_there_is_not_is_said_and_waited_for(js, reason):
    with SpikeGlxTwin(DATA, paced=False) as twin:
        twin.advance(100)
        uri = f"spikeglx://127.0.0.1:{twin.port}?js={js}"
        source = open_source("a", uri, units=UnitMap([Unit("p", 0, 0)]))
        try:
            wait_for(lambda: source.counters["refused"] >= 1)
            wait_for(lambda: reason in source.tend())
            twin.others[js] = DATA
            wait_for(lambda: twin.advance(300) or source.counters["samples"] > 0)
        finally:
            source.close()


def test_too_late_is_a_gap_and_fetching_goes_on():
    with SpikeGlxTwin(DATA, paced=False, queue_s=1.0) as twin, start(twin) as live:
        twin.advance(29_000)
        twin.advance(16_000) if live.fetched(29_000) else None
        live.fetched(45_000)
        twin.advance(50_000)  # more than the queue holds
        live.until(lambda: live.source.counters["too_late"] == 1)
        twin.advance(6_000)
        live.fetched(51_000)
        assert counters_of(live.assembler)["gaps"] == 1
        lost = [k for k, counts in live.bins.items() if counts is None]
        # From the last sample before to the first one after, and the filter's 20 ms.
        assert lost == list(range(45_100 // 600, -(-(95_100 + 600) // 600)))


@pytest.mark.parametrize(("fault", "kind"), [
    ("close", "closed"), ("truncate", "truncated"), ("garbage", "bad_reply"),
    ("no_ok", "bad_reply"), ("too_many", "bad_reply"), ("error", "refused"),
])
def test_a_bad_reply_is_counted_and_costs_no_sample(fault, kind):
    with SpikeGlxTwin(DATA, paced=False) as twin, start(twin) as live:
        twin.advance(40_000)
        live.fetched(40_000)
        twin.fault = fault
        live.until(lambda: live.source.counters[kind] == 1)
        twin.advance(3_000)
        live.fetched(43_000)
        assert live.trouble == {kind: 1}
        assert "gaps" not in counters_of(live.assembler)
        _, counts = offline(twin.samples(100, 43_000), 100)
        np.testing.assert_array_equal([live.bins[k] for k in sorted(live.bins)], counts)


def test_samples_that_go_backwards_are_another_session():
    with SpikeGlxTwin(DATA, paced=False) as twin, start(twin) as live:
        twin.advance(40_000)
        live.fetched(40_000)
        twin.fault = "backwards"  # a fetch that waits already may still be answered as it should be
        live.until(lambda: twin.advance(60) or live.source.counters["backwards"] == 1)
        live.until(lambda: twin.advance(300) or counters_of(live.assembler).get("restarts") == 1)
        assert live.source.counters["restarts"] == 1


def test_a_new_run_is_another_session():
    with SpikeGlxTwin(DATA, paced=False) as twin, start(twin) as live:
        twin.advance(40_000)
        live.fetched(40_000)
        twin.stop_run()
        live.until(lambda: live.source.counters["refused"] >= 1)
        assert "Not running" in live.source.tend() or "does not run" in live.source.tend()
        twin.restart(600)
        live.until(lambda: twin.advance(300) or counters_of(live.assembler).get("restarts") == 1)
        assert min(live.bins) < 100
        assert live.source.counters["restarts"] == 1


def test_a_server_that_hangs_is_left_and_asked_anew(monkeypatch):
    monkeypatch.setattr("neds_rt.sources.spikeglx_wire.TIMEOUT_S", 0.3)
    monkeypatch.setattr(Connection.__init__, "__defaults__", (0.3,))
    with SpikeGlxTwin(DATA, paced=False) as twin, start(twin) as live:
        twin.fault = "hang"
        live.until(lambda: live.source.counters["no_reply"] == 1)
        twin.advance(40_000)
        live.fetched(40_000)
        assert len(live.bins) > 5


def test_a_connection_that_was_idle_is_closed_and_made_anew_without_a_loss():
    # A source that asks every 100 ms, and a server that hangs up after 50 ms without a command.
    with SpikeGlxTwin(DATA, paced=False, idle_s=0.05) as twin, start(twin, block_ms=100) as live:
        for n in (30_000, 9_000, 1_000):
            twin.advance(n)
            before = live.source.counters["closed"]
            live.until(lambda before=before: live.source.counters["closed"] >= before + 2)
        live.fetched(40_000)
        assert set(live.trouble) == {"closed"}
        assert "gaps" not in counters_of(live.assembler)
        _, counts = offline(twin.samples(100, 40_000), 100)
        np.testing.assert_array_equal([live.bins[k] for k in sorted(live.bins)], counts)


def test_a_late_start_waits_visibly_and_connects():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    source = open_source("a", f"spikeglx://127.0.0.1:{port}", units=UnitMap([Unit("p", 0, 0)]))
    try:
        wait_for(lambda: source.counters["unreachable"] >= 1)
        assert str(port) in source.tend()
        with SpikeGlxTwin(DATA, port=port):
            wait_for(lambda: source.counters["spikes"] > 0)
            assert source.tend() == f"fetching 8 channels at 30000 Hz from 127.0.0.1:{port}"
        wait_for(lambda: source.counters["closed"] + source.counters["unreachable"] >= 2)
    finally:
        source.close()


def test_another_program_on_the_port_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        uri = f"spikeglx://127.0.0.1:{server.getsockname()[1]}"
        source = open_source("a", uri, units=UnitMap([Unit("p", 0, 0)]))
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"\x00\x01\x02" * 5000)
            wait_for(lambda: source.counters["bad_reply"] == 1)
        source.close()


class TestConversation:
    def ask(self, twin):
        return Connection(Address("127.0.0.1", twin.port))

    def test_queries_and_errors(self):
        with SpikeGlxTwin(DATA, paced=False) as twin, self.ask(twin) as c:
            assert c.query("NOOP") == ""
            assert c.query("GETSTREAMACQCHANS 2 0") == "8 0 1"
            with pytest.raises(Refused, match="Unknown command"):
                c.query("FROBNICATE")
            for _ in range(4):
                with pytest.raises(Refused, match="ip must be"):
                    c.query("GETSTREAMSAMPLERATE 2 7")
            with pytest.raises(Trouble, match="closed"):  # the fifth error in a row
                c.query("NOOP")

    def test_the_server_hangs_up_on_a_client_that_asks_nothing(self):
        with SpikeGlxTwin(DATA, paced=False, idle_s=0.1) as twin, self.ask(twin) as c:
            assert c.query("NOOP") == ""
            wait_for(lambda: not twin._connections)
            with pytest.raises(Trouble, match="closed"):
                c.query("NOOP")

    def test_a_fetch_of_what_is_not_there_yet_returns_soon_with_none(self):
        with SpikeGlxTwin(DATA, paced=False) as twin, self.ask(twin) as c:
            twin.advance(50)
            into = memoryview(bytearray(16 * 100))
            assert c.fetch(2, 0, 50, "0#1#2#3#4#5#6#7#", 8, into) == (0, 50)
            assert c.fetch(2, 0, 20, "0#1#2#3#4#5#6#7#", 8, into) == (30, 20)
            got = np.frombuffer(into, "<i2").reshape(-1, 8)[:30]
            np.testing.assert_array_equal(got, DATA[20:50])
            assert c.fetch(2, 0, 20, "3#1#", 2, into[:400])[0] == 30


def test_served_from_the_twin_at_real_time(tmp_path):
    bundle = small_bundle(tmp_path / "m.neds", n_units=4)
    with SpikeGlxTwin(DATA) as twin:
        uri = f"spikeglx://127.0.0.1:{twin.port}"
        with Serving(bundle, {"a": uri}) as server:
            bins = [d.bin for d in server.decodes(60)]
            summary = server.end()
    assert bins == list(range(bins[0], bins[0] + 60))
    assert summary["sources"]["a"]["counters"]["too_late"] == 0
    assert summary["sources"]["a"]["channels"] == 8


@pytest.mark.parametrize("uri", [
    "spikeglx://10.0.0.1", "spikeglx://127.0.0.1?threshold=0", "spikeglx://127.0.0.1?js=0",
    "spikeglx://127.0.0.1?reference=mean", "spikeglx://127.0.0.1?block_ms=1e9",
    "spikeglx://127.0.0.1?probe=x",
])
def test_bad_uris_are_refused(uri):
    with pytest.raises(BadInput, match=r"^--probe a: "):
        open_source("a", uri, units=UnitMap([]))
