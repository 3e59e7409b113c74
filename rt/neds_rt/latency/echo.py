"""The floor of a latency figure: a server with the real one's sockets and no model behind them.

Receives spike messages from a source and publishes, for each, a message as long as a decode that
names the frame by number. What it takes is what ZeroMQ, the kernel and Python take.

    python -m neds_rt.latency.echo --probe zmq+tcp://127.0.0.1:5570 --reply-bytes 300
"""

from __future__ import annotations

import argparse
import json
import sys

import msgspec
import zmq

from neds_rt.endpoints import bind, connect, endpoint_of
from neds_rt.wire import decode_header


def serve(probe: str, out: str, reply_bytes: int) -> None:
    """Echo for ever; prints one JSON line with the address it publishes on."""
    context = zmq.Context()
    source = context.socket(zmq.SUB)
    source.setsockopt(zmq.RCVHWM, 0)
    source.subscribe(b"")
    connect("--probe", source, endpoint_of(probe, probe))
    sink = context.socket(zmq.PUB)
    sink.setsockopt(zmq.LINGER, 0)
    address = bind("--out", sink, out)
    print(json.dumps({"out": address}), flush=True)
    encode = msgspec.msgpack.Encoder().encode
    padding = b"\0" * max(0, reply_bytes - len(encode({"bin": 1 << 32, "pad": b"\0" * 300})) + 300)
    try:
        while True:
            header = source.recv(copy=False).bytes
            source.recv(copy=False)  # the payload, taken as the server takes it
            sink.send(encode({"bin": decode_header(header).seq, "pad": padding}))
    except KeyboardInterrupt:
        context.destroy(linger=0)


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description="Echo server: the floor of a latency figure.")
    parser.add_argument("--probe", required=True, help="URI of the source to connect to")
    parser.add_argument("--out", default="tcp://127.0.0.1:*", help="endpoint to publish on")
    parser.add_argument("--reply-bytes", type=int, default=300, help="length of a reply")
    args = parser.parse_args()
    serve(args.probe, args.out, args.reply_bytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
