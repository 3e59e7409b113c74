"""What every program here does alike: its arguments, the window, the message, the loop.

A frame covers one bin, as the sender of the benchmark has it.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt.manifest import Manifest
from neds_rt.stats import percentiles
from neds_rt.wire import SPIKE_DTYPE, WIRE_VERSION, Decode, Value, decode_header

Floats = NDArray[np.float32]
Decoder = Callable[[Floats], Floats]  # a window (bins, units) in, outputs (n_outputs,) out


def arguments(description: str | None) -> argparse.Namespace:
    """Read the command line, with the options that `neds-rt serve` has too."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--probe", required=True, metavar="NAME=URI", help="publisher of spikes")
    parser.add_argument("--model", required=True, metavar="BUNDLE", help="model to decode with")
    parser.add_argument("--graph", metavar="FILE", help="its window as ONNX, where one is needed")
    parser.add_argument("--out", default="tcp://127.0.0.1:*", help="endpoint to publish on")
    parser.add_argument("--json", action="store_true", help="accepted; the summary always is JSON")
    args = parser.parse_args()
    args.endpoint = args.probe.partition("=")[2].removeprefix("zmq+")
    return args


class Window:
    """The last bins of counts, newest last: a ring written twice, so that nothing is moved."""

    def __init__(self, bins: int, units: int) -> None:
        self.bins, self.units = bins, units
        self.seen = 0
        self._rows = np.zeros((2 * bins, units), np.float32)

    def push(self, payload: bytes) -> Floats:
        """Count a frame's spikes as the newest bin; returns a view of the window (bins, units)."""
        spikes = np.frombuffer(payload, SPIKE_DTYPE)
        slot = self.seen % self.bins
        self._rows[slot] = np.bincount(spikes["unit"], minlength=self.units)
        self._rows[slot + self.bins] = self._rows[slot]
        self.seen += 1
        return self._rows[slot + 1 : slot + 1 + self.bins]


class Script:
    """From a frame to its decode message; keeps the time that each step took."""

    def __init__(self, manifest: Manifest, decode: Decoder, precision: str) -> None:
        self._manifest, self._decode, self._precision = manifest, decode, precision
        self.window = Window(manifest.shape.window, len(manifest.units))
        self._encode = msgspec.msgpack.Encoder().encode
        self._step_ns: list[int] = []

    def answer(self, header: bytes, payload: bytes, received_ns: int) -> bytes:
        """Return the message for a frame that covers one bin."""
        frame = decode_header(header)
        window = self.window.push(payload)
        started = time.monotonic_ns()
        outputs = self._decode(window)
        now = time.monotonic_ns()
        self._step_ns.append(now - started)
        seconds, full = frame.watermark / frame.fs, self.window.seen >= self.window.bins
        return self._encode(Decode(
            v=WIRE_VERSION, seq=self.window.seen - 1, session=frame.session,
            bin=round(seconds / self._manifest.bin_size_s) - 1, t_s=seconds,
            spike_age_us=-1.0, service_us=(now - received_ns) / 1e3,
            recv_ns=received_ns, pub_ns=now, model=self._manifest.model_hash,
            valid=full, reason="ok" if full else "warming_up", values=self._values(outputs),
        ))

    def _values(self, outputs: Floats) -> dict[str, Value]:
        values, begin = {}, 0
        for modality in self._manifest.modalities:
            numbers = outputs[begin : begin + modality.n_outputs].tolist()
            begin += modality.n_outputs
            if modality.kind == "categorical":
                label = modality.classes[int(np.argmax(numbers))]
                values[modality.name] = Value(p=numbers, label=label)
            else:
                values[modality.name] = Value(mean=numbers, sd=[])
        return values

    def rehearse(self, times: int = 20) -> None:
        """Decode an empty window before the first frame, so that libraries have set up."""
        for _ in range(times):
            self._decode(np.zeros((self.window.bins, self.window.units), np.float32))

    def summary(self) -> dict[str, Any]:
        """Return what `neds-rt serve` says of itself too, as far as it applies."""
        step_us = percentiles(np.array(self._step_ns) / 1e3)
        return {"precision": self._precision, "latency": {"step_us": step_us}}


def quiet_memory() -> None:
    """Keep the garbage collector from pausing what follows."""
    gc.collect()
    gc.freeze()
    gc.disable()


def announce(publisher: zmq.Socket[bytes]) -> None:
    """Print the line that says that frames will now be decoded."""
    endpoint = publisher.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
    print(f"ready {endpoint}", file=sys.stderr, flush=True)


def serve(args: argparse.Namespace, script: Script) -> int:
    """Receive, decode, publish, until interrupted; then print the summary."""
    context = zmq.Context()
    source, sink = context.socket(zmq.SUB), context.socket(zmq.PUB)
    source.setsockopt(zmq.RCVHWM, 0)
    source.subscribe(b"")
    source.connect(args.endpoint)
    sink.bind(args.out)
    script.rehearse()
    quiet_memory()
    announce(sink)
    # A flag, not KeyboardInterrupt: that may come up inside a library's callback and be lost there.
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    while not asked:
        if source.poll(100):
            header = source.recv()
            received = time.monotonic_ns()
            sink.send(script.answer(header, source.recv(), received))
    context.destroy(linger=0)
    print(json.dumps(script.summary()), flush=True)
    return 0
