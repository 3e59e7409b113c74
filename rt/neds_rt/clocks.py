"""Clocks of several probes aligned: offset and rate, from what a rig delivers anyway.

Every probe counts samples by a crystal of its own; two of them part by tens of parts per million,
a bin within minutes. Two kinds of evidence say how they relate:

- **pairs**: a sample number and the time at which this machine learnt of it. The time is late by a
  delay that is never below some least delay, so the truth lies on the *lower envelope* of the
  pairs. Of every second the pair with the least delay is kept; of n delays spread over a width J
  the least is J / (n + 1) above the bound. A constant difference between the least delays of two
  probes cannot be seen in pairs.
- **edges**: a pulse that all probes record, as a sample number in each. Exact to a sample, however
  late they arrive. Which edge of one probe is which of the other is told by the pairs, which need
  to be right to less than half the shortest time between pulses only.

Either gives points (x, y) that a line runs through: `Line`. Its slope is Siegel's repeated median,
the median over i of the median over j of (y_j - y_i) / (x_j - x_i), which stands up to just under
half of the points being wrong (Siegel 1982, Biometrika 69:242); points within 4 standard deviations
of it, by the median absolute deviation, then give slope and offset by least squares. All times are
seconds. Memory is taken once; nothing here knows sockets or threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS = 64  # of a line: seconds of pairs, or edges
STEP_AFTER = 5  # points in a row that agree with each other and not with the line: a clock step
RATE_AFTER = 4  # points; before, the rate is the one known from earlier, or 1
PPM_UNKNOWN, PPM_KNOWN = 200e-6, 5e-6  # how far a rate may be off before and after it was measured


class Line:
    """`y = line(x)` through the last points, robust against wrong ones, following clock steps.

    `floor` is how far a point may lie from the line without being wrong, in the unit of y, and
    `grain` how far a right one does because x and y are counted in steps: without it, the points
    that happen to be rounded alike would push out the others.
    """

    def __init__(self, floor: float, capacity: int = POINTS, *, grain: float = 0.0) -> None:
        self.floor = floor
        self._grain = max(grain, 1e-3 * floor)
        self.rate = 1.0
        self.n = 0  # points that the line runs through
        self.rejected = self.steps = 0
        self._x, self._y = np.zeros(capacity), np.zeros(capacity)
        self._next = self._n_suspects = 0
        self._suspects = np.zeros((STEP_AFTER, 2))
        self._slopes = np.zeros((capacity, capacity))
        self._x0 = self._y0 = 0.0  # a point of the line near the newest one
        self._measured = False

    def __call__(self, x: Any) -> Any:
        """Return y for x, a number or an array; meaningless while `n` is 0."""
        return self._y0 + self.rate * (x - self._x0)

    @property
    def settled(self) -> bool:
        """Whether enough points agree that a wrong first one would have been noticed."""
        return self.n >= RATE_AFTER

    def restart(self) -> None:
        """Forget the offset and keep the rate: the same crystal counts from another zero."""
        self.n = self._next = self._n_suspects = 0

    def add(self, x: float, y: float) -> bool:
        """Take a point; False if it does not fit (yet), which is counted in `rejected`."""
        if self.n and abs(y - self(x)) > self._limit(x):
            self.rejected += 1
            self._suspect(x, y)
            return False
        self._n_suspects = 0
        self._keep(x, y)
        self._fit()
        return True

    def _limit(self, x: float) -> float:
        """Return how far from the line a right point at x can be."""
        unsure = PPM_KNOWN if self._measured else PPM_UNKNOWN
        return self.floor + unsure * abs(x - self._x0)

    def _keep(self, x: float, y: float) -> None:
        self._x[self._next], self._y[self._next] = x, y
        self._next = (self._next + 1) % len(self._x)
        self.n = min(self.n + 1, len(self._x))

    def _suspect(self, x: float, y: float) -> None:
        """Remember a point off the line; enough of them in a row on a line of their own win."""
        if self._n_suspects == STEP_AFTER:
            self._suspects[:-1] = self._suspects[1:]
            self._n_suspects -= 1
        self._suspects[self._n_suspects] = x, y
        self._n_suspects += 1
        off = self._suspects[: self._n_suspects, 1] - self(self._suspects[: self._n_suspects, 0])
        if self._n_suspects == STEP_AFTER and np.ptp(off) <= self._limit(x):
            self.steps += 1
            self.restart()
            for point in self._suspects:
                self._keep(*point.tolist())
            self._fit()

    def _fit(self) -> None:
        n = self.n
        # About the newest point, so that large sample numbers cost no digits.
        x0, y0 = self._x[self._next - 1], self._y[self._next - 1]
        x, y = self._x[:n] - x0, self._y[:n] - y0
        rate = self.rate
        if n >= RATE_AFTER:
            rate = self._repeated_median(x, y)
        off = y - rate * x
        middle = np.median(off)
        spread = max(5.93 * float(np.median(np.abs(off - middle))), self._grain)
        good = np.abs(off - middle) <= spread  # 4 sd of 1.4826 times the median deviation
        x, y = x[good], y[good]
        mean_x, mean_y = float(x.mean()), float(y.mean())
        squares = float(((x - mean_x) ** 2).sum())
        if n >= RATE_AFTER and squares > 0:
            rate = float(((x - mean_x) * (y - mean_y)).sum()) / squares
            self._measured = True
        self.rate, self._x0, self._y0 = rate, float(x0 + mean_x), float(y0 + mean_y)

    def _repeated_median(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        n = len(x)
        slopes = self._slopes[:n, :n]
        apart = x[:, None] - x
        with np.errstate(divide="ignore", invalid="ignore"):
            np.divide(y[:, None] - y, apart, out=slopes)
        slopes[apart == 0] = self.rate
        return float(np.median(np.median(slopes, axis=1)))


class Clock:
    """One probe's sample count against this machine's clock, from pairs.

    `fs` is the nominal rate in samples a second; `rate` of the line says how far it is off.
    """

    def __init__(self, fs: float, *, bucket_s: float = 1.0, floor_s: float = 2e-3) -> None:
        self.fs = fs
        self.line = Line(floor_s)  # nominal seconds -> host seconds
        self.restarts = 0
        self._bucket_s = bucket_s
        self._newest = -np.inf
        self._bucket: float | None = None  # its number; None before the first pair
        self._best = (0.0, 0.0, np.inf)  # x, y, delay by the present rate

    @property
    def known(self) -> bool:
        """Whether times can be told at all: from the first pair on."""
        return self._bucket is not None

    @property
    def newest_s(self) -> float:
        """Nominal seconds of the newest pair since the count began; -inf before the first."""
        return float(self._newest)

    def restart(self) -> None:
        """The count begins anew: forget the offset, keep the rate."""
        self.restarts += 1
        self.line.restart()
        self._bucket, self._newest = None, -np.inf

    def pair(self, sample: int, host_s: float) -> bool:
        """Take a pair; True if the count went back by a second or more, so it began anew."""
        x = sample / self.fs
        restarted = x < self._newest - 1.0
        if restarted:
            self.restart()
        self._newest = max(self._newest, x)
        bucket = x // self._bucket_s
        if bucket != self._bucket:
            if self._bucket is not None and self._best[2] < np.inf:
                self.line.add(*self._best[:2])
            self._bucket, self._best = bucket, (0.0, 0.0, np.inf)
        delay = host_s - self.line.rate * x
        if delay < self._best[2]:
            self._best = (x, host_s, delay)
        return restarted

    def host_s(self, sample: Any) -> Any:
        """Return when samples (number or array) were taken, in this machine's seconds."""
        if self.line.n:
            return self.line(sample / self.fs)
        return self._best[1] + (sample / self.fs - self._best[0]) * self.line.rate

    def seconds(self, host_s: Any) -> Any:
        """Return the nominal seconds (samples over `fs`) of a time: the inverse of `host_s`."""
        y = self.host_s(0.0)
        return (host_s - y) / self.line.rate


