"""Rigs with other senders: a plugin of Open Ephys behind a proxy, a producer in its own process.

Faults of theirs are given the rig and return an `Episode` as those of `tools/fault_frames.py` do.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.sources import free_port
from neds_rt.children import Child
from neds_rt.manifest import Unit
from tools.fault_proxy import Mangle, Parts, Proxy
from tools.fault_rig import (
    BIN_S,
    FS,
    RATE_HZ,
    START_S,
    UNITS_A_PROBE,
    WIDTH,
    Bin,
    Episode,
    Message,
    Probe,
    Rig,
)
from tools.twins.feed import gui_blocks, random_feed
from tools.twins.openephys import ZmqInterface

LONGEST_S = 900.0  # of spikes that are there to be sent
BLOCK = b"DATA\0"  # the envelope of the message that closes a block
LOSS = 0.2  # of messages


class FeedRig(Rig):
    """A rig of one probe that plays spikes which were drawn before; bins count from sample 0."""

    names = ("a",)

    def units(self) -> list[Unit]:
        """Return the units by the channels and sorted ids that the twins give them."""
        return [Unit("a", i, 1 + i % 5) for i in range(UNITS_A_PROBE)]

    def counts(self, session: str, bin_: int) -> NDArray[np.uint16] | None:
        """Count the spikes of a bin; sessions of these rigs never count samples anew."""
        begin, end = np.searchsorted(self.feed.samples, [bin_ * WIDTH, (bin_ + 1) * WIDTH])
        counted = np.bincount(self.feed.units[begin:end], minlength=UNITS_A_PROBE)
        return counted.astype(np.uint16)

    def open_feed(self, seed: int) -> None:
        """Draw the spikes."""
        self.feed = random_feed(UNITS_A_PROBE, RATE_HZ, LONGEST_S, seed)


class PluginRig(FeedRig):
    """ZMQ Interface of Open Ephys, a block a bin, behind a proxy."""

    def open_senders(self, seed: int) -> list[str]:
        """Open the twin and the proxy."""
        self.open_feed(seed)
        self._blocks = gui_blocks(self.feed, 0, round(LONGEST_S * FS), (WIDTH,))
        self.twin = ZmqInterface(self.feed, port=free_port(), hwm=0)
        self.proxy = Proxy(self.twin.port)
        self.twin.wait()
        return [f"a=oe://127.0.0.1:{self.proxy.port}"]

    def close_senders(self) -> None:
        """Close both."""
        self.proxy.close()
        self.twin.close()

    def send(self, mangle: Callable[[Probe, Bin], list[Message]] | None) -> int:
        """Send the next block; what happens to it is the proxy's."""
        sent = time.monotonic_ns()
        self.twin.send_block(next(self._blocks))
        self.index += 1
        return sent


