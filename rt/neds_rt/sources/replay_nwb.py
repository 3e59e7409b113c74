"""The units of an NWB file, which is HDF5, as a recording to play: what `neds prepare` makes of it.

Only what is certain without pynwb: spike times, and units by the columns probe, channel and cluster
(else the row's id). A file that names its units by electrodes is for `neds prepare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput
from neds_rt.hdf5_limits import checked
from neds_rt.sources.replay import EventRecording, Order, UnitTable, choose_units
from neds_rt.sources.unprepared import by_preparing
from neds_rt.wire import MAX_SAMPLE

DEFAULT_FS = 30_000.0  # samples/s where the file does not say how fine its times are
ELSEWHERE = ("electrodes", "electrode_group")  # columns that name units by other tables


def read_nwb_units(file: Any, path: Path, probe: str | None, order: Order | None) -> EventRecording:
    """Read one probe of the open `file`. Raises `BadInput` where `neds prepare` is needed."""
    units = file.get("units", {})
    if "spike_times_index" not in units or any(name in units for name in ELSEWHERE):
        raise BadInput(path, "units", ", ".join(units) or "none", by_preparing("nwb", path))
    times = _numbers(units["spike_times"]).astype(np.float64)
    ends = _numbers(units["spike_times_index"]).astype(np.int64)
    if len(ends) == 0 or np.any(np.diff(ends, prepend=0) < 0) or ends[-1] != len(times):
        raise BadInput(path, "spike_times_index", f"{len(ends)} ends", f"rising to {len(times)}")
    resolution = float(units["spike_times"].attrs.get("resolution", 0.0))
    fs = round(1 / resolution, 6) if 0 < resolution <= 1e-2 else DEFAULT_FS
    unit = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    good = np.isfinite(times) & (np.rint(times * fs) >= 0) & (times * fs < MAX_SAMPLE)
    sample, unit = np.rint(times[good] * fs).astype(np.int64), unit[good]
    fired = np.bincount(unit, minlength=len(ends)) > 0  # silent units are left out, as prepare does
    table = _table(units, len(ends))
    chosen = choose_units(UnitTable(*(column[fired] for column in table)), path, probe, order)
    spans = _observed(units, sample, fs)
    row = np.searchsorted(spans[:, 0], sample, side="right") - 1
    inside = (row >= 0) & (sample < spans[row, 1])
    turn = np.argsort(sample[inside], kind="stable")
    rows = (np.cumsum(fired) - 1)[unit[inside][turn]]
    return EventRecording(path.stem, fs, chosen, spans, sample[inside][turn], rows)


def _numbers(node: Any) -> NDArray[Any]:
    return np.asarray(checked(node)[()])


def _table(units: Any, n: int) -> UnitTable:
    probe = np.full(n, b"probe00", object) if "probe" not in units else _numbers(units["probe"])
    channel = np.full(n, -1) if "channel" not in units else _numbers(units["channel"])
    return UnitTable(probe, channel, _numbers(units["cluster" if "cluster" in units else "id"]))


def _observed(units: Any, sample: NDArray[np.int64], fs: float) -> NDArray[np.int64]:
    """Return where some unit was observed, joined spans (n, 2); else from first to last spike."""
    if "obs_intervals" not in units:
        return np.array([[sample.min(initial=MAX_SAMPLE), sample.max(initial=0) + 1]])
    times = np.clip(_numbers(units["obs_intervals"]).reshape(-1, 2), 0, MAX_SAMPLE / fs)
    spans = np.unique(np.rint(times[times[:, 1] > times[:, 0]] * fs).astype(np.int64), axis=0)
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.r_[0, np.flatnonzero(spans[1:, 0] > reach[:-1]) + 1]
    return np.stack([spans[first, 0], reach[np.r_[first[1:] - 1, len(spans) - 1]]], axis=1)
