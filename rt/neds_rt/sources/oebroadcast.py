"""Open Ephys, plugin Event Broadcaster: spikes of all streams, as JSON or raw binary.

    oe-events://HOST[:5557][?stream=NAME&hold_ms=50&rate=30000&sync=LINE]

Two ZeroMQ parts, `[u2 kind][body]`, kind 0 for TTL and 1 for a spike; the body says itself whether
it is JSON or binary. There is no message number, so lost messages cannot be noticed, only lost
connections, and nothing says what is complete: the watermark stays `hold_ms` behind the newest
spike, which has to cover a block of the GUI and the 100 samples that come with the next one.
Prefer ZMQ Interface (`oe://`).

Binary spikes have numbers for names: stream id, and the electrode's index in its stream. They do
not tell the sampling rate, which `rate` has to. TTL events are of use as a pulse that all probes
record (`sync`), and only those of the stream whose spikes are taken: they count in its samples.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import msgspec
import zmq

from neds_rt.errors import BadInput
from neds_rt.sources import singly
from neds_rt.sources.address import parse_address
from neds_rt.sources.edges import TTL_LINES, edge_queue
from neds_rt.sources.frame import Frame
from neds_rt.sources.heartbeat import Link, open_subscriber, receive_parts
from neds_rt.sources.units import UnitMap
from neds_rt.stats import now_ns
from neds_rt.wire import MAX_SAMPLE

DEFAULT_PORT = 5557
RECEIVE_QUEUE = 20_000  # messages
MAX_PART_BYTES = 1 << 20
MESSAGES_A_CALL = 1024
MAX_BODY_BYTES = 65_536
SILENT_NS = 2_000_000_000
TTL_KIND, SPIKE_KIND = b"\0\0", b"\1\0"
RAW_SPIKE, RAW_TTL = 2, 1
# base type, electrode type, source node, stream id, channel index, sample, seconds, sorted id
_RAW = struct.Struct("<BBHHHqdH")
# base type, event type, source node, stream id, channel index, sample, seconds, line, state
_RAW_TTL = struct.Struct("<BBHHHqdBB")
RAW_TTL_BYTES = 34
ELECTRODE_CHANNELS = {1: 1, 2: 2, 3: 4}  # single, stereotrode, tetrode

MESSAGES = {
    "bad_parts": "a message was refused: it does not have two parts (plugin 0.1 sends three)",
    "bad_kind": "a message was refused: neither TTL nor spike (another plugin's port?)",
    "bad_body": "a message was refused: its body is neither the JSON nor the binary it should be",
    "bad_range": "a message has an impossible sample number or rate",
    "no_rate": "binary spikes do not tell the sampling rate; give it as ?rate=",
    "other_stream": "spikes of another stream were ignored (?stream= chooses)",
    "unsorted_spikes": "unsorted spikes were dropped, no unit of the model has sorted id 0",
    **singly.MESSAGES,
}
COUNTERS = ("messages", "ttl_events", *singly.COUNTERS, *MESSAGES)


class Options(msgspec.Struct, frozen=True):
    """What stands behind the question mark of the URI."""

    stream: str = ""  # empty: that of the first spike
    hold_ms: float = 50.0  # how far the watermark stays behind the newest spike
    rate: float = 0.0  # of binary spikes; JSON tells it
    sync: int | None = None  # line (from 0) of a pulse that all probes record, to align clocks by


class SpikeEvent(msgspec.Struct, tag="spike", tag_field="event_type", gc=False):
    """A spike as JSON."""

    sample_number: int
    electrode: str
    stream: str = ""
    sorted_id: int = 0
    sample_rate: float = 0.0


class TtlEvent(msgspec.Struct, tag="ttl", tag_field="event_type", gc=False):
    """A TTL event as JSON."""

    sample_number: int
    stream: str = ""
    line: int = -1
    state: bool | int = False  # the documentation has it as a number


_decode = msgspec.json.Decoder(SpikeEvent | TtlEvent).decode


class RawSpike(NamedTuple):
    """A spike as raw binary; stream and electrode have numbers for names."""

    stream: str
    electrode: str
    sample: int
    seconds: float
    sorted_id: int


def read_event(kind: bytes, body: bytes) -> SpikeEvent | TtlEvent | None:
    """Return what a JSON body says, None where it is not what `kind` promises."""
    try:
        message = _decode(body) if len(body) <= MAX_BODY_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return message if isinstance(message, SpikeEvent) == (kind == SPIKE_KIND) else None


def read_raw_spike(body: bytes) -> RawSpike | None:
    """Return what a binary body says, None where it is no spike."""
    channels = ELECTRODE_CHANNELS.get(body[1]) if len(body) > _RAW.size else None
    rest = len(body) - _RAW.size  # thresholds[channels], then data[channels][samples]
    if channels is None or body[0] != RAW_SPIKE or rest % (4 * channels) or rest < 8 * channels:
        return None
    _, _, _, stream, index, sample, seconds, sorted_id = _RAW.unpack_from(body)
    return RawSpike(str(stream), str(index), sample, seconds, sorted_id)


def is_raw_ttl(body: bytes) -> bool:
    """Return whether a binary body is a TTL event."""
    return len(body) >= RAW_TTL_BYTES and body[0] == RAW_TTL


class BroadcastSource:
    """Spikes of one stream of an Event Broadcaster as native frames."""

    messages = MESSAGES

    def __init__(self, name: str, uri: str, *, units: UnitMap, insecure: bool = False) -> None:
        self.name, self.uri = name, uri
        where = f"--probe {name}"
        address, options = parse_address(where, uri, DEFAULT_PORT, Options, insecure=insecure)
        if not 0 < options.hold_ms <= 10_000:
            found = f"hold_ms={options.hold_ms}"
            raise BadInput(where, "URI option", found, "above 0, at most 10000")
        if not 0 <= options.rate <= 1e7:
            raise BadInput(where, "URI option", f"rate={options.rate}", "a sampling rate in Hz")
        self.address, self._units = address, units
        self.edges = edge_queue(where, options.sync, TTL_LINES)
        self._line = options.sync
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._spikes = singly.SingleSpikes(name, options.hold_ms * 1e-3, units, self.counters)
        self._stream, self._raw_rate = options.stream, options.rate
        self._last_ns = 0
        self._socket = open_subscriber(address.endpoint, RECEIVE_QUEUE, MAX_PART_BYTES)
        self._link = Link(self._socket)
        try:
            self._socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise BadInput(where, "URI", f"{uri} ({error})", "one to connect to") from error

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        """The SUB socket."""
        return self._socket

    def receive(self, frame: Frame) -> bool:
        """Take what waits, at most `MESSAGES_A_CALL`; True when it moves the watermark."""
        self._spikes.see_losses(self._link.losses)
        for _ in range(MESSAGES_A_CALL):
            try:
                parts = receive_parts(self._socket)
            except zmq.Again:
                if self._link.deaf:
                    self._link.revive(self.address.endpoint)
                break
            if self._take(parts, frame):
                return True
        return self._spikes.emit(frame)

    def tend(self) -> str:
        """Say what the connection is like."""
        endpoint = self.address.endpoint
        if not self._link.up():
            return f"waiting for {endpoint}: nobody listens there"
        if not self._last_ns or now_ns() - self._last_ns > SILENT_NS:
            return f"connected to {endpoint}, no messages; acquisition may not be running"
        return f"receiving stream {self._stream!r} at {self._spikes.fs:g} Hz"

    def report(self) -> dict[str, Any]:
        """Return stream, rate and units."""
        return {"stream": self._stream, "fs": self._spikes.fs,
                "sessions": self._spikes.bridge.n_sessions, "units": self._units.report(),
                "connections": self._link.connections}

    def close(self) -> None:
        """Close all sockets."""
        self._link.close()
        self._socket.close()

    # The hot path, from here on.

    def _take(self, parts: list[bytes], frame: Frame) -> bool:
        """Take one message; True when `frame` was filled."""
        counters = self.counters
        counters["messages"] += 1
        self._last_ns = now_ns()
        if len(parts) != 2:
            counters["bad_parts"] += 1
            return False
        kind, body = parts
        if kind not in (TTL_KIND, SPIKE_KIND):
            counters["bad_kind"] += 1
            return False
        if body[:1] != b"{":
            return self._take_raw(kind, body, frame)
        message = read_event(kind, body)
        if message is None:
            counters["bad_body"] += 1
        elif isinstance(message, SpikeEvent):
            return self._spike(message.stream, message.electrode, message.sample_number,
                               message.sorted_id, message.sample_rate, frame)
        else:
            self._ttl(message.stream, message.sample_number, message.line, message.state == 1)
        return False

    def _take_raw(self, kind: bytes, body: bytes, frame: Frame) -> bool:
        counters = self.counters
        if kind == TTL_KIND:
            if is_raw_ttl(body):
                _, _, _, stream, _, sample, _, line, state = _RAW_TTL.unpack_from(body)
                self._ttl(str(stream), sample, line, state == 1)
            else:
                counters["bad_body"] += 1
            return False
        spike = read_raw_spike(body)
        if spike is None:
            counters["bad_body"] += 1
            return False
        if not self._raw_rate:
            counters["no_rate"] += 1
            return False
        return self._spike(spike.stream, spike.electrode, spike.sample, spike.sorted_id,
                           self._raw_rate, frame)

    def _ttl(self, stream: str, sample: int, line: int, high: bool) -> None:
        self.counters["ttl_events"] += 1
        if self.edges is None or line != self._line or not high or stream != self._stream:
            return
        if abs(sample) > MAX_SAMPLE:
            self.counters["bad_range"] += 1
            return
        self.edges.append((sample, self._last_ns))

    def _spike(
        self, stream: str, electrode: str, sample: int, sorted_id: int, fs: float, frame: Frame
    ) -> bool:
        counters = self.counters
        if not (-MAX_SAMPLE <= sample <= MAX_SAMPLE and fs > 0 and math.isfinite(fs)):
            counters["bad_range"] += 1
            return False
        if stream != self._stream:
            if self._stream:
                counters["other_stream"] += 1
                return False
            self._stream = stream
        self._spikes.set_rate(fs)
        return self._spikes.add(stream, electrode, sorted_id, sample, frame)