class ProducerRig(FeedRig):
    """A native publisher in a process of its own, that keeps its own time."""

    def open_senders(self, seed: int) -> list[str]:
        """Start the producer, which begins once the server has subscribed."""
        self.open_feed(seed)
        port = free_port()
        self.producer = Child(
            "producer", "tools.twins.native", "--random", f"{UNITS_A_PROBE},{RATE_HZ:g}",
            "--seconds", str(LONGEST_S), "--seed", str(seed), "--port", str(port), "--stream", "a",
            "--hwm", "0")
        self.producer.json(START_S)
        self._origin: float | None = None
        return [f"a=zmq+tcp://127.0.0.1:{port}"]

    def close_senders(self) -> None:
        """End the producer."""
        self.producer.finish(0)

    def send(self, mangle: Callable[[Probe, Bin], list[Message]] | None) -> int:
        """Return when the producer was to send the end of the bin that `tick` waited for."""
        if self._origin is None:  # no frame came sooner after its bin than the soonest
            ends = [d.recv_ns * 1e-9 - (d.bin + 1) * BIN_S for d in self.decodes if d.bin >= 0]
            if len(ends) < 50:
                return time.monotonic_ns()
            self._origin = min(ends)
            self._due = self._origin + BIN_S * (1 + (time.monotonic() - self._origin) // BIN_S)
        self.index = round((self._due - self._origin) / BIN_S)
        return int(self._due * 1e9)

    def catch_up(self) -> None:
        """The producer keeps its schedule, come what may."""
        if self._origin is None:
            super().catch_up()
            return
        while self._due < time.monotonic():
            self._due += BIN_S


def producer_frozen(rig: Rig) -> Episode:
    """The producer's process is stopped for some bins, then sends all that is overdue."""
    assert isinstance(rig, ProducerRig)
    rig.listen(time.monotonic() + float(rig.rng.uniform(0, 0.8 * BIN_S)))  # within a bin
    os.kill(rig.producer.pid, signal.SIGSTOP)
    began = rig.tick()
    for _ in range(rig.some_bins(5, 40)):
        rig.tick()
    os.kill(rig.producer.pid, signal.SIGCONT)
    return Episode(began, rig.tick())


def _through(rig: Rig, n: int, mangle: Mangle) -> Episode:
    """Have the proxy mangle what passes for `n` bins, and until it has done some harm."""
    assert isinstance(rig, PluginRig)
    rig.proxy.begin(mangle)
    for _ in range(n):
        rig.tick()
    while not rig.proxy.harmed_ns:
        rig.tick()
    rig.proxy.end()
    return Episode(rig.proxy.harmed_ns, rig.tick())


def messages_lost(rig: Rig) -> Episode:
    """One of five messages is lost on the way."""
    return _through(rig, rig.some_bins(),
                    lambda parts: [] if rig.rng.random() < LOSS else [parts])


def messages_twice(rig: Rig) -> Episode:
    """Every message arrives twice."""
    return _through(rig, rig.some_bins(), lambda parts: [parts, parts])


def messages_swapped(rig: Rig) -> Episode:
    """A message arrives before the one it should follow."""
    held: list[Parts] = []

    def swap(parts: Parts) -> list[Parts]:
        if len(held) == 2:
            return [parts]
        held.append(parts)
        return [] if len(held) < 2 else [held[1], held[0]]

    return _through(rig, 2, swap)


def messages_halved(rig: Rig) -> Episode:
    """Half of a header or of a payload is missing, or the payload altogether."""

    def halve(parts: Parts) -> list[Parts]:
        envelope, header, payload = parts
        return [[[envelope, header[: len(header) // 2], payload],
                 [envelope, header, payload[: len(payload) // 2]],
                 [envelope, header]][rig.rng.integers(3)]]

    return _through(rig, rig.some_bins(), halve)


def messages_of_garbage(rig: Rig) -> Episode:
    """A message of random bytes comes after every one that is right."""

    def add(parts: Parts) -> list[Parts]:
        return [parts, [rig.rng.bytes(5), rig.rng.bytes(60), rig.rng.bytes(9)]]

    return _through(rig, rig.some_bins(), add)


def messages_in_bursts(rig: Rig) -> Episode:
    """Messages stop for some bins, then come all at once."""
    held: list[Parts] = []
    n = rig.some_bins(5, 30)

    def hold(parts: Parts) -> list[Parts]:
        held.append(parts)
        if sum(each[0] == BLOCK for each in held) < n:
            return []
        released = held.copy()
        held.clear()
        return released

    return _through(rig, n, hold)


def port_flaps(rig: Rig) -> Episode:
    """The plugin's port is closed and opened three times within some bins."""
    assert isinstance(rig, PluginRig)
    rig.proxy.harmed_ns = 0
    first = 0
    for _ in range(3):
        rig.proxy.unbind()
        down = rig.tick()
        first = first or down
        for _ in range(rig.some_bins(1, 5)):
            rig.tick()
        rig.proxy.bind()
        for _ in range(rig.some_bins(1, 5)):
            rig.tick()
    return Episode(first, rig.tick())
