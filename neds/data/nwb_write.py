"""Sessions as NWB files, and decodes added to a file that exists.

Spike samples, time stamps and values come back to the bit from `neds.data.nwb`; what NWB has no
place for (a behaviour's kind and classes, the bins of counts) stands as JSON in a series' comments.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.nwb import COUNTS
from neds.data.parts import Behaviour, Counts, Spikes
from neds.data.reader import needed
from neds.data.session import Session
from neds.data.store import UNIT_COLUMNS
from neds.data.whole import whole_file
from neds_rt.errors import BadInput

ABOUT = {"probe": "probe", "channel": "channel on the probe, -1 unknown", "cluster": "sorter's id",
         "region": "brain region", "depth_um": "depth in micrometres"}


def write_nwb(session: Session, path: str | Path, *, start_time: datetime | None = None) -> None:
    """Write a session as an NWB file, whole or not at all.

    start_time: when the session began; by default what the session's metadata keeps of the NWB
    file it came from, else 1970. Raises `BadInput` when pynwb is missing or nothing can be written.
    """
    pynwb = needed("pynwb", "nwb", str(path))
    origin = session.metadata.get("nwb", {})
    began = start_time or datetime.fromisoformat(
        origin.get("session_start_time", datetime(1970, 1, 1, tzinfo=UTC).isoformat()))
    nwb = pynwb.NWBFile(
        session_description=f"session {session.session}", session_start_time=began,
        identifier=origin.get("identifier", session.session), session_id=session.session,
    )
    if session.subject:
        nwb.subject = pynwb.file.Subject(subject_id=session.subject)
    nwb.units = _units(session)
    if isinstance(session.spikes, Counts):
        _counts(nwb, session.spikes)
    if session.behaviours:
        module = nwb.create_processing_module("behavior", "behaviours of the session")
        for name, b in session.behaviours.items():
            module.add(_series(name, b, "behaviour"))
    _trials(nwb, session)
    with whole_file(Path(path), "an NWB file") as name, pynwb.NWBHDF5IO(name, "w") as io:
        io.write(nwb)


def write_decodes(
    source: str | Path, target: str | Path, decodes: Mapping[str, Behaviour], description: str
) -> None:
    """Copy an NWB file and add decodes: name -> values at their times, as a `Behaviour`.

    They come into the module `decoding`, under their names, with `description` (the model and how
    it was used). `target` may be `source`. Raises `BadInput` for a name that is there already.
    """
    pynwb = needed("pynwb", "nwb", str(target))
    if not Path(source).is_file():
        raise BadInput(source, "file", "nothing there", "an NWB file")
    with whole_file(Path(target), "an NWB file") as name:
        shutil.copyfile(source, name)
        with pynwb.NWBHDF5IO(name, "a") as io:
            nwb = io.read()
            module = nwb.processing.get("decoding") or nwb.create_processing_module(
                "decoding", "predictions of behaviour from spikes")
            for key, b in decodes.items():
                if key in module.data_interfaces:
                    raise BadInput(target, "decodes", repr(key), "a name that is not there yet")
                module.add(_series(key, b, description))
            io.write(nwb)


def _note(**facts: Any) -> str:
    return json.dumps({"neds": facts})


def _series(name: str, b: Behaviour, description: str) -> Any:
    from pynwb import TimeSeries

    return TimeSeries(name=name, data=_shaped(b.values), timestamps=np.array(b.timestamps),
                      unit=b.unit or "unknown", description=description,
                      comments=_note(kind=b.kind, classes=list(b.classes), unit=b.unit))


def _shaped(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array(values[:, 0] if values.shape[1] == 1 else values)


def _units(session: Session) -> Any:
    """The units table, filled column by column: a row at a time takes minutes for a session."""
    from hdmf.common import VectorData, VectorIndex
    from pynwb.misc import Units

    n = session.n_units
    columns: list[Any] = []
    if isinstance(session.spikes, Spikes):
        order = np.argsort(session.spikes.unit_index, kind="stable")
        seconds = session.spikes.sample[order] / session.spikes.fs
        ends = np.cumsum(np.bincount(session.spikes.unit_index, minlength=n))
        spans = np.tile(session.intervals, (n, 1))
        for name, data, stops in (
            ("spike_times", seconds, ends),
            ("obs_intervals", spans, np.arange(1, n + 1) * len(session.intervals)),
        ):
            held = VectorData(name=name, description=name.replace("_", " "), data=data)
            columns += [held, VectorIndex(name=f"{name}_index", target=held, data=stops)]
    for name in UNIT_COLUMNS:
        column = getattr(session.units, name)
        data = column.tolist() if column.dtype.kind == "U" else np.array(column)
        columns.append(VectorData(name=name, description=ABOUT[name], data=data))
    more = {"resolution": 1 / session.spikes.fs} if isinstance(session.spikes, Spikes) else {}
    return Units(name="units", description="sorted units", columns=columns, id=list(range(n)),
                 **more)


def _counts(nwb: Any, spikes: Counts) -> None:
    from pynwb import TimeSeries

    cut = np.flatnonzero(np.diff(spikes.bin) != 1) + 1
    first = spikes.bin[np.r_[0, cut]]
    length = np.diff(np.r_[0, cut, len(spikes.bin)])
    nwb.create_processing_module("ecephys", "binned spikes").add(TimeSeries(
        name=COUNTS, data=np.array(spikes.counts), timestamps=spikes.bin * spikes.bin_size_s,
        unit="spikes", description="spikes of each unit in each bin, by the bin's start",
        comments=_note(bin_size_s=spikes.bin_size_s,
                       first_bins=np.stack([first, length], axis=1).tolist())))


def _trials(nwb: Any, session: Session) -> None:
    """The trials table; without start and end columns the times are unknown (NaN)."""
    from hdmf.common import VectorData
    from pynwb.epoch import TimeIntervals

    if not session.trials:
        return
    rows = len(next(iter(session.trials.values())))
    unknown = np.full(rows, np.nan)
    data = {"start_time": session.trials.get("start", unknown),
            "stop_time": session.trials.get("end", unknown)}
    data |= {k: v for k, v in session.trials.items() if k not in ("start", "end")}
    columns = [VectorData(name=name, description=name.replace("_", " "),
                          data=column.tolist() if column.dtype.kind == "U" else np.array(column))
               for name, column in data.items()]
    nwb.trials = TimeIntervals(name="trials", description="trials", columns=columns,
                               id=list(range(rows)))
