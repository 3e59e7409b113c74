"""Trodes against its twin, and the twin against the real client package."""

import contextlib
import gc
import threading
import time

import msgspec
import numpy as np
import pytest

from neds_rt.curve import Access
from neds_rt.errors import BadInput
from neds_rt.sources import open_source
from neds_rt.sources.frame import Frame
from neds_rt.sources.trodes import MAX_PART_BYTES
from neds_rt.sources.units import UnitMap
from tests.rt.foreign import Rig, free_port, units_of
from tests.rt.serving import Serving, small_bundle, wait_for
from tools.twins.feed import Feed, random_feed
from tools.twins.trodes import TrodesTwin

FEED = random_feed(n_units=20, rate_hz=15.0, seconds=5.0, seed=1)
END = 5 * 30_000


@contextlib.contextmanager
def tending(source):
    """Tend the source four times a second (faster, to be quick), as the server does."""
    stop = threading.Event()

    def tend():
        while not stop.wait(0.02):
            source.tend()

    thread = threading.Thread(target=tend)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def rig(twin, options="", feed=FEED):
    """A rig whose source has found the stream."""
    with Rig(f"trodes://127.0.0.1:{twin.port}{options}", feed) as live, tending(live.source):
        live.take_until = lambda condition: wait_for(lambda: live.take(0) and condition())
        live.take_until(lambda: live.source._connected)
        twin.wait()
        yield live


def test_bins_are_those_of_the_file():
    with TrodesTwin(FEED) as twin, rig(twin) as live:
        for begin, end in ((0, 3000), (3000, END)):  # decoding begins with the newest spike
            twin.play(begin, end)
            live.take(twin.messages)
        assert live.trouble == {}
        assert len(live.bins) > 235
        assert live.lost() == set()
        live.assert_exact()
        assert live.counted["late_spikes"] < 80  # those just before the beginning
        assert live.source.report()["units"]["heard"] == 20


def test_a_stream_that_is_offered_later_is_found_and_followed_to_another_port():
    with TrodesTwin(FEED, offer=False) as twin:
        source = open_source("a", f"trodes://127.0.0.1:{twin.port}",
                             units=UnitMap(units_of(FEED)))
        wait_for(lambda: "has no source.spikes yet" in source.tend())
        source.close()
        twin.offer_spikes()
        with rig(twin) as live:
            twin.play(0, 60_000)
            live.take(twin.messages)
            before = len(live.bins)
            first = live.source._connected
            twin.offer_spikes()
            live.source._last_ns = 1  # silent for long
            live.take_until(lambda: live.source._connected != first)
            twin.wait()
            twin.play(60_000, END)
            live.take(twin.messages)
            assert live.trouble == {"moved": 1, "interruptions": 1}
            assert live.counted["gaps"] == 1
            assert len(live.bins) > before
            live.assert_exact()


def test_a_message_too_long_costs_a_gap_and_the_stream_is_heard_again():
    with TrodesTwin(FEED) as twin, rig(twin) as live:
        twin.play(0, 60_000)
        live.take(twin.messages)
        twin.send(bytes(MAX_PART_BYTES + 1))
        live.take_until(lambda: twin._spikes.poll(0))
        assert twin._spikes.recv() == b"\0"  # the subscription ended, and then comes again
        live.take_until(lambda: twin._spikes.poll(0))
        assert twin._spikes.recv() == b"\1"
        twin.play(60_000, END)
        live.take(twin.messages - 1)
        assert live.trouble == {"interruptions": 1}
        assert live.counted["gaps"] == 1
        live.assert_exact()


def test_no_network_is_said_and_waited_for():
    port = free_port(1)
    source = open_source("a", f"trodes://127.0.0.1:{port}", units=UnitMap(units_of(FEED)))
    assert source.tend() == f"looking for a Trodes network at tcp://127.0.0.1:{port}"
    began = time.monotonic()
    wait_for(lambda: time.sleep(0.02) or source.tend().startswith("no Trodes network"))
    assert 1 < time.monotonic() - began < 10
    with TrodesTwin(FEED, port=port):
        wait_for(lambda: source.tend().startswith("connected to"))
    source.close()


@pytest.mark.parametrize("spoil", [
    b"\xc1", b"not msgpack", msgspec.msgpack.encode({"endpoint": 3}),
    msgspec.msgpack.encode({"replyEndpoint": "tcp://192.0.2.1:5"}),
    msgspec.msgpack.encode({"replyEndpoint": "file:///etc/passwd"}),
    msgspec.msgpack.encode({"replyEndpoint": "tcp://127.0.0.1:*"}),
])
def test_a_directory_that_answers_oddly_is_counted_and_asked_again(spoil):
    with TrodesTwin(FEED) as twin:
        twin.spoil = spoil
        source = open_source("a", f"trodes://127.0.0.1:{twin.port}",
                             units=UnitMap(units_of(FEED)))
        wait_for(lambda: source.tend() and source.counters["bad_answers"] >= 2)
        assert "answers oddly" in source.tend()
        twin.spoil = b""
        wait_for(lambda: source.tend().startswith("connected to"))
        source.close()


