"""A rig to be broken: two paced probes and a server, all of it real but the animal.

`neds-rt serve` in its own process, spike frames over TCP at 50 bins a second, decodes over TCP.
The rig keeps what it sent, for the judge (`tools/fault_judge.py`). A server may be stopped or
killed and started anew: each is a `Life` with decodes and a summary of its own.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle, read_bundle, write_bundle
from neds_rt.children import Child
from neds_rt.errors import StartError
from neds_rt.manifest import Unit
from neds_rt.wire import SPIKE_DTYPE, Decode, SpikeHeader, decode_message, encode_spikes

ROOT = Path(__file__).resolve().parents[1]
FS, BIN_S, WIDTH = 30_000.0, 0.02, 600
SHAPE = Shape(hidden=32, layers=2, heads=2, mlp=64, window=10, conv=3, recurrent=True)
PROBES, UNITS_A_PROBE, RATE_HZ = ("a", "b"), 20, 15.0
START_S = 60.0
REDIAL_MS = 5  # so that the first decodes of a server that is back are heard

Message = list[bytes]


class Bin(NamedTuple):
    """What one probe saw in one bin of one session of the rig."""

    session: int
    index: int
    spikes: NDArray[np.void]


class Episode(NamedTuple):
    """When a fault began and when it was over, ns of the monotonic clock."""

    began: int
    ended: int


@dataclass
class Life:
    """One server from its start to its end; a killed one leaves no summary."""

    began_ns: int
    child: Child
    summary: dict[str, Any] = field(default_factory=dict)


class Probe:
    """One probe's publisher; `seq` and `session` go on as a correct source's do."""

    def __init__(self, name: str, context: zmq.Context[zmq.Socket[bytes]], port: int = 0) -> None:
        self.name, self.seq, self._context = name, 0, context
        self._socket: Any = None
        self.endpoint = f"tcp://127.0.0.1:{port or '*'}"
        self.open()

    def open(self) -> None:
        """Bind; the same port again after `close`."""
        socket: Any = self._context.socket(zmq.PUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.bind(self.endpoint)
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket = socket

    def close(self) -> None:
        """Unbind: connections break."""
        self._socket.close()

    def frame(self, bin_: Bin, **changes: Any) -> Message:
        """Return the message of a bin, with header fields changed."""
        fields: dict[str, Any] = {
            "version": 1, "stream": self.name, "session": f"rig-{bin_.session}", "seq": self.seq,
            "t0_sample": bin_.index * WIDTH, "watermark": (bin_.index + 1) * WIDTH, "fs": FS,
            "sent_mono_ns": time.monotonic_ns(), "sent_real_ns": time.time_ns(),
            "n_spikes": len(bin_.spikes),
        }
        self.seq += 1
        return encode_spikes(SpikeHeader(**(fields | changes)), bin_.spikes)

    def send(self, message: Message) -> None:
        """Send a message of any parts."""
        self._socket.send_multipart(message, copy=False)  # 13 MB would take a while to copy


class Rig:
    """The server and what it published, on the schedule of `tick`, fed by two probes.

    Rigs with other senders replace `open_senders`, `send`, `counts` and `close_senders`.
    """

    names: tuple[str, ...] = PROBES  # of the probes

    def __init__(self, seed: int, *options: str, engine: str = "native") -> None:
        """`options` are those of `neds-rt serve`; {folder} and {life} in them are filled in."""
        self.rng = np.random.default_rng(seed)
        self._folder = tempfile.TemporaryDirectory(prefix="neds-faults-")
        self.folder = Path(self._folder.name)
        self.model = write_model(self.folder / "model.neds", self.units())
        self.bundle: Bundle = read_bundle(self.model)
        self.trigger = self.folder / "trigger"  # what a faulty engine or disk looks at
        self.trigger.write_bytes(b"\0" * 8)
        os.environ["NEDS_FAULT"] = str(self.trigger)
        before = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *before]))
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.decodes: list[Decode] = []
        self.truth: dict[tuple[str, int], NDArray[np.uint16]] = {}  # (session, bin) -> counts
        self.session = self.index = 0
        self.problems: list[str] = []  # what a fault's own check has found
        self.recordings: list[dict[str, Any]] = []  # what replaying each of them said
        self.lives: list[Life] = []
        self._options = [*options, f"--engine={engine}"]
        self.endpoint = "tcp://127.0.0.1:*"
        self._senders = self.open_senders(seed)
        self.start()
        self.endpoint = self.server.ready(START_S)
        self._decodes = self._subscribe()
        self._due = time.monotonic()

    def units(self) -> list[Unit]:
        """Return the units of the model, probe by probe."""
        return [Unit(name, i, 1) for name in self.names for i in range(UNITS_A_PROBE)]

    def open_senders(self, seed: int) -> list[str]:
        """Open what the server connects to; return `NAME=URI` of each probe."""
        self.probes = [Probe(name, self.context) for name in self.names]
        return [f"{p.name}=zmq+{p.endpoint}" for p in self.probes]

    def close_senders(self) -> None:
        """Close them; sockets of `context` are closed anyway."""

    @property
    def server(self) -> Child:
        """The server that runs, or the last one that ran."""
        return self.lives[-1].child

    def start(self) -> None:
        """Start a server, where the one before it was."""
        options = [option.format(folder=self.folder, life=len(self.lives))
                   for option in self._options]
        began = time.monotonic_ns()
        child = Child("server", "neds_rt", "serve", *(f"--probe={uri}" for uri in self._senders),
                      f"--model={self.model}", f"--out={self.endpoint}", "--json", *options)
        self.lives.append(Life(began, child))

    def stop(
        self, number: signal.Signals = signal.SIGINT, *, ticking: bool = False
    ) -> dict[str, Any]:
        """End the server by a signal; return its summary, empty for one that was killed.

        With `ticking` input goes on meanwhile.
        """
        if self.server.running:
            os.kill(self.server.pid, number)
        while ticking and self.server.running:
            self.tick()
        self.lives[-1].summary = self.server.finish(10.0) or {}
        return self.lives[-1].summary

    def start_again(self) -> bool:
        """Start another server while input goes on; False if it never decodes."""
        self.start()
        for _ in range(int(START_S / BIN_S)):
            self.tick()
            if self.decodes and self.decodes[-1].pub_ns > self.lives[-1].began_ns:
                return True
        self.problems.append("the server did not come back")
        return False

    def tick(self, mangle: Callable[[Probe, Bin], list[Message]] | None = None) -> int:
        """Wait for the end of the next bin, send it, and take what was decoded meanwhile.

        `mangle` returns what is sent of a probe's bin instead of one right frame. Returns when
        it was sent, in ns of the monotonic clock.
        """
        self._due += BIN_S
        self.listen(self._due)
        return self.send(mangle)

    def send(self, mangle: Callable[[Probe, Bin], list[Message]] | None) -> int:
        """Send the next bin; returns when."""
        bins = self.next_bin()
        sent = time.monotonic_ns()
        for probe, bin_ in zip(self.probes, bins, strict=True):
            for message in [probe.frame(bin_)] if mangle is None else mangle(probe, bin_):
                probe.send(message)
        return sent

    def next_bin(self) -> list[Bin]:
        """Draw the spikes of the next bin of every probe, and keep their counts.

        Where samples were counted before, the first that were sent are what holds.
        """
        counts = np.zeros((len(self.names), UNITS_A_PROBE), np.uint16)
        bins = []
        for k in range(len(self.names)):
            n = self.rng.poisson(UNITS_A_PROBE * RATE_HZ * BIN_S)
            spikes = np.zeros(n, SPIKE_DTYPE)
            spikes["sample"] = self.index * WIDTH + self.rng.integers(0, WIDTH, n)
            spikes["unit"] = self.rng.integers(0, UNITS_A_PROBE, n)
            np.add.at(counts[k], spikes["unit"], 1)
            bins.append(Bin(self.session, self.index, spikes))
        self.truth.setdefault((f"rig-{self.session}", self.index), counts.ravel())
        self.index += 1
        return bins

    def counts(self, session: str, bin_: int) -> NDArray[np.uint16] | None:
        """Return what was sent of a bin, (n_units,), None where nothing was.

        Several sessions joined by "+" are those of probes of which all but the first are lost.
        """
        return self.truth.get((session.split("+")[0], bin_))

    def restart(self) -> None:
        """Acquisition begins anew: another session, samples and frames from 0."""
        self.session, self.index = self.session + 1, 0
        for probe in self.probes:
            probe.seq = 0

    def some_bins(self, low: int = 2, high: int = 20) -> int:
        """Return how long a fault is to last, in bins."""
        return int(self.rng.integers(low, high))

    def catch_up(self) -> None:
        """Forget a schedule that time has overtaken."""
        self._due = max(self._due, time.monotonic())

    def listen(self, until: float) -> None:
        """Take decodes until a time of the monotonic clock."""
        while True:
            left = until - time.monotonic()
            if not self._decodes.poll(max(0, int(left * 1000))):
                if left <= 1e-3:
                    time.sleep(max(0.0, left))
                    return
                continue
            self.decodes.append(decode_message(self._decodes.recv()))

    def end(self) -> dict[str, Any]:
        """Take what is still under way, stop the server and return its summary."""
        self.listen(time.monotonic() + 0.1)
        return self.stop()

    def close(self) -> None:
        """Stop everything."""
        for life in self.lives:
            life.child.finish(0)
        self.close_senders()
        self.context.destroy(linger=0)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _subscribe(self) -> zmq.Socket[bytes]:
        """Subscribe to all servers at the endpoint; raises `StartError` where none answers."""
        socket = self.context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, REDIAL_MS)
        socket.subscribe(b"")
        socket.connect(self.endpoint)
        if not socket.poll(int(START_S * 1000)):  # without input, decodes say so
            raise StartError(f"{self.endpoint}: no decode for {START_S:g} s")
        return socket


def write_model(path: Path, units: Sequence[Unit], seed: int = 0) -> Path:
    """Write a bundle of random weights for some units."""
    modalities = [ModalityOut("velocity", "continuous", 2, "cm/s")]
    made = random_bundle(SHAPE, len(units), modalities, seed, bin_size_s=BIN_S)
    write_bundle(path, session="rig", subject="none", bin_size_s=BIN_S, shape=SHAPE, units=units,
                 modalities=modalities, weights=made.weights)
    return path
