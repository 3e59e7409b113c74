"""Trodes: `source.digital` of its network, for the pulse that all probes record.

A message is a MessagePack map of a sample count and all digital inputs as bytes, input i being bit
i % 8 of byte i // 8. It may come for every sample or for every change; either way an edge is a
message with the input high after one with it low. The stream is apart from the spikes and may be
fast, so a thread of its own looks it up and reads it.
"""

from __future__ import annotations

import threading

import msgspec
import zmq

from neds_rt.sources.edges import Edges
from neds_rt.sources.heartbeat import Link, open_subscriber
from neds_rt.sources.trodes_directory import Directory
from neds_rt.stats import now_ns
from neds_rt.wire import MAX_SAMPLE

NAME = "source.digital"
RECEIVE_QUEUE = 100_000  # messages
MAX_PART_BYTES = 1 << 12
MESSAGES_A_CALL = 1024
POLL_MS = 100
SILENT_NS = 2_000_000_000


class Digital(msgspec.Struct, gc=False):
    """One message of the stream."""

    localTimestamp: int
    digitalData: list[bytes]


decode_digital = msgspec.msgpack.Decoder(Digital).decode


class DigitalReader(threading.Thread):
    """Hands rising edges of input `line` to `edges`, for as long as its source lives.

    `counters` are the source's: `digital_messages`, `bad_digital`.
    """

    def __init__(
        self, endpoint: str, line: int, edges: Edges, counters: dict[str, int], *, insecure: bool
    ) -> None:
        super().__init__(name="trodes digital", daemon=True)
        self.endpoint = ""  # where the stream was found
        self._directory = Directory(endpoint, NAME, insecure=insecure)
        self._byte, self._bit = divmod(line, 8)
        self._edges, self._counters = edges, counters
        self._high = True  # before the first message no edge can be told
        self._socket: zmq.Socket[bytes] | None = None
        self._link: Link | None = None
        self._losses = 0  # of the connection, as far as they were taken into account
        self._stop_asked = threading.Event()

    def end(self) -> None:
        """Stop and wait for the thread."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        """Look the stream up, read it, and look it up again while it is silent."""
        heard_ns = 0
        try:
            while not self._stop_asked.is_set():
                if heard_ns and now_ns() - heard_ns < SILENT_NS:
                    self._directory.close()
                else:  # it may only be that no input changes, so the old connection is kept
                    self._look_up()
                if self._socket is None:
                    self._stop_asked.wait(POLL_MS / 1000)
                elif self._socket.poll(POLL_MS):
                    heard_ns = now_ns()
                    self._receive(self._socket)
        finally:
            self._directory.close()
            self._disconnect()

    def _look_up(self) -> None:
        endpoint = self._directory.step()
        if endpoint is None or endpoint == self.endpoint:
            return
        self._disconnect()
        self._socket = open_subscriber(endpoint, RECEIVE_QUEUE, MAX_PART_BYTES)
        self._link = Link(self._socket)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError:  # none that can be connected to: asked for anew
            self._disconnect()
            return
        self.endpoint = endpoint

    def _disconnect(self) -> None:
        if self._link is not None and self._socket is not None:
            self._link.close()
            self._socket.close()
        self._link = self._socket = None
        self.endpoint, self._losses, self._high = "", 0, True

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        """Take what waits, at most `MESSAGES_A_CALL`."""
        if self._link is not None:
            self._link.up()
            if self._losses != self._link.losses:  # an edge may have been lost with it
                self._losses, self._high = self._link.losses, True
        for _ in range(MESSAGES_A_CALL):
            try:
                message = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(message)

    def _take(self, message: bytes) -> None:
        counters = self._counters
        counters["digital_messages"] += 1
        try:
            digital = decode_digital(message)
            word = digital.digitalData[0][self._byte]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
            counters["bad_digital"] += 1
            return
        if not 0 <= digital.localTimestamp <= MAX_SAMPLE:
            counters["bad_digital"] += 1
            return
        high = bool(word >> self._bit & 1)
        if high and not self._high:
            self._edges.append((digital.localTimestamp, now_ns()))
        self._high = high
