"""Open Ephys, plugin ZMQ Interface with all channels selected: raw samples to spikes.

    oe://HOST[:5556]?mode=templates|threshold[&stream=NAME&channels=384&step_uv=0.195&sync=LINE
                      &...]

The plugin sends a message for each channel and block, one channel after the other, in microvolts.
A block is whole when all its channels are there; a thread of this source puts it together, finds
spikes (`neds_rt.sources.raw`, with the options that SpikeGLX's source has) and hands frames on.
A block that lacks channels is a gap: the plugin drops messages for a receiver that is a few blocks
behind. Samples are turned back to steps of the ADC, which `step_uv` says, or the templates.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt.errors import BadInput
from neds_rt.sources import raw
from neds_rt.sources.address import Address, parse_address
from neds_rt.sources.edges import TTL_LINES, edge_queue
from neds_rt.sources.frame import Frame
from neds_rt.sources.handover import HandedOver, Handover, hand_over
from neds_rt.sources.heartbeat import Heartbeat, Link, open_subscriber, receive_parts
from neds_rt.sources.openephys_wire import (
    ENVELOPES,
    MAX_HEADER_BYTES,
    TTL_BYTES,
    Block,
    DataMessage,
    EventMessage,
    Ttl,
    read_header,
)
from neds_rt.sources.raw import RawBand, RawOptions
from neds_rt.sources.units import UnitMap
from neds_rt.stats import now_ns
from neds_rt.wire import MAX_SAMPLE

DEFAULT_PORT = 5556
RECEIVE_QUEUE = 100_000  # messages: 384 of them are one block
MAX_PART_BYTES = 8 << 20
MAX_CHANNELS, MAX_SAMPLES = 4096, 1 << 16  # of a block
MAX_VALUES = 1 << 24  # of a block; 384 channels over 1.4 s
STEP_UV = 0.195  # of the AP band as Open Ephys has it
MESSAGES_A_CALL = 1024
POLL_MS, SILENT_MS = 100, 2000

MESSAGES = {
    "bad_parts": "a message was refused: it does not have two or three parts",
    "bad_envelope": "a message was refused: not from ZMQ Interface (another plugin's port?)",
    "bad_header": "a header cannot be read",
    "bad_range": "a block or an event has an impossible number, or more channels than expected",
    "bad_waveform": "a message's numbers are not as long as its header says",
    "missing_channels": "channels of a block did not arrive: a gap (deselected, or dropped?)",
    "missing_samples": "samples are missing between two blocks",
    "restarts": "acquisition was started anew",
    "other_stream": "messages of another stream were ignored (?stream= chooses)",
    "dropped_frames": "the server was too far behind; frames were dropped and leave a gap",
    **raw.MESSAGES,
}
COUNTERS = (
    "messages", "blocks", "ttl_events", "samples", "spikes", "unknown_spikes", *MESSAGES)


class Options(RawOptions, frozen=True):
    """What stands behind the question mark of the URI."""

    stream: str = ""  # empty: the first one heard of
    channels: int = 0  # of a block; 0: as the templates, else as the first whole block has
    step_uv: float = 0.0  # 0: as the templates, else 0.195
    sync: int | None = None  # line (from 0) of a pulse that all probes record, to align clocks by


class OpenEphysRawSource(HandedOver):
    """Spikes found in the continuous channels of one ZMQ Interface plugin, as native frames."""

    messages = MESSAGES

    def __init__(self, name: str, uri: str, *, units: UnitMap, insecure: bool = False) -> None:
        self.name, self.uri = name, uri
        where = f"--probe {name}"
        self.address, options = parse_address(where, uri, DEFAULT_PORT, Options, insecure=insecure)
        if not 0 <= options.channels <= MAX_CHANNELS or not 0 <= options.step_uv < 1e3:
            raise BadInput(where, "URI option", f"channels={options.channels} "
                           f"step_uv={options.step_uv}", f"0 to {MAX_CHANNELS}, 0 to 1000")
        self.edges = edge_queue(where, options.sync, TTL_LINES)
        self.counters = dict.fromkeys(COUNTERS, 0)
        band = RawBand(where, name, options, units, self.counters)
        self._handover = Handover()
        self._heartbeat = Heartbeat(Address(self.address.host, self.address.port + 1).endpoint)
        self._collector = Collector(self, band, self._handover, options)
        self._collector.start()

    def tend(self) -> str:
        """Keep the heartbeat; return what the other thread is at."""
        self._heartbeat.tend()
        return self._collector.state

    def report(self) -> dict[str, Any]:
        """Return stream, rate, channels, noise or templates, units and heartbeats."""
        return {**self._collector.report(), "heartbeat": self._heartbeat.report()}

    def close(self) -> None:
        """End the thread and close all sockets."""
        self._collector.end()
        self._handover.close()
        self._heartbeat.close()


class Collector(threading.Thread):
    """Puts blocks together and finds spikes, for as long as the source lives."""

    def __init__(
        self, source: OpenEphysRawSource, band: RawBand, handover: Handover, options: Options
    ) -> None:
        super().__init__(name=f"open ephys {source.name}", daemon=True)
        self._endpoint, self._counters = source.address.endpoint, source.counters
        self.state = f"waiting for {self._endpoint}"
        self._at = ""  # what the last whole block led to
        self._band, self._handover, self._frame = band, handover, Frame()
        self._edges, self._rising = source.edges, bytes((options.sync or 0, 1))
        self._stream, self._channels = options.stream, options.channels
        templates = band.templates
        self._step = options.step_uv or STEP_UV
        if templates is not None:
            self._channels = self._channels or templates.n_channels
            self._step = options.step_uv or templates.settings.step_uv or STEP_UV
        self._fs = 0.0
        self._span = (0, 0)  # samples of the block that is being put together
        # Its channels as they came, (channels, samples), and the whole of it as it was acquired.
        self._microvolts: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._block: NDArray[np.int16] = np.zeros((0, 0), np.int16)
        self._there = np.zeros(MAX_CHANNELS, bool)
        self._next: int | None = None  # sample that the next block should begin with
        self._stop_asked = threading.Event()

    def end(self) -> None:
        """Stop and wait for the thread."""
        self._stop_asked.set()
        self.join()

    def report(self) -> dict[str, Any]:
        """Return what a summary should say, JSON-ready."""
        return {"stream": self._stream, **self._band.report()}

    def run(self) -> None:
        """Receive until told to stop."""
        socket = open_subscriber(self._endpoint, RECEIVE_QUEUE, MAX_PART_BYTES)
        link, quiet_ms = Link(socket), 0
        try:
            socket.connect(self._endpoint)
            with self._handover.sender() as push:
                while not self._stop_asked.is_set():
                    if socket.poll(POLL_MS):
                        self._receive(socket, push)
                        self.state, quiet_ms = self._at or self.state, 0
                        continue
                    quiet_ms += POLL_MS
                    if not link.up():
                        self.state = f"waiting for {self._endpoint}: nobody listens there"
                    elif quiet_ms >= SILENT_MS:
                        self.state = (f"connected to {self._endpoint}, no messages; acquisition "
                                      "may not be running")
                    if link.deaf:
                        link.revive(self._endpoint)
        except zmq.ZMQError as error:
            self.state = f"{self._endpoint}: {error}"
        finally:
            link.close()
            socket.close()

    def _receive(self, socket: zmq.Socket[bytes], push: zmq.Socket[bytes]) -> None:
        """Take what waits, at most `MESSAGES_A_CALL`."""
        for _ in range(MESSAGES_A_CALL):
            try:
                parts = receive_parts(socket)
            except zmq.Again:
                return
            self._take(parts, push)

    def _take(self, parts: list[bytes], push: zmq.Socket[bytes]) -> None:
        counters = self._counters
        counters["messages"] += 1
        if not 2 <= len(parts) <= 3:
            counters["bad_parts"] += 1
        elif parts[0] not in ENVELOPES:
            counters["bad_envelope"] += 1
        elif len(parts) == 3:
            self._take_numbers(parts, push)

    def _take_numbers(self, parts: list[bytes], push: zmq.Socket[bytes]) -> None:
        """Take a message with numbers: of a channel, or a TTL event by its length; no spikes."""
        if parts[0] != b"DATA\0" and len(parts[2]) != TTL_BYTES:
            return
        header = read_header(parts[1])[0] if len(parts[1]) <= MAX_HEADER_BYTES else None
        if isinstance(header, DataMessage):
            self._on_channel(header.content, parts[2], push)
        elif isinstance(header, EventMessage):
            self._on_ttl(header.content, parts[2])
        else:
            self._counters["bad_header"] += 1

    def _on_ttl(self, event: Ttl, numbers: bytes) -> None:
        self._counters["ttl_events"] += 1
        if self._edges is None or not numbers.startswith(self._rising) or (
                event.stream not in ("", self._stream)):
            return
        if event.sample_num is None or abs(event.sample_num) > MAX_SAMPLE:
            self._counters["bad_range"] += 1
            return
        self._edges.append((event.sample_num, now_ns()))

    def _on_channel(self, block: Block, data: bytes, push: zmq.Socket[bytes]) -> None:
        counters, span, fs = self._counters, block.span, block.sample_rate
        if span is None or not (0 < fs < 1e7 and math.isfinite(fs)):
            counters["bad_range"] += 1
            return
        n, channel = span[1] - span[0], block.channel_num
        if n > MAX_SAMPLES or not 0 <= channel < (self._channels or MAX_CHANNELS):
            counters["bad_range"] += 1
            return
        if len(data) != 4 * n:
            counters["bad_waveform"] += 1
            return
        if self._stream and block.stream != self._stream:
            counters["other_stream"] += 1
            return
        self._stream = block.stream
        if span != self._span:
            self._close_block(push)
            if n * self._channels > MAX_VALUES:  # how many channels there are may be new
                counters["bad_range"] += 1
                return
            self._open_block(span, fs)
        if self._channels:
            self._microvolts[channel, :n] = np.frombuffer(data, "<f4")
        self._there[channel] = True
        if self._channels and channel == self._channels - 1:  # they come in order: the last one
            self._close_block(push)

    def _open_block(self, span: tuple[int, int], fs: float) -> None:
        n = span[1] - span[0]
        if self._channels and self._microvolts.shape[1] < n:
            self._microvolts = np.zeros((self._channels, n), np.float32)
            self._block = np.zeros((n, self._channels), np.int16)
        if fs != self._fs:
            self._fs, self._next = fs, None
        self._span = span
        self._there[:] = False

    def _close_block(self, push: zmq.Socket[bytes]) -> None:
        """Take what is there of the block at hand; nothing where it was closed before."""
        begin, end = self._span
        there = int(self._there.sum())
        if not there:
            return
        counters = self._counters
        if not self._channels:  # the first one shows how many there are, and is not looked at
            self._channels = int(self._there.nonzero()[0].max()) + 1
            self._there[:] = False
            return
        counters["missing_channels"] += self._channels - there
        counters["blocks"] += 1
        whole = there == self._channels
        self._there[:] = False
        if not self._follows(begin, end) or not whole:
            if not whole:
                self._band.gap()
            return
        n = end - begin
        self._to_steps(n)
        if self._band.push(self._block[:n].data, n, begin, self._frame) and (
                not hand_over(push, self._frame)):
            counters["dropped_frames"] += 1

    def _to_steps(self, n: int) -> None:
        """Turn a block's microvolts back into steps of the ADC; a call costs, so not by channel."""
        values = self._microvolts[:, :n] / np.float32(self._step)
        np.nan_to_num(values, copy=False)  # NaN is no sample
        np.clip(values, -32768, 32767, out=values)  # what lies outside was clipped by the ADC
        self._block[:n] = np.rint(values, out=values).T

    def _follows(self, begin: int, end: int) -> bool:
        """Compare a block with the last one; False where the stream cannot be taken."""
        if self._next is None:
            try:
                self._band.set_up(self._stream, self._channels, self._fs)
            except BadInput as error:
                self._counters["wrong_stream"] += 1
                self._at = str(error)
                return False
            self._at = (f"receiving {self._channels} channels of stream {self._stream!r} at "
                        f"{self._fs:g} Hz")
        elif begin < self._next:
            self._counters["restarts"] += 1
            self._band.restart()
        elif begin > self._next:
            self._counters["missing_samples"] += begin - self._next
            self._band.gap()
        self._next = end
        return True
