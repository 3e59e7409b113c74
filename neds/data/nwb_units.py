"""The units table of an NWB file: spike times in bulk, and probe, channel, region in its dialects.

Columns are taken under the first of several names. Where a table lacks them, the electrode group
is the probe, and the first electrode of a unit (its peak channel, where the table says which) gives
channel and region.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.build import NAMES, Builder, Columns, texts
from neds_rt.errors import BadInput

PEAKS = ("peak_channel_id", "peak_electrode_id")
"""Columns that name a unit's electrode by its id, as the Allen Institute's files do."""


def spikes_of(
    units: Any, build: Builder
) -> tuple[NDArray[np.float64], NDArray[np.int64], float, NDArray[np.float64] | None]:
    """Times (n,) s and unit rows (n,) of all spikes, samples/s (0 unknown), observed intervals.

    Raises `BadInput` for a table without spike times, or whose index does not fit them.
    """
    if "spike_times" not in units.colnames:
        raise BadInput(build.session, "units.spike_times", "no such column", "spike times")
    column = units["spike_times"]
    if not hasattr(column, "target"):
        raise BadInput(build.session, "units.spike_times", "no index", "times of each unit")
    times = np.asarray(column.target.data[()], np.float64)
    stops = np.asarray(column.data[()], np.int64)
    if len(stops) != len(units) or (np.diff(np.r_[0, stops]) < 0).any() or (
            stops[-1] != len(times)):
        raise BadInput(build.session, "units.spike_times_index",
                       f"{len(stops)} ends up to {stops[-1]} of {len(times)} times",
                       f"{len(units)} rising ends")
    unit = np.repeat(np.arange(len(stops)), np.diff(np.r_[0, stops]))
    resolution = float(units.resolution or 0.0)
    fs = 1 / resolution if np.isfinite(resolution) and 0 < resolution <= 1e-2 else 0.0
    fs = round(fs, 6)  # 1 / (1 / fs) may be off in its last bit
    return times, unit, fs, _observed(units)


def _observed(units: Any) -> NDArray[np.float64] | None:
    """Where some unit was observed, joined intervals (n, 2); None where the table does not say."""
    if "obs_intervals" not in units.colnames:
        return None
    column = units["obs_intervals"]
    raw = np.asarray(getattr(column, "target", column).data[()], np.float64).reshape(-1, 2)
    raw = raw[np.isfinite(raw).all(axis=1)]
    raw[:, 0] = np.maximum(raw[:, 0], 0.0)
    raw = np.unique(raw[raw[:, 1] > raw[:, 0]], axis=0)
    if not len(raw):
        return None
    reach = np.maximum.accumulate(raw[:, 1])
    first = np.r_[0, np.flatnonzero(raw[1:, 0] > reach[:-1]) + 1]
    return np.stack([raw[first, 0], reach[np.r_[first[1:] - 1, len(raw) - 1]]], axis=1)


def unit_columns(units: Any) -> tuple[Columns, Columns]:
    """Columns for `Units`, and every other flat column, for `keep`. Each (U,)."""
    flat = {}
    for name in units.colnames:
        column = units[name]
        if type(column).__name__ == "VectorData" and name not in ("spike_times", "obs_intervals"):
            data = column.data[:]
            if np.ndim(data) == 1 and len(data) == len(units) and np.isscalar(data[0]):
                text = isinstance(data[0], str | bytes)
                flat[name] = texts(data) if text else np.asarray(data)
    columns: Columns = {"cluster": np.asarray(units.id[:])}
    for name, dialects in NAMES.items():
        found = next((flat[d] for d in dialects if d in flat), None)
        if found is not None:
            columns[name] = _as(name, found, columns)
    for name, column in _from_electrodes(units, flat).items():
        columns.setdefault(name, column)
    if "electrode_group" in units.colnames:
        groups = units["electrode_group"].data[:]
        columns.setdefault("probe", np.array([group.name for group in groups], np.str_))
    return {k: v for k, v in columns.items() if v.size}, flat


def _as(name: str, found: NDArray[Any], columns: Columns) -> NDArray[Any]:
    """A column as `Units` wants it; numbers that are none become unknown."""
    if name in ("probe", "region"):
        return texts(found)
    if found.dtype.kind not in "fiu":
        return np.asarray(columns["cluster"]) if name == "cluster" else np.zeros(0)
    if name == "depth_um":
        return found.astype(np.float64)
    numbers = found.astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, -1).astype(np.int64)


def _from_electrodes(units: Any, flat: Columns) -> Columns:
    """Probe, channel and region of each unit's electrode, "" and -1 where it has none."""
    peak = next((flat[name] for name in PEAKS if name in flat), None)
    file_table = getattr(units.get_ancestor("NWBFile"), "electrodes", None)
    if "electrodes" in units.colnames:
        column = units["electrodes"]
        table = getattr(column, "target", column).table
        rows = np.asarray(getattr(column, "target", column).data[()], np.int64)
        stops = np.asarray(column.data[()], np.int64) if hasattr(column, "target") else (
            np.arange(1, len(rows) + 1))
        starts = np.r_[0, stops[:-1]]
        row = np.where(stops > starts, rows[np.minimum(starts, max(len(rows) - 1, 0))], -1) \
            if len(rows) else np.full(len(stops), -1)
    elif peak is not None and file_table is not None:
        table = file_table
        place = {int(number): i for i, number in enumerate(table.id[:])}
        row = np.array([place.get(int(number), -1) for number in peak], np.int64)
    else:
        return {}
    ids = np.asarray(table.id[:])
    out: Columns = {"channel": np.where(row >= 0, ids[np.maximum(row, 0)], -1)}
    for name, source in (("probe", "group_name"), ("region", "location")):
        if source in table.colnames:
            values = texts(table[source].data[:])
            out[name] = np.where(row >= 0, values[np.maximum(row, 0)], "")
    return out
