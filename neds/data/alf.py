"""Folders in ALF, the IBL's file naming, as arrays: spikes of all probes, trials, the wheel.

`neds.data.alf_files` says which file holds what and which of several counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.alf_files import alf_files, sortings
from neds.data.build import Builder, Columns, texts
from neds.data.checks import as_integers
from neds.data.reader import needed
from neds_rt.errors import BadInput

MAX_CLUSTER = 10_000_000  # a table of units has a row for each number up to the largest
WHEEL_HZ, WHEEL_CUTOFF_HZ, WHEEL_ORDER = 1000.0, 20.0, 8


class Alf:
    """The files of one session. Arrays are loaded by object and attribute, None where absent."""

    def __init__(self, folder: Path, revision: str = "") -> None:
        if not folder.is_dir():
            raise BadInput(folder, "folder", "nothing there", "a session in ALF")
        self.folder, self.files = folder, alf_files(folder, revision)

    def find(self, object: str, attribute: str, place: str | None = None) -> Path | None:
        """The preferred file of an attribute, in one folder or in any."""
        return next((f.path for f in self.files if f.object == object and f.attribute == attribute
                     and place in (None, f.place)), None)

    def load(self, object: str, attribute: str, place: str | None = None) -> Any:
        """What the file holds: an array, or a table of columns."""
        path = self.find(object, attribute, place)
        return None if path is None else load(path)

    def attributes(self, object: str) -> list[str]:
        """Attributes of an object that there are files of."""
        return list(dict.fromkeys(f.attribute for f in self.files if f.object == object))


def load(path: Path) -> Any:
    """An array (.npy) or a dict of columns (.pqt, .csv). Raises `BadInput`."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        pandas = needed("pandas", "ibl", str(path))
        frame = pandas.read_parquet(path) if path.suffix == ".pqt" else pandas.read_csv(path)
        return {str(name): frame[name].to_numpy() for name in frame.columns}
    except BadInput:
        raise
    except Exception as error:  # pyarrow raises whatever the file provokes
        raise BadInput(path, "content", f"{type(error).__name__}: {error}",
                       "a whole file without pickles") from error


def trials_of(alf: Alf, build: Builder) -> None:
    """The trials table: the one in parquet, and the columns that have files of their own."""
    columns: dict[str, Any] = {}
    for attribute in alf.attributes("trials"):
        try:
            value = alf.load("trials", attribute)
        except BadInput as error:
            build.drop("column", attribute, error)
            continue
        if isinstance(value, dict):
            columns = value | columns if attribute == "table" else columns
        elif attribute == "intervals" and value.ndim == 2 and value.shape[1] == 2:
            columns |= {"intervals_0": value[:, 0], "intervals_1": value[:, 1]}
        else:
            columns[attribute] = value.reshape(-1) if value.shape[1:] == (1,) else value
    build.table(columns)


def probes_of(
    alf: Alf, build: Builder
) -> tuple[NDArray[np.float64], NDArray[np.int32], Columns, Columns]:
    """Spikes of all probes, sorted by time, as (times, unit), and the merged unit table.

    A probe whose files do not fit together is left out. Raises `BadInput` when none is left.
    """
    found = sortings(alf.files)
    parts, done = [], 0
    for probe, (place, *others) in found.items():
        for other in others:
            build.drop("column", f"{other}/spikes",
                       f"another sorting of {probe} comes first, that in {place}")
        try:
            times, unit, columns, more = _probe(alf, place, probe, build)
        except BadInput as error:
            build.drop("probe", probe, error)
            continue
        parts.append((times, unit + np.int32(done) if done else unit, columns, more))
        done += len(columns["cluster"])
    if not parts:
        raise BadInput(alf.folder, "spikes", f"{len(found)} probes, none usable",
                       "spikes.times and spikes.clusters")
    columns, more = (_joined([part[i] for part in parts]) for i in (2, 3))
    times, unit = parts[0][:2]  # an hour's spikes are hundreds of megabytes: no copy without need
    if len(parts) > 1:
        times, unit = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        parts.clear()
    if not (times[1:] >= times[:-1]).all():  # NaN is not sorted either
        order = np.argsort(times, kind="stable")
        times, unit = times[order], unit[order]
    return times, unit, columns, more


def _joined(tables: list[Any]) -> Columns:
    shared = set.intersection(*(set(table) for table in tables))
    return {name: np.concatenate([table[name] for table in tables]) for name in sorted(shared)}


