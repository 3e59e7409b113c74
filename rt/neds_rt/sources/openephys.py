"""Open Ephys, plugin ZMQ Interface: one stream of spikes, and the block that says how far it is.

    oe://HOST[:5556][?stream=NAME&lateness=100&watermark=data|spikes&hold_ms=50&rate=30000]

One plugin sends one stream. Its spikes come electrode by electrode, the last samples of a block
with the next one; only the block of a continuous channel, sent after its spikes, says what is
complete. Exactly one channel should be selected. Message numbers tell of losses: what a lost
message may have held lies between the last watermark and the end of the block it was lost in, and
all of that is declared a gap.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import zmq

from neds_rt.errors import BadInput
from neds_rt.sources.address import Address, parse_address
from neds_rt.sources.bridge import Bridge
from neds_rt.sources.edges import TTL_LINES, edge_queue
from neds_rt.sources.frame import Frame
from neds_rt.sources.heartbeat import Heartbeat, Link, open_subscriber, receive_parts
from neds_rt.sources.holdback import HoldBack
from neds_rt.sources.openephys_wire import (
    ENVELOPES,
    MAX_HEADER_BYTES,
    TTL_BYTES,
    Block,
    DataMessage,
    EventMessage,
    OddMessage,
    Spike,
    SpikeMessage,
    read_header,
)
from neds_rt.sources.units import UnitMap
from neds_rt.stats import now_ns
from neds_rt.wire import MAX_SAMPLE

DEFAULT_PORT = 5556
RECEIVE_QUEUE = 20_000  # messages
MAX_PART_BYTES = 8 << 20
MESSAGES_A_CALL = 1024
FAR_S = 60.0  # a block farther from the last one is believed only in company
COMPANY = 8  # so many in a row mean that samples count anew
SILENT_NS = 2_000_000_000

MESSAGES = {
    "bad_parts": "a message was refused: it does not have two or three parts",
    "bad_envelope": "a message was refused: not from ZMQ Interface (another plugin's port?)",
    "bad_header": "a header cannot be read; what it stood for is taken as lost",
    "cut_header": "headers come cut off, from a name that is not ASCII; they were mended",
    "bad_type": "a message of an unknown type was ignored",
    "bad_field": "a message lacks a field or has one of another type",
    "bad_range": "a message has an impossible number",
    "bad_waveform": "a message's numbers are not as long as its header says",
    "lost_messages": "messages were lost on the way; what they may have held is a gap",
    "missing_samples": "samples are missing between two blocks",
    "backwards": "blocks do not follow their predecessors; they were ignored",
    "restarts": "acquisition was started anew",
    "duplicates": "a message arrived twice",
    "other_stream": "messages of another stream were ignored (?stream= chooses)",
    "extra_channels": "more than one channel is selected; deselect all but one in ZMQ Interface",
    "no_number": "messages have no number: lost ones cannot be noticed",
    "unsorted_spikes": "unsorted spikes were dropped, no unit of the model has sorted id 0",
    "overfull": "spikes came without a watermark until the buffer was full",
}
COUNTERS = ("messages", "spikes", "blocks", "ttl_events", "unknown_spikes", *MESSAGES)


class Options(msgspec.Struct, frozen=True):
    """What stands behind the question mark of the URI."""

    stream: str = ""  # empty: that of the blocks
    lateness: int = 100  # samples at the end of a block whose spikes may come with the next one
    watermark: Literal["data", "spikes"] = "data"  # "spikes": no channel is selected
    hold_ms: float = 50.0  # with "spikes": how far the watermark stays behind the newest spike
    rate: float = 30_000.0  # with "spikes": sampling rate, which spikes do not tell
    sync: int | None = None  # line (from 0) of a pulse that all probes record, to align clocks by


class OpenEphysSource:
    """Spikes of one ZMQ Interface plugin as native frames."""

    messages = MESSAGES

    def __init__(self, name: str, uri: str, *, units: UnitMap, insecure: bool = False) -> None:
        self.name, self.uri = name, uri
        where = f"--probe {name}"
        address, options = parse_address(where, uri, DEFAULT_PORT, Options, insecure=insecure)
        _check(where, options)
        self.address, self._options, self._units = address, options, units
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.edges = edge_queue(where, options.sync, TTL_LINES)
        self._rising = bytes((options.sync or 0, 1))  # how such an event's numbers begin
        self._bridge = Bridge(name)
        self._hold: HoldBack | None = None
        self._fs = 0.0
        if options.watermark == "spikes":
            self._fs = options.rate
            self._hold = HoldBack(self._bridge, options.hold_ms * 1e-3)
            self._hold.set_rate(options.rate)
        self._stream = options.stream
        self._number: int | None = None  # of the last message
        self._unread = 0  # messages since then whose number could not be read
        self._lossy = False  # something was lost since the last watermark
        self._from_start = False  # the first message of the acquisition was received
        self._block = (0, 0)  # first sample of the last block and one past its last
        self._odd_blocks = 0
        self._last_ns = 0
        self._socket = open_subscriber(address.endpoint, RECEIVE_QUEUE, MAX_PART_BYTES)
        self._link = Link(self._socket)
        try:
            self._socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise BadInput(where, "URI", f"{uri} ({error})", "one to connect to") from error
        self._heartbeat = Heartbeat(Address(address.host, address.port + 1).endpoint)

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        """The SUB socket."""
        return self._socket

    def receive(self, frame: Frame) -> bool:
        """Take messages until one moves the watermark, at most `MESSAGES_A_CALL`."""
        for _ in range(MESSAGES_A_CALL):
            try:
                parts = receive_parts(self._socket)
            except zmq.Again:
                if self._link.deaf:
                    self._link.revive(self.address.endpoint)
                break
            if self._take(parts, frame):
                return True
        return self._hold is not None and self._emit_held(frame)

    def close(self) -> None:
        """Close all sockets; the thread that tends has ended."""
        self._link.close()
        self._socket.close()
        if hasattr(self, "_heartbeat"):
            self._heartbeat.close()

    def tend(self) -> str:
        """Keep the heartbeat and say what the connection is like."""
        self._heartbeat.tend()
        endpoint, alive = self.address.endpoint, self._heartbeat.alive
        counters = self.counters
        if not self._link.up():
            return f"waiting for {endpoint}: nobody listens there"
        if not self._last_ns or now_ns() - self._last_ns > SILENT_NS:
            plugin = "the plugin answers, acquisition is not running" if alive else (
                f"no plugin answers on port {self.address.port + 1}")
            return f"connected to {endpoint}, no messages; {plugin}"
        if self._hold is None and not counters["blocks"]:
            return "messages come, but no block of stream " + (
                f"{self._stream!r}: select one continuous channel, or use ?watermark=spikes")
        return f"receiving stream {self._stream!r} at {self._fs:g} Hz"

    def report(self) -> dict[str, Any]:
        """Return stream, rate, units and heartbeats."""
        return {"stream": self._stream, "fs": self._fs, "sessions": self._bridge.n_sessions,
                "units": self._units.report(), "heartbeat": self._heartbeat.report(),
                "connections": self._link.connections}

    # The hot path, from here on.

    def _take(self, parts: list[bytes], frame: Frame) -> bool:
        """Take one message; True when `frame` was filled."""
        counters = self.counters
        counters["messages"] += 1
        self._last_ns = now_ns()
        if not 2 <= len(parts) <= 3:
            counters["bad_parts"] += 1
            return self._miss()
        if parts[0] not in ENVELOPES:
            counters["bad_envelope"] += 1
            return self._miss()
        message, cut = (None, False) if len(parts[1]) > MAX_HEADER_BYTES else read_header(parts[1])
        if message is None:
            counters["bad_header"] += 1
            return self._miss()
        counters["cut_header"] += cut
        if not self._in_order(message.number):
            return False
        numbers = len(parts[2]) if len(parts) == 3 else 0
        if isinstance(message, SpikeMessage):
            return self._on_spike(message.spike, numbers, frame)
        if isinstance(message, DataMessage):
            return self._on_block(message.content, numbers, frame)
        if isinstance(message, EventMessage):
            self._on_ttl(message, numbers, parts[2] if numbers else b"")
        else:
            self._on_odd(message)
        return False

    def _miss(self) -> bool:
        """A message that may have been anything: a spike as well as not."""
        self._unread += 1
        self._lossy = True
        return False

    def _in_order(self, number: int | None) -> bool:
        """Check the message's number against the last one; False for a message to be ignored."""
        last, unread = self._number, self._unread
        if number is None:
            self.counters["no_number"] += 1
            self._unread += 1
            return True
        self._unread = 0
        self._number = number
        if last is None:
            self._from_start = number == 1
        elif number == last + 1 + unread:
            pass
        elif number > last:
            lost = number - last - 1 - unread
            if lost > 0:
                self.counters["lost_messages"] += lost
                self._lossy = True
        elif number == last:
            self.counters["duplicates"] += 1
            return False
        else:
            self.counters["restarts"] += 1
            self._restart()
            self._from_start = number == 1
        return True

    def _restart(self) -> None:
        self._bridge.restart()
        if self._hold is not None:
            self._hold.restart()
        self._lossy = self._from_start = False
        self._odd_blocks = 0

    def _on_spike(self, spike: Spike, numbers: int, frame: Frame) -> bool:
        counters = self.counters
        sample = spike.sample
        if sample is None:
            known = spike.sample_num is not None or spike.timestamp is not None
            counters["bad_range" if known else "bad_field"] += 1
            self._lossy = True
            return False
        if numbers != spike.waveform_bytes:  # the spike itself is told by the header
            counters["bad_waveform"] += 1
        if spike.stream != self._stream and not self._adopt(spike.stream):
            counters["other_stream"] += 1
            return False
        counters["spikes"] += 1
        if self._hold is not None and not self._hold.see(sample):
            counters["backwards"] += 1
            if self._hold.lost_place:
                counters["restarts"] += 1
                self._restart()
            return False
        unit = self._units.number(spike.stream, spike.name, spike.sorted_id)
        if unit < 0:
            counters["unsorted_spikes" if spike.sorted_id == 0 else "unknown_spikes"] += 1
            return False
        bridge = self._bridge
        bridge.add(sample, unit)
        if not bridge.full:
            return False
        counters["overfull"] += 1
        if bridge.watermark is None:
            self._from_start = False  # the beginning is dropped
        return bridge.flush(frame, self._fs)

    def _adopt(self, stream: str) -> bool:
        """Take the first stream heard of, where none was asked for."""
        if self._stream:
            return False
        self._stream = stream
        return True

    def _on_block(self, block: Block, numbers: int, frame: Frame) -> bool:
        """Move the watermark to what this block completes."""
        counters = self.counters
        span, fs = block.span, block.sample_rate
        if span is None or not (fs > 0 and math.isfinite(fs)):
            present = block.sample_num is not None or block.timestamp is not None
            counters["bad_range" if present and fs else "bad_field"] += 1
            return False
        if numbers != block.data_bytes:
            counters["bad_waveform"] += 1
            return False
        if block.stream != self._stream:
            if self._options.stream or counters["blocks"]:
                counters["other_stream"] += 1
                return False
            if self._stream:  # blocks are of the plugin's stream, the spikes so far were not
                self._restart()
            self._stream = block.stream
        counters["blocks"] += 1
        if self._hold is not None:
            return False
        if self._bridge.watermark is not None and fs != self._fs:
            counters["restarts"] += 1
            self._restart()
        self._fs = fs
        if self._bridge.watermark is None:
            return self._first_block(span, frame)
        return self._next_block(span, frame)

    def _first_block(self, span: tuple[int, int], frame: Frame) -> bool:
        """Begin the session: with the block if all of its spikes were heard, else after it."""
        begin, end = self._block = span
        whole = self._from_start and not self._lossy
        self._lossy = False
        t0 = begin if whole else end
        self._bridge.emit(frame, t0, max(t0, end - self._options.lateness), self._fs)
        return True

    def _next_block(self, span: tuple[int, int], frame: Frame) -> bool:
        bridge, counters = self._bridge, self.counters
        (begin, end), (last_begin, last_end) = span, self._block
        watermark = bridge.watermark
        assert watermark is not None
        if begin == last_begin and end == last_end:
            counters["extra_channels"] += 1
            if self._lossy:
                return self._declare_lost(end, frame)
            return False
        if begin < last_end or begin - last_end > FAR_S * self._fs:
            counters["backwards"] += 1
            self._odd_blocks += 1
            if self._odd_blocks < COMPANY:
                return False
            counters["restarts"] += 1
            self._restart()
            return self._first_block(span, frame)
        self._odd_blocks = 0
        self._block = span
        if self._lossy:
            return self._declare_lost(end, frame)
        t0 = watermark
        if begin > last_end:
            counters["missing_samples"] += begin - last_end
            t0 = max(watermark, begin)
        bridge.emit(frame, t0, max(t0, end - self._options.lateness), self._fs)
        return True

    def _declare_lost(self, end: int, frame: Frame) -> bool:
        """What was lost lies between the last watermark and the end of this block."""
        self._lossy = False
        watermark = self._bridge.watermark
        end = end if watermark is None else max(end, watermark)
        self._bridge.emit(frame, end, end, self._fs)
        return True

    def _on_ttl(self, message: EventMessage, numbers: int, event: bytes) -> None:
        sample = message.content.sample_num
        if sample is None:
            self.counters["bad_field"] += 1
        elif numbers not in (0, TTL_BYTES) and message.message_num is not None:
            self.counters["bad_waveform"] += 1
        else:
            self.counters["ttl_events"] += 1
            if event[:2] == self._rising and self.edges is not None and abs(sample) <= MAX_SAMPLE:
                self.edges.append((sample, self._last_ns))

    def _on_odd(self, message: OddMessage) -> None:
        if message.type in ("spike", "data", "event"):
            self.counters["bad_field"] += 1
            self._lossy = self._lossy or message.type == "spike"
        else:
            self.counters["bad_type"] += 1

    def _emit_held(self, frame: Frame) -> bool:
        """Without blocks: close what the newest spike leaves far enough behind."""
        assert self._hold is not None
        if self._hold.emit(frame, lossy=self._lossy):
            self._lossy = False
            return True
        return False


def _check(where: str, options: Options) -> None:
    if not 0 <= options.lateness <= 1 << 20:
        raise BadInput(where, "URI option", f"lateness={options.lateness}", "0 to 1048576 samples")
    for name, most in (("hold_ms", 10_000.0), ("rate", 1e7)):
        value = getattr(options, name)
        if not 0 < value <= most:
            raise BadInput(where, "URI option", f"{name}={value}", f"above 0, at most {most:g}")
