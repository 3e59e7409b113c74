"""Reader `nwb`: Neurodata Without Borders files: units, trials, series as behaviours.

Units: spike times; probe, channel, region from columns of these names, else from electrode groups
and electrodes. Trials: the trials table. Behaviours: those of `behaviour.NAME=SERIES[:KIND[:UNIT]]`
where SERIES is a path in the file or its end, or `trials.COLUMN` for a label that holds from start
to stop of its trial; by default every series of the module `behavior` whose kind is certain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.build import Builder, coded, texts
from neds.data.checks import naming
from neds.data.nwb_units import spikes_of, unit_columns
from neds.data.reader import Reader, SeriesOptions, needed, one_file, parse_options
from neds.data.session import Session
from neds_rt.errors import BadInput

COUNTS = "spike_counts"
"""Series (bins, units) in which `write_nwb` keeps a recording that came as counts."""
MODULES = ("behavior", "behaviour")
ANGLES = {"radians": 1.0, "radian": 1.0, "rad": 1.0, "degrees": np.pi / 180, "degree": np.pi / 180,
          "deg": np.pi / 180}


def nwb_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Make the reader; see `neds.data.reader`. Raises `BadInput` for options it does not have."""
    if preset:
        raise BadInput("nwb reader", "--preset", preset, "none")
    options = parse_options(words, SeriesOptions, "nwb reader")
    return Reader(read=lambda source: read_nwb(source, options), files=one_file)


def read_nwb(path: str | Path, options: SeriesOptions | None = None) -> Session:
    """Read one NWB file. Raises `BadInput` for a file that is none or holds no units that fired."""
    source, options = Path(path), options or SeriesOptions()
    if not source.is_file():
        raise BadInput(source, "file", "nothing there", "an NWB file")
    pynwb = needed("pynwb", "nwb", str(source))
    try:
        with naming(source), pynwb.NWBHDF5IO(str(source), "r", load_namespaces=True) as io:
            return _session(io.read(), source, options)
    except BadInput:
        raise
    except Exception as error:  # hdmf raises whatever the file provokes
        raise BadInput(source, "content", f"{type(error).__name__}: {error}",
                       "a whole NWB file") from error


def _session(nwb: Any, source: Path, options: SeriesOptions) -> Session:
    subject = nwb.subject.subject_id if nwb.subject is not None else None
    name = (nwb.session_id or source.stem).replace("/", "-").lstrip(".")
    build = Builder(name, subject or "", options)
    build.metadata["nwb"] = {"identifier": nwb.identifier,
                             "session_start_time": nwb.session_start_time.isoformat()}
    if nwb.trials is not None:
        _trials(build, nwb.trials)
    found = _series(nwb)
    counts = found.pop(next((p for p in found if p.endswith("/" + COUNTS)), ""), None)
    if options.behaviour:
        for name, words in options.behaviour.items():
            _named(build, found, name, words)
    else:
        for path, series in found.items():
            _default(build, path, series)
    if nwb.units is None or len(nwb.units) == 0:
        raise BadInput(build.session, "units", "no table of units", "sorted units")
    columns, more = unit_columns(nwb.units)
    if counts is not None and "spike_times" not in nwb.units.colnames:
        size, bins = _own(counts)["bin_size_s"], np.asarray(_own(counts)["first_bins"], np.int64)
        return build.finish_counts(np.asarray(counts.data[()]), _rows(bins), size, columns)
    times, unit, fs, domain = spikes_of(nwb.units, build)
    return build.finish(times, unit, columns, more, fs=fs, domain=domain)


