"""The parts a session is made of: units, spikes (events or counts) and behaviours.

Each is a frozen dataclass, validated on construction: what exists is well formed. Arrays are held
as read-only views. All times are seconds of the session's clock, in which sample 0 is time 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neds.data.checks import (
    WHERE,
    as_floats,
    as_int32,
    as_integers,
    as_strings,
    frozen,
    positive,
    same_length,
    sorted_finite,
)
from neds_rt.errors import BadInput

KINDS = ("continuous", "circular", "categorical")
MAX_SECONDS = 1e9
"""Times beyond this are of another unit or scale: a sample number would soon overflow."""

SNAP_S = 1e-6
"""A query this close to a behaviour's time stamp is that time stamp: clocks differ by rounding."""


def _set(owner: object, **fields: object) -> None:
    for name, value in fields.items():
        object.__setattr__(owner, name, value)


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """The unit table, one row a unit, in the order in which `unit_index` counts.

    probe (U,) str; channel (U,) int32, -1 unknown; cluster (U,) int32, the sorter's id (default
    0..U-1); region (U,) str, "" unknown; depth_um (U,) float32, NaN unknown.
    """

    probe: NDArray[np.str_]
    channel: NDArray[np.int32]
    cluster: NDArray[np.int32]
    region: NDArray[np.str_]
    depth_um: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = np.asarray(self.cluster).size
        if n == 0:
            raise BadInput(WHERE, "units", 0, "at least one unit")
        columns: dict[str, NDArray[Any]] = {
            "probe": as_strings("units.probe", self.probe, n),
            "channel": as_int32("units.channel", self.channel),
            "cluster": as_int32("units.cluster", self.cluster),
            "region": as_strings("units.region", self.region, n),
            "depth_um": as_floats("units.depth_um", self.depth_um, 1).astype(np.float32),
        }
        for name, column in columns.items():
            same_length(f"units.{name}", column, n, "units")
        _set(self, **{name: frozen(column) for name, column in columns.items()})

    @classmethod
    def of(cls, n: int, **columns: ArrayLike) -> Units:
        """Make a table of `n` units from the columns that are known; the others get defaults."""
        known: dict[str, Any] = {
            "probe": "probe00",
            "channel": np.full(n, -1),
            "cluster": np.arange(n),
            "region": "",
            "depth_um": np.full(n, np.nan),
        }
        return cls(**(known | columns))

    def __len__(self) -> int:
        return len(self.cluster)

    def take(self, index: NDArray[Any]) -> Units:
        """Return the table of the units in `index` (integers or a mask)."""
        names = ("probe", "channel", "cluster", "region", "depth_um")
        return Units(**{name: getattr(self, name)[index] for name in names})


