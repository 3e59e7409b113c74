"""Which file of a folder in ALF, the IBL's file naming, holds what, and which of several is read.

A file is `[_namespace_]object.attribute[_timescale][.more].extension`, here npy, pqt or csv, below
the session's folder. Of several of one name those in `alf/` come before others, and those in a
revision folder (`#2024-05-06#`), the newest first, before those in none. Of several sortings of a
probe that of `SORTERS` is read that comes first there, else that in the shallowest folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

NAME = re.compile(r"(?:_(?P<space>\w+?)_)?(?P<object>[A-Za-z0-9]+)\.(?P<attribute>[A-Za-z0-9_]+)"
                  r"(?:\.[^.]+)*\.(?P<suffix>npy|pqt|csv|json)")
REVISION = re.compile(r"#(.+)#")
OBJECTS = ("spikes", "clusters", "channels", "trials", "wheel", "leftCamera", "rightCamera",
           "session", "behaviour")
USED = {"spikes": ("times", "clusters"), "leftCamera": ("times", "ROIMotionEnergy"),
        "rightCamera": ("times", "ROIMotionEnergy"), "wheel": ("timestamps", "position")}
SORTERS = ("iblsorter", "pykilosort")
"""Folders of sortings below a probe's, in the order in which the IBL's own loader prefers them."""


@dataclass(frozen=True)
class AlfFile:
    """One file of a folder: `place` is its folder below the session, revisions taken out."""

    path: Path
    place: str
    object: str
    attribute: str
    revision: str


def alf_files(folder: Path, revision: str = "") -> list[AlfFile]:
    """Every file below a session's folder that a reader of sessions uses, the preferred first.

    revision: a date; files of later revisions are left out.
    """
    paths = [path for path in folder.rglob("*.*") if path.is_file()]
    return preferred([(path, path.relative_to(folder)) for path in paths], revision)


def preferred(paths: Iterable[tuple[Path, PurePath]], revision: str = "") -> list[AlfFile]:
    """What `alf_files` returns, of pairs of a path and the same below the session's folder."""
    found = []
    for path, below in paths:
        match = NAME.fullmatch(below.name)
        if match is None or not wanted(match):
            continue
        plain = [part for part in below.parts[:-1] if not REVISION.fullmatch(part)]
        own = next((part for part in below.parts[:-1] if part not in plain), "")
        if not revision or own.strip("#") <= revision:
            found.append(AlfFile(path, "/".join(plain), match["object"], _attribute(match), own))
    found.sort(key=lambda f: str(f.path))
    found.sort(key=lambda f: f.revision, reverse=True)
    return sorted(found, key=lambda f: (not f.place.startswith("alf"), _rank(f.place),
                                        f.place.count("/")))


def _rank(place: str) -> int:
    """Place in `SORTERS` of the sorter that a folder is named after, their number if of none."""
    last = place.rpartition("/")[2]
    return SORTERS.index(last) if last in SORTERS else len(SORTERS)


def sortings(files: Sequence[AlfFile]) -> dict[str, list[str]]:
    """Probe -> folders with a sorting of it, the one that is read first."""
    found: dict[str, list[str]] = {}
    for f in files:
        if (f.object, f.attribute) == ("spikes", "times"):
            probe = next((p for p in f.place.split("/") if p.startswith("probe")),
                         f.place or "probe00")
            places = found.setdefault(probe, [])
            places += [f.place] if f.place not in places else []
    return dict(sorted(found.items()))


def chosen(files: Sequence[AlfFile]) -> list[AlfFile]:
    """The files that a reader loads: the preferred of every name, and of one sorting a probe."""
    read = {places[0] for places in sortings(files).values()}
    first: dict[tuple[str, ...], AlfFile] = {}
    for f in files:
        sorted_there = f.object in ("spikes", "clusters", "channels")
        if not sorted_there or f.place in read:
            key = (f.object, f.attribute, f.place if sorted_there else "")
            first.setdefault(key, f)
    return list(first.values())


def wanted(match: re.Match[str]) -> bool:
    """Whether a file whose name gave this match of `NAME` is one that a reader of sessions uses."""
    name, attribute = match["object"], _attribute(match)
    if name.startswith("behaviour") and match["space"] == "neds":
        return True
    return name in OBJECTS and attribute in USED.get(name, (attribute,))


def _attribute(match: re.Match[str]) -> str:
    """The attribute without its timescale; a trials column such as stimOn_times keeps it."""
    text = match["attribute"]
    return text if match["object"] == "trials" else text.partition("_")[0]
