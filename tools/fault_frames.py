"""Faults of what two probes send: frames lost, doubled, mangled, late, and clocks that step.

A fault is given the rig while all is well, does its damage for a random while, and puts things
back. It returns when the damage began and when the first right frame after it was sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tools.fault_rig import WIDTH, Bin, Episode, Message, Probe, Rig
from tools.fault_wire import Wire

HOUR_NS = 3_600_000_000_000


class WireRig(Rig):
    """A rig whose first probe is at the end of a wire that can be cut."""

    def open_senders(self, seed: int) -> list[str]:
        """Open the probes and the wire."""
        first, *others = super().open_senders(seed)
        self.wire = Wire(int(first.rpartition(":")[2]))
        return [f"{self.names[0]}=zmq+tcp://127.0.0.1:{self.wire.port}", *others]

    def close_senders(self) -> None:
        """Close the wire."""
        self.wire.close()


def wire_cut(rig: Rig) -> Episode:
    """A connection breaks in the middle of a frame; its other half never comes."""
    assert isinstance(rig, WireRig)
    rig.wire.cut()
    while not rig.wire.cut_ns:
        rig.tick()
    return Episode(rig.wire.cut_ns, rig.tick())


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
    return _mangled(rig, rig.some_bins(), _lost)


def frames_twice(rig: Rig) -> Episode:
    """Every frame arrives twice."""
    return _mangled(rig, rig.some_bins(), lambda probe, bin_: [probe.frame(bin_)] * 2)


def frames_swapped(rig: Rig) -> Episode:
    """A frame arrives before the one it should follow."""
    held: list[Message] = []

    def swap(probe: Probe, bin_: Bin) -> list[Message]:
        held.append(probe.frame(bin_))
        return [] if len(held) < 2 else [held[1], held[0]]

    return _mangled(rig, 2, swap)


def header_garbled(rig: Rig) -> Episode:
    """Headers are not MessagePack."""
    return _mangled(rig, rig.some_bins(),
                    lambda probe, bin_: [[rig.rng.bytes(40), probe.frame(bin_)[1]]])


def payload_cut(rig: Rig) -> Episode:
    """Payloads end in the middle of a spike."""

    def cut(probe: Probe, bin_: Bin) -> list[Message]:
        header, payload = probe.frame(bin_, n_spikes=len(bin_.spikes) + 1)
        return [[header, payload + b"\0" * 5]]

    return _mangled(rig, rig.some_bins(), cut)


def other_version(rig: Rig) -> Episode:
    """Frames of another wire version."""
    return _mangled(rig, rig.some_bins(), lambda probe, bin_: [probe.frame(bin_, version=2)])


def other_stream(rig: Rig) -> Episode:
    """Frames under a name that no probe has."""
    return _mangled(rig, rig.some_bins(), lambda probe, bin_: [probe.frame(bin_, stream="c")])


def one_part(rig: Rig) -> Episode:
    """Messages of one part."""
    return _mangled(rig, rig.some_bins(), lambda probe, bin_: [probe.frame(bin_)[:1]])


def oversize(rig: Rig) -> Episode:
    """Payloads of 13 MB."""
    return _mangled(rig, 2, lambda probe, bin_: [[probe.frame(bin_)[0], bytes(13_000_000)]])


def other_rate(rig: Rig) -> Episode:
    """The sampling rate in the headers changes within a session."""
    return _mangled(rig, rig.some_bins(), lambda probe, bin_: [probe.frame(bin_, fs=25_000.0)])


def samples_backwards(rig: Rig) -> Episode:
    """Sample numbers go back by ten seconds for a while."""

    def back(probe: Probe, bin_: Bin) -> list[Message]:
        spikes = bin_.spikes.copy()
        spikes["sample"] -= 500 * WIDTH
        start = (bin_.index - 500) * WIDTH
        return [probe.frame(Bin(bin_.session, bin_.index, spikes), t0_sample=start,
                            watermark=start + WIDTH)]

    return _mangled(rig, rig.some_bins(), back)


def samples_leap(rig: Rig) -> Episode:
    """Both probes' sample numbers leap ahead by ten seconds, and stay there."""
    rig.index += 500
    began = rig.tick()
    return Episode(began, began)


def samples_step_back(rig: Rig) -> Episode:
    """Both probes' sample numbers step back by half a second, and go on from there.

    What is sent of samples that were there before is refused, and everything is well again where
    they end.
    """
    rig.index -= 25
    began = rig.tick()
    for _ in range(24):
        rig.tick()
    return Episode(began, rig.tick())


def _wall_clock(rig: Rig, step_ns: int) -> Episode:
    """The senders' wall clock is off for a while; nothing may depend on it."""

    def stepped(probe: Probe, bin_: Bin) -> list[Message]:
        return [probe.frame(bin_, sent_real_ns=time.time_ns() + step_ns)]

    began = rig.tick(stepped)
    for _ in range(rig.some_bins()):
        rig.tick(stepped)
    return Episode(began, rig.tick())


def wall_clock_forward(rig: Rig) -> Episode:
    """The senders' wall clock steps forward by an hour, and back again."""
    return _wall_clock(rig, HOUR_NS)


def wall_clock_back(rig: Rig) -> Episode:
    """The senders' wall clock steps back by an hour, and forward again."""
    return _wall_clock(rig, -HOUR_NS)


def acquisition_restarts(rig: Rig) -> Episode:
    """Acquisition is started anew: another session that counts from zero."""
    rig.restart()
    began = rig.tick()
    return Episode(began, began)


def probe_unplugged(rig: Rig) -> Episode:
    """One of the two probes is silent for half a second or more and comes back with a gap."""
    return _mangled(rig, rig.some_bins(25, 60), _lost)


def probe_late(rig: Rig) -> Episode:
    """One of the two probes stops for half a second or more, then sends all it held."""
    held: list[Message] = []
    n = rig.some_bins(25, 60)

    def hold(probe: Probe, bin_: Bin) -> list[Message]:
        held.append(probe.frame(bin_))
        return held if len(held) == n else []

    return _mangled(rig, n, hold)


def input_stops(rig: Rig) -> Episode:
    """All input stops for half a second or more; what was recorded meanwhile is lost."""
    began = rig.tick(_lost)
    for _ in range(rig.some_bins(25, 60)):
        rig.tick(_lost)
    return Episode(began, rig.tick())


def publisher_rebinds(rig: Rig) -> Episode:
    """A publisher's socket closes, so its connection breaks, and opens again."""
    closed = rig.probes[0]

    def silent(probe: Probe, bin_: Bin) -> list[Message]:
        return _lost(probe, bin_) if probe is closed else [probe.frame(bin_)]

    closed.close()
    began = rig.tick(silent)
    for _ in range(rig.some_bins()):
        rig.tick(silent)
    closed.open()
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

    return _mangled(rig, rig.some_bins(), ahead)
