"""A recording of the benchmark as its HDF5 file has it: what windows, truth and parts are made of.

    /spikes      timestamps (n,) s, unit_index (n,)
    /units       id, region_cosmos, probe_id, depths, ...; ts2_co_smoothing_is_held_out_test
    /whisker /wheel /paws /licks           regular series at 50 Hz
    /task_aligned_intervals/NAME           start, end, trial_index and the label of the same name
    /ts1_train_domain ... /ts2_test_domain start, end; /ts1_normalize/GROUP/NAME: mean, std

`neds.data.brainsets` makes a session of the same file, with the preset "bwb".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from neds.bwb.tasks import RATE_HZ, TASKS, Task
from neds.data.build import texts
from neds_rt.errors import BadInput

Floats = NDArray[np.float64]
SUITE_BUILD = {"ts1": "all_units", "ts2": "selected_units", "ts3": "selected_units"}
"""The build of the data that each suite is reported on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A behaviour at 50 Hz: times (n,) s, values (n,), sure (n,) where it can be trusted."""

    times: Floats
    values: Floats
    sure: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Windows of a task of TS1: span (n, 2) s, trial (n,) int64, label (n,) or None."""

    span: Floats
    trial: NDArray[np.int64]
    label: NDArray[np.int64] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One recording. times (n,) s, sorted, and unit (n,): the spikes. Units are rows 0..U-1.

    id, region, probe (U,) text, depth_um (U,); held_out (U,) or None where the build says nothing;
    trials (n, 2): spans of all windows of a trial; parts: "ts1_train" ... -> (n, 2) s; scale:
    task -> (mean, sd) that its truth is z-scored with.
    """

    path: Path
    recording: str
    subject: str
    build: str
    version: str
    times: Floats
    unit: NDArray[np.int64]
    id: NDArray[np.str_]
    region: NDArray[np.str_]
    probe: NDArray[np.str_]
    depth_um: Floats
    held_out: NDArray[np.bool_] | None
    domain: Floats
    trials: Floats
    parts: dict[str, Floats]
    traces: dict[str, Trace]
    windows: dict[str, Windows]
    scale: dict[str, tuple[float, float]]

    @property
    def n_units(self) -> int:
        """Number of units U."""
        return len(self.id)

    def part(self, suite: str, part: str) -> Floats:
        """Intervals (n, 2) of a suite's "train", "val" or "test" part. Raises `BadInput`."""
        name = f"{suite}_{part}"
        if name not in self.parts:
            raise BadInput(self.path, f"{name}_domain", "nothing there",
                           "a recording of the benchmark's eval regime")
        return self.parts[name]

    def lacks(self, task: Task) -> str:
        """Why the task cannot be run on this recording; empty where it can."""
        if task.suite in ("ts1", "ts2") and not len(self.parts.get(f"{task.suite}_test", ())):
            return f"no {task.suite} test part in this recording"
        if task.suite == "ts1":
            there = task.name in (self.windows if task.kind == "label" else self.traces)
            return "" if there else f"no {task.values} in this recording"
        if task.name == "co_smoothing" and self.held_out is None:
            return f"units held out are not marked (build {self.build})"
        return ""


def read_source(path: str | Path, spikes: bool = True) -> Source:
    """Read one file, without `spikes` all but these (which are most of it).

    Raises `BadInput` for a file that is none of the benchmark's.
    """
    where = Path(path)
    try:
        with h5py.File(where, "r") as file:
            return _read(file, where, spikes)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BadInput(where, "content", error, "a BrainWideBench recording (HDF5)") from error


def _read(file: Any, where: Path, spikes: bool) -> Source:
    units = file["units"]
    ids = texts(units["id"][()])
    these: Any = () if spikes else slice(0)
    times, unit = file["spikes/timestamps"][these], file["spikes/unit_index"][these]
    if len(times) != len(unit) or (len(unit) and not 0 <= unit.min() <= unit.max() < len(ids)):
        raise BadInput(where, "spikes.unit_index", f"{len(unit)} of {len(times)} spikes",
                       f"one below {len(ids)} for each spike")
    held = "ts2_co_smoothing_is_held_out_test"
    about = file["brainset"].attrs if "brainset" in file else {}
    order = np.argsort(times, kind="stable")
    return Source(
        path=where, recording=_text(file["session"].attrs["id"]),
        subject=_text(file["subject"].attrs["id"]),
        build=_text(about.get("unit_filtering", "unknown")),
        version=_text(about.get("derived_version", "unknown")),
        times=np.asarray(times, np.float64)[order], unit=np.asarray(unit, np.int64)[order], id=ids,
        region=texts(units["region_cosmos"][()]), probe=texts(units["probe_id"][()]),
        depth_um=np.asarray(units["depths"][()], np.float64),
        held_out=np.asarray(units[held][()], bool) if held in units else None,
        domain=_spans(file["domain"]), trials=_spans(file["task_aligned_intervals/domain"]),
        parts={name.removesuffix("_domain"): _spans(group) for name, group in file.items()
               if name.endswith("_domain") and name.startswith("ts")},
        traces={t.name: trace for t in TASKS if t.times and t.times in file
                for trace in [_trace(file, t)] if trace is not None},
        windows={t.name: _windows(file, t) for t in TASKS if t.interval
                 and t.interval.replace(".", "/") in file},
        scale=_scales(file),
    )


def _trace(file: Any, task: Task) -> Trace | None:
    group = file[task.times]
    column = task.values.partition(".")[2]
    if column not in group:
        return None
    values = np.asarray(group[column][()], np.float64)
    if "timestamps" in group:
        times = np.asarray(group["timestamps"][()], np.float64)
    else:
        rate = float(group.attrs.get("sampling_rate", RATE_HZ))
        times = group["domain/start"][0] + np.arange(len(values)) / rate
    mask = task.mask.partition(".")[2]
    sure = np.ones(len(times), bool)
    if mask and mask in group:
        sure = np.asarray(group[mask][()], bool)
    return Trace(times=times, values=values, sure=sure)


def _windows(file: Any, task: Task) -> Windows:
    group = file[task.interval.replace(".", "/")]
    label = None
    if task.kind == "label":
        label = np.asarray(group[task.name][()], np.int64)
    return Windows(span=_spans(group), trial=np.asarray(group["trial_index"][()], np.int64),
                   label=label)


def _scales(file: Any) -> dict[str, tuple[float, float]]:
    found = {}
    for task in TASKS:
        place = f"ts1_normalize/{task.values.replace('.', '/')}"
        if task.kind == "trace" and place in file:
            own = file[place]
            mean, sd = (own[k][()] if k in own else own.attrs[k] for k in ("mean", "std"))
            found[task.name] = (float(mean), float(sd))
    return found


def _spans(group: Any) -> Floats:
    starts, stops = group["start"][()], group["end"][()]
    return np.stack([np.asarray(starts, np.float64), np.asarray(stops, np.float64)], 1)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
