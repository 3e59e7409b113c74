"""Sessions as folders in ALF, which `neds.data.ibl.read_alf` reads back.

Spikes, clusters and trials have the IBL's names. ALF has no place for a behaviour of any kind, so
behaviours are objects of the namespace `neds`, described with domain and names in one JSON file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from neds.data.parts import Spikes
from neds.data.session import Session
from neds_rt.errors import BadInput


def write_alf(session: Session, folder: str | Path) -> None:
    """Write a session of spike events as a new folder, whole or not at all.

    Units are written by probe; within a probe they keep their order. Raises `BadInput` for a
    recording that comes as counts, and where the folder is there already or cannot be written.
    """
    target = Path(folder)
    if not isinstance(session.spikes, Spikes):
        raise BadInput(target, "spikes", "counts", "spike events: ALF has no place for counts")
    if target.exists() and any(target.iterdir()):
        raise BadInput(target, "folder", "there already", "a new folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            _write(session, session.spikes, work / "alf")
            work.chmod(0o755)
            os.replace(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        raise BadInput(target, "folder", error, "a folder that can be written") from error


def _write(session: Session, spikes: Spikes, alf: Path) -> None:
    alf.mkdir()
    units = session.units
    for number, probe in enumerate(dict.fromkeys(units.probe.tolist())):
        rows = np.flatnonzero(units.probe == probe)
        mine = np.isin(spikes.unit_index, rows)
        name = probe if probe.startswith("probe") else f"probe{number:02d}"
        _save(alf / name, "", {
            "spikes.times": spikes.sample[mine] / spikes.fs,
            "spikes.clusters": np.searchsorted(rows, spikes.unit_index[mine]).astype(np.int32),
            "clusters.channels": units.channel[rows],
            "clusters.depths": units.depth_um[rows],
            "clusters.brainLocationAcronyms_ccf_2017": units.region[rows],
            "clusters.ids": units.cluster[rows],
        })
    _save(alf, "_ibl_trials.", _trials(session))
    facts: list[dict[str, Any]] = []
    for number, (name, b) in enumerate(session.behaviours.items()):
        _save(alf, f"_neds_behaviour{number}.", {"times": b.timestamps, "values": b.values})
        facts.append({"name": name, "kind": b.kind, "unit": b.unit, "classes": list(b.classes)})
    note = {"session": session.session, "subject": session.subject, "fs": spikes.fs,
            "domain": session.intervals.tolist(), "behaviours": facts}
    (alf / "_neds_session.neds.json").write_text(json.dumps(note))


def _trials(session: Session) -> dict[str, Any]:
    columns = dict(session.trials)
    if {"intervals_0", "intervals_1"} <= set(columns):
        columns["intervals"] = np.stack(
            [columns.pop("intervals_0"), columns.pop("intervals_1")], axis=1)
    return columns


def _save(folder: Path, prefix: str, arrays: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{prefix}{name}.npy", np.asarray(array))
