"""Open Ephys ZMQ Interface against its twin, over true sockets: bins exact or declared lost."""

import json

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.binning import bin_spikes
from neds_rt.bundle import read_bundle
from neds_rt.errors import BadInput
from neds_rt.sources import open_source
from neds_rt.sources.frame import Frame
from neds_rt.sources.units import UnitMap
from tests.rt.foreign import BIN_S, Rig, free_port, units_of
from tests.rt.serving import Serving, fail, outputs, reference, small_bundle, wait_for
from tests.rt.spike_frames import counters_of, drain
from tools.twins.feed import Feed, gui_blocks, random_feed
from tools.twins.openephys import ZmqInterface, juce_json

FEED = random_feed(n_units=20, rate_hz=15.0, seconds=5.0, seed=1)
END = 5 * 30_000


def rig(twin, feed=FEED, options="", units=None):
    made = Rig(f"oe://127.0.0.1:{twin.port}{options}", feed, units)
    twin.wait()
    return made


def twin_of(feed=FEED, **options):
    return ZmqInterface(feed, port=free_port(), hwm=options.pop("hwm", 0), **options)


def header(number, kind, body, **more):
    return json.dumps({"message_num": number, "type": kind, **body, **more}).encode()


def spike(number, sample, electrode="Electrode 0", sorted_id=1, **changes):
    body = {"stream": "ProbeA-AP", "electrode": electrode, "sample_num": sample, "num_channels": 1,
            "num_samples": 4, "sorted_id": sorted_id}
    return [b"EVENT\0", header(number, "spike", {"spike": body | changes}), bytes(16)]


def block(number, begin, n=690, **changes):
    body = {"stream": "ProbeA-AP", "channel_num": 0, "num_samples": n, "sample_num": begin,
            "sample_rate": 30000.0}
    return [b"DATA\0", header(number, "data", {"content": body | changes}), bytes(4 * max(n, 0))]


def test_the_twin_is_late_and_electrode_major():
    blocks = list(gui_blocks(FEED, 0, END))
    sent = np.concatenate([b.rows for b in blocks])
    assert sorted(sent) == list(range(len(sent)))
    assert len(FEED.samples) - len(sent) < 20  # what the last block leaves
    late = sum(int((FEED.samples[b.rows] < b.begin).sum()) for b in blocks)
    assert late > 100
    assert any(np.any(np.diff(FEED.samples[b.rows]) < 0) for b in blocks)
    assert all(np.all(np.diff(FEED.channel[FEED.units[b.rows]]) >= 0) for b in blocks)


@pytest.mark.parametrize("version", ["1.0", "0.2"])
def test_bins_are_those_of_the_file(version):
    feed = FEED
    if version == "0.2":  # which knows no sorted ids
        feed = Feed(FEED.samples, FEED.units, FEED.fs, FEED.channel, 0 * FEED.cluster)
    with twin_of(feed, version=version) as twin, rig(twin, feed) as live:
        twin.start_acquisition()
        twin.play(0, END)
        live.take(twin.sent.messages)
        assert live.trouble == {}
        assert list(live.bins) == list(range(249))
        assert live.lost() == set()
        live.assert_exact()
        assert live.counted["bins"] == 249
        assert "late_spikes" not in live.counted
        report = live.source.report()
        assert (report["units"]["heard"], report["units"]["unknown_spikes"]) == (20, 0)


@pytest.mark.parametrize(("loss", "seed"), [(0.003, 101), (0.01, 102), (0.2, 103)])
def test_what_was_lost_is_declared_and_the_rest_is_exact(loss, seed):
    with twin_of(loss=loss, seed=seed) as twin, rig(twin) as live:
        twin.start_acquisition()
        twin.play(0, END)
        live.take(twin.sent.messages)
        sent = twin.sent
        live.assert_exact()
        last = live.source._number
        assert live.trouble["lost_messages"] == sum(number < last for number in sent.dropped)
        assert live.counted["gaps"] == sent.gaps > 0
        bins = FEED.samples[sent.dropped_spikes] // 600
        bins = bins[(bins >= min(live.bins)) & (bins <= max(live.bins))]
        assert set(bins.tolist()) <= live.lost()
        # A gap is at most the blocks it may have been in, and the bins that these touch.
        assert len(live.lost()) <= 4 * len(sent.dropped)


def test_a_late_joiner_begins_with_the_first_whole_bin():
    with twin_of() as twin:
        twin.start_acquisition()
        for part in gui_blocks(FEED, 0, 30_000):
            twin.send_block(part)
        with rig(twin) as live:
            before = twin.sent.messages
            for part in gui_blocks(FEED, 0, END):
                if part.begin >= 30_000:
                    twin.send_block(part)
            live.take(twin.sent.messages - before)
            assert min(live.bins) > 50
            assert live.lost() == set()
            live.assert_exact()


