"""Spike frames for the tests of this folder: built by hand, from a recording, or spoiled."""

from dataclasses import dataclass, field

import msgpack
import numpy as np

from neds_rt.wire import SPIKE_DTYPE, SpikeHeader, encode_spikes


def spikes_of(samples, units):
    spikes = np.zeros(len(samples), SPIKE_DTYPE)
    spikes["sample"], spikes["unit"] = samples, units
    return spikes


def fields(**changes):
    """The header of an empty frame [0, 600) as a dict in wire order."""
    base = {
        "version": 1, "stream": "a", "session": "s1", "seq": 0, "t0_sample": 0, "watermark": 600,
        "fs": 30_000.0, "sent_mono_ns": 1, "sent_real_ns": 2, "n_spikes": 0,
    }
    assert not set(changes) - set(base)
    return base | changes


def pack(values, payload=b"", tag="spikes"):
    """A frame of any header values, right or wrong."""
    return msgpack.packb([tag, *values]), payload


@dataclass
class Sender:
    """Numbers the frames of one session of one stream, as a correct source does."""

    stream: str = "a"
    session: str = "s1"
    fs: float = 30_000.0
    seq: int = field(default=0)

    def frame(self, t0, watermark, samples=(), units=()):
        spikes = spikes_of(np.asarray(samples, np.int64), np.asarray(units, np.int64))
        header = SpikeHeader(
            version=1, stream=self.stream, session=self.session, seq=self.seq, t0_sample=int(t0),
            watermark=int(watermark), fs=self.fs, sent_mono_ns=1, sent_real_ns=2,
            n_spikes=len(spikes),
        )
        self.seq += 1
        return tuple(encode_spikes(header, spikes))


def drain(assembler):
    """Pop everything: {bin: counts, or None where the bin was lost}, checking that bins ascend."""
    bins = {}
    while n := assembler.pop():
        first, count = assembler.bin, max(1, -n)
        assert not bins or first == max(bins) + 1
        for index in range(first, first + count):
            bins[index] = assembler.counts.copy() if n == 1 else None
    return bins


def feed(assembler, frames):
    """Push frames and pop after each, as the server does; returns all bins."""
    bins = {}
    for header, payload in frames:
        assembler.push(header, payload)
        bins |= drain(assembler)
    return bins


def counters_of(assembler):
    """The counters that are not zero, by name."""
    from neds_rt.assemble import COUNTERS

    return {name: int(n) for name, n in zip(COUNTERS, assembler.counters, strict=True) if n}
