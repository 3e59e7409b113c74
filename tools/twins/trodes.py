"""A twin of a Trodes network: its directory and `source.spikes`, fed from known spikes.

    python -m tools.twins.trodes --random 100,5 --port 49152

As `trodesnetwork` has it: a PUB socket at the known port says again and again where questions are
answered; `get` and `add` go there; the stream is a PUB socket on a port of its own, one MessagePack
map a message, with no topic and no number. Spikes of a packet come by nTrode, not by time. Digital
inputs are a stream of their own, `source.digital`.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any, Self

import msgspec
import numpy as np
import zmq

from tools.twins.feed import Feed, add_feed_arguments, feed_of

ANNOUNCE_S = 0.1
PACKET_S = 0.01  # of which the spikes come together


class TrodesTwin:
    """The directory, answering on a thread of its own, and the spikes, sent by `play`.

    With `offer` False the network has no `source.spikes` until `offer_spikes`. `spoil` is sent
    instead of the directory's next answers.
    """

    def __init__(self, feed: Feed, *, port: int = 0, offer: bool = True, hwm: int = 0) -> None:
        self.feed, self._hwm = feed, hwm
        self.names: dict[str, str] = {}
        self.spoil = b""
        self.messages = self.asked = 0
        self._context = zmq.Context()
        self._announcer = self._context.socket(zmq.PUB)
        self._announcer.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = int(self._announcer.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._replier = self._context.socket(zmq.REP)
        self._replier.bind("tcp://127.0.0.1:*")
        self._spikes: Any = None
        self._digital: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()
        if offer:
            self.offer_spikes()

    def offer_spikes(self) -> str:
        """Open `source.spikes` on a new port, as a start of Trodes does; return its endpoint."""
        self._spikes = self._offer("source.spikes", self._spikes)
        return self.names["source.spikes"]

    def offer_digital(self) -> str:
        """Open `source.digital` on a new port; return its endpoint."""
        self._digital = self._offer("source.digital", self._digital)
        return self.names["source.digital"]

    def _offer(self, name: str, old: Any) -> Any:
        if old is not None:
            old.close(linger=0)
        socket = self._context.socket(zmq.XPUB)  # drops like a PUB, and hears subscribers
        socket.setsockopt(zmq.SNDHWM, self._hwm)
        socket.bind("tcp://127.0.0.1:*")
        self.names[name] = str(socket.get_string(zmq.LAST_ENDPOINT))
        return socket

    def wait(self, seconds: float = 30.0, *, digital: bool = False) -> None:
        """Wait until somebody has subscribed to the spikes, or to the digital inputs."""
        socket = self._digital if digital else self._spikes
        if not socket.poll(int(seconds * 1000)) or socket.recv() != b"\x01":
            raise TimeoutError("nobody subscribed")

    def send_digital(self, message: Any) -> None:
        """Send one message of `source.digital`, packed unless it is bytes."""
        packed = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        self._digital.send(packed)

    def send_inputs(self, sample: int, *inputs: int) -> None:
        """Send the state of 16 digital inputs at a sample: those named are high."""
        word = sum(1 << i for i in inputs).to_bytes(2, "little")
        self.send_digital({"localTimestamp": sample, "digitalData": [word]})

    def send(self, message: Any) -> None:
        """Send one message, packed unless it is bytes."""
        packed = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        self._spikes.send(packed)
        self.messages += 1

    def play(self, begin: int, end: int, *, offset: int = 0, paced: bool = False) -> None:
        """Send the spikes of samples `[begin, end)`, counted from `offset` on."""
        feed, packet = self.feed, round(PACKET_S * self.feed.fs)
        start = time.monotonic()
        for first in range(begin, end, packet):
            last = min(first + packet, end)
            rows = np.arange(*np.searchsorted(feed.samples, (first, last)))
            if paced:
                time.sleep(max(0.0, start + (last - begin) / feed.fs - time.monotonic()))
            for row in rows[np.argsort(feed.channel[feed.units[rows]], kind="stable")]:
                unit = feed.units[row]
                self.send({
                    "nTrodeId": int(feed.channel[unit]), "cluster": int(feed.cluster[unit]),
                    "localTimestamp": int(feed.samples[row]) + offset,
                    "systemTimestamp": time.time_ns(),
                })

    def close(self) -> None:
        """Close the network."""
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=500)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> None:
        where = {"replyEndpoint": self._replier.get_string(zmq.LAST_ENDPOINT)}
        while not self._stop.is_set():
            self._announcer.send(self.spoil or msgspec.msgpack.encode(where))
            if not self._replier.poll(int(ANNOUNCE_S * 1000)):
                continue
            request = msgspec.msgpack.decode(self._replier.recv())
            self.asked += 1
            if request["tag"] == "add":
                self.names[request["name"]] = request["endpoint"]
            self._replier.send(msgspec.msgpack.encode(self.names.get(request["name"], "")))


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_feed_arguments(parser)
    parser.add_argument("--port", type=int, default=49152, help="default 49152")
    args = parser.parse_args()
    feed = feed_of(args)
    with TrodesTwin(feed, port=args.port, hwm=args.hwm) as twin:
        print(json.dumps({"port": twin.port}), flush=True)
        twin.wait(600.0)
        if args.on_line:
            sys.stdin.readline()
        began = time.monotonic_ns()
        twin.play(0, round(args.seconds * feed.fs), paced=True)
        print(json.dumps({"messages": twin.messages, "spikes": twin.messages, "dropped": 0,
                          "gaps": 0, "starts_ns": [began]}), flush=True)
        sys.stdin.readline()  # stay there, as the real program does
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
