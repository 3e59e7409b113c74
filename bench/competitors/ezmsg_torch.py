"""An ezmsg graph around eager torch: a unit that receives, one that decodes, one that publishes.

The three run in one process, where ezmsg hands messages on without copying them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import ezmsg.core as ez
import zmq
import zmq.asyncio

from bench.competitors.script import Script, announce, arguments, quiet_memory
from bench.competitors.window_model import EagerDecoder
from neds_rt.bundle import read_bundle


class Frame(NamedTuple):
    """A spike message as it came."""

    header: bytes
    payload: bytes
    received_ns: int


class Endpoint(ez.Settings):
    """Where a unit connects to or publishes on."""

    endpoint: str


class DecoderSettings(ez.Settings):
    """What the decoder does with a frame."""

    script: Script


class Receiver(ez.Unit):
    """Spike messages from a publisher."""

    SETTINGS = Endpoint
    OUTPUT = ez.OutputStream(Frame)

    @ez.publisher(OUTPUT)
    async def receive(self) -> AsyncGenerator[Any, None]:
        """Pass on every message."""
        source = zmq.asyncio.Context.instance().socket(zmq.SUB)
        source.setsockopt(zmq.RCVHWM, 0)
        source.subscribe(b"")
        source.connect(self.SETTINGS.endpoint)
        while True:
            header, payload = await source.recv_multipart()
            yield self.OUTPUT, Frame(header, payload, time.monotonic_ns())


class DecoderUnit(ez.Unit):
    """A decode for every frame."""

    SETTINGS = DecoderSettings
    INPUT = ez.InputStream(Frame)
    OUTPUT = ez.OutputStream(bytes)

    @ez.subscriber(INPUT)
    @ez.publisher(OUTPUT)
    async def decode(self, frame: Frame) -> AsyncGenerator[Any, None]:
        """Recompute the window."""
        yield self.OUTPUT, self.SETTINGS.script.answer(*frame)


class Sender(ez.Unit):
    """Decodes to whoever is subscribed."""

    SETTINGS = Endpoint
    INPUT = ez.InputStream(bytes)

    async def initialize(self) -> None:
        """Bind before the graph runs, and say so."""
        self.sink = zmq.Context.instance().socket(zmq.PUB)
        self.sink.setsockopt(zmq.LINGER, 0)
        self.sink.bind(self.SETTINGS.endpoint)
        announce(self.sink)

    @ez.subscriber(INPUT)
    async def publish(self, message: bytes) -> None:
        """Send a message."""
        self.sink.send(message)


def main() -> int:
    """Serve until interrupted; then print the summary."""
    args = arguments(__doc__)
    logging.getLogger("ezmsg").setLevel(logging.WARNING)
    bundle = read_bundle(args.model)
    script = Script(bundle.manifest, EagerDecoder(bundle), "float32")
    script.rehearse()
    units = {"receiver": Receiver(Endpoint(args.endpoint)),
             "decoder": DecoderUnit(DecoderSettings(script)), "sender": Sender(Endpoint(args.out))}
    quiet_memory()

    def end(*_: object) -> None:
        """Not by ezmsg's own shutdown, which now and then does not come to its end."""
        print(json.dumps(script.summary()), flush=True)
        os._exit(0)

    signal.signal(signal.SIGINT, end)
    ez.run(components=units, force_single_process=True, connections=(
        (units["receiver"].OUTPUT, units["decoder"].INPUT),
        (units["decoder"].OUTPUT, units["sender"].INPUT),
    ))
    return 0


if __name__ == "__main__":
    sys.exit(main())
