"""`neds-rt doctor`: what is wrong with a rig before an experiment, and the one thing to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

Status = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One finding; `advice` is empty where there is nothing to change."""

    name: str
    status: Status
    found: str
    advice: str = ""


def refused_check(
    where: str, refused: Counter[str], meaning: Mapping[str, str], advice: str
) -> list[Check]:
    """Return one check for the messages that a source would refuse, [] where there are none.

    `refused` counts them by kind; `meaning` has the source's words for each.
    """
    if not refused:
        return []
    kinds = ", ".join(f"{kind} {n}" for kind, n in refused.most_common())
    first = refused.most_common(1)[0][0]
    status: Status = "warn" if set(refused) == {"bad_type"} else "fail"  # ignored without harm
    return [Check(f"{where} messages", status, f"{kinds} ({meaning.get(first, first)})", advice)]
