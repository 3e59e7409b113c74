"""A spool -> session files as `neds prepare` writes them, laid out as `neds/data/store.py` says.

Sample numbers are kept, so that the bins of the file are those that were decoded live, unless
clocks of several probes were aligned, which `record` and `serve` each do by themselves. A restart
of the source begins another file: samples count anew there. Several probes go into one file with
one sample clock, as the assembler bins them, and cover what all of them cover.

Beside what `neds/data/store.py` lists, and ignored by whoever reads a session, stands what came:

    /received         attributes streams (JSON list of probes), mono_ns and real_ns (the monotonic
                      and the wall clock of the recording machine when it began)
    /received/frames  stream (n,) row of that list, sample (n,) watermark in the session's clock,
                      own_sample (n,) the same in the probe's own clock, ns (n,) when received
    /received/edges   stream, own_sample, ns (n,): rising edges of the line that probes share
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neds_rt.errors import BadInput, StartError
from neds_rt.recording.spool import EDGE, FRAME, OWN_CLOCK, START, own_watermark, read_spool
from neds_rt.recording.streams import Probe, Stream, common_spans, inside
from neds_rt.sources.replay import SCHEMA
from neds_rt.wire import decode_header

_LAST_NUMBER = re.compile(r"(\d+)\D*$")

Name = tuple[str, str, int]  # stream, electrode, sorted id


class Spooled(NamedTuple):
    """What a spool holds."""

    session: str
    subject: str
    probes: dict[str, Probe]
    names: dict[str, dict[int, Name]]  # probe -> unit number -> its name
    began: tuple[int, int]  # ns of the monotonic and of the wall clock, 0 where it is not known


def load_spool(path: Path) -> Spooled:
    """Read a spool by stream; raises `BadInput`."""
    session = subject = ""
    began, own = (0, 0), None
    known: dict[str, Probe] = {}
    probes: dict[str, Probe] = {}  # those that sent frames, in the order of their first
    names: dict[str, dict[int, Name]] = {}
    try:
        for record in read_spool(path):
            if record.tag == START:
                _, session, subject, *more = json.loads(record.head)
                began = (record.ns, int(more[0]) if more else 0)
            elif record.tag == OWN_CLOCK:
                own = own_watermark(record)
            elif record.tag == EDGE:
                probe, sample = json.loads(record.head)
                known.setdefault(probe, Probe()).edge(int(sample), record.ns)
            elif record.tag == FRAME:
                stream = decode_header(record.head).stream  # were checked when they were written
                probes[stream] = known.setdefault(stream, Probe())
                probes[stream].take(record.head, record.body, record.ns, own)
                own = None
            else:
                probe, number, *name = json.loads(record.head)
                names.setdefault(probe, {})[number] = (name[0], name[1], name[2])
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise BadInput(path, "record", error, "a spool of neds-rt record") from error
    for each in probes.values():
        each.end()
    return Spooled(session, subject, probes, names, began)


def write_sessions(spool: Path, out: Path, origin: dict[str, Any]) -> list[dict[str, Any]]:
    """Write `out`, and `out` with -2, -3... for what came after restarts; a row for each.

    Raises `BadInput` where probes of different rates are in one spool or a file cannot be written.
    """
    spooled = load_spool(spool)
    rounds = max((len(p.streams) for p in spooled.probes.values()), default=0)
    rows = []
    for k in range(rounds):
        streams = {
            name: p.streams[k] for name, p in spooled.probes.items() if len(p.streams) > k
        }
        if len(streams) < len(spooled.probes):  # so that no bin of that session was ever closed
            rows.append(_unwritten(f"session {k + 1}: only {', '.join(streams)} delivered"))
            continue
        target = out if k == 0 else out.with_name(f"{out.stem}-{k + 1}{out.suffix}")
        session = spooled.session if k == 0 else f"{spooled.session}-{k + 1}"
        rows.append(_write(target, session, spooled, streams, origin))
    return rows


def _unwritten(why: str) -> dict[str, Any]:
    return {"path": None, "why": why}


def _write(
    target: Path, session: str, spooled: Spooled, streams: dict[str, Stream],
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Write one session, whole or not at all."""
    rates = {stream.fs for stream in streams.values()}
    if len(rates) > 1:
        raise BadInput(target, "fs", sorted(rates), "probes of one rate; record others apart")
    fs = rates.pop()
    spans = common_spans([stream.spans for stream in streams.values()])
    if not len(spans):
        return _unwritten(f"{session}: the probes have no time in common")
    units: list[tuple[str, int, int]] = []
    samples, unit_index, source_units = [], [], []
    for probe, stream in streams.items():
        spikes, named = stream.spikes(), spooled.names.get(probe, {})
        n = int(spikes["unit"].max()) + 1 if len(spikes) else 0
        n = max(n, max(named, default=-1) + 1)
        spikes = spikes[inside(spikes["sample"], spans)]
        table = [_place(number, named.get(number)) for number in range(n)]
        order = sorted(range(n), key=lambda number: (table[number], number))
        row = np.empty(n, np.int64)
        row[order] = np.arange(len(units), len(units) + n)
        units += [(probe, *table[number]) for number in order]
        source_units += [[probe, *named.get(number, ("", "", number))] for number in order]
        samples.append(spikes["sample"].astype(np.int64))
        unit_index.append(row[spikes["unit"]])
    if not units:
        return _unwritten(f"{session}: no spikes")
    sample, unit = np.concatenate(samples), np.concatenate(unit_index)
    order_s = np.argsort(sample, kind="stable")
    arrays = {
        "spikes/sample": sample[order_s], "spikes/unit_index": unit[order_s].astype(np.int32),
        "units/channel": np.array([u[1] for u in units], np.int32),
        "units/cluster": np.array([u[2] for u in units], np.int32),
        "units/depth_um": np.full(len(units), np.nan, np.float32),
        "domain/start": spans[:, 0] / fs, "domain/end": spans[:, 1] / fs,
        **_received(list(streams.values())),
    }
    texts = {"units/probe": [u[0] for u in units], "units/region": [""] * len(units)}
    metadata = {"source_units": source_units, "source_sessions": {
        name: stream.session for name, stream in streams.items()}}
    attributes = {"schema": SCHEMA, "object": "Data", "session": session,
                  "subject": spooled.subject, "metadata": json.dumps(metadata),
                  "provenance": json.dumps(origin)}
    received = {"streams": json.dumps(list(streams)), "mono_ns": spooled.began[0],
                "real_ns": spooled.began[1]}
    _write_file(target, arrays, texts, attributes, {"spikes": {"fs": fs}, "received": received})
    counters = {name: stream.counters for name, stream in streams.items()}
    edges = sum(len(stream.edges) // 2 for stream in streams.values())
    return {"path": str(target), "session": session, "fs": fs, "spikes": len(sample),
            "units": len(units), "seconds": round(float((spans[:, 1] - spans[:, 0]).sum()) / fs, 3),
            "spans": len(spans), "edges": edges, "counters": counters}


def _received(streams: list[Stream]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of what came and when, by the order in which it came."""
    found = {}
    for group, columns, parts in (
        ("frames", ("sample", "own_sample", "ns"), [stream.received for stream in streams]),
        ("edges", ("own_sample", "ns"), [stream.edges for stream in streams]),
    ):
        rows = [np.array(part, np.int64).reshape(-1, len(columns)) for part in parts]
        stream = np.repeat(np.arange(len(rows), dtype=np.int32), [len(part) for part in rows])
        table = np.concatenate(rows)
        order = np.argsort(table[:, -1], kind="stable")
        found[f"received/{group}/stream"] = stream[order]
        for k, name in enumerate(columns):
            found[f"received/{group}/{name}"] = table[order, k]
    return found


def _place(number: int, name: Name | None) -> tuple[int, int]:
    """Return channel and cluster: of a named unit the electrode's last number and the sorted id."""
    if name is None:
        return -1, number
    found = _LAST_NUMBER.search(name[1][-80:])
    channel = int(found[1]) if found and len(found[1]) < 9 else -1
    return channel, name[2]


GROUPS = {"spikes": "IrregularTimeSeries", "units": "ArrayDict", "behaviour": "",
          "trials": "ArrayDict", "domain": "Interval", "received": "",
          "received/frames": "ArrayDict", "received/edges": "ArrayDict"}


def _write_file(
    target: Path, arrays: dict[str, Any], texts: dict[str, list[str]],
    attributes: dict[str, str], of_groups: dict[str, dict[str, Any]],
) -> None:
    try:
        import h5py
    except ImportError as error:
        raise StartError("writing sessions needs h5py: pip install 'neds[train]'") from error
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".h5")
    except OSError as error:
        raise BadInput(target, "folder", error.strerror, "a folder that can be written") from error
    os.close(handle)
    try:
        with h5py.File(name, "w") as file:
            file.attrs.update(attributes)
            for group, kind in GROUPS.items():
                made = file.create_group(group, track_order=True)
                if kind:
                    made.attrs["object"] = kind
            for group, own in of_groups.items():
                file[group].attrs.update(own)
            for path, array in arrays.items():
                packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
                file.create_dataset(path, data=array, **(packed if array.nbytes > 65536 else {}))
            for path, column in texts.items():
                file.create_dataset(path, data=column, dtype=h5py.string_dtype("utf-8"))
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise BadInput(target, "file", error, "a session file to be written") from error
        raise
