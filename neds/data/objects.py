"""Sessions from what a Python program holds: plain arrays, or pynapple's objects, and back.

As with files, what does not fit is left out and noted (`neds.data.dropped.dropped`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neds.data.build import NAMES, Builder, Columns, coded, texts
from neds.data.parts import Behaviour, Spikes
from neds.data.reader import EventOptions, needed
from neds.data.session import Session
from neds.data.store import UNIT_COLUMNS
from neds_rt.errors import BadInput

Trace = tuple[ArrayLike, ArrayLike]


def from_arrays(
    session: str, trains: Sequence[ArrayLike], behaviours: Mapping[str, Trace | Behaviour] = {},
    *, units: Mapping[str, ArrayLike] | None = None, trials: Mapping[str, ArrayLike] | None = None,
    domain: ArrayLike | None = None, subject: str = "", fs: float = 30000.0, keep: str = "",
    keep_silent: bool = False,
) -> Session:
    """Make a session of spike times, one array of seconds a unit, and named behaviours.

    behaviours: name -> (times (n,) s, values (n,) or (n, width)), continuous for floats and
    categorical for text, booleans and integers; or a `Behaviour`. units: columns (U,) for `Units`
    and any other for `keep`. domain: intervals (n, 2) in seconds, by default from the first to the
    last thing recorded. Raises `BadInput` when no unit is left.
    """
    build = Builder(session, subject, EventOptions(keep=keep, keep_silent=keep_silent))
    build.table(trials or {})
    for name, given in behaviours.items():
        if isinstance(given, Behaviour):
            build.behaviours[name] = given
            continue
        times, values = np.asarray(given[0]), np.asarray(given[1])
        if values.dtype.kind == "f":
            build.behaviour(name, "continuous", times, values)
        else:
            codes, classes = coded(values.reshape(-1))
            build.behaviour(name, "categorical", times, codes, classes=classes)
    table = {name: np.asarray(column) for name, column in (units or {}).items()}
    columns: Columns = {"cluster": np.arange(len(trains))}
    columns |= {name: table[name] for name in UNIT_COLUMNS if name in table}
    for name, column in table.items():
        if column.shape != (len(trains),):
            raise BadInput(session, f"units.{name}", f"shape {column.shape}",
                           f"({len(trains)},), as there are that many trains")
    flat = [np.asarray(train, np.float64).reshape(-1) for train in trains]
    unit = np.repeat(np.arange(len(flat)), [len(train) for train in flat])
    times = np.concatenate(flat) if flat else np.zeros(0)
    where = None if domain is None else np.asarray(domain, np.float64).reshape(-1, 2)
    return build.finish(times, unit, columns, table, fs=fs, domain=where)


def from_pynapple(
    session: str, group: Any, behaviours: Mapping[str, Any] = {}, *, trials: Any = None,
    subject: str = "", fs: float = 30000.0, keep: str = "", keep_silent: bool = False,
) -> Session:
    """Make a session of a `TsGroup`, its behaviours (`Tsd` or `TsdFrame`) and trials.

    Units have the group's keys as clusters and its metadata as columns; the group's time support
    is the domain, behaviours are unknown outside their own. trials: an `IntervalSet`; its metadata
    are columns. Raises `BadInput` for times before 0 alone, and when no unit is left.
    """
    if not hasattr(group, "time_support") or not hasattr(group, "keys"):
        raise BadInput(session, "group", type(group).__name__, "a pynapple TsGroup")
    keys = list(group.keys())
    table: Columns = {"cluster": np.array(keys)}
    known = {name: np.asarray(group.get_info(name)) for name in group.metadata_columns}
    for name, dialects in NAMES.items():
        found = next((known[d] for d in dialects if d in known), None)
        if found is not None:
            table[name] = texts(found) if name in ("probe", "region") else found
    known = {name: texts(c) if c.dtype.kind in "OSU" else c for name, c in known.items()}
    support = np.stack([group.time_support.start, group.time_support.end], axis=1)
    support[:, 0] = np.maximum(support[:, 0], 0.0)
    columns = None
    if trials is not None:
        columns = {"start": np.asarray(trials.start), "end": np.asarray(trials.end),
                   **{name: np.asarray(trials.get_info(name)) for name in trials.metadata_columns}}
    return from_arrays(session, [group[key].t for key in keys],
                       {name: _closed(b) for name, b in behaviours.items()},
                       units={**known, **table}, trials=columns,
                       domain=support[support[:, 1] > support[:, 0]], subject=subject, fs=fs,
                       keep=keep, keep_silent=keep_silent)


def _closed(series: Any) -> Trace:
    """Times and values, with a NaN after each epoch but the last, so that nothing is interpolated
    from one epoch to the next."""
    times, values = np.asarray(series.t), np.asarray(series.d)
    ends = np.asarray(series.time_support.end)[:-1]
    at = np.searchsorted(times, ends, side="right")
    if values.dtype.kind != "f" or not len(ends):
        return times, values
    return np.insert(times, at, ends), np.insert(values, at, np.nan, axis=0)


def to_pynapple(session: Session) -> tuple[Any, dict[str, Any]]:
    """A session as a `TsGroup`, with the unit table as metadata, and its behaviours by name.

    Behaviours are `Tsd` (one column) or `TsdFrame`, without the rows that are unknown; angles in
    radians, categories as codes. Raises `BadInput` for a recording that comes as counts.
    """
    if not isinstance(session.spikes, Spikes):
        raise BadInput(session.session, "spikes", "counts", "spike events")
    nap = needed("pynapple", "pynapple", session.session)
    support = nap.IntervalSet(*session.intervals.T)
    seconds = session.spikes.sample / session.spikes.fs
    trains = {i: nap.Ts(t=seconds[session.spikes.unit_index == i], time_support=support)
              for i in range(session.n_units)}
    group = nap.TsGroup(trains, time_support=support)
    group.set_info(**{name: _column(session, name) for name in UNIT_COLUMNS})
    series = {}
    for name, b in session.behaviours.items():
        known = np.isfinite(b.values).all(axis=1)
        times, values = b.timestamps[known], b.values[known]
        series[name] = (nap.Tsd(t=times, d=values[:, 0]) if b.width == 1
                        else nap.TsdFrame(t=times, d=values))
    return group, series


def _column(session: Session, name: str) -> NDArray[Any]:
    return np.array(getattr(session.units, name))
