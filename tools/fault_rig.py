"""A rig to be broken: two paced probes, a server, and a judge who knows every spike.

Everything is real but the animal: `neds-rt serve` in its own process, spike frames over TCP at 50
bins a second, decodes over TCP. The judge runs the engine over the counts that were sent, leaving
out what the server says it did not get; a decode that claims to be valid and differs is wrong.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle, read_bundle, write_bundle
from neds_rt.children import Child
from neds_rt.engines import Engine, load_engine
from neds_rt.manifest import Unit
from neds_rt.subscribe import subscribe
from neds_rt.wire import SPIKE_DTYPE, Decode, SpikeHeader, decode_message, encode_spikes

FS, BIN_S, WIDTH = 30_000.0, 0.02, 600
SHAPE = Shape(hidden=32, layers=2, heads=2, mlp=64, window=10, conv=3, recurrent=True)
PROBES, UNITS_A_PROBE, RATE_HZ = ("a", "b"), 20, 15.0
START_S = 60.0
TOLERANCE = 1e-4  # of a value, beside which rounding is nothing

Message = list[bytes]


class Bin(NamedTuple):
    """What one probe saw in one bin of one session of the rig."""

    session: int
    index: int
    spikes: NDArray[np.void]


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
    """The probes, the server and what it published, on the schedule of `tick`."""

    def __init__(self, seed: int, *options: str, engine: str = "native") -> None:
        self.rng = np.random.default_rng(seed)
        self._folder = tempfile.TemporaryDirectory(prefix="neds-faults-")
        self.folder = Path(self._folder.name)
        self.model = write_model(self.folder / "model.neds")
        self.bundle: Bundle = read_bundle(self.model)
        self.trigger = self.folder / "trigger"  # what the faulty engine looks at
        self.trigger.write_bytes(b"\0" * 8)
        os.environ["NEDS_FAULT"] = str(self.trigger)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.probes = [Probe(name, self._context) for name in PROBES]
        given = [f"--probe={p.name}=zmq+{p.endpoint}" for p in self.probes]
        self.server = Child(
            "server", "neds_rt", "serve", *given, f"--model={self.model}", f"--engine={engine}",
            "--out=tcp://127.0.0.1:*", "--json", *options)
        self.endpoint = self.server.ready(START_S)
        self._decodes = subscribe(self._context, self.endpoint, START_S)
        self.decodes: list[Decode] = []
        self.truth: dict[tuple[str, int], NDArray[np.uint16]] = {}  # (session, bin) -> counts
        self.session = self.index = 0
        self._due = time.monotonic()

    def tick(self, mangle: Callable[[Probe, Bin], list[Message]] | None = None) -> int:
        """Wait for the end of the next bin, send it, and take what was decoded meanwhile.

        `mangle` returns what is sent of a probe's bin instead of one right frame. Returns when
        it was sent, in ns of the monotonic clock.
        """
        self._due += BIN_S
        self.listen(self._due)
        bins = self.next_bin()
        sent = time.monotonic_ns()
        for probe, bin_ in zip(self.probes, bins, strict=True):
            for message in [probe.frame(bin_)] if mangle is None else mangle(probe, bin_):
                probe.send(message)
        return sent

    def next_bin(self) -> list[Bin]:
        """Draw the spikes of the next bin of every probe, and keep their counts."""
        counts = np.zeros((len(PROBES), UNITS_A_PROBE), np.uint16)
        bins = []
        for k in range(len(PROBES)):
            n = self.rng.poisson(UNITS_A_PROBE * RATE_HZ * BIN_S)
            spikes = np.zeros(n, SPIKE_DTYPE)
            spikes["sample"] = self.index * WIDTH + self.rng.integers(0, WIDTH, n)
            spikes["unit"] = self.rng.integers(0, UNITS_A_PROBE, n)
            np.add.at(counts[k], spikes["unit"], 1)
            bins.append(Bin(self.session, self.index, spikes))
        self.truth[(f"rig-{self.session}", self.index)] = counts.ravel()
        self.index += 1
        return bins

    def restart(self) -> None:
        """Acquisition begins anew: another session, samples and frames from 0."""
        self.session, self.index = self.session + 1, 0
        for probe in self.probes:
            probe.seq = 0

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
        return self.server.stop() or {}

    def close(self) -> None:
        """Stop everything."""
        self.server.finish(0)
        self._context.destroy(linger=0)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_model(path: Path, seed: int = 0) -> Path:
    """Write a bundle of random weights, half of its units on each probe."""
    modalities = [ModalityOut("velocity", "continuous", 2, "cm/s")]
    n = UNITS_A_PROBE * len(PROBES)
    made = random_bundle(SHAPE, n, modalities, seed, bin_size_s=BIN_S)
    units = [Unit(PROBES[i // UNITS_A_PROBE], i % UNITS_A_PROBE, 1) for i in range(n)]
    write_bundle(path, session="rig", subject="none", bin_size_s=BIN_S, shape=SHAPE, units=units,
                 modalities=modalities, weights=made.weights)
    return path


class Verdict(NamedTuple):
    """What the judge found."""

    checked: int  # decodes that claimed to be valid
    wrong: list[int]  # of these, the sequence numbers of those that differ from the truth
    unreported: int  # bins that no decode, gap or counter told of


class Judge:
    """Follows the server's bins with two engines, one a step behind in its beliefs.

    Around a gap no message tells which bins were lost and which only look back at one. What was
    published does: it is the step of a lost bin or that of the bin's true counts.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._engines = [load_engine("native", bundle) for _ in range(2)]
        self._zero = np.zeros(self._engines[0].n_units, np.uint16)
        self.restart()

    def restart(self) -> None:
        """Another session: bins are stepped from nothing."""
        self._history: list[NDArray[np.uint16] | int | None] = []  # counts, bins skipped, lost
        for engine in self._engines:
            engine.reset()

    def skip(self, n_bins: int) -> None:
        """Bins that no message came for."""
        self._history.append(n_bins)
        for engine in self._engines:
            engine.skip(n_bins)

    def step(
        self, counts: NDArray[np.uint16] | None, found: NDArray[np.float32], doubtful: bool
    ) -> tuple[bool, bool]:
        """Take a bin whose outputs were `found`; return (lost, whether they are right)."""
        given, lost = self._engines
        if counts is not None:
            right = _close(given.step(counts), found)
            if not doubtful:
                lost.step(counts)
            elif not right and _close(lost.step(self._zero, False), found):
                counts = None
        else:
            lost.step(self._zero, False)
        if counts is None:
            self._history.append(None)
            self._replay(given)
            return True, True
        self._history.append(counts)
        if doubtful:
            self._replay(lost)
        return False, right

    def _replay(self, engine: Engine) -> None:
        engine.reset()
        for each in self._history:
            if isinstance(each, int):
                engine.skip(each)
            else:
                engine.step(self._zero if each is None else each, each is not None)


