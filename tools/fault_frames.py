"""The faults: what can go wrong at a rig, each done to a real server by a function of its own.

A fault is given the rig while all is well, does its damage for a random while, and puts things
back. It returns when the damage began and when the first right frame after it was sent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tools import faulty_engine
from tools.fault_rig import WIDTH, Bin, Message, Probe, Rig


class Episode(NamedTuple):
    """When a fault began and when it was over, ns of the monotonic clock."""

    began: int
    ended: int


class Fault(NamedTuple):
    """One kind of fault; `alarm` is False where decodes should stay valid throughout."""

    do: Callable[[Rig], Episode]
    alarm: bool = True
    engine: str = "native"
    options: tuple[str, ...] = ()


def _some_bins(rig: Rig, low: int = 2, high: int = 20) -> int:
    return int(rig.rng.integers(low, high))


def _mangled(rig: Rig, n: int, mangle: Callable[[Probe, Bin], list[Message]]) -> Episode:
    """Send `n` bins of the first probe through `mangle`, then a right one."""
    first = rig.probes[0]

    def one_probe(probe: Probe, bin_: Bin) -> list[Message]:
        return mangle(probe, bin_) if probe is first else [probe.frame(bin_)]

    began = rig.tick(one_probe)
    for _ in range(n - 1):
        rig.tick(one_probe)
    return Episode(began, rig.tick())


def _lost(probe: Probe, bin_: Bin) -> list[Message]:
    """The frame is made and numbered, and never sent."""
    probe.frame(bin_)
    return []


def one_frame_lost(rig: Rig) -> Episode:
    """A frame never arrives."""
    return _mangled(rig, 1, _lost)


def frames_lost(rig: Rig) -> Episode:
    """Some frames in a row never arrive."""
    return _mangled(rig, _some_bins(rig), _lost)


def frames_twice(rig: Rig) -> Episode:
    """Every frame arrives twice."""
    return _mangled(rig, _some_bins(rig), lambda probe, bin_: [probe.frame(bin_)] * 2)


def frames_swapped(rig: Rig) -> Episode:
    """A frame arrives before the one it should follow."""
    held: list[Message] = []

    def swap(probe: Probe, bin_: Bin) -> list[Message]:
        held.append(probe.frame(bin_))
        return [] if len(held) < 2 else [held[1], held[0]]

    return _mangled(rig, 2, swap)


def header_garbled(rig: Rig) -> Episode:
    """Headers are not MessagePack."""
    return _mangled(rig, _some_bins(rig),
                    lambda probe, bin_: [[rig.rng.bytes(40), probe.frame(bin_)[1]]])


def payload_cut(rig: Rig) -> Episode:
    """Payloads end in the middle of a spike."""

    def cut(probe: Probe, bin_: Bin) -> list[Message]:
        header, payload = probe.frame(bin_, n_spikes=len(bin_.spikes) + 1)
        return [[header, payload + b"\0" * 5]]

    return _mangled(rig, _some_bins(rig), cut)


def other_version(rig: Rig) -> Episode:
    """Frames of another wire version."""
    return _mangled(rig, _some_bins(rig), lambda probe, bin_: [probe.frame(bin_, version=2)])


def other_stream(rig: Rig) -> Episode:
    """Frames under a name that no probe has."""
    return _mangled(rig, _some_bins(rig), lambda probe, bin_: [probe.frame(bin_, stream="c")])


def one_part(rig: Rig) -> Episode:
    """Messages of one part."""
    return _mangled(rig, _some_bins(rig), lambda probe, bin_: [probe.frame(bin_)[:1]])


def oversize(rig: Rig) -> Episode:
    """Payloads of 13 MB."""
    return _mangled(rig, 2, lambda probe, bin_: [[probe.frame(bin_)[0], bytes(13_000_000)]])


def other_rate(rig: Rig) -> Episode:
    """The sampling rate in the headers changes within a session."""
    return _mangled(rig, _some_bins(rig), lambda probe, bin_: [probe.frame(bin_, fs=25_000.0)])


def samples_backwards(rig: Rig) -> Episode:
    """Sample numbers go back by ten seconds for a while."""

    def back(probe: Probe, bin_: Bin) -> list[Message]:
        spikes = bin_.spikes.copy()
        spikes["sample"] -= 500 * WIDTH
        start = (bin_.index - 500) * WIDTH
        return [probe.frame(Bin(bin_.session, bin_.index, spikes), t0_sample=start,
                            watermark=start + WIDTH)]

    return _mangled(rig, _some_bins(rig), back)


def samples_leap(rig: Rig) -> Episode:
    """Both probes' sample numbers leap ahead by ten seconds, and stay there."""
    rig.index += 500
    began = rig.tick()
    return Episode(began, began)


def acquisition_restarts(rig: Rig) -> Episode:
    """Acquisition is started anew: another session that counts from zero."""
    rig.restart()
    began = rig.tick()
    return Episode(began, began)


def probe_unplugged(rig: Rig) -> Episode:
    """One of the two probes is silent for half a second or more and comes back with a gap."""
    return _mangled(rig, _some_bins(rig, 25, 60), _lost)


