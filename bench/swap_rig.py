"""A sender, a server and a client under load, and what every decode has to be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

from neds_rt.binning import bin_edges
from neds_rt.bundle import Bundle, read_bundle
from neds_rt.children import Child
from neds_rt.engines import load_engine
from neds_rt.latency.sender import POOL, make_pool
from neds_rt.subscribe import subscribe
from neds_rt.wire import Decode, decode_message

FS, BIN_S, RATE_HZ = 30_000.0, 0.02, 10.0
START_S = 120.0
PAUSE_S = (0.5, 1.5)  # between one change and the next
FILL_BINS = 150  # before the first change: a window, and the keep-warm tick at work
ORDER_BINS = 100  # that the sender plays at a time


class Row(NamedTuple):
    """One decode of a bin, and when it came."""

    arrival_ns: int
    decode: Decode


class Change(NamedTuple):
    """One change: when its answer came, in ns of the monotonic clock, and what it was."""

    end_ns: int
    report: dict[str, Any]


class Rig:
    """Sender, server and client, with changes made from a thread beside the client."""

    def __init__(self, folder: Path, model: Path, engine: str, *options: str) -> None:
        """`options` are further ones of the server."""
        units = read_bundle(model).manifest.units
        self.control = str(folder / "control")
        self.sender = Child(
            "sender", "neds_rt.latency.sender", "--targets", "1", "--units", str(len(units)),
            "--stream", units[0].probe, "--bin-size", repr(BIN_S), "--rate-hz", repr(RATE_HZ))
        self.server = Child(
            "server", "neds_rt", "serve", "--probe",
            f"{units[0].probe}={self.sender.json(START_S)['uris'][0]}", "--model", str(model),
            "--engine", engine, "--out", "tcp://127.0.0.1:*", "--control", self.control, "--json",
            *options)
        self.rows: list[Row] = []
        self.changes: list[Change] = []
        self.failure: BaseException | None = None
        self.due_ns: NDArray[np.float64] = np.zeros(0)  # of each bin: its last sample, and when
        self.sent_ns: NDArray[np.float64] = np.zeros(0)  # it really left
        self.sent = 0

    def run(self, n: int, change: Callable[[int], dict[str, Any]], seed: int) -> dict[str, Any]:
        """Make `n` changes under load; returns the server's summary."""
        context = zmq.Context()
        done = threading.Event()

        def changes() -> None:
            rng = np.random.default_rng(seed)
            try:
                while len(self.rows) < FILL_BINS and not done.is_set():
                    time.sleep(0.1)
                for i in range(n):
                    time.sleep(rng.uniform(*PAUSE_S))
                    report = change(i)
                    self.changes.append(Change(time.monotonic_ns(), report))
            except BaseException as error:
                self.failure = error
            done.set()

        with self.sender, self.server:
            socket = subscribe(context, self.server.ready(START_S), START_S)
            worker = threading.Thread(target=changes)
            worker.start()
            while not done.is_set():
                self._order(ORDER_BINS)
                self._take(socket, ORDER_BINS)
            worker.join()
            context.destroy(linger=0)
            summary = self.server.stop(30)
        if self.failure is not None:
            raise self.failure
        return summary or {}

    def _order(self, n: int) -> None:
        """Have `n` bins played on from the last one, on one schedule for the whole run."""
        self.sender.tell({"target": 0, "bins": n, "speed": 1.0, "each": True})
        answer = self.sender.json(START_S)
        edges = bin_edges(np.arange(self.sent, self.sent + n + 1), FS, BIN_S)
        dues = answer["start_ns"] + np.rint((edges[1:] - edges[0]) * (1e9 / FS))
        self.due_ns = np.append(self.due_ns, dues)
        self.sent += n

    def _take(self, socket: zmq.Socket[bytes], n: int) -> None:
        taken = 0
        while taken < n and socket.poll(2000):
            raw = socket.recv()
            arrival = time.monotonic_ns()
            decode = decode_message(raw)
            if decode.bin >= 0:
                self.rows.append(Row(arrival, decode))
                taken += 1
        late_us = np.asarray(self.sender.json(START_S)["late_us_each"])
        dues = self.due_ns[len(self.sent_ns) :]
        self.sent_ns = np.append(self.sent_ns, dues + np.maximum(0.0, late_us) * 1e3)


def counts_of(n_bins: int, n_units: int) -> NDArray[np.uint16]:
    """Return what the sender plays, shape (n_bins, n_units): its pool of bins, again and again."""
    pool = np.zeros((POOL, n_units), np.uint16)
    for row, spikes in zip(pool, make_pool(n_units, RATE_HZ, int(FS * BIN_S), BIN_S), strict=True):
        np.add.at(row, spikes["unit"], 1)
    return pool[np.arange(n_bins) % POOL]


def truth(bundle: Bundle, counts: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return what the native engine says of every bin, shape (bins, outputs)."""
    engine = load_engine("native", bundle)
    return np.stack([engine.step(row).copy() for row in counts])


def said(decode: Decode) -> NDArray[np.float32]:
    """Return the outputs behind a decode's values, in the order of its model."""
    return np.array([x for value in decode.values.values() for x in (value.mean or value.p or [])],
                    np.float32)
