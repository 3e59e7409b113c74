"""Sessions from what a file of another format holds: what does not fit is left out and noted.

Every reader of spike events ends here, so that all of them degrade in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neds.data.checks import as_strings
from neds.data.dropped import KEY, DropReport
from neds.data.parts import MAX_SECONDS, Behaviour, Counts, Spikes, Units
from neds.data.reader import EventOptions, chosen_units
from neds.data.session import Session
from neds_rt.errors import BadInput

DEFAULT_FS = 30000.0
BLOCK = 1 << 20  # spikes looked at together
Columns = dict[str, NDArray[Any]]

NAMES = {
    "probe": ("probe", "probe_name", "group_name"),
    "channel": ("channel", "peak_channel", "max_electrode", "ch"),
    "cluster": ("cluster", "cluster_id", "original_cluster_id"),
    "region": ("region", "brain_region", "brain_area", "beryl_location", "location",
               "allen_location", "cosmos_location"),
    "depth_um": ("depth_um", "depth", "distance_from_probe_tip_in_um", "distance_from_probe_tip"),
}
"""Columns of the unit table under the names that files give them, the first one present counts."""


class Builder:
    """Collects the parts of one session, and what was left out of it.

    Times are seconds of the source's clock, which becomes the session's.
    """

    def __init__(self, session: str, subject: str, options: EventOptions) -> None:
        self.session, self.subject = options.session or session, options.subject or subject
        self.options = options
        self.report = DropReport()
        self.behaviours: dict[str, Behaviour] = {}
        self.trials: Columns = {}
        self.metadata: dict[str, Any] = {}

    def drop(self, level: str, name: str, reason: object, count: int = 1) -> None:
        """Note something left out."""
        self.report.add(level, self.session, name, str(reason), count)

    def behaviour(
        self, name: str, kind: str, times: ArrayLike, values: ArrayLike, unit: str = "",
        classes: Sequence[str] = (),
    ) -> None:
        """Add a behaviour, its NaN as gaps; one that cannot be one is left out with its reason.

        Rows whose time is NaN are left out; times (n,) are seconds, values (n,) or (n, width).
        """
        stamps, rows = np.asarray(times), np.asarray(values)
        try:
            if rows.ndim == 0 or stamps.ndim != 1 or len(stamps) != len(rows):
                raise BadInput("values", "length", f"{rows.shape} at {stamps.shape} times", "equal")
            known = np.isfinite(stamps.astype(np.float64))
            if not known.all():
                self.drop("bin", name, "time stamp is not a number", int((~known).sum()))
            stamps, rows = stamps[known], rows[known].astype(np.float64)
            if not np.isfinite(rows).any():
                raise BadInput("values", "rows", f"{len(rows)}, no known value", "some")
            rows = np.where(np.isfinite(rows), rows, np.nan)
            self.behaviours[name] = Behaviour(
                kind=kind, timestamps=stamps.astype(np.float64), values=rows, unit=unit,
                classes=tuple(classes), gaps=bool(np.isnan(rows).any()))
        except (BadInput, ValueError, TypeError) as error:
            self.drop("behaviour", name, error)

    def labels(
        self, name: str, values: ArrayLike, start: ArrayLike, stop: ArrayLike,
        levels: Sequence[Any] = (), classes: Sequence[str] = (),
    ) -> None:
        """Add a categorical behaviour of one value (n,) a trial, unknown outside [start, stop).

        `levels`: the values that become codes 0, 1, ...; by default all that occur.
        """
        begin, end = np.asarray(start, np.float64), np.asarray(stop, np.float64)
        codes, names = coded(values, levels)
        use = np.isfinite(begin) & np.isfinite(end) & (end > begin) & np.isfinite(codes)
        order = np.flatnonzero(use)[np.argsort(begin[use], kind="stable")]
        begin, end, codes = begin[order], end[order], codes[order]
        if len(begin):
            end[:-1] = np.minimum(end[:-1], begin[1:])
        closes = np.r_[end[:-1] < begin[1:], True] if len(end) else np.zeros(0, bool)
        times = np.stack([begin, end], 1).ravel()
        held = np.stack([codes, np.full(len(codes), np.nan)], 1).ravel()
        shown = np.stack([np.ones(len(codes), bool), closes], 1).ravel()
        self.behaviour(name, "categorical", times[shown], held[shown], classes=classes or names)

    def table(self, columns: Mapping[str, ArrayLike]) -> None:
        """Set the trials table; columns of another length than most, or no column, are left out."""
        arrays = {name: np.asarray(column) for name, column in columns.items()}
        flat: Columns = {}
        for name, column in arrays.items():
            if column.dtype.kind in "OS" and column.ndim == 1:
                column = np.array([_text(value) for value in column], np.str_)
            if column.ndim != 1 or column.dtype.kind not in "fiubU":
                self.drop("column", name, f"{column.dtype} of shape {column.shape} is no column of "
                          "numbers or text")
            elif "/" not in name:
                flat[name] = column
        if not flat:
            return
        lengths = [len(column) for column in flat.values()]
        usual = max(set(lengths), key=lambda n: (lengths.count(n), -n))
        for name, column in flat.items():
            if len(column) == usual:
                self.trials[name] = column
            else:
                self.drop("column", name, f"has {len(column)} rows, most have {usual}")

    def finish(
        self, times: NDArray[np.float64], unit: NDArray[Any], columns: Mapping[str, ArrayLike],
        more: Mapping[str, ArrayLike] | None = None, *, fs: float = 0.0,
        domain: NDArray[np.float64] | None = None,
    ) -> Session:
        """Make the session: spikes at `times` (n,) of units `unit` (n,), rows of the unit table.

        columns: those of `Units`; more: further columns that `keep` may ask for. Spikes at times
        that are none are left out; units by `keep` and where they never fire. Raises `BadInput`
        where no unit is left.
        """
        rate = self.options.fs or fs or DEFAULT_FS
        n = max((len(np.asarray(c)) for c in columns.values()), default=0)
        times, unit = self._real(np.asarray(times, np.float64), np.asarray(unit), rate, domain)
        table = {k: np.asarray(v) for k, v in {**(more or {}), **columns}.items()}
        kept = self._kept(table, _fired(unit, n), n)
        spikes = _events(times, unit, kept, rate)
        left = {k: np.asarray(v)[kept] for k, v in columns.items()}
        return Session(
            session=self.session, subject=self.subject, spikes=spikes,
            units=Units.of(int(kept.sum()), **left), behaviours=self.behaviours,
            trials=self.trials,
            domain=span(spikes, self.behaviours) if domain is None else domain,
            metadata={**self.metadata, KEY: self.report.entries()},
        )

    def finish_counts(
        self, counts: NDArray[Any], bins: ArrayLike, bin_size_s: float,
        columns: Mapping[str, ArrayLike], domain: NDArray[np.float64] | None = None,
    ) -> Session:
        """Make the session of a recording that comes as counts (T, units) of the bins (T,)."""
        return Session(
            session=self.session, subject=self.subject,
            spikes=Counts(counts=counts, bin=np.asarray(bins), bin_size_s=bin_size_s),
            units=Units.of(counts.shape[1], **columns), behaviours=self.behaviours,
            trials=self.trials, domain=domain,
            metadata={**self.metadata, KEY: self.report.entries()},
        )

    def _real(
        self, times: NDArray[np.float64], unit: NDArray[Any], fs: float,
        domain: NDArray[np.float64] | None,
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """The spikes at times that can be; the arrays themselves where that is all of them."""
        good = np.ones(len(times), bool)
        counts = dict.fromkeys(("time is not a number of seconds", "before time 0",
                                "outside the intervals that were recorded"), 0)
        for rows in _blocks(len(times)):
            for reason, mask in zip(counts, _unreal(times[rows], fs, domain), strict=True):
                counts[reason] += int(mask.sum())
                good[rows] &= ~mask
        for reason, count in counts.items():
            if count:
                self.drop("spike", "spikes", reason, count)
        return (times, unit) if good.all() else (times[good], unit[good])

    def _kept(self, table: Columns, fired: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
        kept = chosen_units(self.options.keep, table, n, self.session)
        self.report.add_rows("unit", self.session, ~kept, f"not {self.options.keep}")
        if not self.options.keep_silent:
            silent = kept & (fired == 0)
            self.report.add_rows("unit", self.session, silent, "no spikes")
            kept &= ~silent
        if not kept.any():
            raise BadInput(self.session, "units", f"none of {n} left", "units with spikes")
        return kept


def _blocks(n: int) -> Iterator[slice]:
    """Parts of n spikes: an hour has tens of millions, and each column of them 8 bytes each."""
    return (slice(begin, begin + BLOCK) for begin in range(0, n, BLOCK))


def _unreal(
    times: NDArray[np.float64], fs: float, domain: NDArray[np.float64] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of times that are no seconds, that lie before 0, and outside the domain."""
    bad = ~np.isfinite(times) | (np.abs(times) > MAX_SECONDS)
    early = ~bad & (np.rint(np.where(bad, 0, times) * fs) < 0)
    outside = np.zeros_like(bad)
    if domain is not None:
        row = np.searchsorted(domain[:, 0] - 0.5 / fs, times, side="right") - 1
        outside = ~bad & ~early & ((row < 0) | (times > domain[row, 1] + 0.5 / fs))
    return bad, early, outside


