"""Reader `arrays`: NumPy archives (.npz, no pickle) of spike events or counts plus behaviours.

A binned recording starts its clock at its first bin, whose original time is kept in the metadata
as `time_offset_s`; runs of bins that start between grid points move to the nearest one. Spike
events keep the archive's clock.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.build import span
from neds.data.checks import as_floats, as_strings, naming, positive
from neds.data.mapping import BINS, BehaviourMap, Mapping
from neds.data.parts import Behaviour, Counts, Spikes, Units
from neds.data.session import Session
from neds_rt.errors import BadInput

Arrays = dict[str, NDArray[Any]]
TIME_COLUMNS = ("start", "end", "intervals_0", "intervals_1")


def load_archive(path: Path) -> Arrays:
    """Read every array of an archive. Raises `BadInput` if it is missing, truncated or pickled."""
    if not path.is_file():
        raise BadInput(path, "file", "nothing there", "a NumPy archive (.npz)")
    name = "archive"
    try:
        # The file is opened here because np.load leaves it open when the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise BadInput(path, "file", "one array", "a NumPy archive (.npz)")
            arrays: Arrays = {}
            for name in archive.files:
                arrays[name] = archive[name]
            return arrays
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, NotImplementedError,
            zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(path, name, error, "a whole NumPy archive without pickles") from error


def read_arrays(path: Path, mapping: Mapping, arrays: Arrays | None = None) -> Session:
    """Make the session that `mapping` finds in the archive at `path`.

    `arrays` replaces the archive's content, for presets that derive some. Raises `BadInput` naming
    the file for an array that is missing or not what it should be.
    """
    source = Archive(path, load_archive(path) if arrays is None else arrays)
    with naming(path):
        return _counted(source, mapping) if mapping.counts else _events(source, mapping)


class Archive:
    """The arrays of one file, looked up by name with an error that lists what there is."""

    def __init__(self, path: Path, arrays: Arrays) -> None:
        self.path, self.arrays = path, arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.arrays:
            raise BadInput(self.path, "array", repr(name), f"one of {', '.join(self.arrays)}")
        return self.arrays[name]

    def number(self, field: str, value: str | float) -> float:
        """Return a number given itself or as an array that holds one."""
        if not isinstance(value, str):
            return float(value)
        array = self[value]
        if array.size != 1 or array.dtype.kind not in "fiu":
            raise BadInput(self.path, field, f"{array.dtype} {array.shape}", "one number")
        return float(array.reshape(-1)[0])

    def count(self, field: str, value: str | float) -> int:
        """Return a whole number from 0, given itself or as an array that holds one."""
        number = self.number(field, value)
        if not (number.is_integer() and number >= 0):
            raise BadInput(self.path, field, number, "a whole number")
        return int(number)

    def text(self, name: str, default_array: str, default: str) -> str:
        """Return a name given as an array that holds one string."""
        if not name and default_array not in self.arrays:
            return default
        array = self[name or default_array]
        if array.size != 1:
            raise BadInput(self.path, name or default_array, f"shape {array.shape}", "one string")
        return str(array.reshape(-1)[0])

    def times(self, field: str, name: str, offset: float) -> NDArray[np.float64]:
        """Return a column of times on the session's clock."""
        return as_floats(field, self[name], 1) - offset


def _events(source: Archive, mapping: Mapping) -> Session:
    unit = source[mapping.spike_units]
    spikes = Spikes.from_seconds(source[mapping.spike_times], unit, fs=mapping.fs)
    count = mapping.n_units
    known = max([len(source[name]) for name in mapping.unit.values()], default=0)
    if count != "":
        known = source.count("n_units", count)
    elif not known:
        known = int(spikes.unit_index.max()) + 1 if spikes.unit_index.size else 0
    behaviours = _behaviours(source, mapping, None, 0.0)
    return _session(source, mapping, spikes, known, behaviours,
                    _event_domain(source, mapping, spikes, behaviours), 0.0)


def _event_domain(
    source: Archive, mapping: Mapping, spikes: Spikes, behaviours: dict[str, Behaviour]
) -> NDArray[np.float64]:
    """The domain that the mapping names, or from the first to the last thing recorded."""
    if mapping.domain_start:
        start = source.times("domain_start", mapping.domain_start, 0.0)
        end = source.times("domain_end", mapping.domain_end, 0.0)
        if len(start) != len(end):
            raise BadInput(source.path, "domain", f"{len(start)} starts and {len(end)} ends",
                           "as many starts as ends")
        return np.stack([start, end], axis=1)
    return span(spikes, behaviours)


def _counted(source: Archive, mapping: Mapping) -> Session:
    counts = source[mapping.counts]
    if counts.ndim not in (2, 3):
        raise BadInput(source.path, mapping.counts, f"shape {counts.shape}",
                       "(bins, units) or (trials, bins, units)")
    if counts.shape[-1] == 0:
        raise BadInput(source.path, mapping.counts, "no units", "at least one unit")
    shape = counts.shape[:-1]
    flat = counts.reshape(-1, counts.shape[-1])
    size = positive("bin_size", source.number("bin_size", mapping.bin_size))
    bins, offset = np.arange(len(flat)), 0.0
    if mapping.bin_start:
        starts = source[mapping.bin_start]
        if starts.shape != shape:
            raise BadInput(source.path, mapping.bin_start, f"shape {starts.shape}", str(shape))
        bins, offset = grid(as_floats(mapping.bin_start, starts.reshape(-1), 1), size)
    spikes = Counts(counts=flat, bin=bins, bin_size_s=size)
    behaviours = _behaviours(source, mapping, (spikes, shape), offset)
    return _session(source, mapping, spikes, flat.shape[1], behaviours, None, offset)


