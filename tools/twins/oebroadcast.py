"""A twin of the Open Ephys plugin Event Broadcaster, fed from spikes whose bins are known.

    python -m tools.twins.oebroadcast SESSION.h5 --format raw

Sends what plugin 0.3.0 sends: every spike of every stream in two parts, as JSON or raw binary,
electrode by electrode in the blocks of the GUI. Version 0.3.0 does not look for another port when
its own is taken; 0.2 goes up by one. Prints a line of JSON with its port, and at the end one with
what was sent.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from typing import Self

import numpy as np
import zmq

from tools.twins.feed import (
    DEFAULT_HWM,
    Block,
    Feed,
    add_feed_arguments,
    feed_of,
    gui_blocks,
)
from tools.twins.openephys import SAMPLES_A_SPIKE, juce_json

_HEAD = struct.Struct("<BBHHHqdH")
_TTL = struct.Struct("<BBHHHqdBBQ")


class EventBroadcaster:
    """One plugin: binds its port, then sends acquisitions block by block."""

    def __init__(
        self, feed: Feed, *, port: int = 5557, stream: str = "ProbeA-AP", stream_id: int = 65,
        raw: bool = False, hwm: int = DEFAULT_HWM, search: bool = False,
    ) -> None:
        self.feed, self.stream, self.stream_id, self.raw = feed, stream, stream_id, raw
        self.messages = self.spikes = 0
        self.starts_ns: list[int] = []  # monotonic clock of first samples
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)  # drops like a PUB, and hears subscribers
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        while True:
            try:
                self._socket.bind(f"tcp://127.0.0.1:{port}")
                break
            except zmq.ZMQError:
                if not search:
                    self._context.destroy(linger=0)
                    raise
                port += 1
        self.port = port
        self._texts = [self._spike_text(unit) for unit in range(feed.n_units)]
        self._wave = np.full(1 + SAMPLES_A_SPIKE, -80.0, "<f4").tobytes()  # threshold, then data

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until somebody has subscribed to everything."""
        if not self._socket.poll(int(seconds * 1000)) or self._socket.recv() != b"\x01":
            raise TimeoutError("nobody subscribed")

    def play(self, begin: int, end: int, speed: float = float("inf")) -> None:
        """Send the feed's samples `[begin, end)` at `speed` times real time."""
        start = time.monotonic_ns()
        self.starts_ns.append(start)
        for block in gui_blocks(self.feed, begin, end):
            due = start + int((block.end - begin) / self.feed.fs / speed * 1e9)
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            self.send_block(block)

    def send_block(self, block: Block) -> None:
        """Send the spikes of one block; nothing marks its end."""
        for row in block.rows.tolist():
            self.send_spike(row)

    def send_spike(self, row: int) -> None:
        """Send one spike of the feed."""
        feed = self.feed
        unit, sample = feed.units.item(row), feed.samples.item(row)
        self.spikes += 1
        if self.raw:
            head = _HEAD.pack(2, 1, 102, self.stream_id, feed.channel.item(unit), sample,
                              sample / feed.fs, feed.cluster.item(unit))
            self.send_raw(b"\1\0", head + self._wave)
        else:
            before, after = self._texts[unit]
            self.send_raw(b"\1\0", before + str(sample).encode() + after)

    def _spike_text(self, unit: int) -> tuple[bytes, bytes]:
        """Return a spike of a unit as JSON, up to its sample number and from there on."""
        text = juce_json({
            "event_type": "spike", "stream": self.stream, "source_node": 102,
            "electrode": f"Electrode {self.feed.channel[unit]}", "num_channels": 1,
            "sample_rate": self.feed.fs, "sample_number": "%(sample)d",
            "sorted_id": int(self.feed.cluster[unit]), "amp1": 80.0,
        })
        before, _, after = text.partition("%(sample)d")
        return before.encode(), after.encode()

    def send_ttl(self, sample: int, line: int, state: bool) -> None:
        """Send one TTL event."""
        if self.raw:
            word = int(state) << line
            self.send_raw(b"\0\0", _TTL.pack(1, 3, 100, self.stream_id, 0, sample,
                                             sample / self.feed.fs, line, state, word))
            return
        self.send_raw(b"\0\0", juce_json({
            "event_type": "ttl", "stream": self.stream, "source_node": 100,
            "sample_rate": self.feed.fs, "channel_name": "TTL events", "sample_number": sample,
            "line": line, "state": state,
        }).encode())

    def send_raw(self, *parts: bytes) -> None:
        """Send anything."""
        self.messages += 1
        self._socket.send_multipart(parts)

    def close(self) -> None:
        """Close the port."""
        self._context.destroy(linger=1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_feed_arguments(parser)
    parser.add_argument("--port", type=int, default=5557, help="port (default 5557)")
    parser.add_argument("--stream", default="ProbeA-AP", help="name of the stream")
    parser.add_argument("--format", choices=("json", "raw"), default="json", help="of messages")
    args = parser.parse_args()
    feed = feed_of(args)
    with EventBroadcaster(feed, port=args.port, stream=args.stream, raw=args.format == "raw",
                          hwm=args.hwm) as twin:
        print(json.dumps({"port": twin.port, "stream": twin.stream}), flush=True)
        twin.wait(600.0)
        if args.on_line:
            sys.stdin.readline()
        twin.play(0, round(args.seconds * feed.fs), 1.0)
        print(json.dumps({"messages": twin.messages, "spikes": twin.spikes,
                          "dropped": 0, "gaps": 0, "starts_ns": twin.starts_ns}), flush=True)
        sys.stdin.readline()  # stay there, as the real program does
    return 0


if __name__ == "__main__":
    sys.exit(main())