def probe_late(rig: Rig) -> Episode:
    """One of the two probes stops for half a second or more, then sends all it held."""
    held: list[Message] = []
    n = _some_bins(rig, 25, 60)

    def hold(probe: Probe, bin_: Bin) -> list[Message]:
        held.append(probe.frame(bin_))
        return held if len(held) == n else []

    return _mangled(rig, n, hold)


def input_stops(rig: Rig) -> Episode:
    """All input stops for half a second or more; what was recorded meanwhile is lost."""
    began = rig.tick(_lost)
    for _ in range(_some_bins(rig, 25, 60)):
        rig.tick(_lost)
    return Episode(began, rig.tick())


def publisher_rebinds(rig: Rig) -> Episode:
    """A publisher's socket closes, so its connection breaks, and opens again."""
    closed = rig.probes[0]

    def silent(probe: Probe, bin_: Bin) -> list[Message]:
        return _lost(probe, bin_) if probe is closed else [probe.frame(bin_)]

    closed.close()
    began = rig.tick(silent)
    for _ in range(_some_bins(rig)):
        rig.tick(silent)
    closed.open()
    return Episode(began, rig.tick())


def server_held_up(rig: Rig) -> Episode:
    """The server is stopped for some bins, as by a machine that hangs, and goes on.

    Nobody can say anything until then: the damage begins with its first decode afterwards.
    """
    os.kill(rig.server.pid, signal.SIGSTOP)
    for _ in range(_some_bins(rig, 5, 20)):
        rig.tick()
    began = time.monotonic_ns()
    os.kill(rig.server.pid, signal.SIGCONT)
    return Episode(began, rig.tick())


def machine_overrun(rig: Rig) -> Episode:
    """Four processes compute with all they can get, beside the server."""
    loop = "import os\nwhile os.getppid() != 1: sum(range(10000))"
    hogs = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(4)]
    began = time.monotonic_ns()
    for _ in range(_some_bins(rig, 25, 50)):
        rig.tick()
    for hog in hogs:
        hog.kill()
        hog.wait()
    return Episode(began, rig.tick())


def flood(rig: Rig) -> Episode:
    """A thousand frames of garbage arrive at once, several times."""
    return _mangled(rig, 3, lambda probe, bin_: [[rig.rng.bytes(20), b""]] * 1000 + [
        probe.frame(bin_)])


def far_ahead(rig: Rig) -> Episode:
    """Spikes from an hour ahead of their frame's watermark."""

    def ahead(probe: Probe, bin_: Bin) -> list[Message]:
        spikes = bin_.spikes.copy()
        stray = spikes[:1].copy() if len(spikes) else spikes
        stray["sample"] += 180_000 * WIDTH
        both = np.concatenate([spikes, stray])
        return [probe.frame(Bin(bin_.session, bin_.index, both))]

    return _mangled(rig, _some_bins(rig), ahead)


def slow_subscriber(rig: Rig) -> Episode:
    """A second subscriber connects and never reads."""
    import zmq

    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.subscribe(b"")
    socket.connect(rig.endpoint)
    began = rig.tick()
    for _ in range(_some_bins(rig, 25, 60)):
        rig.tick()
    ended = rig.tick()
    socket.close(linger=0)
    return Episode(began, ended)


def _engine(rig: Rig, what: int, low: int, high: int) -> Episode:
    began = time.monotonic_ns()
    rig.trigger.open("r+b").write(bytes([what]))
    for _ in range(_some_bins(rig, low, high)):
        rig.tick()
    rig.trigger.open("r+b").write(bytes([faulty_engine.FINE]))
    return Episode(began, rig.tick())


def engine_nan(rig: Rig) -> Episode:
    """The engine's outputs are not a number."""
    return _engine(rig, faulty_engine.NAN, 2, 20)


def engine_slow(rig: Rig) -> Episode:
    """The engine takes longer than a bin."""
    return _engine(rig, faulty_engine.SLOW, 2, 6)


FAULTY = "tools.faulty_engine:FaultyEngine"

FAULTS: dict[str, Fault] = {
    "one frame lost": Fault(one_frame_lost),
    "frames lost": Fault(frames_lost),
    "frames twice": Fault(frames_twice, alarm=False),
    "frames swapped": Fault(frames_swapped),
    "header garbled": Fault(header_garbled),
    "payload cut": Fault(payload_cut),
    "other wire version": Fault(other_version),
    "unknown stream name": Fault(other_stream),
    "message of one part": Fault(one_part),
    "oversized frame": Fault(oversize),
    "sampling rate changes": Fault(other_rate),
    "samples go backwards": Fault(samples_backwards),
    "samples leap ahead": Fault(samples_leap),
    "acquisition restarts": Fault(acquisition_restarts),
    "one probe unplugged": Fault(probe_unplugged),
    "one probe late": Fault(probe_late),
    "all input stops": Fault(input_stops),
    "publisher restarts": Fault(publisher_rebinds),
    "server held up": Fault(server_held_up),
    "machine overrun": Fault(machine_overrun, alarm=False),
    "flood of garbage": Fault(flood, alarm=False),
    "spikes far ahead": Fault(far_ahead, alarm=False),
    "subscriber never reads": Fault(slow_subscriber, alarm=False),
    "engine not a number": Fault(engine_nan, engine=FAULTY),
    "engine too slow": Fault(engine_slow, engine=FAULTY),
}