def grid(starts: NDArray[np.float64], size: float) -> tuple[NDArray[np.int64], float]:
    """Place bins that start at `starts` (seconds) on a grid from the first; return it and its time.

    Consecutive bins stay together: only the first of a run is rounded to the grid. Raises
    `BadInput` for times that are not finite, go back, or overlap.
    """
    if not np.isfinite(starts).all():
        raise BadInput("session", "bin starts", "NaN or infinity", "finite times")
    if not len(starts):
        raise BadInput("session", "bin starts", "no bins", "at least one")
    step = np.diff(starts) / size
    if (step < 0.9).any():
        at = int(np.flatnonzero(step < 0.9)[0]) + 1
        found = f"{starts[at]} after {starts[at - 1]} at index {at}"
        raise BadInput("session", "bin starts", found, f"sorted bins {size} s apart or more")
    run = np.r_[0, np.flatnonzero(step > 1.1) + 1]
    first = np.rint((starts[run] - starts[0]) / size).astype(np.int64)
    length = np.diff(np.r_[run, len(starts)])
    bins = np.repeat(first - run, length) + np.arange(len(starts))
    return bins, float(starts[0])


def _behaviours(
    source: Archive, mapping: Mapping, binned: tuple[Counts, tuple[int, ...]] | None, offset: float
) -> dict[str, Behaviour]:
    out = {}
    for name, spec in mapping.behaviour.items():
        with naming(f"{source.path}: behaviour {name}"):
            values = source[spec.values]
            if spec.timestamps == BINS:
                if binned is None:
                    raise BadInput(source.path, "timestamps", BINS, "an array, for spike events")
                counts, shape = binned
                if values.shape[: len(shape)] != shape:
                    raise BadInput(source.path, spec.values, f"shape {values.shape}",
                                   f"{shape} and columns, as there are that many bins")
                values = values.reshape(len(counts.bin), -1)
                times = np.asarray((counts.bin + 1) * counts.bin_size_s, dtype=np.float64)
            else:
                times = source.times(spec.timestamps, spec.timestamps, offset)
            out[name] = _behaviour(source, spec.filled(name), values, times)
    return out


def _behaviour(
    source: Archive, spec: BehaviourMap, values: NDArray[Any], times: NDArray[np.float64]
) -> Behaviour:
    if spec.columns:
        if values.ndim != 2 or not all(0 <= c < values.shape[1] for c in spec.columns):
            raise BadInput(source.path, spec.values, f"shape {values.shape}",
                           f"columns {spec.columns}")
        values = values[:, spec.columns]
    classes = list(spec.classes)
    if spec.kind == "categorical":
        values, found = _codes(source, spec, values)
        classes = classes or found
    return Behaviour(kind=spec.kind, timestamps=times, values=values, unit=spec.unit,
                     classes=tuple(classes), gaps=spec.gaps)


def _codes(
    source: Archive, spec: BehaviourMap, values: NDArray[Any]
) -> tuple[NDArray[np.float64], list[str]]:
    """Turn raw values into codes: the place of each in `levels`, or among all that occur."""
    if values.dtype.kind in "US":
        labels, inverse = np.unique(values, return_inverse=True)
        return inverse.reshape(values.shape).astype(np.float64), [str(label) for label in labels]
    if values.dtype.kind not in "fiub":
        raise BadInput(source.path, spec.values, f"dtype {values.dtype}", "numbers or text")
    raw = values.astype(np.float64)
    levels = np.array(spec.levels or np.unique(raw[~np.isnan(raw)]), dtype=np.float64)
    close = np.abs(raw[..., None] - levels) < 1e-6
    codes = np.where(close.any(axis=-1), close.argmax(axis=-1), np.nan)
    if np.isnan(codes).any() and not spec.gaps:
        raise BadInput(source.path, spec.values, float(raw[np.isnan(codes)][0]),
                       f"one of {levels.tolist()}")
    return codes, [f"{level:g}" for level in levels]


def _session(
    source: Archive, mapping: Mapping, spikes: Spikes | Counts, n_units: int,
    behaviours: dict[str, Behaviour], domain: NDArray[np.float64] | None, offset: float,
) -> Session:
    if n_units < 1:
        raise BadInput(source.path, "units", n_units, "at least one unit")
    columns = {name: source[array] for name, array in mapping.unit.items()}
    trials = _trials(source, mapping, offset)
    return Session(
        session=source.text(mapping.session, "session_id", source.path.stem),
        subject=source.text(mapping.subject, "subject_id", ""),
        spikes=spikes,
        units=Units.of(n_units, **columns),
        behaviours=behaviours,
        trials=trials,
        domain=domain,
        metadata={"time_offset_s": offset},
    )


def _trials(source: Archive, mapping: Mapping, offset: float) -> MappingType[str, NDArray[Any]]:
    names = dict(mapping.trials)
    prefix = mapping.trials_prefix
    for array in source.arrays:
        if prefix and array.startswith(prefix):
            names.setdefault(array.removeprefix(prefix), array)
    columns = {}
    for name, array in names.items():
        column = source[array]
        if column.dtype.kind == "S":
            column = as_strings(f"trials.{name}", column, len(column))
        is_time = name in TIME_COLUMNS or name.endswith("_times")
        columns[name] = column - offset if is_time and column.dtype.kind in "fiu" else column
    return columns