def _close(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    return bool(np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE))


def judge(rig: Rig, summary: dict[str, Any]) -> Verdict:
    """Compare every decode with the engine run over the counts that were sent."""
    engines = Judge(rig.bundle)
    wrong, checked, missing, lost_told = [], 0, 0, 0
    session, last = "", -1
    for decode in rig.decodes:
        if decode.bin < 0:
            continue
        if decode.session != session or decode.bin <= last:
            engines.restart()
            session, last = decode.session, decode.bin - 1
        if decode.bin > last + 1:
            missing += decode.bin - last - 1
            engines.skip(decode.bin - last - 1)
        last = decode.bin
        counts = rig.truth.get((decode.session.split("+")[0], decode.bin))
        if decode.missing and counts is not None:  # stepped without them, and said so
            counts = counts.copy()
            for k, probe in enumerate(PROBES):
                if probe in decode.missing:
                    counts[k * UNITS_A_PROBE : (k + 1) * UNITS_A_PROBE] = 0
        found = np.array(decode.values["velocity"].mean, np.float32)
        lost, right = engines.step(counts, found, not decode.valid)
        lost_told += lost
        if decode.valid:
            checked += 1
            if lost or not right:
                wrong.append(decode.seq)
    reported = summary.get("counters", {}).get("lost_bins", 0) - lost_told
    seqs = {decode.seq for decode in rig.decodes}
    unheard = max(seqs) - min(seqs) + 1 - len(seqs) if seqs else 0
    return Verdict(checked, wrong, max(0, missing - reported) + unheard)
