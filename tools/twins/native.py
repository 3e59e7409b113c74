"""A publisher of native spike frames, fed from spikes whose bins are known.

    python -m tools.twins.native SESSION.h5 --seconds 60 --loss 0.001

Sends what a laboratory's own program sends when it follows the wire format: a frame every
`FRAME_S`, its units the rows of the bundle, in an order of their own. A frame that is dropped
has still been counted, so the next one's `seq` tells. Prints a line of JSON with its port, and
at the end one with what was sent and dropped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from typing import Self

import numpy as np
import zmq

from neds_rt.stats import percentiles
from neds_rt.wire import SPIKE_DTYPE, WIRE_VERSION, SpikeHeader, encode_spikes
from tools.twins.feed import DEFAULT_HWM, Feed, add_feed_arguments, feed_of

FRAME_S = 0.005  # four frames a bin of 20 ms


class NativePublisher:
    """One probe's publisher: binds its port, then sends acquisitions frame by frame."""

    def __init__(
        self, feed: Feed, *, port: int = 5555, stream: str = "p", loss: float = 0.0, seed: int = 0,
        hwm: int = DEFAULT_HWM,
    ) -> None:
        self.feed, self.stream = feed, stream
        self.session = uuid.uuid4().hex
        self.messages = self.spikes = self.dropped = self.gaps = 0
        self.starts_ns: list[int] = []  # monotonic clock of first samples
        self.late_us: list[float] = []
        self._loss, self._rng = loss, np.random.default_rng(seed)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)  # drops like a PUB, and hears subscribers
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        try:
            self._socket.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until somebody has subscribed to everything."""
        if not self._socket.poll(int(seconds * 1000)) or self._socket.recv() != b"\x01":
            raise TimeoutError("nobody subscribed")

    def play(self, begin: int, end: int) -> None:
        """Send the feed's samples `[begin, end)` at real time."""
        feed, step = self.feed, round(FRAME_S * self.feed.fs)
        start = time.monotonic_ns()
        self.starts_ns.append(start)
        lossy = False
        for seq, t0 in enumerate(range(begin, end - step + 1, step)):
            due = start + int((t0 + step - begin) / feed.fs * 1e9)
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            self.late_us.append((time.monotonic_ns() - due) / 1e3)
            if self._loss and self._rng.random() < self._loss:
                self.dropped += 1
                lossy = True
                continue
            self.gaps += lossy and self.messages > 0
            lossy = False
            self._send(seq, t0, t0 + step)

    def _send(self, seq: int, t0: int, watermark: int) -> None:
        """Send the spikes of samples `[t0, watermark)`, in no order."""
        first, last = np.searchsorted(self.feed.samples, [t0, watermark])
        spikes = np.empty(last - first, SPIKE_DTYPE)
        spikes["sample"] = self.feed.samples[first:last]
        spikes["unit"] = self.feed.units[first:last]
        self._rng.shuffle(spikes)
        header = SpikeHeader(
            version=WIRE_VERSION, stream=self.stream, session=self.session, seq=seq, t0_sample=t0,
            watermark=watermark, fs=self.feed.fs, sent_mono_ns=time.monotonic_ns(),
            sent_real_ns=time.time_ns(), n_spikes=len(spikes),
        )
        self._socket.send_multipart(encode_spikes(header, spikes))
        self.messages += 1
        self.spikes += len(spikes)

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
    parser.add_argument("--port", type=int, default=5555, help="port (default 5555)")
    parser.add_argument("--stream", default="p", help="name of the probe")
    parser.add_argument("--loss", type=float, default=0.0, help="share of frames dropped")
    args = parser.parse_args()
    feed = feed_of(args)
    with NativePublisher(feed, port=args.port, stream=args.stream, loss=args.loss, seed=args.seed,
                         hwm=args.hwm) as twin:
        print(json.dumps({"port": args.port, "stream": args.stream}), flush=True)
        twin.wait(600.0)
        if args.on_line:
            sys.stdin.readline()
        twin.play(0, round(args.seconds * feed.fs))
        print(json.dumps({"messages": twin.messages, "spikes": twin.spikes,
                          "dropped": twin.dropped, "gaps": twin.gaps,
                          "starts_ns": twin.starts_ns,
                          "late_us": percentiles(np.array(twin.late_us))}), flush=True)
        sys.stdin.readline()  # stay there, as an acquisition program does
    return 0


if __name__ == "__main__":
    sys.exit(main())
