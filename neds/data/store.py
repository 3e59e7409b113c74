"""The session store: one HDF5 file a session, laid out as brainsets and temporaldata lay theirs.

    /spikes   sample (n,) int64, unit_index (n,) int32; attribute fs           events, or
    /counts   counts (T, U) uint8 or uint16, bin (T,) int64; attribute bin_size_s   counts
    /units    probe, channel, cluster, region, depth_um, each (U,)
    /behaviour/NAME  timestamps (n,), values (n, width); attributes kind, unit, classes, gaps
    /trials   columns of one length
    /domain   start (n,), end (n,) in seconds
    attributes of the file: schema, session, subject, metadata and provenance (JSON)

Groups carry the attribute `object` with the name of temporaldata's class for such data.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from neds.data.checks import naming
from neds.data.parts import Behaviour, Counts, Spikes, Units
from neds.data.session import Session
from neds.data.whole import whole_file
from neds_rt.errors import BadInput
from neds_rt.hdf5_limits import check_links, checked

SCHEMA = "neds-session-1"
UNIT_COLUMNS = ("probe", "channel", "cluster", "region", "depth_um")
# What h5py, json and numpy raise on a file that is damaged, or that another program wrote.
_UNREADABLE = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError,
               ArithmeticError)
PACKAGES = ("neds", "numpy", "h5py")


def session_path(folder: Path, session: str) -> Path:
    """Return where the session of that name lies in a store folder."""
    return folder / f"{session}.h5"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(
    reader: str, arguments: Mapping[str, Any], source: str, sha256: str
) -> dict[str, Any]:
    """Return what a session file says of its origin: source, reader, arguments and versions."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {"source": source, "sha256": sha256, "reader": reader, "arguments": dict(arguments),
            "versions": versions}


