"""Which unit of the model a spike belongs to, from the names that an acquisition program uses.

Without a file, electrode and sorted id are the channel and the cluster of the bundle's unit table:
the last number in the electrode's name is compared with `channel`, the sorted id with `cluster`.
With a file (`--units`) they are whatever the file says. No other rule, no guessing by order.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neds_rt.errors import BadInput
from neds_rt.manifest import Unit
from neds_rt.small_files import read_small

if TYPE_CHECKING:
    from neds_rt.templates import Templates

COLUMNS = ("probe", "channel", "cluster", "stream", "electrode", "sorted_id")
UNKNOWN = -1
MAX_NAMES = 1 << 16  # names remembered; a sender that makes up more finds them all unknown
MAX_NAME = 256  # characters of stream and electrode that are worth remembering
MAX_FILE_BYTES = 64 << 20  # of a unit map: a million units have about half of it
MAX_LINES = 1_000_000
MAX_CELL = 1000  # characters
MAX_NUMBER = 1 << 63
_LAST_NUMBER = re.compile(r"(\d+)\D*$")

UnitKey = tuple[str, int, int]  # probe, channel, cluster: a unit of the bundle
SourceKey = tuple[str, str, int]  # stream ("" for any), electrode, sorted id: a unit of a source
UnitFile = Mapping[UnitKey, SourceKey]


class UnitMap:
    """The units of one probe, numbered in the bundle's order, by what a source calls them."""

    def __init__(self, units: Sequence[Unit], named: UnitFile | None = None) -> None:
        """`units` are those of the probe, in the bundle's order; `named` is `--units`."""
        self.units = list(units)
        self.unknown_spikes = 0
        self.templates: Templates | None = None  # of these units, from the bundle
        self._heard = bytearray(len(units))
        self._known: dict[SourceKey, int] | None = None
        self._by_place: dict[tuple[int, int], int] = {}
        self._names: dict[SourceKey, int] = {}
        keys = [(u.probe, u.channel, u.cluster) for u in units]
        # Units of the model that nothing a source sends can mean: they stay silent.
        self.missing: list[UnitKey] = []
        if named is not None:
            self.missing = [key for key in keys if key not in named]
            self._known = {named[key]: i for i, key in enumerate(keys) if key in named}
        else:
            places = Counter((u.channel, u.cluster) for u in units)
            self.missing = [key for key in keys if places[key[1:]] > 1]
            self._by_place = {key[1:]: i for i, key in enumerate(keys) if places[key[1:]] == 1}

    def number(self, stream: str, electrode: str, sorted_id: int) -> int:
        """Return the unit's number in its probe, or `UNKNOWN`, which is counted."""
        key = (stream, electrode, sorted_id)
        number = self._names.get(key)
        if number is None:
            number = self._find(key)
            if len(self._names) < MAX_NAMES and len(stream) + len(electrode) <= MAX_NAME:
                self._names[key] = number
        if number < 0:
            self.unknown_spikes += 1
        else:
            self._heard[number] = 1
        return number

    def leave_silent(self, heard: set[tuple[int, int]]) -> None:
        """Count as missing all units whose channel and cluster are not among `heard`."""
        for unit in self.units:
            key = (unit.probe, unit.channel, unit.cluster)
            place = (unit.channel, unit.cluster)
            if self._known is not None:  # the unit file says what the source calls it
                place = next((_place(name) for name, i in self._known.items()
                              if self.units[i] is unit), place)
            if place not in heard and key not in self.missing:
                self.missing.append(key)

    def report(self) -> dict[str, Any]:
        """Return units known, heard and missing, and the first unknown names; JSON-ready."""
        unknown = [list(key) for key, number in list(self._names.items()) if number < 0]
        return {
            "units": len(self.units),
            "heard": sum(self._heard),
            "missing": [list(key) for key in self.missing],
            "unknown_spikes": self.unknown_spikes,
            "unknown_names": len(unknown),
            "first_unknown": unknown[:5],
        }

    def _find(self, key: SourceKey) -> int:
        _, electrode, sorted_id = key
        if self._known is not None:
            number = self._known.get(key, UNKNOWN)
            return self._known.get(("", electrode, sorted_id), UNKNOWN) if number < 0 else number
        digits = _LAST_NUMBER.search(electrode[-80:])
        if digits is None:
            return UNKNOWN
        return self._by_place.get((int(digits[1]), sorted_id), UNKNOWN)


def _place(name: SourceKey) -> tuple[int, int]:
    digits = _LAST_NUMBER.search(name[1][-80:])
    return (int(digits[1]) if digits else UNKNOWN, name[2])


def read_unit_file(path: str) -> dict[UnitKey, SourceKey]:
    """Read a unit map: tab-separated, a line a unit, the columns of `COLUMNS` in any order.

    Raises `BadInput` for a file that cannot be read or is too large, a missing column, a number
    that is none, or a unit or a name of the source that has two lines.
    """
    named: dict[UnitKey, SourceKey] = {}
    taken: set[SourceKey] = set()
    data = read_small(path, "file", "tab-separated text", MAX_FILE_BYTES)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""), delimiter="\t")
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise BadInput(path, "columns", f"no {', '.join(lacking)}", ", ".join(COLUMNS))
        for row in reader:
            if len(named) == MAX_LINES:
                raise BadInput(path, "lines", f"more than {MAX_LINES}", "a line a unit")
            unit, name = _parse_row(path, reader.line_num, row)
            if unit in named or name in taken:
                found = f"{unit if unit in named else name} twice"
                raise BadInput(path, f"line {reader.line_num}", found, "every unit once")
            named[unit] = name
            taken.add(name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(path, "file", error, "tab-separated text") from error
    return named


def _parse_row(path: str, line: int, row: dict[str, Any]) -> tuple[UnitKey, SourceKey]:
    cells = {name: (row[name] or "").strip() for name in COLUMNS}
    for name, cell in cells.items():
        if len(cell) > MAX_CELL:
            raise BadInput(path, f"line {line}, {name}", f"{len(cell)} characters",
                           f"at most {MAX_CELL}")
    numbers = {}
    for name in ("channel", "cluster", "sorted_id"):
        try:
            numbers[name] = int(cells[name])
        except ValueError:
            raise BadInput(path, f"line {line}, {name}", repr(cells[name]), "an integer") from None
        if not -MAX_NUMBER <= numbers[name] < MAX_NUMBER:
            raise BadInput(path, f"line {line}, {name}", cells[name], "an integer of 64 bits")
    if not cells["probe"] or not cells["electrode"]:
        raise BadInput(path, f"line {line}", "an empty probe or electrode", "a name")
    return (
        (cells["probe"], numbers["channel"], numbers["cluster"]),
        (cells["stream"], cells["electrode"], numbers["sorted_id"]),
    )
