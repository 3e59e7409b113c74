"""A twin of the Open Ephys plugin ZMQ Interface, fed from a session whose bins are known.

    python -m tools.twins.openephys SESSION.h5 --seconds 60 --loss 0.001

Sends what plugin 1.0 in GUI 1.0 sends: spikes electrode by electrode, the end of a block with the
next one, then one block message a selected channel; headers as JUCE prints them; a PUB socket with
the default queue of 1000 messages, that drops silently; ports that move up by two when taken; a
heartbeat socket on the next port. `version="0.2"` sends the old names. The samples of continuous
channels are zeros, or `--raw` and `--generate` say otherwise. Prints a line of JSON with its ports,
and one with what was sent and dropped at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt.errors import BadInput
from neds_rt.stats import percentiles
from tools.twins.feed import (
    DEFAULT_HWM,
    Block,
    Feed,
    add_feed_arguments,
    feed_of,
    gui_blocks,
)
from tools.twins.generated import generate
from tools.twins.spikeglx import LOOP_S, make_ap_band

SAMPLES_A_SPIKE = 40
STEP_UV = 0.195  # of the ADC, for traces that are whole numbers
Traces = NDArray[np.int16] | NDArray[np.float32]


@dataclass
class Sent:
    """What was sent and what was dropped on purpose."""

    messages: int = 0
    spikes: int = 0
    dropped: list[int] = field(default_factory=list)  # message numbers
    dropped_spikes: list[int] = field(default_factory=list)  # rows of the feed
    gaps: int = 0  # times that something was dropped between two delivered blocks
    late_us: list[float] = field(default_factory=list)  # how late each block was sent
    starts_ns: list[int] = field(default_factory=list)  # monotonic clock of first samples


class ZmqInterface:
    """One plugin: binds its two ports, then sends acquisitions block by block.

    `traces` (n, channels) are what the selected channels hold, played over and over: float32 in
    microvolts, as they are sent, or int16 in steps of `step_uv`. Without them they hold zeros.
    """

    def __init__(
        self, feed: Feed, *, port: int = 5556, stream: str = "ProbeA-AP", channels: int = 1,
        loss: float = 0.0, seed: int = 0, hwm: int = DEFAULT_HWM, version: str = "1.0",
        heartbeat: bool = True, traces: Traces | None = None, step_uv: float = STEP_UV,
    ) -> None:
        self.feed, self.stream, self.version = feed, stream, version
        self.channels = channels if traces is None else traces.shape[1]
        self._traces, self._step_uv = traces, np.float32(step_uv)
        self.number, self.sent = 0, Sent()
        self.heartbeats: list[dict[str, Any]] = []
        self._loss, self._rng = loss, np.random.default_rng(seed)
        self._lossy = self._begun = False
        self._context = zmq.Context()
        # An XPUB drops like a PUB, and tells when somebody has subscribed.
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._listener = self._context.socket(zmq.REP)
        self._listener.setsockopt(zmq.LINGER, 0)
        self.port = self._bind(port, heartbeat)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        if heartbeat:
            self._thread.start()
        self._wave = np.full(SAMPLES_A_SPIKE, -80.0, "<f4").tobytes()
        self._spike_text = juce_json(self._spike_header("%(number)d"))

    def _bind(self, port: int, heartbeat: bool) -> int:
        """Bind both ports, two further where one is taken, as the plugin does."""
        while True:
            try:
                self._socket.bind(f"tcp://127.0.0.1:{port}")
            except zmq.ZMQError:
                port += 2
                continue
            if not heartbeat:
                return port
            try:
                self._listener.bind(f"tcp://127.0.0.1:{port + 1}")
            except zmq.ZMQError:
                self._socket.unbind(f"tcp://127.0.0.1:{port}")
                port += 2
                continue
            return port

    def _listen(self) -> None:
        while not self._stop.is_set():
            if not self._listener.poll(100):
                continue
            try:
                self.heartbeats.append(json.loads(self._listener.recv()))
                reply = "heartbeat received"
                if self.heartbeats[-1].get("type") == "event":
                    reply = "message correctly parsed"
            except ValueError:
                reply = "JSON message could not be read"
            self._listener.send(reply.encode())

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until somebody has subscribed to everything."""
        if not self._socket.poll(int(seconds * 1000)) or self._socket.recv() != b"\x01":
            raise TimeoutError("nobody subscribed")

    def start_acquisition(self) -> None:
        """Count messages anew."""
        self.number = 0
        self._lossy = self._begun = False

    def play(self, begin: int, end: int, speed: float = float("inf")) -> None:
        """Send the feed's samples `[begin, end)` at `speed` times real time."""
        start = time.monotonic_ns()
        self.sent.starts_ns.append(start)
        for block in gui_blocks(self.feed, begin, end):
            if speed != float("inf"):
                due = start + int((block.end - begin) / self.feed.fs / speed * 1e9)
                time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
                self.sent.late_us.append((time.monotonic_ns() - due) / 1e3)
            self.send_block(block)

    def send_block(self, block: Block, lost: Collection[int] = ()) -> None:
        """Send one block: spikes, then a message a channel, but for those that are `lost`."""
        for row in block.rows.tolist():
            self.send_spike(row)
        text = juce_json(self._block_header(block))
        samples = self.samples(block)
        for channel in range(self.channels):
            filled = text % {"number": self.number + 1, "channel": channel,
                             "time": time.time_ns() // 1_000_000}
            self._send(b"DATA\0", filled, samples[channel].data, closes=True,
                       lost=channel in lost)

    def samples(self, block: Block) -> NDArray[np.float32]:
        """Return what the channels hold in a block, (channels, samples) in microvolts."""
        if self._traces is None:
            return np.zeros((self.channels, block.end - block.begin), "<f4")
        rows = self._traces[np.arange(block.begin, block.end) % len(self._traces)]
        if rows.dtype == np.int16:
            rows = rows * self._step_uv
        return np.ascontiguousarray(rows.T, "<f4")

    def send_spike(self, row: int) -> None:
        """Send one spike of the feed."""
        unit = self.feed.units.item(row)
        text = self._spike_text % {
            "number": self.number + 1, "channel": self.feed.channel.item(unit),
            "sorted_id": self.feed.cluster.item(unit), "sample": self.feed.samples.item(row),
            "time": time.time_ns() // 1_000_000,
        }
        self.sent.spikes += self._send(b"EVENT\0", text, self._wave_bytes(), row=row)

    def send_ttl(self, sample: int, line: int, state: int) -> None:
        """Send one TTL event."""
        content = {"stream": self.stream, "source_node": 100, "type": 3, "sample_num": sample}
        header = {self._number_name: self.number + 1, "type": "event", "content": content,
                  "data_size": 10, "timestamp": time.time_ns() // 1_000_000}
        payload = bytes([line, state]) + (state << line).to_bytes(8, "little")
        self._send(b"EVENT\0", juce_json(header), payload)

    def send_raw(self, *parts: bytes, counted: bool = True) -> None:
        """Send anything, for tests of bad input; `counted` as one of the plugin's messages."""
        self.number += counted
        self.sent.messages += 1
        self._socket.send_multipart(parts)

    def close(self) -> None:
        """Close both ports."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._context.destroy(linger=1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self, envelope: bytes, text: str, payload: bytes | memoryview, *, row: int | None = None,
        closes: bool = False, lost: bool = False,
    ) -> bool:
        """Send or drop one message."""
        self.number += 1
        if lost or (self._loss and self._rng.random() < self._loss):
            self.sent.dropped.append(self.number)
            if row is not None:
                self.sent.dropped_spikes.append(row)
            self._lossy = True
            return False
        # The plugin's header has as many bytes as the text has characters.
        self._socket.send_multipart([envelope, text.encode()[: len(text)], payload])
        self.sent.messages += 1
        if closes:
            self.sent.gaps += self._lossy and self._begun
            self._lossy, self._begun = False, True
        return True

    @property
    def _number_name(self) -> str:
        return "message_no" if self.version == "0.2" else "message_num"

    def _wave_bytes(self) -> bytes:
        return self._wave[:SAMPLES_A_SPIKE] if self.version == "0.2" else self._wave

    def _spike_header(self, number: str) -> dict[str, Any]:
        if self.version == "0.2":
            spike = {"timestamp": "%(sample)d", "n_channels": 1, "n_samples": SAMPLES_A_SPIKE,
                     "electrode_id": "%(channel)d", "threshold": [-50.0]}
            return {"message_no": number, "type": "spike", "spike": spike}
        spike = {"stream": self.stream.replace("%", "%%"), "source_node": 102,
                 "electrode": "Electrode %(channel)d", "sample_num": "%(sample)d",
                 "num_channels": 1, "num_samples": SAMPLES_A_SPIKE, "sorted_id": "%(sorted_id)d",
                 "threshold": [-50.0]}
        return {"message_num": number, "type": "spike", "spike": spike, "timestamp": "%(time)d"}

    def _block_header(self, block: Block) -> dict[str, Any]:
        """Return a block's header with number, channel and time yet to be filled in."""
        n, stream = block.end - block.begin, self.stream.replace("%", "%%")
        if self.version == "0.2":
            content = {"n_channels": self.channels, "n_samples": n, "n_real_samples": n,
                       "timestamp": block.begin, "sample_rate": int(self.feed.fs)}
            return {"message_no": "%(number)d", "type": "data", "content": content,
                    "data_size": 4 * n}
        content = {"stream": stream, "channel_num": "%(channel)d",
                   "channel_name": "AP%(channel)d", "num_samples": n, "sample_num": block.begin,
                   "sample_rate": self.feed.fs}
        return {"message_num": "%(number)d", "type": "data", "content": content,
                "data_size": 4 * n, "timestamp": "%(time)d"}


def juce_json(value: dict[str, Any]) -> str:
    """Return JSON as JUCE prints it: lines, indented by two; "%(name)d" stays a number to fill."""
    text = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\r\n")
    for name in ("number", "sample", "channel", "sorted_id", "time"):
        text = text.replace(f'"%({name})d"', f"%({name})d")
    return text


def traces_of(args: argparse.Namespace, feed: Feed) -> Traces | None:
    """Return what the channels hold, as the arguments ask; raises `BadInput` if that is missing."""
    if args.raw:
        return make_ap_band(args.channels, LOOP_S, fs=feed.fs, seed=args.seed)[0]
    if args.generate:
        return generate(args.channels, LOOP_S, fs=feed.fs, seed=args.seed).traces
    return None


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_feed_arguments(parser)
    parser.add_argument("--port", type=int, default=5556, help="data port (default 5556)")
    parser.add_argument("--stream", default="ProbeA-AP", help="name of the stream")
    parser.add_argument("--channels", type=int, default=1, help="channels selected (default 1)")
    raw = parser.add_mutually_exclusive_group()
    raw.add_argument("--raw", action="store_true", help="channels hold an AP band, not zeros")
    raw.add_argument("--generate", action="store_true",
                     help="channels hold a recording made by SpikeInterface")
    parser.add_argument("--acquisitions", type=int, default=1, help="how often it is started")
    parser.add_argument("--loss", type=float, default=0.0, help="share of messages dropped")
    parser.add_argument("--version", choices=("1.0", "0.2"), default="1.0", help="of the plugin")
    args = parser.parse_args()
    feed = feed_of(args)
    try:
        traces = traces_of(args, feed)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    with ZmqInterface(feed, port=args.port, stream=args.stream, channels=args.channels,
                      loss=args.loss, seed=args.seed, hwm=args.hwm, version=args.version,
                      traces=traces) as twin:
        print(json.dumps({"port": twin.port, "stream": twin.stream}), flush=True)
        twin.wait(600.0)
        if args.on_line:
            sys.stdin.readline()
        for _ in range(args.acquisitions):
            twin.start_acquisition()
            twin.play(0, round(args.seconds * feed.fs), 1.0)
        sent = twin.sent
        report = {"messages": sent.messages, "spikes": sent.spikes, "dropped": len(sent.dropped),
                  "gaps": sent.gaps, "starts_ns": sent.starts_ns,
                  "late_us": percentiles(np.array(sent.late_us))}
        print(json.dumps(report), flush=True)
        sys.stdin.readline()  # stay there, as the real program does
    return 0


if __name__ == "__main__":
    sys.exit(main())
