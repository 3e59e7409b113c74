"""Open Ephys Event Broadcaster against its twin, in both formats, over true sockets."""

import json
import struct

import pytest
import zmq

from neds_rt.errors import BadInput
from neds_rt.sources import open_source
from neds_rt.sources.units import UnitMap
from tests.rt.foreign import Rig, free_port, units_of
from tests.rt.serving import wait_for
from tools.twins.feed import gui_blocks, random_feed
from tools.twins.oebroadcast import EventBroadcaster

FEED = random_feed(n_units=20, rate_hz=15.0, seconds=5.0, seed=3)


def play(twin, live, begin, end):
    """Block by block: without pauses the source would see all spikes at once."""
    for block in gui_blocks(twin.feed, begin, end):
        twin.send_block(block)
        live.take(twin.messages)


def raw_spike(sample, electrode_type=1, base=2, index=0, n=41):
    head = struct.pack("<BBHHHqdH", base, electrode_type, 102, 65, index, sample, 0.0, 1)
    return b"\1\0", head + bytes(4 * n)


@pytest.mark.parametrize("raw", [False, True])
def test_bins_are_those_of_the_file(raw):
    with EventBroadcaster(FEED, port=free_port(), raw=raw, hwm=0) as twin, Rig(
            f"oe-events://127.0.0.1:{twin.port}?rate=30000", FEED) as live:
        twin.wait()
        for line in range(3):
            twin.send_ttl(10 * line, line, True)
        play(twin, live, 0, 150_000)
        assert live.trouble == {}
        assert live.source.counters["ttl_events"] == 3
        assert live.lost() == set()
        assert len(live.bins) > 240
        live.assert_exact()
        assert set(live.counted) <= {"frames", "spikes", "bins", "late_spikes", "partial_spikes"}
        assert live.source.tend() == f"receiving stream '{65 if raw else 'ProbeA-AP'}' at 30000 Hz"


def test_an_acquisition_started_anew_is_another_session():
    with EventBroadcaster(FEED, port=free_port(), hwm=0) as twin, Rig(
            f"oe-events://127.0.0.1:{twin.port}", FEED) as live:
        twin.wait()
        play(twin, live, 0, 60_000)
        play(twin, live, 0, 150_000)
        assert live.trouble == {"backwards": 32, "restarts": 1}
        assert live.counted["restarts"] == 1
        for bins in live.sessions:
            live.assert_exact(bins)
        assert max(live.sessions[0]) < 100 < max(live.sessions[1])


def test_a_lost_connection_is_a_gap():
    port = free_port()
    with EventBroadcaster(FEED, port=port, hwm=0) as twin:
        live = Rig(f"oe-events://127.0.0.1:{port}", FEED)
        twin.wait()
        play(twin, live, 0, 60_000)
        live.source.tend()
        before = twin.messages
    wait_for(lambda: "nobody listens there" in live.source.tend())
    with live, EventBroadcaster(FEED, port=port, hwm=0) as twin:
        # The subscription is renewed by whoever polls the source, as the server does all the time.
        wait_for(lambda: live.take(0) and twin._socket.poll(0))
        twin.wait()
        twin.messages = before
        play(twin, live, 90_000, 150_000)
        assert live.trouble == {"interruptions": 1}
        assert live.counted["gaps"] == 1
        assert set(range(100, 150)) <= live.lost() < set(range(95, 156))
        live.assert_exact()


def test_a_hold_that_is_too_short_drops_spikes_and_says_so():
    with EventBroadcaster(FEED, port=free_port(), hwm=0) as twin, Rig(
            f"oe-events://127.0.0.1:{twin.port}?hold_ms=5", FEED) as live:
        twin.wait()
        play(twin, live, 0, 150_000)
        assert live.counted["late_spikes"] + live.trouble["backwards"] > 0


def test_each_bad_message_is_counted_and_survived():
    def spike(**changes):
        body = {"event_type": "spike", "stream": "ProbeA-AP", "electrode": "Electrode 0",
                "sample_number": 100, "sorted_id": 1, "sample_rate": 30000.0}
        return b"\1\0", json.dumps(body | changes).encode()

    bad = {
        "bad_parts": [(b"\1\0",), (b"\1\0", bytes(8), bytes(50))],
        "bad_kind": [(b"spike", b"{}"), (b"EVENT\0", b"{}")],
        "bad_body": [(b"\1\0", b"{"), (b"\1\0", b""), (b"\1\0", b"{" * 70_000), (b"\0\0", b"short"),
                     (b"\0\0", spike()[1]), spike(event_type="x"), spike(sample_number=None),
                     raw_spike(1, 9), raw_spike(1, base=7), raw_spike(1, n=1), (b"\1\0", b"\2\1"),
                     raw_spike(1, electrode_type=3, n=6)],
        "bad_range": [spike(sample_number=2**60), spike(sample_rate=0.0), spike(sample_rate=-1.0)],
        "no_rate": [raw_spike(1)],
        "other_stream": [spike(stream="ProbeB-AP")],
        "unsorted_spikes": [spike(sorted_id=0)],
        "unknown_spikes": [spike(electrode="x")],
        "backwards": [spike(sample_number=10**9), spike(sample_number=-10**9)],
    }
    with EventBroadcaster(FEED, port=free_port(), hwm=0) as twin, Rig(
            f"oe-events://127.0.0.1:{twin.port}", FEED) as live:
        twin.wait()
        messages = [spike(), *(m for kind in bad.values() for m in kind), spike()]
        for parts in messages:
            twin.send_raw(*parts)
        live.take(len(messages))
        assert live.trouble == {kind: len(sent) for kind, sent in bad.items()}
        play(twin, live, 0, 60_000)
        assert live.lost() == set()
        live.assert_exact()


def test_a_source_waits_and_connects_when_the_plugin_appears():
    port = free_port()
    with Rig(f"oe-events://127.0.0.1:{port}", FEED) as live:
        assert "nobody listens there" in live.source.tend()
        with EventBroadcaster(FEED, port=port, hwm=0) as twin:
            twin.wait()
            wait_for(lambda: "no messages" in live.source.tend())
        wait_for(lambda: "nobody listens there" in live.source.tend())


def test_ports_are_searched_by_the_old_version_only():
    port = free_port()
    with EventBroadcaster(FEED, port=port) as first:
        with EventBroadcaster(FEED, port=port, search=True) as second:
            assert (first.port, second.port) == (port, port + 1)
        with pytest.raises(zmq.ZMQError, match="in use"):
            EventBroadcaster(FEED, port=port)


@pytest.mark.parametrize("options", ["?hold_ms=0", "?rate=-1", "?lateness=1"])
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput, match="URI option"):
        open_source("a", f"oe-events://127.0.0.1{options}", units=UnitMap(units_of(FEED)))