class Side:
    """One of the two probes of an `Alignment`: its clock, and its edges without a partner yet."""

    def __init__(self, fs: float) -> None:
        self.clock = Clock(fs)
        self.unmatched = 0  # edges that no edge of the other probe was found for
        self.edges = np.zeros(POINTS)  # nominal seconds
        self.n_edges = 0

    def take(self, k: int) -> float:
        """Remove and return an edge."""
        edge = float(self.edges[k])
        self.edges[k : self.n_edges - 1] = self.edges[k + 1 : self.n_edges]
        self.n_edges -= 1
        return edge

    def put(self, edge: float) -> None:
        """Add an edge; the oldest goes unmatched where there is no room."""
        if self.n_edges == len(self.edges):
            self.take(0)
            self.unmatched += 1
        self.edges[self.n_edges] = edge
        self.n_edges += 1


class Alignment:
    """Maps sample numbers of one probe (`other`) to those of another (`reference`).

    Give it what either probe delivers, as it comes: `pair` for every block (the sample one past its
    end and when it arrived, seconds of the monotonic clock) and `edge` for every rising edge of the
    shared line. `tolerance_s` is how far pairs may mislead the matching of edges: above the
    differences in delivery, below half the shortest time between two pulses.
    """

    def __init__(
        self, reference_fs: float, other_fs: float, *, tolerance_s: float = 0.1,
        floor_s: float = 5e-4,
    ) -> None:
        self.reference, self.other = Side(reference_fs), Side(other_fs)
        # nominal seconds of `other` -> nominal seconds of `reference`
        self.line = Line(floor_s, grain=1 / reference_fs + 1 / other_fs)
        self.tolerance_s = tolerance_s

    @property
    def by(self) -> str:
        """What the mapping rests on now: `edges`, `pairs`, or `nothing`."""
        if self.line.settled:
            return "edges"
        return "pairs" if self.reference.clock.known and self.other.clock.known else "nothing"

    def pair(self, side: Side, sample: int, host_s: float) -> None:
        """Take a sample number of a side (`reference` or `other`) and when it was learnt of."""
        if side.clock.pair(sample, host_s):
            self.line.restart()
            side.n_edges = 0

    def edge(self, side: Side, sample: int, host_s: float) -> bool:
        """Take an edge that a side recorded, heard of at `host_s`; True if it found its partner."""
        self.pair(side, sample, host_s)
        mine = sample / side.clock.fs
        partner = self.other if side is self.reference else self.reference
        k = self._nearest(side, mine, partner)
        if k is None:
            side.put(mine)
            return False
        yours = partner.take(k)
        x, y = (yours, mine) if side is self.reference else (mine, yours)
        return self.line.add(x, y)

    def side(self, reference: bool) -> Side:
        """Return one of the two sides."""
        return self.reference if reference else self.other

    def restart(self, side: Side) -> None:
        """A side counts from another zero: forget all offsets, keep what is known of rates."""
        side.clock.restart()
        side.n_edges = 0
        self.line.restart()

    def line_of_samples(self) -> tuple[int, float, float] | None:
        """Return (sample of `other`, its place in `reference`, samples to a sample), or None.

        None until enough evidence agrees that a wrong beginning would have been noticed.
        """
        clocks = self.reference.clock, self.other.clock
        if self.line.settled:
            rate = self.line.rate
        elif clocks[0].line.settled and clocks[1].line.settled:
            rate = clocks[1].line.rate / clocks[0].line.rate
        else:
            return None
        sample = int(max(clocks[1].newest_s, 0.0) * clocks[1].fs)
        x = sample / clocks[1].fs
        y = self.line(x) if self.line.settled else self._by_pairs(x)
        return sample, float(y) * clocks[0].fs, rate * clocks[0].fs / clocks[1].fs

    def to_reference(self, samples: Any) -> NDArray[np.int64]:
        """Return the sample numbers of `reference` at the moments of `samples` of `other`.

        Integers in, integers out, same shape. Raises `ValueError` while `by` is `nothing`.
        """
        if self.by == "nothing":
            raise ValueError("neither pairs nor edges of both probes yet")
        x = np.asarray(samples, np.int64) / self.other.clock.fs
        y = self.line(x) if self.line.settled else self._by_pairs(x)
        mapped: NDArray[np.int64] = np.rint(y * self.reference.clock.fs).astype(np.int64)
        return mapped

    def _by_pairs(self, x: Any) -> Any:
        host_s = self.other.clock.host_s(x * self.other.clock.fs)
        return self.reference.clock.seconds(host_s)

    def _nearest(self, side: Side, mine: float, partner: Side) -> int | None:
        """Return which waiting edge of the partner is this one; None if none can be."""
        if partner.n_edges == 0 or not partner.clock.known:
            return None
        waiting = partner.edges[: partner.n_edges]
        here = side.clock.host_s(mine * side.clock.fs)
        apart = np.abs(partner.clock.host_s(waiting * partner.clock.fs) - here)
        k = int(apart.argmin())
        return k if apart[k] <= self.tolerance_s else None