def write_session(
    session: Session, path: str | Path, *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write `session` to `path`, whole or not at all.

    `provenance` defaults to what the session's metadata holds under that name, as a session that
    was read does. Raises `BadInput` when the folder cannot be written.
    """
    target = Path(path)
    origin = dict(provenance or session.metadata.get("provenance", {}))
    with whole_file(target, "a session file") as name, h5py.File(name, "w") as file:
        _write(file, session, origin)


def _write(file: Any, session: Session, origin: dict[str, Any]) -> None:
    metadata = {k: v for k, v in session.metadata.items() if k != "provenance"}
    file.attrs.update({
        "schema": SCHEMA, "object": "Data", "session": session.session, "subject": session.subject,
        "metadata": json.dumps(metadata), "provenance": json.dumps(origin),
    })
    if isinstance(session.spikes, Spikes):
        spikes = _group(file, "spikes", "IrregularTimeSeries", fs=session.spikes.fs)
        _column(spikes, "sample", session.spikes.sample)
        _column(spikes, "unit_index", session.spikes.unit_index)
    else:
        counts = _group(file, "counts", "RegularTimeSeries", bin_size_s=session.spikes.bin_size_s)
        _column(counts, "counts", session.spikes.counts)
        _column(counts, "bin", session.spikes.bin)
    units = _group(file, "units", "ArrayDict")
    for name in UNIT_COLUMNS:
        _column(units, name, getattr(session.units, name))
    behaviours = file.create_group("behaviour", track_order=True)
    for name, b in session.behaviours.items():
        group = _group(behaviours, name, "IrregularTimeSeries", kind=b.kind, unit=b.unit,
                       classes=json.dumps(list(b.classes)), gaps=b.gaps)
        _column(group, "timestamps", b.timestamps)
        _column(group, "values", b.values)
    trials = _group(file, "trials", "ArrayDict")
    for name, column in session.trials.items():
        _column(trials, name, column)
    domain = _group(file, "domain", "Interval")
    _column(domain, "start", session.intervals[:, 0])
    _column(domain, "end", session.intervals[:, 1])


def _group(parent: Any, name: str, like: str, /, **attributes: Any) -> Any:
    group = parent.create_group(name, track_order=True)
    group.attrs.update({"object": like} | attributes)
    return group


def _column(group: Any, name: str, array: NDArray[Any]) -> None:
    if array.dtype.kind == "U":
        group.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype("utf-8"))
        return
    # Counts and times shrink well; small columns are stored as they are, without chunks.
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    group.create_dataset(name, data=array, **(packed if array.nbytes > 65536 else {}))


def read_session(path: str | Path) -> Session:
    """Read a session; its provenance is in `metadata["provenance"]`.

    Raises `BadInput` for a missing, truncated or foreign file, another schema version, or content
    that does not make a session.
    """
    source = Path(path)
    if not source.is_file():
        raise BadInput(source, "file", "nothing there", "a session file")
    try:
        with naming(source), h5py.File(source, "r") as file:
            found = file.attrs.get("schema", "no schema")
            if found != SCHEMA:
                raise BadInput(source, "schema", found, SCHEMA)
            check_links(file)
            return _read(file)
    except _UNREADABLE as error:
        raise BadInput(source, "content", error, "a whole session file (HDF5)") from error


def read_facts(path: str | Path) -> dict[str, Any]:
    """What a session file says of itself, without its data: session, subject, units, seconds,
    behaviours and metadata. Raises `BadInput` as `read_session` does."""
    source = Path(path)
    try:
        with naming(source), h5py.File(source, "r") as file:
            if file.attrs.get("schema") != SCHEMA:
                raise BadInput(source, "schema", file.attrs.get("schema", "no schema"), SCHEMA)
            check_links(file)
            seconds = _numbers(file["domain/end"]) - _numbers(file["domain/start"])
            return {"session": str(file.attrs["session"]), "subject": str(file.attrs["subject"]),
                    "units": len(file["units/cluster"]), "seconds": float(seconds.sum()),
                    "behaviours": list(file["behaviour"].keys()), "metadata": _metadata(file)}
    except _UNREADABLE as error:
        raise BadInput(source, "content", error, "a whole session file (HDF5)") from error


def _metadata(file: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads(file.attrs["metadata"])
    metadata["provenance"] = json.loads(file.attrs["provenance"])
    return metadata


def _read(file: Any) -> Session:
    metadata = _metadata(file)
    domain = np.stack([_numbers(file["domain/start"]), _numbers(file["domain/end"])], axis=1)
    units = file["units"]
    return Session(
        session=str(file.attrs["session"]),
        subject=str(file.attrs["subject"]),
        spikes=_read_spikes(file),
        units=Units(**{name: _read_column(units[name]) for name in UNIT_COLUMNS}),
        behaviours={name: _read_behaviour(g) for name, g in file["behaviour"].items()},
        trials={name: _read_column(column) for name, column in file["trials"].items()},
        domain=domain,
        metadata=metadata,
    )


def _read_spikes(file: Any) -> Spikes | Counts:
    if "spikes" in file:
        group = file["spikes"]
        return Spikes(sample=_numbers(group["sample"]), unit_index=_numbers(group["unit_index"]),
                      fs=float(group.attrs["fs"]))
    group = file["counts"]
    return Counts(counts=_numbers(group["counts"]), bin=_numbers(group["bin"]),
                  bin_size_s=float(group.attrs["bin_size_s"]))


def _read_behaviour(group: Any) -> Behaviour:
    with naming(f"behaviour {group.name.rpartition('/')[2]}"):
        return Behaviour(
            kind=str(group.attrs["kind"]), timestamps=_numbers(group["timestamps"]),
            values=_numbers(group["values"]), unit=str(group.attrs["unit"]),
            classes=tuple(json.loads(group.attrs["classes"])), gaps=bool(group.attrs["gaps"]),
        )


def _read_column(dataset: Any) -> NDArray[Any]:
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return np.asarray(checked(dataset).asstr()[()], dtype=np.str_)
    return _numbers(dataset)


def _numbers(dataset: Any) -> NDArray[Any]:
    return np.asarray(checked(dataset)[()])
