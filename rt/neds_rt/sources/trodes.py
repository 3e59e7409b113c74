"""Trodes: `source.spikes` of its network, sorted spikes one by one.

    trodes://HOST[:49152][?hold_ms=50&rate=30000&name=source.spikes&sync=INPUT]

The network's directory says where the stream is, on a port that is another one at every start; it
is asked beside the hot path and asked again when the stream falls silent. A message is a
MessagePack map of nTrode, cluster and sample count. It has no number, so lost messages cannot be
noticed, only lost connections, and nothing says what is complete: the watermark stays `hold_ms`
behind the newest spike. Clusters from 1 on are sorted units; the nTrode is the channel of the
bundle's unit table, unless `--units` says otherwise. `rate` is that of the counts, which the
messages do not tell. With `sync`, rising edges of that digital input are taken from
`source.digital` (`trodes_digital.py`).
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import zmq

from neds_rt.errors import BadInput
from neds_rt.sources import singly
from neds_rt.sources.address import parse_address
from neds_rt.sources.edges import edge_queue
from neds_rt.sources.frame import Frame
from neds_rt.sources.heartbeat import Link, open_subscriber
from neds_rt.sources.trodes_digital import DigitalReader
from neds_rt.sources.trodes_directory import Directory
from neds_rt.sources.units import UnitMap
from neds_rt.stats import now_ns
from neds_rt.wire import MAX_SAMPLE

DEFAULT_PORT = 49152
RECEIVE_QUEUE = 20_000  # messages
MAX_PART_BYTES = 1 << 16
MESSAGES_A_CALL = 1024
SILENT_NS = 2_000_000_000
DIGITAL_INPUTS = 4096  # far more than any hardware has

MESSAGES = {
    "bad_message": "a message was refused: not a map of nTrodeId, cluster and localTimestamp",
    "bad_range": "a spike has an impossible sample count",
    "bad_answers": "the Trodes network's directory answers oddly (another program's port?)",
    "moved": "the stream was found at another endpoint",
    "unsorted_spikes": "unsorted spikes were dropped, no unit of the model has cluster 0",
    "bad_digital": "a message of source.digital was refused, or has no such input",
    **singly.MESSAGES,
}
COUNTERS = ("messages", "digital_messages", *singly.COUNTERS, *MESSAGES)


class Options(msgspec.Struct, frozen=True):
    """What stands behind the question mark of the URI."""

    hold_ms: float = 50.0  # how far the watermark stays behind the newest spike
    rate: float = 30_000.0  # of the sample counts, in Hz
    name: str = "source.spikes"
    sync: int | None = None  # digital input (from 0) with a pulse that all probes record


class TrodesSpike(msgspec.Struct, gc=False):
    """One message of the stream; what else is in it is of no use here."""

    nTrodeId: int
    cluster: int
    localTimestamp: int


decode_spike = msgspec.msgpack.Decoder(TrodesSpike).decode


class TrodesSource:
    """Spikes of a Trodes network as native frames."""

    messages = MESSAGES

    def __init__(self, name: str, uri: str, *, units: UnitMap, insecure: bool = False) -> None:
        self.name, self.uri = name, uri
        where = f"--probe {name}"
        address, options = parse_address(where, uri, DEFAULT_PORT, Options, insecure=insecure)
        for field, most in (("hold_ms", 10_000.0), ("rate", 1e7)):
            value = getattr(options, field)
            if not 0 < value <= most:
                expected = f"above 0, at most {most:g}"
                raise BadInput(where, "URI option", f"{field}={value}", expected)
        self.edges = edge_queue(where, options.sync, DIGITAL_INPUTS)
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._units = units
        self._spikes = singly.SingleSpikes(name, options.hold_ms * 1e-3, units, self.counters)
        self._spikes.set_rate(options.rate)
        self._directory = Directory(address.endpoint, options.name, insecure=insecure)
        # The stream's endpoint is found by the tending thread, and a socket belongs to the thread
        # that serves: it is told by a message to itself that no other sender can make up.
        self._token = uuid.uuid4().bytes
        wake = f"inproc://trodes-{self._token.hex()}"
        self._wake: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
        self._wake.setsockopt(zmq.LINGER, 0)
        self._wake.bind(wake)
        self._socket = open_subscriber(wake, RECEIVE_QUEUE, MAX_PART_BYTES)
        self._link = Link(self._socket)
        self._socket.connect(wake)
        self._wake.poll(1000)  # the subscription, which is already on its way
        self._connected, self._told, self._last_ns = "", "", 0
        self._digital: DigitalReader | None = None
        if self.edges is not None and options.sync is not None:
            self._digital = DigitalReader(
                address.endpoint, options.sync, self.edges, self.counters, insecure=insecure)
            self._digital.start()

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        """The SUB socket."""
        return self._socket

    def receive(self, frame: Frame) -> bool:
        """Take what waits, at most `MESSAGES_A_CALL`; True when it moves the watermark."""
        receive = self._socket.recv
        self._spikes.see_losses(self._link.losses)
        for _ in range(MESSAGES_A_CALL):
            try:
                message = receive(zmq.NOBLOCK)
            except zmq.Again:
                if self._link.deaf and self._connected:
                    self._link.revive(self._connected)
                break
            if message.startswith(self._token):
                self._connect(message[len(self._token) :].decode())
            elif self._take(message, frame):
                return True
        return self._spikes.emit(frame)

    def tend(self) -> str:
        """Look the stream up until it is heard, and again when it is silent."""
        self._link.up()
        if self._last_ns and now_ns() - self._last_ns < SILENT_NS:
            self._directory.close()
            return f"receiving {self._directory.name} from {self._connected}"
        found = self._directory.step()
        self.counters["bad_answers"] = self._directory.bad_answers
        if found and found != self._told:
            self._told = found
            self._wake.send(self._token + found.encode(), zmq.NOBLOCK)
        if self._told:
            return f"connected to {self._told}, no spikes; acquisition may not be running"
        looking = f"looking for a Trodes network at {self._directory.endpoint}"
        return self._directory.state or looking

    def report(self) -> dict[str, Any]:
        """Return endpoint, rate and units."""
        digital = {} if self._digital is None else {"digital_endpoint": self._digital.endpoint}
        return {"endpoint": self._connected, "fs": self._spikes.fs,
                "sessions": self._spikes.bridge.n_sessions,
                "units": self._units.report(), **digital}

    def close(self) -> None:
        """Close all sockets; the thread that tends has ended."""
        if self._digital is not None:
            self._digital.end()
        self._directory.close()
        self._link.close()
        self._socket.close()
        self._wake.close()

    # The hot path, from here on.

    def _connect(self, endpoint: str) -> None:
        if self._connected:
            self.counters["moved"] += 1
            self._spikes.interrupt()
            self._socket.disconnect(self._connected)
        self._connected = endpoint
        self._socket.connect(endpoint)

    def _take(self, message: bytes, frame: Frame) -> bool:
        """Take one message; True when `frame` was filled."""
        counters = self.counters
        counters["messages"] += 1
        self._last_ns = now_ns()
        try:
            spike = decode_spike(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            counters["bad_message"] += 1
            return False
        sample = spike.localTimestamp
        if not 0 <= sample <= MAX_SAMPLE:
            counters["bad_range"] += 1
            return False
        return self._spikes.add("trodes", str(spike.nTrodeId), spike.cluster, sample, frame)