@pytest.mark.parametrize("endpoint", ["tcp://a b:5", "tcp://-:5", "tcp://a..b:5"])
def test_an_endpoint_that_cannot_be_dialled_is_counted_and_asked_for_again(endpoint):
    with TrodesTwin(FEED) as twin:
        good, twin.names["source.spikes"] = twin.names["source.spikes"], endpoint
        source = open_source("a", f"trodes://127.0.0.1:{twin.port}", access=Access(insecure=True),
                             units=UnitMap(units_of(FEED)))
        wait_for(lambda: source.tend() and source.counters["bad_answers"] >= 2)
        assert not source.receive(Frame())
        twin.names["source.spikes"] = good
        wait_for(lambda: source.tend().startswith("connected to"))
        source.close()


def spike(sample, ntrode=1, cluster=1, **changes):
    return {"nTrodeId": ntrode, "cluster": cluster, "localTimestamp": sample,
            "systemTimestamp": 1} | changes


SMALL = Feed(np.zeros(0, np.int64), np.zeros(0, np.int64), 3e4, np.array([1, 2]), np.array([1, 1]))


@pytest.mark.parametrize(("message", "kind"), [
    (b"", "bad_message"),
    (b"\xc1", "bad_message"),
    (b"\x91" * 2000, "bad_message"),
    (msgspec.msgpack.encode(spike(7))[:-3], "bad_message"),
    ({"nTrodeId": 1, "cluster": 1}, "bad_message"),
    (spike("7"), "bad_message"),
    (spike(7.5), "bad_message"),
    (spike(-1), "bad_range"),
    (spike(2**63 + 1), "bad_range"),
    (spike(700, cluster=0), "unsorted_spikes"),
    (spike(700, ntrode=9), "unknown_spikes"),
])
def test_bad_messages_are_counted_by_kind_and_survived(message, kind):
    with TrodesTwin(SMALL) as twin, rig(twin, feed=SMALL) as live:
        for sample in (0, 600, 1300):
            twin.send(spike(sample))
        twin.send(message)
        for sample in (1900, 20_000):
            twin.send(spike(sample, ntrode=2))
        live.take(twin.messages)
        assert live.trouble == {kind: 1}
        twin.send(spike(40_000))
        live.take(twin.messages)
        assert max(live.bins) == (40_000 - 1500) // 600 - 1


def test_a_count_that_begins_again_is_another_session():
    with TrodesTwin(FEED) as twin, rig(twin) as live:
        twin.play(0, END, offset=3_000_000)
        twin.play(0, END)
        live.take(twin.messages)
        assert live.trouble["restarts"] == 1
        assert live.counted["restarts"] == 1
        assert live.trouble["backwards"] == 32


def test_served_from_the_twin(tmp_path):
    bundle = small_bundle(tmp_path / "m.neds", n_units=4)
    feed = random_feed(4, 50.0, 3.0, seed=2)
    with TrodesTwin(feed) as twin, Serving(bundle, {"a": f"trodes://127.0.0.1:{twin.port}"}) as s:
        twin.wait()
        twin.play(0, 60_000, paced=True)
        assert len(s.decodes(80)) == 80
        assert s.end()["sources"]["a"]["counters"]["bad_message"] == 0


@pytest.mark.parametrize("uri", [
    "trodes://10.0.0.1", "trodes://127.0.0.1?hold_ms=0", "trodes://127.0.0.1?rate=-1",
    "trodes://127.0.0.1?speed=2",
])
def test_bad_uris_are_refused(uri):
    with pytest.raises(BadInput, match=r"^--probe a: "):
        open_source("a", uri, units=UnitMap([]))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves its sockets to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_real_client_talks_to_the_twin():
    """`trodesnetwork` finds, subscribes to and reads the twin, and registers a stream with it."""
    trodesnetwork = pytest.importorskip("trodesnetwork")
    with TrodesTwin(FEED) as twin:
        address = f"tcp://127.0.0.1:{twin.port}"
        client = trodesnetwork.SourceSubscriber("source.spikes", server_address=address)
        twin.wait()
        twin.play(0, 30_000)
        assert client.socket.socket.poll(10_000)
        found = [client.receive() for _ in range(twin.messages)]
        assert {frozenset(m) for m in found} == {frozenset(
            ("nTrodeId", "cluster", "localTimestamp", "systemTimestamp"))}
        samples = FEED.samples[FEED.samples < 30_000]
        assert sorted(m["localTimestamp"] for m in found) == samples.tolist()
        publisher = trodesnetwork.SourcePublisher("source.mine", server_address=address)
        assert twin.names["source.mine"] == publisher.socket.get_last_endpoint()
        del client, publisher
        gc.collect()
