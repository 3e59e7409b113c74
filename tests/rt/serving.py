"""A running server, a publisher and a small bundle for tests: real processes and real sockets."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import zmq

from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle
from neds_rt.client import Client
from neds_rt.engines import load_engine

ROOT = Path(__file__).parents[2]
WINDOW = 6
SHAPE = Shape(hidden=16, layers=2, heads=2, mlp=32, window=WINDOW, conv=3, recurrent=True)
MODALITIES = [
    ModalityOut("velocity", "continuous", 2, "cm/s", sd=[0.5, 0.25]),
    ModalityOut("heading", "circular", 2),
    ModalityOut("choice", "categorical", 2, classes=["left", "right"]),
]
COMMAND = [sys.executable, "-c", "import sys; from neds_rt.cli import main; sys.exit(main())"]


def small_bundle(path, probes=("a",), n_units=4, bin_size_s=0.02):
    """Write a bundle of random weights to `path`, its units dealt to the probes in turn."""
    bundle = random_bundle(SHAPE, n_units, MODALITIES, bin_size_s=bin_size_s)
    m = bundle.manifest
    units = [
        type(u)(probes[i % len(probes)], u.channel, u.cluster) for i, u in enumerate(m.units)
    ]
    write_bundle(path, session="s", subject="m", bin_size_s=bin_size_s, shape=m.shape, units=units,
                 modalities=m.modalities, weights=bundle.weights)
    return path


def fail(*options):
    """Run `neds-rt serve` on options it cannot work with; returns (exit code, standard error)."""
    done = subprocess.run([*COMMAND, "serve", *map(str, options)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.stdout == ""
    return done.returncode, done.stderr


class Serving:
    """`neds-rt serve` in its own process, ready to decode, with a client that is subscribed."""

    def __init__(self, model, probes, *options):
        given = [f"--probe={name}={uri}" for name, uri in probes.items()]
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *given, f"--model={model}", "--out=tcp://127.0.0.1:*",
             "--stale-after=0.3", "--json",
             # A busy machine is not what these tests are about, nor are frames sent all at once.
             "--close-after=60", "--deadline-ms=60000", *options],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if not self._ready.wait(60) or not self.lines[-1].startswith("ready "):
            self.process.kill()
            raise AssertionError(f"not ready: {self.lines}")
        self.client = Client(self.lines[-1].split()[1])
        # Nothing was sent yet; and so the client is seen to be subscribed.
        assert self.next().reason == "stale"

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("ready "):
                self._ready.set()
        self._ready.set()

    def next(self):
        return self.client.recv(30)

    def decodes(self, n):
        """The next `n` decodes of bins, stale ones left out."""
        found = []
        while len(found) < n:
            decode = self.next()
            if decode.reason != "stale":
                found.append(decode)
        assert self.client.missed == 0
        return found

    def memory_mb(self):
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def end(self, number=signal.SIGINT, code=0):
        """Stop the server by signal, or await its end, and return its summary."""
        if number is not None:
            self.process.send_signal(number)
        out = self.process.stdout.read()
        assert self.process.wait(60) == code, self.lines
        self._reader.join()
        return json.loads(out.splitlines()[-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


class Publisher:
    """A probe: an XPUB that binds, waits for the server and loses nothing."""

    def __init__(self, uri):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.SNDTIMEO, 30_000)
        self._socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self._socket.setsockopt(zmq.LINGER, 2000)
        self._socket.bind(uri.removeprefix("zmq+"))

    def wait(self):
        assert self._socket.recv() == b"\x01"

    def send(self, *frames):
        for frame in frames:
            self._socket.send_multipart(frame)

    def close(self):
        self._socket.close()
        self._context.term()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def reference(bundle, counts):
    """What the engine itself says: counts is a list of (n_units,) arrays, None where lost."""
    engine = load_engine("native", bundle)
    zero = np.zeros(engine.n_units, np.uint16)
    return [engine.step(zero if c is None else c, c is not None).copy() for c in counts]


def outputs(decode):
    """The engine outputs that a decode's values were made from, circular ones as (cos, sin)."""
    values = decode.values
    r, angle = values["heading"].r, values["heading"].angle
    heading = [r * np.cos(angle), r * np.sin(angle)]
    return np.array([*values["velocity"].mean, *heading, *values["choice"].p])


def wait_for(condition, seconds=30):
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.01)
