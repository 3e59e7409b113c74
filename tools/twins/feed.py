"""What a twin plays: one probe's spikes, cut into blocks as the Open Ephys GUI hands them on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neds_rt.sources.replay import read_recording

DEFAULT_HWM = 1000  # libzmq's own, which the programs leave as it is
LATENESS = 100  # samples at the end of a block that the Spike Detector leaves to the next one
# The GUI's callback is 1024 samples at 44.1 kHz, which at 30 kHz is between 696 and 697.
BLOCK_SAMPLES = (697, 696, 697, 697, 696)


@dataclass(frozen=True)
class Feed:
    """Spikes of one probe: `samples` (n,) ascending, `units` (n,) rows of `channel`, `cluster`."""

    samples: NDArray[np.int64]
    units: NDArray[np.int64]
    fs: float
    channel: NDArray[np.int64]
    cluster: NDArray[np.int64]

    @property
    def n_units(self) -> int:
        """Units of the probe."""
        return len(self.channel)

    def until(self, sample: int) -> Feed:
        """Return the feed up to a sample."""
        end = int(np.searchsorted(self.samples, sample))
        return Feed(self.samples[:end], self.units[:end], self.fs, self.channel, self.cluster)


def add_feed_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every twin can be told of the spikes it plays, and how."""
    parser.add_argument("session", type=Path, nargs="?", help="session file (default: random)")
    parser.add_argument("--probe", help="which probe of the session")
    parser.add_argument("--random", metavar="UNITS,HZ", default="600,5", help="without a session")
    parser.add_argument("--seed", type=int, default=0, help="of random spikes and of losses")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each acquisition")
    parser.add_argument("--hwm", type=int, default=DEFAULT_HWM, help="queue a subscriber")
    parser.add_argument("--on-line", action="store_true", help="wait for a line before playing")


def feed_of(args: argparse.Namespace) -> Feed:
    """Return the spikes that the arguments ask for; raises `BadInput` for a bad session."""
    if args.session is None:
        units, rate = args.random.split(",")
        return random_feed(int(units), float(rate), args.seconds, args.seed)
    return read_feed(args.session, args.probe)


class Block(NamedTuple):
    """Samples `[begin, end)` of the GUI, and the spikes (rows of the feed) it sends with them."""

    begin: int
    end: int
    rows: NDArray[np.int64]


def read_feed(path: Path, probe: str | None = None) -> Feed:
    """Read one probe of a session file; raises `BadInput` where there is none."""
    import h5py

    recording = read_recording(path, probe)
    t0, t1 = int(recording.spans[0, 0]), int(recording.spans[-1, 1])
    spikes: Any = recording.spikes(t0, t1)
    mine = np.flatnonzero(recording.units.index >= 0)
    with h5py.File(path, "r") as file:
        channel = np.asarray(file["units/channel"][()])[mine].astype(np.int64)
        cluster = np.asarray(file["units/cluster"][()])[mine].astype(np.int64)
    units = spikes["unit"].astype(np.int64)
    return Feed(spikes["sample"].astype(np.int64), units, recording.fs, channel, cluster)


def random_feed(n_units: int, rate_hz: float, seconds: float, seed: int, fs: float = 3e4) -> Feed:
    """Return units that fire at random, on channels of their own, with sorted ids from 1."""
    rng = np.random.default_rng(seed)
    n = int(rng.poisson(n_units * rate_hz * seconds))
    samples = np.sort(rng.integers(0, round(seconds * fs), n))
    units = rng.integers(0, n_units, n)
    return Feed(samples, units, fs, np.arange(n_units), 1 + np.arange(n_units) % 5)


def gui_blocks(
    feed: Feed, begin: int, end: int, sizes: tuple[int, ...] = BLOCK_SAMPLES
) -> Iterator[Block]:
    """Cut samples `[begin, end)` into the GUI's blocks, in the order in which it sends spikes.

    The detector goes through electrodes one by one, and scans up to 100 samples before the end of
    the block: those spikes come with the next block. (What lies in the last 100 samples of the
    last block is never sent.)
    """
    scanned, first = begin, int(np.searchsorted(feed.samples, begin))
    for size in cycle(sizes):
        if begin + size > end:
            return
        stop = begin + size
        scanned = max(scanned, stop - LATENESS)
        last = int(np.searchsorted(feed.samples, scanned))
        rows = np.arange(first, last)
        yield Block(begin, stop, rows[np.argsort(feed.channel[feed.units[rows]], kind="stable")])
        begin, first = stop, last