def _rows(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bins of runs given as (n, 2): first bin and length."""
    return np.concatenate([np.arange(first, first + length) for first, length in runs.tolist()])


def _trials(build: Builder, table: Any) -> None:
    rename = {"start_time": "start", "stop_time": "end"}
    columns: dict[str, Any] = {}
    for name in table.colnames:
        column = table[name]
        if name == "timeseries":
            continue
        if type(column).__name__ in ("VectorIndex", "DynamicTableRegion"):
            build.drop("column", name, "more than one value a trial")
            continue
        data = column.data[:]
        text = len(data) and isinstance(data[0], str | bytes)
        columns[rename.get(name, name)] = texts(data) if text else np.asarray(data)
    build.table(columns)


def _series(nwb: Any) -> dict[str, Any]:
    """Every time series of the file by its path, such as processing/behavior/Position/cursor."""
    from pynwb import TimeSeries

    found = {}
    for item in nwb.objects.values():
        if isinstance(item, TimeSeries):
            parts, owner = [item.name], item.parent
            while owner is not None and owner is not nwb:
                parts.append(owner.name)
                owner = owner.parent
            inside = len(parts) > 1 and parts[-1] in nwb.processing
            found["/".join(["processing" if inside else "acquisition", *reversed(parts)])] = item
    return dict(sorted(found.items()))


def _own(series: Any) -> dict[str, Any]:
    """What `write_nwb` noted of a series, or nothing."""
    try:
        note = json.loads(series.comments or "")
        own: dict[str, Any] = note["neds"]
    except (ValueError, KeyError, TypeError):
        return {}
    return own if isinstance(own, dict) else {}


def _default(build: Builder, path: str, series: Any) -> None:
    """Add a series of the behaviour module if its kind is certain, else note why not."""
    parts = path.split("/")
    spatial = type(series).__name__ == "SpatialSeries"
    if not spatial and not (parts[0] == "processing" and parts[1] in MODULES):
        return
    name = series.name if series.name not in build.behaviours else "_".join(parts[-2:])
    data = series.data
    own = _own(series)
    unit = str(own.get("unit", series.unit) or "")
    if own:
        _add(build, name, series, own["kind"], unit, own.get("classes", ()))
    elif len(getattr(data, "shape", ())) not in (1, 2) or not hasattr(data, "dtype"):
        build.drop("behaviour", name, f"{type(series).__name__} is no trace")
    elif data.dtype.kind != "f":
        build.drop("behaviour", name, f"{data.dtype} may be codes or a trace: name it with "
                   f"behaviour.NAME={name}:KIND")
    elif type(series.parent).__name__ == "CompassDirection" and unit in ANGLES:
        _add(build, name, series, "circular", unit)
    elif unit in ANGLES:
        build.drop("behaviour", name, f"in {unit}, which may be an angle that wraps: name it with "
                   f"behaviour.NAME={name}:KIND")
    else:
        _add(build, name, series, "continuous", unit)


def _named(build: Builder, found: dict[str, Any], name: str, words: str) -> None:
    """Add what an option names; a file that lacks it loses that behaviour, no more."""
    target, _, rest = words.partition(":")
    kind, _, unit = rest.partition(":")
    if target.startswith("trials."):
        column = build.trials.get(target.removeprefix("trials."))
        if column is None or not {"start", "end"} <= set(build.trials):
            build.drop("behaviour", name, f"no {target} with start and stop in this file")
        else:
            build.labels(name, column, build.trials["start"], build.trials["end"])
        return
    hits = [path for path in found if path == target or path.endswith("/" + target)]
    if len(hits) != 1:
        known = ", ".join(found) or "none"
        build.drop("behaviour", name, f"{len(hits)} series are called {target}, of {known}")
        return
    series = found[hits[0]]
    own = _own(series)
    _add(build, name, series, kind or own.get("kind", "continuous"),
         unit or str(own.get("unit", series.unit) or ""), own.get("classes", ()))


def _add(
    build: Builder, name: str, series: Any, kind: str, unit: str, classes: Sequence[str] = ()
) -> None:
    raw = series.data[()] if hasattr(series.data, "shape") else np.asarray(series.data)
    times = series.timestamps
    if times is None:
        stamps = series.starting_time + np.arange(len(raw)) / series.rate
    else:
        stamps = np.asarray(times[()] if hasattr(times, "shape") else times)
    if kind == "categorical" and not classes:
        raw, classes = coded(np.asarray(raw).reshape(-1))
    elif kind != "categorical" and np.asarray(raw).dtype.kind in "fiub":
        scale = ANGLES.get(unit, 1.0) if kind == "circular" else 1.0
        factor, offset = float(series.conversion) * scale, float(series.offset or 0.0) * scale
        if (factor, offset) != (1.0, 0.0):
            raw = np.asarray(raw, np.float64) * factor + offset
        unit = "rad" if kind == "circular" and unit in ANGLES else unit
    build.behaviour(name, kind, stamps, raw, unit, classes)