@dataclass(frozen=True, kw_only=True, eq=False)
class Spikes:
    """Spike events: sample (n,) int64, non-decreasing; unit_index (n,) int32; fs in samples/s."""

    sample: NDArray[np.int64]
    unit_index: NDArray[np.int32]
    fs: float

    def __post_init__(self) -> None:
        fs = positive("spikes.fs", self.fs)
        sample = as_integers("spikes.sample", self.sample)
        unit = as_int32("spikes.unit_index", self.unit_index)
        same_length("spikes.unit_index", unit, len(sample), "spikes")
        sorted_finite("spikes.sample", sample)
        if sample.size and sample[0] < 0:
            raise BadInput(WHERE, "spikes.sample", int(sample[0]), "no spike before time 0")
        _set(self, sample=frozen(sample), unit_index=frozen(unit), fs=fs)

    @classmethod
    def from_seconds(
        cls, times_s: ArrayLike, unit_index: ArrayLike, *, fs: float = 30000.0
    ) -> Spikes:
        """Make events from times in seconds, each rounded to the nearest sample."""
        times = as_floats("spikes.times_s", times_s, 1)
        sorted_finite("spikes.times_s", times)
        if times.size and times[-1] > MAX_SECONDS:
            raise BadInput(WHERE, "spikes.times_s", times[-1], f"seconds, below {MAX_SECONDS:g}")
        samples = np.rint(times * positive("spikes.fs", fs)).astype(np.int64)
        return cls(sample=samples, unit_index=np.asarray(unit_index), fs=fs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Binned spikes: counts (T, U) uint8 or uint16; bin (T,) int64, strictly increasing.

    `bin` is each row's place on the absolute grid: row i covers the seconds
    bin[i] * bin_size_s to (bin[i] + 1) * bin_size_s. A jump is a gap in the recording.
    """

    counts: NDArray[np.uint8] | NDArray[np.uint16]
    bin: NDArray[np.int64]
    bin_size_s: float

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        if counts.ndim != 2 or counts.shape[0] == 0:
            raise BadInput(WHERE, "counts", f"shape {counts.shape}", "(bins, units), a bin or more")
        rows = as_integers("counts.bin", self.bin)
        same_length("counts.bin", rows, len(counts), "count rows")
        if rows[0] < 0 or (np.diff(rows) <= 0).any():
            raise BadInput(WHERE, "counts.bin", "a step back or below 0", "increasing bins from 0")
        _set(self, counts=frozen(_whole_counts(counts)), bin=frozen(rows),
             bin_size_s=positive("counts.bin_size_s", self.bin_size_s))

    def intervals(self) -> NDArray[np.float64]:
        """Return the (n, 2) seconds that the runs of consecutive bins cover."""
        cut = np.flatnonzero(np.diff(self.bin) > 1)
        first = self.bin[np.r_[0, cut + 1]]
        last = self.bin[np.r_[cut, len(self.bin) - 1]]
        return np.stack([first, last + 1], axis=1) * self.bin_size_s


def _whole_counts(counts: NDArray[Any]) -> NDArray[Any]:
    if counts.dtype in (np.uint8, np.uint16):
        return counts
    if counts.dtype.kind not in "fiu":
        raise BadInput(WHERE, "counts", f"dtype {counts.dtype}", "whole numbers")
    if counts.dtype.kind == "f" and not (counts == np.floor(counts)).all():
        raise BadInput(WHERE, "counts", "NaN or fractions", "whole numbers")
    if counts.size and (counts.min() < 0 or counts.max() > 65535):
        found = counts.min() if counts.min() < 0 else counts.max()
        raise BadInput(WHERE, "counts", found, "0 to 65535 spikes a bin")
    return counts.astype(np.uint16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """One named behaviour on its own time stamps.

    kind "continuous": values (n, width) in `unit`; "circular": angles (n, 1) in radians;
    "categorical": codes (n, 1) into `classes`, each holding until the next time stamp.
    timestamps (n,) float64 seconds, sorted. values float32 (one column may be given as (n,)).
    With `gaps`, NaN says that the behaviour is unknown there; without it NaN is refused.
    """

    kind: str
    timestamps: NDArray[np.float64]
    values: NDArray[np.float32]
    unit: str = ""
    classes: tuple[str, ...] = ()
    gaps: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(WHERE, "behaviour kind", repr(self.kind), f"one of {', '.join(KINDS)}")
        times = as_floats("timestamps", self.timestamps, 1)
        raw = np.asarray(self.values)
        values = as_floats("values", raw[:, None] if raw.ndim == 1 else raw, 2)
        same_length("values", values, len(times), "time stamps")
        if values.size == 0:
            raise BadInput(WHERE, "values", f"shape {values.shape}", "a sample and column or more")
        sorted_finite("timestamps", times)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        classes = tuple(str(name) for name in self.classes)
        _set(self, timestamps=frozen(times), values=frozen(narrow), classes=classes)
        self._check_values(narrow)

    def _check_values(self, values: NDArray[np.float32]) -> None:
        bad = ~np.isfinite(values) if not self.gaps else np.isinf(values)
        if bad.any():
            row = int(np.flatnonzero(bad.any(axis=1))[0])
            raise BadInput(WHERE, "values", f"{values[row].tolist()} at row {row}", "finite values")
        if self.kind != "continuous" and values.shape[1] != 1:
            raise BadInput(WHERE, "values", f"{values.shape[1]} columns", f"1 for {self.kind}")
        if self.kind != "categorical":
            return
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise BadInput(WHERE, "classes", list(self.classes), "two or more different labels")
        known = values[np.isfinite(values)]
        wrong = known[(known != np.floor(known)) | (known < 0) | (known >= len(self.classes))]
        if wrong.size:
            raise BadInput(WHERE, "class code", float(wrong[0]), f"0 to {len(self.classes) - 1}")

    @property
    def width(self) -> int:
        """Number of columns of `values`."""
        return int(self.values.shape[1])

    def at(self, times: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the behaviour at `times` (n, seconds) as (n, width), NaN where it is unknown.

        Continuous: linear between the two neighbouring samples; circular: along the shorter arc;
        both NaN before the first and after the last sample. Categorical: the newest code so far.
        """
        stamps = self.timestamps
        j = np.searchsorted(stamps, times + SNAP_S, side="right") - 1
        lo = np.clip(j, 0, len(stamps) - 1)
        out = self.values[lo].astype(np.float64)
        if self.kind != "categorical":
            hi = np.clip(j + 1, 0, len(stamps) - 1)
            off = times - stamps[lo]
            between = off > SNAP_S
            step = self.values[hi] - out
            if self.kind == "circular":
                step = _wrap(step)
            span = np.where(hi > lo, stamps[hi] - stamps[lo], 1.0)
            moved = out + np.where(between, off / span, 0.0)[:, None] * step
            out = np.where(between[:, None], moved, out)
            out[between & (hi == lo)] = np.nan
            if self.kind == "circular":
                out = np.where(between[:, None], _wrap(out), out)
        out[j < 0] = np.nan
        return out.astype(np.float32)

    def between(self, start_s: float, stop_s: float) -> Behaviour:
        """Cut to [start_s, stop_s], keeping one sample on each side so that borders stay known."""
        lo = max(int(np.searchsorted(self.timestamps, start_s, side="right")) - 1, 0)
        hi = int(np.searchsorted(self.timestamps, stop_s, side="left")) + 1
        lo = min(lo, len(self.timestamps) - 1)
        return replace(self, timestamps=self.timestamps[lo:hi], values=self.values[lo:hi])


def _wrap(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.mod(angle + np.pi, 2 * np.pi) - np.pi)
