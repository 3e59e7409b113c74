"""Open Ephys continuous channels: blocks put together over sockets, bins as offline."""

import json

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.sources import open_source
from neds_rt.sources.frame import Frame
from neds_rt.sources.oe_raw import MAX_PART_BYTES
from neds_rt.sources.units import UnitMap
from tests.rt.foreign import free_port
from tests.rt.raw_band import CHANNELS, FS, NAMES, recording, templates
from tests.rt.serving import wait_for
from tests.rt.spike_frames import counters_of, drain
from tests.rt.test_spikeglx_templates import UNITS, offline
from tools.twins.feed import Block, Feed
from tools.twins.openephys import ZmqInterface

DATA = recording(seed=2)[0]
STEP, BLOCK = 0.195, 690


def plugin(fs=FS):
    """ZMQ Interface with all channels selected, in microvolts."""
    none = np.zeros(0, np.int64)
    return ZmqInterface(Feed(none, none, fs, none, none), port=free_port(), stream="AP", hwm=0,
                        traces=DATA, step_uv=STEP)


def play(twin, begin, end, **more):
    for a in range(begin, end, BLOCK):
        twin.send_block(Block(a, min(a + BLOCK, end), np.zeros(0, np.int64)), **more)


def message(channel, n):
    """A block of one channel from sample 0 on, as its header and as so many samples."""
    content = {"stream": "AP", "channel_num": channel, "channel_name": f"AP{channel}",
               "num_samples": BLOCK, "sample_num": 0, "sample_rate": FS}
    header = {"message_num": 1, "type": "data", "content": content, "data_size": 4 * BLOCK}
    return b"DATA\0", json.dumps(header).encode(), bytes(4 * n)


class Rig:
    def __init__(self, twin, path, more=""):
        uri = f"oe://127.0.0.1:{twin.port}?mode=templates&templates={path}{more}"
        self.source = open_source("a", uri, units=UnitMap(UNITS))
        self.assembler = _core.Assembler(0.02, [("a", list(range(len(UNITS))))], len(UNITS), 512)
        self.bins, self.frame = {}, Frame()
        twin.wait()

    def until(self, condition):
        def step():
            while self.source.receive(self.frame):
                self.assembler.push(self.frame.header, self.frame.payload)
                self.bins |= drain(self.assembler)
            return condition()
        wait_for(step, 20)
        wait_for(step, 20)

    def __getitem__(self, name):
        return self.source.counters[name]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.templates"
    path.write_bytes(templates().encode())
    return path


def test_bins_equal_the_offline_path_bit_for_bit(path):
    with plugin() as twin, Rig(twin, path) as live:
        play(twin, 0, 60_000)
        live.until(lambda: live["samples"] == 60_000)
        begin, counts = offline(DATA[:60_000], 0, list(range(len(NAMES))))
        assert list(live.bins) == list(range(begin, begin + len(counts)))
        for index, row in live.bins.items():
            np.testing.assert_array_equal(row, counts[index - begin])
        assert counts.sum() > 60
        assert live["blocks"] == -(-60_000 // BLOCK)
        live.until(lambda: live.source.tend() == "receiving 40 channels of stream 'AP' at 30000 Hz")
        assert live.source.report()["templates"] == len(NAMES)


def test_a_block_that_lacks_channels_is_a_gap(path):
    with plugin() as twin, Rig(twin, path) as live:
        play(twin, 0, 20 * BLOCK)
        play(twin, 20 * BLOCK, 21 * BLOCK, lost=(3, CHANNELS - 1))
        play(twin, 21 * BLOCK, 45 * BLOCK)
        live.until(lambda: live["blocks"] == 45)
        assert live["missing_channels"] == 2
        assert live["missing_samples"] == 0
        assert counters_of(live.assembler)["gaps"] == 1


def test_lost_blocks_restarts_and_other_streams(path):
    with plugin() as twin, Rig(twin, path) as live:
        play(twin, 0, 10 * BLOCK)
        play(twin, 12 * BLOCK, 20 * BLOCK)
        twin.stream = "LFP"
        play(twin, 20 * BLOCK, 21 * BLOCK)
        live.until(lambda: live["other_stream"] == CHANNELS)
        assert live["blocks"] == 18
        assert live["missing_samples"] == 2 * BLOCK
        twin.stream = "AP"
        play(twin, 0, 10 * BLOCK)
        live.until(lambda: live["blocks"] == 28)
        assert live["restarts"] == 1


def test_messages_that_cannot_be_are_counted_and_survived(path):
    with plugin() as twin, Rig(twin, path) as live:
        for parts in ([b"x"], [b"x", b"y"], [b"DATA\0", b"{", b""], [b"EVENT\0", b"{}"]):
            twin.send_raw(*parts)
        for channel in range(CHANNELS):
            twin.send_raw(*message(channel, BLOCK - 1))
        twin.send_raw(*message(CHANNELS, BLOCK))
        play(twin, 0, 2 * BLOCK)
        live.until(lambda: live["blocks"] == 2)
        assert [live[name] for name in ("bad_parts", "bad_envelope", "bad_header", "bad_waveform",
                                        "bad_range")] == [1, 1, 1, CHANNELS, 1]


def test_a_part_too_long_costs_a_gap_and_the_plugin_is_heard_again(path):
    with plugin() as twin, Rig(twin, path) as live:
        play(twin, 0, 10 * BLOCK)
        live.until(lambda: live["blocks"] == 10)
        twin.send_raw(b"DATA\0", b"{}", bytes(MAX_PART_BYTES + 1))
        live.until(lambda: "nobody listens there" in live.source.tend())
        assert twin._socket.poll(20_000)  # the subscription ended
        assert twin._socket.recv() == b"\0"
        twin.wait()  # and came again
        play(twin, 12 * BLOCK, 20 * BLOCK)
        live.until(lambda: live["blocks"] == 18)
        assert live["missing_samples"] == 2 * BLOCK
        live.until(lambda: live.source.tend().startswith("receiving 40 channels"))
        live.until(lambda: "acquisition may not be running" in live.source.tend())


def test_another_rate_than_the_templates_is_said_in_one_line(path):
    with plugin(25_000.0) as twin, Rig(twin, path) as live:
        play(twin, 0, BLOCK)
        live.until(lambda: live["wrong_stream"] == 1)
        live.until(lambda: "25000 Hz" in live.source.tend())
        assert "\n" not in live.source.tend()


def test_by_threshold_the_first_block_shows_how_many_channels_there_are():
    with plugin() as twin:
        source = open_source("a", f"oe://127.0.0.1:{twin.port}?mode=threshold",
                             units=UnitMap(UNITS))
        try:
            twin.wait()
            play(twin, 0, 40_000)
            wait_for(lambda: source.counters["spikes"] > 0)
            assert source.report()["channels"] == CHANNELS
        finally:
            source.close()


@pytest.mark.parametrize("options", ["mode=templates", "mode=other", "mode=threshold&channels=-1",
                                     "mode=threshold&lateness=3", "mode=threshold&step_uv=nan"])
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput):
        open_source("a", f"oe://127.0.0.1:1?{options}", units=UnitMap(UNITS))
