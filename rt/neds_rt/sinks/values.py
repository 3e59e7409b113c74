"""A decode as a row of numbers, for receivers that know no MessagePack."""

from __future__ import annotations

import math

from neds_rt._core import REASONS
from neds_rt.wire import Decode, Value

REASON_CODES = {name: code for code, name in enumerate(REASONS)}  # what a reason is in a byte
OTHER_REASON = 255


def labels(decode: Decode) -> list[str]:
    """Name the numbers of `numbers(decode)`, as `velocity.0`, `heading.angle`, `choice.p1`."""
    return [f"{name}.{part}" for name, value in decode.values.items() for part in _parts(value)]


def numbers(decode: Decode) -> list[float]:
    """Return all values in the order of the message; every one is NaN unless the decode is valid.

    continuous: the means; circular: angle and r; categorical: a probability a class.
    """
    found = [number for value in decode.values.values() for number in _numbers(value)]
    return found if decode.valid else [math.nan] * len(found)


def reason_code(decode: Decode) -> int:
    """Return the reason as a byte, 255 for one that is not in the table."""
    return REASON_CODES.get(decode.reason, OTHER_REASON)


def _parts(value: Value) -> list[str]:
    if value.kind == "circular":
        return ["angle", "r"]
    letter = "" if value.kind == "continuous" else "p"
    return [f"{letter}{i}" for i in range(len(_numbers(value)))]


def _numbers(value: Value) -> list[float]:
    if value.mean is not None:
        return value.mean
    if value.angle is not None and value.r is not None:
        return [value.angle, value.r]
    return value.p or []
