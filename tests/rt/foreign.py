"""A source connected to its twin over true sockets, and what the assembler makes of it."""

import socket
import time

import numpy as np

from neds_rt import _core
from neds_rt.binning import bin_spikes
from neds_rt.manifest import Unit
from neds_rt.sources import open_source
from neds_rt.sources.frame import Frame
from neds_rt.sources.units import UnitMap
from tests.rt.spike_frames import counters_of, drain

BIN_S = 0.02


def free_port(span=2):
    """A port that is free, as are the next ones."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for other in range(port + 1, port + span):
                    with socket.socket() as following:
                        following.bind(("127.0.0.1", other))
            except OSError:
                continue
        if port + span < 65536:
            return port


def units_of(feed):
    return [Unit("p", int(c), int(k)) for c, k in zip(feed.channel, feed.cluster, strict=True)]


class Rig:
    """One source feeding one assembler."""

    def __init__(self, uri, feed, units=None):
        self.feed = feed
        self.source = open_source("a", uri, units=units or UnitMap(units_of(feed)))
        n = feed.n_units
        self.assembler = _core.Assembler(BIN_S, [("a", list(range(n)))], n, 512)
        self.bins = {}  # of the running session
        self.sessions = [self.bins]
        self._frame, self._epoch = Frame(), -1

    def take(self, n_messages, seconds=20):
        """Receive until the source has counted so many messages and none waits."""
        deadline = time.monotonic() + seconds
        source = self.source
        while True:
            while source.receive(self._frame):
                self._push()
            if source.counters["messages"] >= n_messages:
                return self
            left = deadline - time.monotonic()
            assert left > 0, f"{source.counters['messages']} of {n_messages} messages"
            source.pollable.poll(int(left * 1000) + 1)

    def _push(self):
        self.assembler.push(self._frame.header, self._frame.payload)
        if self.assembler.available and self._epoch not in (-1, self.assembler.epoch):
            self.bins = {}
            self.sessions.append(self.bins)
        if self.assembler.available:
            self._epoch = self.assembler.epoch
        self.bins |= drain(self.assembler) if self.assembler.available else {}

    def truth(self, bins=None):
        """Offline binning of the bins that were closed."""
        first, last = min(bins or self.bins), max(bins or self.bins)
        feed = self.feed
        counts = bin_spikes(feed.samples, feed.units, feed.n_units, feed.fs, BIN_S, first,
                            last - first + 1)
        return dict(zip(range(first, last + 1), counts, strict=True))

    def lost(self):
        return {index for index, counts in self.bins.items() if counts is None}

    def assert_exact(self, bins=None):
        """Every bin that is not declared lost equals offline binning bit for bit."""
        bins = self.bins if bins is None else bins
        truth = self.truth(bins)
        assert list(truth) == list(bins)
        for index, counts in bins.items():
            if counts is not None:
                np.testing.assert_array_equal(counts, truth[index], err_msg=f"bin {index}")

    @property
    def trouble(self):
        """The source's counters that are not zero, normal work left out."""
        normal = ("messages", "spikes", "blocks", "ttl_events")
        return {k: v for k, v in self.source.counters.items() if v and k not in normal}

    @property
    def counted(self):
        return counters_of(self.assembler)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()
