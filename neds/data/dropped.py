"""What was left out of a recording or a run: an entry each, with its name, its reason and a count.

A reader keeps its entries in the session's metadata under `dropped`, so that they stay in the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds.data.session import Session

KEY = "dropped"
"""Where a session's metadata holds what its reader left out."""

LEVELS = ("session", "probe", "trial", "column", "behaviour", "class", "unit", "spike", "bin")
"""What an entry counts. Sessions, probes, trials, columns of tables, behaviours, units and
spikes are left out; bins are
masked; a class that the training part never shows stays in the scores, where it counts as
errors."""


class Drop(msgspec.Struct, frozen=True):
    """One thing left out: `level` of LEVELS, where, what, why, and how many of that level."""

    level: str
    session: str
    name: str
    reason: str
    count: int = 1


@dataclass
class DropReport:
    """Everything that was left out, in the order in which it was found."""

    drops: list[Drop] = field(default_factory=list)

    def add(self, level: str, session: str, name: str, reason: str, count: int = 1) -> None:
        """Note one drop; the reason becomes one line."""
        self.drops.append(Drop(level, session, name, " ".join(reason.split()), count))

    def add_rows(
        self, level: str, session: str, rows: NDArray[np.bool_] | NDArray[np.int64], reason: str
    ) -> None:
        """Note the rows of a mask or an index under one reason; nothing where there is none."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        if len(index):
            self.add(level, session, ranges(index), reason, len(index))

    def count(self, level: str) -> int:
        """How many of a level, such as units: an absent class counts once."""
        found = [d for d in self.drops if d.level == level]
        return len(found) if level == "class" else sum(d.count for d in found)

    def as_json(self) -> dict[str, object]:
        """Totals per level under the level's plural, and every entry under `entries`."""
        plural = {level: level + ("es" if level == "class" else "s") for level in LEVELS}
        totals = {plural[level]: self.count(level) for level in LEVELS}
        return {**totals, "entries": self.entries()}

    def entries(self) -> list[dict[str, object]]:
        """Every entry as a JSON object."""
        entries: list[dict[str, object]] = msgspec.to_builtins(self.drops)
        return entries

    def lines(self) -> list[str]:
        """The report as aligned plain text, a line an entry; empty when nothing was left out."""
        rows = [(d.level, str(d.count), d.session, d.name, d.reason) for d in self.drops]
        if not rows:
            return []
        rows.insert(0, ("level", "count", "session", "name", "reason"))
        width = [max(len(row[i]) for row in rows) for i in range(4)]
        return ["  ".join([row[0].ljust(width[0]), row[1].rjust(width[1]),
                           *(row[i].ljust(width[i]) for i in (2, 3)), row[4]]) for row in rows]


def ranges(index: Iterable[int]) -> str:
    """Row numbers in words: "0, 3-5, 9"."""
    numbers = np.unique(np.asarray(list(index), np.int64))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{r[0]}" if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs if len(r))


def dropped(session: Session) -> list[Drop]:
    """What the reader of a session left out of it."""
    return msgspec.convert(session.metadata.get(KEY, []), list[Drop])
