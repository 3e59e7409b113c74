"""The session: what was recorded from one animal at one time, validated on construction.

Time 0 of a session is sample 0 of its spikes; behaviours, trials and domain use the same seconds.
Bins lie on the absolute grid that live decoding uses: bin k holds the samples
[edge(k), edge(k+1)), edge(k) = floor(k * fs * bin_size_s + 0.5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.checks import WHERE, as_floats, frozen, naming, positive
from neds.data.parts import Behaviour, Counts, Spikes, Units
from neds_rt.binning import bin_edge, bin_edges, bin_of, bin_spikes
from neds_rt.errors import BadInput

__all__ = ["Behaviour", "Binned", "Counts", "Session", "Spikes", "Units"]

BLOCK = 1 << 20  # spikes looked at together: an hour has tens of millions


@dataclass(frozen=True, kw_only=True, eq=False)
class Binned:
    """A session on the bin grid: T rows, in time order, only where the recording exists.

    bin (T,) int64: absolute bin of each row, jumping where the domain has a gap. counts (T, U)
    uint16. values: per behaviour float32 (T, width) at the bin's end, NaN where unknown; circular
    as radians, categorical as codes.
    """

    bin: NDArray[np.int64]
    counts: NDArray[np.uint16]
    values: dict[str, NDArray[np.float32]]
    bin_size_s: float

    def __len__(self) -> int:
        return len(self.bin)

    def runs(self) -> NDArray[np.int64]:
        """Return the (n, 2) row ranges [first, stop) of consecutive bins."""
        cut = np.flatnonzero(np.diff(self.bin) != 1) + 1
        return np.stack([np.r_[0, cut], np.r_[cut, len(self.bin)]], axis=1).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """One recording of one animal.

    spikes: events or counts. behaviours: name -> `Behaviour`. trials: column name -> array, one row
    a trial (numbers may be NaN). domain (n, 2): seconds where the recording exists, sorted,
    disjoint; for counts it defaults to the runs of consecutive bins. metadata: JSON values.
    Raises `BadInput` for anything that does not fit together.
    """

    session: str
    spikes: Spikes | Counts
    units: Units
    subject: str = ""
    behaviours: Mapping[str, Behaviour] = field(default_factory=dict)
    trials: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    domain: NDArray[np.float64] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.session or "/" in self.session or self.session.startswith("."):
            raise BadInput(WHERE, "session", repr(self.session), "a name usable as a file name")
        self._check_units()
        object.__setattr__(self, "domain", frozen(self._checked_domain()))
        object.__setattr__(self, "trials", _checked_trials(self.trials))
        for name in self.behaviours:
            if not name or "/" in name or name.startswith("."):
                raise BadInput(WHERE, "behaviour name", repr(name), "a name without /")
        self._check_spikes_in_domain()
        try:
            json.dumps(dict(self.metadata))
        except (TypeError, ValueError) as error:
            raise BadInput(WHERE, "metadata", error, "values that JSON can hold") from error

    def _check_units(self) -> None:
        if isinstance(self.spikes, Counts):
            if self.spikes.counts.shape[1] != len(self.units):
                raise BadInput(WHERE, "counts units", self.spikes.counts.shape[1],
                               f"{len(self.units)}, the rows of the unit table")
            return
        unit = self.spikes.unit_index
        if unit.size and (unit.min() < 0 or unit.max() >= len(self.units)):
            found = unit.min() if unit.min() < 0 else unit.max()
            raise BadInput(WHERE, "spikes.unit_index", int(found), f"0 to {len(self.units) - 1}")

    def _checked_domain(self) -> NDArray[np.float64]:
        if self.domain is None:
            if isinstance(self.spikes, Spikes):
                raise BadInput(WHERE, "domain", None, "intervals in seconds for spike events")
            return self.spikes.intervals()
        domain = as_floats("domain", self.domain, 2)
        if domain.shape[0] == 0 or domain.shape[1] != 2 or not np.isfinite(domain).all():
            raise BadInput(WHERE, "domain", f"shape {domain.shape}", "(n, 2) finite seconds, n > 0")
        flat = domain.ravel()
        if flat[0] < 0 or (np.diff(flat)[::2] <= 0).any() or (np.diff(flat) < 0).any():
            raise BadInput(WHERE, "domain", "unsorted, empty or overlapping intervals",
                           "start < stop <= next start, from 0")
        return domain

    def _check_spikes_in_domain(self) -> None:
        if isinstance(self.spikes, Counts):
            slack = 1e-6 * self.spikes.bin_size_s
            first = self.spikes.bin * self.spikes.bin_size_s
            self._check_in_domain(first, first + self.spikes.bin_size_s, slack)
            return
        slack = 0.5 / self.spikes.fs + 1e-9  # an event lies on the nearest sample, so half off
        for begin in range(0, len(self.spikes.sample), BLOCK):
            times = self.spikes.sample[begin : begin + BLOCK] / self.spikes.fs
            self._check_in_domain(times, times, slack)

    def _check_in_domain(
        self, first: NDArray[np.floating], last: NDArray[np.floating], slack: float
    ) -> None:
        start, stop = self.intervals.T
        row = np.searchsorted(start - slack, first, side="right") - 1
        outside = (row < 0) | (last > stop[row] + slack)
        if outside.any():
            at = float(first[np.flatnonzero(outside)[0]])
            raise BadInput(WHERE, "spikes", f"spikes at {at:.6f} s", "spikes inside the domain")

    @property
    def intervals(self) -> NDArray[np.float64]:
        """The domain, (n, 2) seconds."""
        assert self.domain is not None
        return self.domain

    @property
    def n_units(self) -> int:
        """Number of units U."""
        return len(self.units)

    @property
    def duration_s(self) -> float:
        """Seconds recorded, gaps not counted."""
        return float((self.intervals[:, 1] - self.intervals[:, 0]).sum())

    def behaviour(self, name: str) -> Behaviour:
        """Return one behaviour; an unknown name is `BadInput`."""
        if name not in self.behaviours:
            known = ", ".join(self.behaviours) or "none, this session has no behaviours"
            raise BadInput(self.session, "behaviour", repr(name), known)
        return self.behaviours[name]

    def slice(self, start_s: float, stop_s: float) -> Session:
        """Return the part in [start_s, stop_s); the clock is kept, so bins and times stay the same.

        Trials that start inside are kept. Counts keep the bins that lie wholly inside. Behaviours
        keep one sample beyond each border. Raises `BadInput` when nothing was recorded there.
        """
        if not start_s < stop_s:
            raise BadInput(self.session, "slice", f"{start_s} to {stop_s} s", "start before stop")
        domain = np.clip(self.intervals, start_s, stop_s)
        domain = domain[domain[:, 1] > domain[:, 0]]
        if isinstance(self.spikes, Counts):
            spikes: Spikes | Counts | None = _slice_counts(self.spikes, start_s, stop_s)
            domain = spikes.intervals() if isinstance(spikes, Counts) else domain[:0]
        else:
            spikes = _slice_events(self.spikes, start_s, stop_s)
        if spikes is None or not len(domain):
            raise BadInput(self.session, "slice", f"{start_s} to {stop_s} s", "part of the domain")
        cut = {name: b.between(start_s, stop_s) for name, b in self.behaviours.items()}
        return replace(self, spikes=spikes, behaviours=cut, domain=domain,
                       trials=_slice_trials(self.trials, start_s, stop_s))

    def binned(self, bin_size_s: float) -> Binned:
        """Return counts and behaviours per bin, for every bin that lies wholly in the domain.

        A binned recording has only its own bin size. Raises `BadInput` for another one, or when
        no whole bin fits.
        """
        size = positive("bin_size_s", bin_size_s)
        with naming(self.session):
            if isinstance(self.spikes, Counts):
                if abs(size - self.spikes.bin_size_s) > 1e-9 * size:
                    raise BadInput(self.session, "bin_size_s", size,
                                   f"{self.spikes.bin_size_s}, in which it was recorded")
                rows, counts = self.spikes.bin, self.spikes.counts.astype(np.uint16)
                ends = np.asarray((rows + 1) * size, dtype=np.float64)
            else:
                rows, counts, ends = self._binned_events(self.spikes, size)
        values = {name: b.at(ends) for name, b in self.behaviours.items()}
        return Binned(bin=rows, counts=counts, values=values, bin_size_s=size)

    def _binned_events(
        self, spikes: Spikes, size: float
    ) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.float64]]:
        if spikes.fs * size < 1:
            raise BadInput(self.session, "bin_size_s", size, f"a sample or more, {1 / spikes.fs} s")
        rows: list[NDArray[np.int64]] = []
        counts: list[NDArray[np.uint16]] = []
        for start, stop in np.rint(self.intervals * spikes.fs).astype(np.int64):
            first, after = _whole_bins(int(start), int(stop), spikes.fs, size)
            if after <= first:
                continue
            lo, hi = np.searchsorted(spikes.sample, [start, stop])
            rows.append(np.arange(first, after))
            counts.append(bin_spikes(spikes.sample[lo:hi], spikes.unit_index[lo:hi], self.n_units,
                                     spikes.fs, size, first, after - first))
        if not rows:
            raise BadInput(self.session, "bin_size_s", size, "a bin that fits into the recording")
        bins = np.concatenate(rows)
        return bins, np.concatenate(counts), bin_edges(bins + 1, spikes.fs, size) / spikes.fs


def _whole_bins(start: int, stop: int, fs: float, bin_size_s: float) -> tuple[int, int]:
    """Return [first, after): the bins that lie wholly in the samples [start, stop)."""
    first = bin_of(start, fs, bin_size_s)
    if bin_edge(first, fs, bin_size_s) < start:
        first += 1
    return max(first, 0), bin_of(stop, fs, bin_size_s)


def _slice_events(spikes: Spikes, start_s: float, stop_s: float) -> Spikes:
    low, high = np.rint(np.clip([start_s, stop_s], -1e12, 1e12) * spikes.fs)
    lo, hi = np.searchsorted(spikes.sample, [low, high])
    return replace(spikes, sample=spikes.sample[lo:hi], unit_index=spikes.unit_index[lo:hi])


def _slice_counts(spikes: Counts, start_s: float, stop_s: float) -> Counts | None:
    size = spikes.bin_size_s
    slack = 1e-6 * size
    inside = (spikes.bin * size >= start_s - slack) & ((spikes.bin + 1) * size <= stop_s + slack)
    if not inside.any():
        return None
    return replace(spikes, counts=spikes.counts[inside], bin=spikes.bin[inside])


TRIAL_STARTS = ("start", "intervals_0", "stimOn_times")
"""Columns that say when a trial starts, the first one present counts."""


def _slice_trials(
    trials: Mapping[str, NDArray[Any]], start_s: float, stop_s: float
) -> dict[str, NDArray[Any]]:
    starts = next((trials[name] for name in TRIAL_STARTS if name in trials), None)
    if starts is None:
        return dict(trials)
    inside = (starts >= start_s) & (starts < stop_s)
    return {name: column[inside] for name, column in trials.items()}


def _checked_trials(trials: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    columns = {name: np.asarray(column) for name, column in trials.items()}
    lengths = {name: len(c) if c.ndim == 1 else -1 for name, c in columns.items()}
    for name, column in columns.items():
        if "/" in name or column.ndim != 1 or column.dtype.kind not in "fiubU":
            raise BadInput(WHERE, f"trials.{name}", f"{column.dtype} {column.shape}",
                           "one column of numbers or text")
    if len(set(lengths.values())) > 1:
        raise BadInput(WHERE, "trials", f"columns of length {lengths}", "columns of one length")
    return {name: frozen(column) for name, column in columns.items()}
