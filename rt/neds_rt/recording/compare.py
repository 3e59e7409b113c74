"""Whether a replayed decode message is the recorded one: bit for bit, or within a tolerance."""

from __future__ import annotations

import cmath
import math
from typing import Any

import msgspec

STAMPS = ("spike_age_us", "service_us", "pub_ns")  # when it was written, and what counts to then
# What only time can tell: a decode that would have been valid, had it come by the deadline.
LATE, TIMED = "deadline missed", ("valid", "reason")
# What a word from within a step says of the bins before it, and its replay of the step's.
BEFORE_STEP = ("session", "drift")

_raw = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_any = msgspec.msgpack.Decoder()


def message_seq(message: bytes) -> int:
    """Return the sequence number of a decode message."""
    seq: int = message_field(message, "seq")
    return seq


def message_field(message: bytes, name: str) -> Any:
    """Return one field of a decode message."""
    return _any.decode(_raw.decode(message)[name])


def differing(
    recorded: bytes, replayed: bytes, shift: int = 0, tolerance: float = 0.0
) -> tuple[list[str], float]:
    """Return the fields in which two messages differ, and by how much their values do at most.

    Time stamps are left out and `seq` of the replayed one counts `shift` more. With a tolerance t
    each number x of `values` may be off by t * (1 + |x|); a circular value is compared as the
    vector that it is the angle of. Raises `msgspec.DecodeError` for what is no message.
    """
    a, b = _raw.decode(recorded), _raw.decode(replayed)
    late = _any.decode(a["reason"]) == LATE
    passed: tuple[str, ...] = STAMPS
    if late and _any.decode(b["reason"]) == "ok":
        passed += TIMED
    elif late and _any.decode(a["bin"]) < 0:
        passed += BEFORE_STEP
    fields = [name for name in a if name not in passed and name not in ("seq", "values")
              and (name not in b or bytes(a[name]) != bytes(b[name]))]
    fields += [name for name in b if name not in a]
    if _any.decode(a["seq"]) != _any.decode(b["seq"]) + shift:
        fields.append("seq")
    if bytes(a["values"]) == bytes(b["values"]):
        return fields, 0.0
    error = values_error(_any.decode(a["values"]), _any.decode(b["values"]))
    if not (tolerance > 0 and error <= tolerance):
        fields.append("values")
    return fields, error


def values_error(recorded: dict[str, Any], replayed: dict[str, Any]) -> float:
    """Return the largest error of the numbers in two `values`, relative to 1 + |recorded|.

    Infinite where they are not of the same form, or one is not a number where the other is.
    """
    if recorded.keys() != replayed.keys():
        return math.inf
    return max((_error(recorded[name], replayed[name]) for name in recorded), default=0.0)


def _error(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the error of one behaviour; the label follows from the probabilities."""
    if a.keys() != b.keys():
        return math.inf
    if "angle" in a:
        pairs = [(cmath.rect(v["r"], v["angle"]) if math.isfinite(v["r"]) else math.nan)
                 for v in (a, b)]
        return _far(pairs[0], pairs[1])
    worst = 0.0
    for name in a.keys() - {"label"}:
        if len(a[name]) != len(b[name]):
            return math.inf
        worst = max([worst, *map(_far, a[name], b[name])])
    return worst


def _far(x: complex, y: complex) -> float:
    if cmath.isnan(x) or cmath.isnan(y):
        return 0.0 if cmath.isnan(x) and cmath.isnan(y) else math.inf
    return abs(x - y) / (1 + abs(x))