def _fired(unit: NDArray[Any], n: int) -> NDArray[np.int64]:
    """How many spikes each of n units has."""
    fired = np.zeros(n, np.int64)
    for rows in _blocks(len(unit)):
        fired += np.bincount(unit[rows], minlength=n)[:n]
    return fired


def _events(
    times: NDArray[np.float64], unit: NDArray[Any], kept: NDArray[np.bool_], fs: float
) -> Spikes:
    """The spikes of the kept units, sorted by sample and unit, with few copies of anything."""
    number = np.cumsum(kept) - 1
    n_units = int(kept.sum())
    n = sum(int(kept[unit[rows]].sum()) for rows in _blocks(len(unit)))
    if n and (float(times.max()) * fs + 2) * n_units >= 2.0**63:
        raise BadInput("spikes", "time", f"{times.max():g} s at {fs:g} samples/s", "an earlier one")
    key, at = np.empty(n, np.int64), 0  # sample * units + unit sorts by both at once
    for rows in _blocks(len(unit)):
        use = kept[unit[rows]]
        block = key[at : at + int(use.sum())]
        block[:] = np.rint(times[rows][use] * fs)
        block *= n_units
        block += number[unit[rows][use]]
        at += len(block)
    if not (key[1:] >= key[:-1]).all():
        key.sort()
    index = np.empty(n, np.int32)
    for rows in _blocks(n):
        index[rows] = key[rows] % n_units
        key[rows] //= n_units
    return Spikes(sample=key, unit_index=index, fs=fs)


