"""What a publisher sends, listened to for a few seconds and sorted into what it says.

A message is taken or refused as the source of its program would, and refusals are counted under
the names that the source has for them.
"""

from __future__ import annotations

import math
import time
from collections import Counter

from neds_rt.doctor.asked import EVENT_BROADCASTER, NATIVE_PLUGIN, TRODES, ZMQ_INTERFACE
from neds_rt.doctor.native import NativeHeard
from neds_rt.sources.heartbeat import open_subscriber
from neds_rt.sources.oebroadcast import (
    SPIKE_KIND,
    TTL_KIND,
    SpikeEvent,
    is_raw_ttl,
    read_event,
    read_raw_spike,
)
from neds_rt.sources.openephys_wire import (
    ENVELOPES,
    MAX_HEADER_BYTES,
    TTL_BYTES,
    Block,
    DataMessage,
    EventMessage,
    Message,
    Spike,
    SpikeMessage,
    read_header,
)
from neds_rt.sources.trodes_directory import is_announcement
from neds_rt.wire import MAX_SAMPLE

MOST_KEPT = 200_000  # messages
MAX_PART_BYTES = 8 << 20
OLD_KINDS = (b"\1\0", b"\2\0")  # of Event Broadcaster 0.1: event, spike; then seconds, then data


