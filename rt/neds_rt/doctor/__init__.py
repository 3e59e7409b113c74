"""`neds-rt doctor`: what is wrong with a rig before an experiment, and the one thing to change."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One finding; `advice` is empty where there is nothing to change."""

    name: str
    status: Status
    found: str
    advice: str = ""