def test_a_restart_of_acquisition_is_another_session():
    with twin_of() as twin, rig(twin) as live:
        for _ in range(2):
            twin.start_acquisition()
            twin.play(0, 60_000)
        live.take(twin.sent.messages)
        assert live.trouble == {"restarts": 1}
        assert live.counted["restarts"] == 1
        assert "gaps" not in live.counted
        for bins in live.sessions:
            assert list(bins) == list(range(99))
            live.assert_exact(bins)


def test_a_name_that_is_not_ascii_cuts_headers_which_are_mended():
    with twin_of(stream="Sonde-µV-AP") as twin, rig(twin) as live:
        twin.start_acquisition()
        twin.play(0, 30_000)
        live.take(twin.sent.messages)
        assert live.trouble == {"cut_header": twin.sent.messages}
        live.assert_exact()
        assert live.source.report()["stream"] == "Sonde-µV-AP"


def test_more_channels_than_one_say_so_and_change_nothing():
    with twin_of(channels=3) as twin, rig(twin) as live:
        twin.start_acquisition()
        twin.play(0, 30_000)
        live.take(twin.sent.messages)
        assert live.trouble == {"extra_channels": 2 * live.source.counters["blocks"] // 3}
        live.assert_exact()
        assert live.lost() == set()


def test_without_a_channel_spikes_move_the_watermark():
    with twin_of(channels=0) as twin, rig(twin, options="?watermark=spikes&hold_ms=40") as live:
        twin.start_acquisition()
        for part in gui_blocks(FEED, 0, END):
            twin.send_block(part)
            live.take(twin.sent.messages)
        live.assert_exact()
        assert live.lost() == set()
        assert len(live.bins) > 240
        assert live.trouble == {}


def test_each_bad_message_is_counted_and_survived():
    with twin_of() as twin, rig(twin) as live:
        good = [block(1, 0), spike(2, 700), spike(3, 650)]
        bad = {
            "bad_parts": [[b"DATA\0"], [b"a", b"b", b"c", b"d"]],
            "bad_envelope": [[b"\x01\x00", b"{}", b""]],
            "bad_header": [[b"EVENT\0", b"{", b""], [b"EVENT\0", b"\xff\xfe", b""],
                           [b"EVENT\0", b"[" * 70_000, b""], [b"EVENT\0", b"[" * 60_000, b""]],
            "bad_type": [[b"EVENT\0", header(4, "wonder", {}), b""]],
            "bad_field": [spike(5, None), spike(6, "700"), block(7, None),
                          [b"EVENT\0", header(8, "event", {}), b""]],
            "bad_range": [spike(9, 2**60), spike(10, -(2**62)), block(11, 2**60), block(12, 0, -5),
                          block(13, 690, sample_rate=-1.0)],
            "bad_waveform": [[*spike(14, 720)[:2], b"cut"], [*block(15, 690)[:2], b"cut"]],
            "other_stream": [spike(16, 1, stream="ProbeB-AP"), block(17, 3, stream="ProbeB-AP")],
            "duplicates": [spike(17, 721)],
            "unsorted_spikes": [spike(18, 722, sorted_id=0)],
            "unknown_spikes": [spike(19, 723, electrode="Tetrode x")],
            "backwards": [block(20, 0, 600), block(21, 2**50)],
            "no_number": [[b"EVENT\0", json.dumps({"type": "event", "content":
                           {"sample_num": 4}}).encode()]],
        }
        messages = [*good, *(m for kind in bad.values() for m in kind)]
        for parts in messages:
            twin.send_raw(*[part for part in parts if part is not None])
        after = [block(22 + k, 690 * (k + 1)) for k in range(12)]
        for parts in after:
            twin.send_raw(*parts)
        live.take(len(messages) + len(after))
        assert live.trouble == {kind: len(sent) for kind, sent in bad.items()}
        assert live.lost() == {0, 1, 2}  # a bad message may have been a spike
        assert [k for k, c in live.bins.items() if c is not None] == list(range(3, 14))
        assert set(live.source.messages) >= set(bad) - {"unknown_spikes"}


def test_spoiled_messages_never_end_a_source():
    rng = np.random.default_rng(8)
    with twin_of() as twin, rig(twin) as live:
        good = [spike(7, 300), block(7, 690), [b"EVENT\0", header(7, "event", {"content": {}})]]
        for k in range(3000):
            parts = [bytearray(part) for part in good[k % 3]]
            for _ in range(rng.integers(1, 4)):
                part = parts[rng.integers(len(parts))]
                if len(part):
                    part[rng.integers(len(part))] = rng.integers(256)
            if k % 7 == 0:
                parts = parts[: rng.integers(1, 4)]
            twin.send_raw(*map(bytes, parts))
        live.take(3000)
        spoiled = live.source.counters["bad_header"]
        assert spoiled > 500
        twin.start_acquisition()
        twin.play(0, 60_000)
        live.take(twin.sent.messages)
        assert live.source.counters["bad_header"] == spoiled
        live.assert_exact()
        assert max(live.bins) == 98


def test_two_probes_that_restart_together_lose_no_bin():
    feeds = [random_feed(n_units=3, rate_hz=20.0, seconds=2.0, seed=seed) for seed in (9, 10)]
    twins = [twin_of(feed) for feed in feeds]
    sources = [open_source(name, f"oe://127.0.0.1:{twin.port}", units=UnitMap(units_of(feed)))
               for name, twin, feed in zip("ab", twins, feeds, strict=True)]
    target = _core.Assembler(BIN_S, [("a", [0, 1, 2]), ("b", [3, 4, 5])], 6, 64)
    truth = np.hstack([bin_spikes(f.samples, f.units, 3, f.fs, BIN_S, 0, 99) for f in feeds])
    frame, found = Frame(), []
    for twin in twins:
        twin.wait()
    for _ in range(2):
        for twin in twins:
            twin.start_acquisition()
        bins = {}
        parts = [gui_blocks(feed, 0, 60_000) for feed in feeds]
        for pair in zip(*parts, strict=True):
            for twin, source, part in zip(twins, sources, pair, strict=True):
                twin.send_block(part)
                while source.counters["messages"] < twin.sent.messages:
                    if source.receive(frame):
                        target.push(frame.header, frame.payload)
                        bins |= drain(target)
        found.append(bins)
    for bins in found:
        assert list(bins) == list(range(99))
        np.testing.assert_array_equal(list(bins.values()), truth)
    assert counters_of(target)["restarts"] == 2  # one a stream; the second one's resets nothing
    assert target.session.endswith(".2")
    assert "+" not in target.session
    for end in (*sources, *twins):
        end.close()


def test_samples_that_count_anew_without_a_new_acquisition_are_a_restart():
    with twin_of() as twin, rig(twin) as live:
        for k in range(10):
            twin.send_raw(*block(k + 1, 10**6 + 690 * k))
        for k in range(20):
            twin.send_raw(*block(k + 11, 690 * k))
        live.take(30)
        assert live.trouble == {"backwards": 8, "restarts": 1}
        assert live.counted["restarts"] == 1
        assert min(live.sessions[1]) == 10


def test_missing_samples_are_a_gap():
    with twin_of() as twin, rig(twin) as live:
        for k, begin in enumerate((0, 690, 690 * 5, 690 * 6)):
            twin.send_raw(*block(k + 1, begin))
        live.take(4)
        assert live.trouble == {"missing_samples": 690 * 3}
        assert live.lost() == {2, 3, 4, 5}
        assert max(live.bins) == 6


def test_a_flood_of_spikes_without_a_block_is_bounded():
    with twin_of() as twin, rig(twin) as live:
        live.source._bridge._capacity = 50
        twin.send_raw(*block(1, 0))
        for k in range(120):
            twin.send_raw(*spike(k + 2, 700 + k))
        twin.send_raw(*block(122, 690))
        live.take(122)
        assert live.trouble == {"overfull": 2}
        assert live.counted["spikes"] == 120
        assert live.bins[1][0] == 120


def test_ports_step_up_by_two_and_heartbeats_are_answered():
    port = free_port(4)
    with ZmqInterface(FEED, port=port) as first, ZmqInterface(FEED, port=port) as second:
        assert (first.port, second.port) == (port, port + 2)
        with rig(second) as live:
            wait_for(lambda: live.source.tend() and second.heartbeats)
            wait_for(lambda: live.source.tend().endswith("acquisition is not running"))
            assert second.heartbeats[0]["application"] == "neds-rt"
            assert live.source.report()["heartbeat"]["reply"] == "heartbeat received"
            assert not first.heartbeats


def test_a_heartbeat_without_answer_stops_nothing_and_is_given_up(monkeypatch):
    import neds_rt.sources.heartbeat as heartbeat

    monkeypatch.setattr(heartbeat, "PATIENCE_S", 0.05)
    port = free_port()
    with ZmqInterface(FEED, port=port, heartbeat=False, hwm=0) as twin, rig(twin) as live:
        context = twin._context
        deaf = context.socket(heartbeat.zmq.ROUTER)  # takes questions and never answers
        deaf.bind(f"tcp://127.0.0.1:{port + 1}")
        wait_for(lambda: live.source.tend() and live.source.report()["heartbeat"]["given_up"] > 1)
        assert "no plugin answers on port" in live.source.tend()
        twin.play(0, 30_000)
        live.take(twin.sent.messages)
        assert live.source.tend() == "receiving stream 'ProbeA-AP' at 30000 Hz"
        live.assert_exact()


def test_spikes_without_a_channel_selected_are_pointed_out():
    with twin_of(channels=0) as twin, rig(twin) as live:
        twin.play(0, 3000)
        live.take(twin.sent.messages)
        wait_for(lambda: "select one continuous channel" in live.source.tend())
        assert live.bins == {}


@pytest.mark.parametrize("options", ["?lateness=-1", "?watermark=none", "?hold_ms=0", "?rate=0"])
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput, match="URI option"):
        open_source("a", f"oe://127.0.0.1{options}", units=UnitMap(units_of(FEED)))