def _probe(
    alf: Alf, place: str, probe: str, build: Builder
) -> tuple[NDArray[np.float64], NDArray[np.int32], Columns, Columns]:
    times = np.asarray(alf.load("spikes", "times", place), np.float64).reshape(-1)
    clusters = alf.load("spikes", "clusters", place)
    if clusters is None or len(clusters) != len(times):
        raise BadInput(place, "spikes.clusters", "absent" if clusters is None else len(clusters),
                       f"one for each of {len(times)} spikes")
    clusters = clusters.reshape(-1)
    if clusters.dtype.kind not in "iu":
        clusters = as_integers("spikes.clusters", clusters)
    least, most = (int(clusters.min()), int(clusters.max())) if len(clusters) else (0, 0)
    if least < 0 or most > MAX_CLUSTER:
        raise BadInput(place, "spikes.clusters", least if least < 0 else most,
                       f"0 to {MAX_CLUSTER}")
    unit = np.asarray(clusters, np.int32)
    loaded = {a: alf.load("clusters", a, place) for a in alf.attributes("clusters")
              if alf.find("clusters", a, place)}
    metrics = loaded.pop("metrics", None)
    flat = {a: v for a, v in loaded.items() if isinstance(v, np.ndarray) and v.ndim == 1}
    n = max([len(v) for v in flat.values()] + [int(unit.max()) + 1 if len(unit) else 0])
    more = {name: _row_by_row(column, n) for name, column in flat.items()}
    if isinstance(metrics, dict):
        rows = np.asarray(metrics.get("cluster_id", np.arange(len(metrics.get("label", ())))))
        for name, column in metrics.items():
            if column.dtype.kind in "fiu" and name not in more and len(column) == len(rows):
                more[name] = np.full(n, np.nan)
                more[name][rows[rows < n].astype(int)] = column[rows < n]
    columns: Columns = {
        "cluster": more.get("ids", np.arange(n)), "probe": np.full(n, probe),
        "channel": _whole(more.get("channels"), n), "depth_um": _numbers(more.get("depths"), n),
        "region": _regions(alf, place, probe, more, n, build)}
    return times, unit, columns, more


def _row_by_row(column: NDArray[Any], n: int) -> NDArray[Any]:
    """A cluster column with a row for every cluster, unknown where the file ends before."""
    column = column[:n]
    if column.dtype.kind not in "fiu":
        return np.concatenate([texts(column), np.full(n - len(column), "")])
    if len(column) == n:
        return column
    return np.concatenate([column.astype(np.float64), np.full(n - len(column), np.nan)])


def _numbers(column: NDArray[Any] | None, n: int) -> NDArray[np.float64]:
    usable = column is not None and column.dtype.kind in "fiu"
    return np.asarray(column, np.float64) if usable else np.full(n, np.nan)


def _whole(column: NDArray[Any] | None, n: int) -> NDArray[np.int64]:
    numbers = _numbers(column, n)
    return np.where(np.isfinite(numbers), numbers, -1).astype(np.int64)


def _regions(
    alf: Alf, place: str, probe: str, more: Columns, n: int, build: Builder
) -> NDArray[Any]:
    """Acronym of each cluster's region, from the clusters' files or those of their channels."""
    for name in ("acronym", "brainLocationAcronyms"):
        if name in more:
            return texts(more[name])
    ids, channel = more.get("brainLocationIds"), _whole(more.get("channels"), n)
    for name in ("acronym", "brainLocationAcronyms", "brainLocationIds"):
        column = alf.load("channels", name, place)
        if column is not None and ids is None and n and channel.max() < len(column):
            known = np.where(channel >= 0, channel, 0)
            if name != "brainLocationIds":
                return np.where(channel >= 0, texts(column)[known], "")
            ids = np.where(channel >= 0, column[known], 0)
    reason = "no histology: regions unknown"
    if ids is not None:
        try:
            atlas = needed("iblatlas.regions", "ibl", probe).BrainRegions()
            regions = one_by_one(np.asarray(ids, np.int64), atlas.id2acronym)
            if lost := int((regions == "").sum()):
                build.drop("column", f"{probe} region", "number is none of the Allen atlas", lost)
            return regions
        except (BadInput, ValueError, IndexError, KeyError) as error:
            reason = f"regions are numbers of the Allen atlas, unknown: {error}"
    build.drop("column", f"{probe} region", reason)
    return np.full(n, "")


def one_by_one(names: NDArray[Any], mapped: Callable[[Any], Any]) -> NDArray[np.str_]:
    """Each of (n,) names or numbers as an atlas maps it, "" where it does not know it.

    The atlas leaves out what it does not know and returns the rest, so it is asked for each alone.
    """
    known, place = np.unique(names, return_inverse=True)
    found = [mapped(known[i : i + 1]) if known[i] != "" else [] for i in range(len(known))]
    return texts([row[0] if len(row) else "" for row in found])[place]


def wheel_velocity(
    times: NDArray[np.float64], position: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times (n,) and velocity (n,) in rad/s of a wheel at 1 kHz, as the IBL's own loader has it.

    Position is interpolated, low-passed at 20 Hz (Butterworth of order 8, both ways) and
    differenced. Raises `BadInput` for columns that do not fit together.
    """
    from scipy.signal import butter, sosfiltfilt

    if times.shape != position.shape or times.ndim != 1 or len(times) < 2:
        raise BadInput("wheel", "timestamps", f"{times.shape} and {position.shape} positions",
                       "two columns of one length")
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise BadInput("wheel", "timestamps", "unsorted or not numbers", "rising times")
    at = np.arange(times[0], times[-1], 1 / WHEEL_HZ)
    even = np.interp(at, times, position)
    section = butter(WHEEL_ORDER, WHEEL_CUTOFF_HZ / WHEEL_HZ * 2, btype="lowpass", output="sos")
    if len(even) <= 30:  # the filter pads by 27 samples
        raise BadInput("wheel", "timestamps", f"{len(at)} ms", "a longer recording")
    smooth = sosfiltfilt(section, even)
    return at, np.r_[0.0, np.diff(smooth)] * WHEEL_HZ
