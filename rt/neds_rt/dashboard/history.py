"""The last seconds of a stream, as arrays to plot. Draws nothing, waits for no server."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neds_rt.status import ModalityStatus, RasterStatus
from neds_rt.wire import Decode, Value

WINDOW_S = 10.0
MAX_DECODES = 8192
MAX_LINES = 8  # outputs or classes of a behaviour that are drawn
SILENT_S = 0.6  # without any decode for so long, the plots say so
MAX_COLUMNS = 500  # of the raster's picture


class Stretch(NamedTuple):
    """A stretch of time in which decodes had one reason; seconds before now, `left` < `right`."""

    left: float
    right: float
    reason: str


@dataclass
class Snapshot:
    """What there is to plot at one moment. `x` (n,) are seconds before now, the last the newest."""

    x: NDArray[np.float64]
    decodes: list[Decode]
    stretches: list[Stretch]  # all of them, valid ones ("ok") included
    silent_s: float  # since the last decode; inf before the first
    since_s: float = 0.0  # for how long the last decode's reason has been the same

    @property
    def last(self) -> Decode | None:
        """The newest decode."""
        return self.decodes[-1] if self.decodes else None

    @property
    def drift(self) -> float | None:
        """Drift score of the newest decode that has one."""
        found = (d.drift for d in reversed(self.decodes) if math.isfinite(d.drift))
        return next(found, None)

    def continuous(self, m: ModalityStatus) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and sd, both (lines, n), NaN where there is none."""
        n = min(m.n_outputs, MAX_LINES)
        values = [d.values.get(m.name) for d in self.decodes]
        mean = _table([None if v is None else v.mean for v in values], n)
        return mean, _table([None if v is None else v.sd for v in values], n)

    def angle(self, m: ModalityStatus) -> NDArray[np.float64]:
        """Return a circular behaviour's angle (n,) in degrees."""
        found = [_angle(d.values.get(m.name)) for d in self.decodes]
        return np.degrees(np.array(found, np.float64))

    def probabilities(self, m: ModalityStatus) -> NDArray[np.float64]:
        """Return a categorical behaviour's class probabilities, (lines, n)."""
        values = [d.values.get(m.name) for d in self.decodes]
        return _table([None if v is None else v.p for v in values], min(m.n_outputs, MAX_LINES))


class History:
    """Decodes as they come. `add` and `snapshot` may be called from different threads."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self._lock = threading.Lock()
        self._decodes: deque[tuple[float, Decode]] = deque(maxlen=MAX_DECODES)
        # From the server's clock to ours: messages are never early, so the least delay is it.
        self._offset_s = math.inf
        self._since = 0.0
        self._arrived = -math.inf

    def add(self, decode: Decode, arrived: float) -> None:
        """Take one decode that arrived at `arrived`, seconds of this machine's clock."""
        delay = arrived - decode.pub_ns / 1e9
        with self._lock:
            last = self._decodes[-1][1] if self._decodes else None
            if last is not None and decode.seq <= last.seq:  # another server, or it restarted
                self._decodes.clear()
                self._offset_s, last = math.inf, None
            self._offset_s = min(self._offset_s, delay)
            time = decode.pub_ns / 1e9 + self._offset_s
            if last is None or last.reason != decode.reason:
                self._since = time
            self._decodes.append((time, decode))
            self._arrived = arrived

    def snapshot(self, now: float) -> Snapshot:
        """Return the last `window_s` before `now`."""
        with self._lock:
            kept = [pair for pair in self._decodes if pair[0] >= now - self.window_s]
            arrived, since = self._arrived, self._since
            if not kept and self._decodes:
                kept = [self._decodes[-1]]
        x = np.array([time - now for time, _ in kept])
        decodes = [decode for _, decode in kept]
        silent_s = now - arrived
        return Snapshot(x, decodes, stretches_of(x, decodes, silent_s), silent_s,
                        max(0.0, now - since))


def stretches_of(
    x: NDArray[np.float64], decodes: list[Decode], silent_s: float
) -> list[Stretch]:
    """Join decodes of the same reason; each lasts until the next, the last one until now."""
    found: list[Stretch] = []
    for i, decode in enumerate(decodes):
        right = float(x[i + 1]) if i + 1 < len(x) else min(0.0, float(x[i]) + SILENT_S)
        reason = "ok" if decode.valid else decode.reason
        if found and found[-1].reason == reason:
            found[-1] = found[-1]._replace(right=right)
        else:
            found.append(Stretch(float(x[i]), right, reason))
    if found and silent_s > SILENT_S:
        found.append(Stretch(min(found[-1].right, 0.0), 0.0, "no decodes"))
    return found


@dataclass
class RasterHistory:
    """Bins of the population as they are published; later ones overlap those that are known."""

    window_s: float = WINDOW_S
    rows: int = 0
    units: int = 0
    _bins: list[int] = field(default_factory=list)
    _cells: list[NDArray[np.uint8]] = field(default_factory=list)

    def add(self, raster: RasterStatus, bin_size_s: float) -> None:
        """Take what one status says."""
        if raster.rows != self.rows or raster.units != self.units:
            self.rows, self.units, self._bins, self._cells = raster.rows, raster.units, [], []
        cells = np.frombuffer(raster.cells, np.uint8).reshape(-1, raster.rows)
        if self._bins and raster.bins and raster.bins[-1] < self._bins[-1]:  # it started anew
            self._bins, self._cells = [], []
        for k, row in zip(raster.bins, cells, strict=True):
            if not self._bins or k > self._bins[-1]:
                self._bins.append(k)
                self._cells.append(row)
        most = max(8, round(self.window_s / bin_size_s))
        first = self._bins[-1] - most if self._bins else 0
        drop = sum(k <= first for k in self._bins)
        del self._bins[:drop], self._cells[:drop]

    def picture(self, bin_size_s: float) -> tuple[NDArray[np.uint8], int]:
        """Return counts (rows, columns), the newest bin last, and the number of that bin.

        Bins that are not known are 0. A column is one bin, or where they are many the sum of some.
        """
        n = max(8, round(self.window_s / bin_size_s))
        whole = np.zeros((n, max(1, self.rows)), np.uint16)
        if not self._bins:
            return whole.T.astype(np.uint8), 0
        places = np.array(self._bins) - (self._bins[-1] - n + 1)
        whole[places] = np.array(self._cells)
        if n > MAX_COLUMNS:
            group = -(-n // MAX_COLUMNS)
            padded = np.zeros((-(-n // group) * group, whole.shape[1]), np.uint16)
            padded[-n:] = whole
            whole = padded.reshape(-1, group, whole.shape[1]).sum(axis=1, dtype=np.uint16)
        return np.minimum(whole.T, 255).astype(np.uint8), self._bins[-1]


def _table(lists: list[list[float] | None], lines: int) -> NDArray[np.float64]:
    """Stack lists of numbers to (lines, n); what is short or missing is NaN."""
    table = np.full((len(lists), lines), np.nan)
    for row, numbers in zip(table, lists, strict=True):
        if numbers:
            row[: len(numbers)] = numbers[:lines]
    return table.T


def _angle(value: Value | None) -> float:
    return math.nan if value is None or value.angle is None else value.angle
