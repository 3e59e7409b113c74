"""Reader `brainsets`: HDF5 files as brainsets and temporaldata lay them out; also written.

    /spikes   timestamps (n,) s, unit_index (n,)       /units    id, ... each (U,)
    /domain   start, end (n,) s                        /trials   start, end and further columns
    any group that is an IrregularTimeSeries (timestamps) or RegularTimeSeries (sampling_rate)
    holds behaviours, a column each; /session and /subject have the attribute id

Behaviours are those of `behaviour.NAME=GROUP.COLUMN[:KIND[:UNIT]]` (`trials.COLUMN` for a label
that holds through its trial), or by default every column of floats. Times in a file are seconds;
`fs` turns them into samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from neds.data.build import NAMES, Builder, Columns, coded, texts
from neds.data.checks import naming
from neds.data.parts import Counts, Spikes
from neds.data.reader import Reader, SeriesOptions, one_file, parse_options
from neds.data.session import Session
from neds.data.store import UNIT_COLUMNS
from neds.data.whole import whole_file
from neds_rt.errors import BadInput

SERIES = ("IrregularTimeSeries", "RegularTimeSeries")
COUNTS = "spike_counts"
"""Series in which `write_brainset` keeps a recording that came as counts."""
TIMES = ("timestamps", "timestamp_indices_1s", "domain")


def brainset_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Make the reader; see `neds.data.reader`. Raises `BadInput` for options it does not have."""
    if preset:
        raise BadInput("brainsets reader", "--preset", preset, "none")
    options = parse_options(words, SeriesOptions, "brainsets reader")
    return Reader(read=lambda source: read_brainset(source, options), files=one_file)


def read_brainset(path: str | Path, options: SeriesOptions | None = None) -> Session:
    """Read one file. Raises `BadInput` for a file that is none or holds no units that fired."""
    source = Path(path)
    if not source.is_file():
        raise BadInput(source, "file", "nothing there", "a brainsets HDF5 file")
    try:
        with naming(source), h5py.File(source, "r") as file:
            return _session(file, source, options or SeriesOptions())
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BadInput(source, "content", error, "a whole brainsets file (HDF5)") from error


def _session(file: Any, source: Path, options: SeriesOptions) -> Session:
    name = _id(file, "session", source.stem).replace("/", "-").lstrip(".")
    build = Builder(name, _id(file, "subject", ""), options)
    domain = None
    if "domain" in file:
        domain = np.stack([file["domain/start"][()], file["domain/end"][()]], axis=1)
    if "trials" in file:
        build.table({k: _column(v) for k, v in file["trials"].items() if k != "domain"})
    columns, more = _units(file)
    if options.behaviour:
        for name, words in options.behaviour.items():
            _named(build, file, name, words)
    else:
        for group in _series(file):
            _default(build, group)
    if "spikes" not in file and COUNTS in file:
        group = file[COUNTS]
        return build.finish_counts(group["counts"][()], group["bin"][()],
                                   float(group.attrs["bin_size_s"]), columns, domain)
    if "spikes" not in file or "units" not in file:
        raise BadInput(source, "groups", ", ".join(file), "spikes and units")
    times, unit = file["spikes/timestamps"][()], file["spikes/unit_index"][()]
    n = len(columns["cluster"])
    if len(times) != len(unit) or (len(unit) and not 0 <= unit.min() <= unit.max() < n):
        raise BadInput(source, "spikes.unit_index", f"{len(unit)} of {len(times)} spikes",
                       f"one below {n} for each spike")
    fs = float(file["spikes"].attrs.get("fs", 0.0))
    return build.finish(times, unit, columns, more, fs=fs, domain=domain)


def _id(file: Any, group: str, default: str) -> str:
    value = file[group].attrs.get("id", default) if group in file else default
    return value.decode() if isinstance(value, bytes) else str(value)


def _column(dataset: Any) -> NDArray[Any]:
    values = dataset[()]
    return texts(values) if values.dtype.kind in "OS" else np.asarray(values)


def _units(file: Any) -> tuple[Columns, Columns]:
    flat = {name: _column(item) for name, item in file.get("units", {}).items()
            if isinstance(item, h5py.Dataset) and item.ndim == 1}
    n = max((len(column) for column in flat.values()), default=0)
    columns: Columns = {"cluster": np.arange(n)}
    for name, dialects in NAMES.items():
        found = next((flat[d] for d in dialects if d in flat), None)
        if found is not None and (name in ("probe", "region") or found.dtype.kind in "fiu"):
            columns[name] = texts(found) if name in ("probe", "region") else found
    return columns, flat


def _series(group: Any) -> Iterator[Any]:
    for name, item in group.items():
        if not isinstance(item, h5py.Group) or name in ("spikes", COUNTS):
            continue
        if item.attrs.get("object") in SERIES:
            yield item
        elif item.attrs.get("object") == "Data":
            yield from _series(item)


def _times(group: Any, rows: int) -> NDArray[np.float64]:
    if "timestamps" in group:
        return np.asarray(group["timestamps"][()], np.float64)
    start = group["domain/start"][0] if "domain" in group else 0.0
    return np.asarray(start + np.arange(rows) / group.attrs["sampling_rate"], np.float64)


def _default(build: Builder, group: Any) -> None:
    """Add every float column of a series, else note why it is none."""
    own = group.attrs
    path = group.name.strip("/")
    columns = [name for name, item in group.items()
               if name not in TIMES and isinstance(item, h5py.Dataset)]
    for column in columns:
        name = (path if len(columns) == 1 else f"{path}.{column}").replace("/", ".")
        data = group[column]
        if data.dtype.kind != "f" or data.ndim not in (1, 2):
            build.drop("behaviour", name, f"{data.dtype} of shape {data.shape} may be codes or a "
                       f"trace: name it with behaviour.NAME={path}.{column}:KIND")
            continue
        build.behaviour(name, str(own.get("kind", "continuous")), _times(group, len(data)),
                        data[()], str(own.get("unit", "")), json.loads(own.get("classes", "[]")))