class Heard:
    """The messages of one publisher."""

    def __init__(self) -> None:
        self.messages = 0
        self.plugin = ""
        self.blocks: list[tuple[int, int, int]] = []  # channel, first sample, samples
        self.streams: Counter[str] = Counter()  # spikes
        self.block_stream = ""
        self.rate = 0.0
        self.names: Counter[tuple[str, str, int]] = Counter()
        self.numbers: list[int] = []
        self.cut = 0
        self.refused: Counter[str] = Counter()  # messages, by the source's name for it
        self.unnumbered = 0  # of these: it cannot be told which number they had
        self.stamped = self.channel_names = self.old_names = self.old_parts = False
        self.json_spikes = 0
        self.stamps: list[tuple[int, float]] = []  # first and last raw spike: sample, seconds
        self.native = NativeHeard()

    def take(self, parts: list[bytes]) -> None:
        """Take note of one message of any plugin."""
        self.messages += 1
        plugin = _plugin_of(parts)
        self.plugin = self.plugin or plugin
        if not plugin or plugin != self.plugin:
            self._refuse("bad_envelope" if len(parts) in (2, 3) else "bad_parts", numbered=False)
        elif plugin == ZMQ_INTERFACE:
            self._read_zmq_interface(parts)
        elif plugin == EVENT_BROADCASTER and len(parts) == 3:
            self.old_parts = True
            self._refuse("bad_parts")
        elif plugin == EVENT_BROADCASTER:
            self._read_event(*parts)
        elif plugin == NATIVE_PLUGIN:
            self.native.take(parts, self.refused)

    def _refuse(self, kind: str, *, numbered: bool = True) -> None:
        self.refused[kind] += 1
        self.unnumbered += not numbered

    def _read_zmq_interface(self, parts: list[bytes]) -> None:
        header = parts[1]
        message, cut = (None, False) if len(header) > MAX_HEADER_BYTES else read_header(header)
        if message is None:
            self._refuse("bad_header", numbered=False)
            return
        self.cut += cut
        if message.number is not None:
            self.numbers.append(message.number)
        self.stamped |= b'"timestamp"' in header and b'"message_num"' in header
        self.channel_names |= b'"channel_name"' in header
        self.old_names |= b'"message_no"' in header
        self._read(message, len(parts[2]) if len(parts) == 3 else 0)

    def _read(self, message: Message, numbers: int) -> None:
        """Take a header that could be read; `numbers` bytes came with it."""
        if isinstance(message, SpikeMessage):
            self._read_spike(message.spike, numbers)
        elif isinstance(message, DataMessage):
            self._read_block(message.content, numbers)
        elif not isinstance(message, EventMessage):
            known = message.type in ("spike", "data", "event")
            self._refuse("bad_field" if known else "bad_type")
        elif message.content.sample_num is None:
            self._refuse("bad_field")
        else:
            self.streams[message.content.stream] += 0
            if numbers not in (0, TTL_BYTES) and message.message_num is not None:
                self._refuse("bad_waveform")

    def _read_spike(self, spike: Spike, numbers: int) -> None:
        if spike.sample is None:
            known = spike.sample_num is not None or spike.timestamp is not None
            self._refuse("bad_range" if known else "bad_field")
            return
        if numbers != spike.waveform_bytes:  # the source takes it all the same
            self._refuse("bad_waveform")
        self.streams[spike.stream] += 1
        self.names[(spike.stream, spike.name, spike.sorted_id)] += 1

    def _read_block(self, block: Block, numbers: int) -> None:
        span, fs = block.span, block.sample_rate
        if span is None or not (0 < fs < 1e7 and math.isfinite(fs)):
            present = block.sample_num is not None or block.timestamp is not None
            self._refuse("bad_range" if present and fs else "bad_field")
        elif numbers != block.data_bytes:
            self._refuse("bad_waveform")
        else:
            self.blocks.append((block.channel_num, span[0], span[1] - span[0]))
            self.block_stream, self.rate = block.stream, fs

    def _read_event(self, kind: bytes, body: bytes) -> None:
        if body[:1] == b"{":
            event = read_event(kind, body)
            if event is None:
                self._refuse("bad_body")
            elif isinstance(event, SpikeEvent):
                self.json_spikes += 1
                self._spike(event.stream, event.electrode, event.sorted_id, event.sample_number)
        elif kind == TTL_KIND:
            if not is_raw_ttl(body):
                self._refuse("bad_body")
        else:
            raw = read_raw_spike(body)
            if raw is None:
                self._refuse("bad_body")
            elif self._spike(raw.stream, raw.electrode, raw.sorted_id, raw.sample):
                self.stamps[1:] = [(raw.sample, raw.seconds)]

    def _spike(self, stream: str, electrode: str, sorted_id: int, sample: int) -> bool:
        if not -MAX_SAMPLE <= sample <= MAX_SAMPLE:
            self._refuse("bad_range")
            return False
        self.streams[stream] += 1
        self.names[(stream, electrode, sorted_id)] += 1
        return True

    @property
    def version(self) -> str:
        """What the fields tell of the version of the plugin."""
        if self.plugin == EVENT_BROADCASTER:
            return "0.1" if self.old_parts else "0.2 or 0.3"
        if self.old_names:
            return "0.2"
        if self.channel_names:
            return "0.4 or 1.x"
        return "0.3.2 to 0.4" if self.stamped else "0.3.0 or 0.3.1"

    @property
    def stamped_rate(self) -> float:
        """The sampling rate that raw binary spikes tell by their seconds, 0 where they do not."""
        if len(self.stamps) < 2:
            return 0.0
        (first, begin), (last, end) = self.stamps
        rate = (last - first) / (end - begin) if end != begin else 0.0
        return rate if 0 < rate < 1e7 else 0.0  # not for NaN either


def _plugin_of(parts: list[bytes]) -> str:
    """Return whose message it is, "" for nobody's that is known."""
    n, first = len(parts), parts[0]
    if n in (2, 3) and first in ENVELOPES:
        return ZMQ_INTERFACE
    if (n == 2 and first in (TTL_KIND, SPIKE_KIND)) or (
            n == 3 and first in OLD_KINDS and len(parts[1]) == 8):
        return EVENT_BROADCASTER
    if n == 2 and first[1:8] == b"\xa6spikes":
        return NATIVE_PLUGIN
    return TRODES if n == 1 and is_announcement(first) else ""


def listen(endpoint: str, seconds: float) -> Heard:
    """Subscribe for some seconds."""
    heard = Heard()
    socket = open_subscriber(endpoint, 20_000, MAX_PART_BYTES)
    socket.connect(endpoint)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and heard.messages < MOST_KEPT:
        if socket.poll(int(left * 1000) + 1):
            heard.take(socket.recv_multipart())
    socket.close()
    return heard