def test_headers_are_printed_as_juce_prints_them():
    text = juce_json({"message_num": 1, "spike": {"stream": "µ", "threshold": [-50.0]}})
    assert text.startswith('{\r\n  "message_num": 1,\r\n  "spike": {\r\n    "stream": "µ",\r\n')


def test_a_server_waits_visibly_and_decodes_when_the_plugin_appears(tmp_path):
    feed = random_feed(n_units=4, rate_hz=30.0, seconds=2.0, seed=2)
    model, port = small_bundle(tmp_path / "x.neds"), free_port()
    lines = ["probe\tchannel\tcluster\tstream\telectrode\tsorted_id"]
    lines += [f"a\t{i}\t{i}\tProbeA-AP\tElectrode {feed.channel[i]}\t{feed.cluster[i]}"
              for i in range(3)]  # and none for the last unit
    (tmp_path / "units.tsv").write_text("\n".join(lines) + "\n")
    with Serving(model, {"a": f"oe://127.0.0.1:{port}"}, f"--units={tmp_path}/units.tsv") as server:
        wait_for(lambda: any("nobody listens there" in line for line in server.lines))
        with ZmqInterface(feed, port=port, hwm=0) as twin:
            twin.wait()
            twin.play(0, 60_000)
            decodes = server.decodes(99)
            twin.send_ttl(60_000, 1, 1)  # the state is looked at four times a second
            wait_for(lambda: any("receiving stream 'ProbeA-AP'" in x for x in server.lines))
            summary = server.end()
    counts = bin_spikes(feed.samples, feed.units, 4, feed.fs, 0.02, 0, 99)
    counts[:, 3] = 0
    expected = reference(read_bundle(model), list(counts))
    np.testing.assert_allclose([outputs(d) for d in decodes], expected, rtol=1e-5, atol=1e-5)
    source = summary["sources"]["a"]
    assert source["counters"]["spikes"] == twin.sent.spikes
    assert source["units"]["missing"] == [["a", 3, 3]]
    assert source["counters"]["unknown_spikes"] == source["units"]["unknown_spikes"] > 0
    assert source["units"]["first_unknown"] == [["ProbeA-AP", "Electrode 3", 4]]
    assert any("1 of 4 units of the model will stay silent" in line for line in server.lines)


def test_rising_edges_of_the_shared_line_are_handed_on():
    with twin_of() as twin, rig(twin, options="?sync=3") as live:
        twin.start_acquisition()
        for sample, line, state in ((600, 3, 1), (700, 3, 0), (800, 2, 1), (900, 3, 1)):
            twin.send_ttl(sample, line, state)
        live.take(twin.sent.messages)
        assert [sample for sample, _ in live.source.edges] == [600, 900]
        assert live.trouble == {}


def test_a_line_that_no_event_has_is_refused(tmp_path):
    model = small_bundle(tmp_path / "x.neds")
    code, text = fail("--model", model, "--probe=a=oe://127.0.0.1?sync=64")
    assert code == 2
    assert "sync=64, expected a line from 0 to 63" in text


def test_two_probes_cannot_share_a_plugin(tmp_path):
    model = small_bundle(tmp_path / "x.neds", probes=("a", "b"))
    code, text = fail("--model", model, "--probe=a=oe://127.0.0.1", "--probe=b=oe://127.0.0.1")
    assert code == 2
    assert "--probe b: URI: found that of a, expected one of its own" in text