def _named(build: Builder, file: Any, name: str, words: str) -> None:
    """Add what an option names; a file that lacks it loses that behaviour, no more."""
    target, _, rest = words.partition(":")
    kind, _, unit = rest.partition(":")
    place, _, column = target.rpartition(".")
    place = place.replace(".", "/")
    if place not in file or column not in file[place]:
        build.drop("behaviour", name, f"no {target} in this file")
        return
    group = file[place]
    values: Any = _column(group[column])
    if group.attrs.get("object") == "Interval":
        build.labels(name, values, group["start"][()], group["end"][()])
        return
    classes: Sequence[str] = json.loads(group.attrs.get("classes", "[]"))
    if kind == "categorical" and not classes:
        values, classes = coded(values)
    build.behaviour(name, kind or str(group.attrs.get("kind", "continuous")),
                    _times(group, len(values)), values,
                    unit or str(group.attrs.get("unit", "")), classes)


def write_brainset(session: Session, path: str | Path) -> None:
    """Write a session so that temporaldata's `Data` and `read_brainset` read it.

    Raises `BadInput` for text that is not ASCII, which temporaldata cannot hold, and when nothing
    can be written.
    """
    target = Path(path)
    with naming(target), whole_file(target, "a brainsets file") as name, \
            h5py.File(name, "w") as file:
        file.attrs.update({"object": "Data", "absolute_start": 0.0})
        for group, name in (("session", session.session), ("subject", session.subject)):
            file.create_group(group).attrs.update(
                {"object": "Data", "absolute_start": 0.0, "id": name})
        start, end = session.intervals.T
        write_group(file, "domain", "Interval", {"start": start, "end": end})
        units = {name: getattr(session.units, name) for name in UNIT_COLUMNS}
        ids = [f"{probe}_{cluster}" for probe, cluster in
               zip(units["probe"], units["cluster"], strict=True)]
        write_group(file, "units", "ArrayDict", {"id": np.array(ids, np.str_), **units})
        _spikes(file, session)
        for key, b in session.behaviours.items():
            write_series(file, key, {"timestamps": b.timestamps, "values": b.values},
                       session.intervals, kind=b.kind, unit=b.unit,
                       classes=json.dumps(list(b.classes)))
        if session.trials:
            rows = len(next(iter(session.trials.values())))
            times = {"start": np.full(rows, np.nan), "end": np.full(rows, np.nan)}
            write_group(file, "trials", "Interval", times | dict(session.trials))


def _spikes(file: Any, session: Session) -> None:
    spikes = session.spikes
    if isinstance(spikes, Counts):
        write_series(file, COUNTS, {"timestamps": spikes.bin * spikes.bin_size_s, "bin": spikes.bin,
                                  "counts": spikes.counts},
                   session.intervals, bin_size_s=spikes.bin_size_s)
        return
    assert isinstance(spikes, Spikes)
    write_series(file, "spikes", {"timestamps": spikes.sample / spikes.fs,
                                "unit_index": spikes.unit_index.astype(np.int64)},
               session.intervals, fs=spikes.fs)


def write_series(
    file: Any, name: str, columns: Columns, domain: NDArray[np.float64], **own: Any
) -> None:
    """Write an IrregularTimeSeries: columns (n, ...) with their `timestamps`, domain (m, 2) s."""
    group = write_group(file, name, "IrregularTimeSeries", columns, **own)
    seconds = np.arange(domain[0, 0], domain[-1, 1] + 1.0, 1.0)
    group.create_dataset("timestamp_indices_1s",
                         data=np.searchsorted(columns["timestamps"], seconds))
    write_group(group, "domain", "Interval", {"start": domain[:, 0], "end": domain[:, 1]})


def write_regular(file: Any, name: str, columns: Columns, start_s: float, rate_hz: float) -> None:
    """Write a RegularTimeSeries: columns (n, ...), the first row at `start_s`."""
    rows = len(next(iter(columns.values())))
    group = file.create_group(name)
    for key, column in columns.items():
        group.create_dataset(key, data=column)
    group.attrs.update({"object": "RegularTimeSeries", "sampling_rate": rate_hz})
    write_group(group, "domain", "Interval",
                {"start": np.array([start_s]), "end": np.array([start_s + (rows - 1) / rate_hz])})


def write_group(parent: Any, name: str, like: str, columns: Columns, **own: Any) -> Any:
    """Write one object as temporaldata does: text as ASCII bytes, times and text listed."""
    group = parent.create_group(name)
    unicode = [key for key, column in columns.items() if column.dtype.kind == "U"]
    for key, column in columns.items():
        if key in unicode:
            try:
                column = column.astype("S")
            except UnicodeEncodeError as error:
                raise BadInput(name, key, error.object, "ASCII, as temporaldata holds it") \
                    from error
            if column.dtype.itemsize == 0:  # HDF5 has no text of length 0
                column = column.astype("S1")
        group.create_dataset(key, data=column)
    group.attrs.update({"object": like, "_unicode_keys": np.array(unicode, dtype="S"), **own})
    if like != "ArrayDict":
        times = ["timestamps"] if like == "IrregularTimeSeries" else ["start", "end"]
        group.attrs["timekeys"] = np.array(times, dtype="S")
    return group