def coded(values: ArrayLike, levels: Sequence[Any] = ()) -> tuple[NDArray[np.float64], list[str]]:
    """Codes (n,) of values, NaN for those not among `levels` (default: all known), and names."""
    raw = np.asarray(values)
    if raw.dtype.kind in "OSU":
        raw = np.array([_text(value) for value in raw], np.str_)
        known = list(levels) or sorted(set(raw.tolist()) - {"", "nan"})
        place = {str(level): i for i, level in enumerate(known)}
        return np.array([place.get(v, np.nan) for v in raw.tolist()], np.float64), \
            [str(level) for level in known]
    numbers = raw.astype(np.float64)
    known = list(levels) or np.unique(numbers[np.isfinite(numbers)]).tolist()
    codes = np.full(len(numbers), np.nan)
    for code, level in enumerate(known):
        codes[np.abs(numbers - level) < 1e-6] = code
    return codes, [f"{level:g}" for level in known]


def span(spikes: Spikes, behaviours: Mapping[str, Behaviour]) -> NDArray[np.float64]:
    """One interval (1, 2) in seconds from the first to the last thing recorded, from 0 on."""
    times = [b.timestamps[[0, -1]] for b in behaviours.values()]
    if spikes.sample.size:
        times.append(spikes.sample[[0, -1]] / spikes.fs + np.array([0.0, 1.0 / spikes.fs]))
    if not times:
        raise BadInput("session", "spikes", "no spikes and no behaviours", "a recording")
    both = np.concatenate(times)
    return np.array([[max(both.min(), 0.0), both.max()]])


def texts(values: ArrayLike) -> NDArray[np.str_]:
    """A column of anything as text."""
    return as_strings("column", [_text(value) for value in np.asarray(values).tolist()],
                      len(np.asarray(values)))


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
