"""Validation shared by the session container and the readers; every failure is a `BadInput`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neds_rt.errors import BadInput

WHERE = "session"


@contextmanager
def naming(where: object) -> Iterator[None]:
    """Put `where` (a file) in front of any `BadInput` raised inside that does not name it yet."""
    try:
        yield
    except BadInput as error:
        if not str(error).startswith(str(where)):
            error.args = (f"{where}: {error}",)
        raise


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous, read-only view of `array` (a copy only where the layout needs one)."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def as_floats(field: str, value: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """Return `value` as float64 with `ndim` dimensions, or raise `BadInput`."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise BadInput(WHERE, field, f"dtype {array.dtype}", "numbers")
    if array.ndim != ndim:
        raise BadInput(WHERE, field, f"shape {array.shape}", f"{ndim} dimensions")
    return array.astype(np.float64)


def as_integers(field: str, value: ArrayLike) -> NDArray[np.int64]:
    """Return `value` as one int64 column; whole floats pass, anything else is `BadInput`."""
    array = np.asarray(value)
    if array.ndim != 1:
        raise BadInput(WHERE, field, f"shape {array.shape}", "1 dimension")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array == np.floor(array)).all()):
            raise BadInput(WHERE, field, "NaN or fractions", "whole numbers")
    elif array.dtype.kind not in "iub" and array.size:
        raise BadInput(WHERE, field, f"dtype {array.dtype}", "whole numbers")
    return array.astype(np.int64, copy=False)


def as_int32(field: str, value: ArrayLike) -> NDArray[np.int32]:
    """Return `value` as one int32 column; numbers beyond its range are `BadInput`."""
    given = np.asarray(value)
    if given.dtype == np.int32 and given.ndim == 1:
        return given
    array = as_integers(field, given)
    limit = np.iinfo(np.int32)
    if array.size and (array.min() < limit.min or array.max() > limit.max):
        raise BadInput(WHERE, field, int(array[np.abs(array).argmax()]), "32-bit whole numbers")
    return array.astype(np.int32)


def as_strings(field: str, value: ArrayLike, length: int) -> NDArray[np.str_]:
    """Return `value` as a column of `length` strings; one string is repeated."""
    array = np.asarray(value)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    array = array.astype(np.str_)
    if array.ndim == 0:
        array = np.full(length, array)
    same_length(field, array, length, "units")
    return array


def sorted_finite(field: str, times: NDArray[Any]) -> None:
    """Raise `BadInput` unless `times` is finite and non-decreasing."""
    if times.dtype.kind == "f" and not np.isfinite(times).all():
        at = int(np.flatnonzero(~np.isfinite(times))[0])
        raise BadInput(WHERE, field, f"{times[at]} at index {at}", "finite times")
    back = np.flatnonzero(times[1:] < times[:-1])
    if back.size:
        at = int(back[0]) + 1
        found = f"{times[at]} after {times[at - 1]} at index {at}"
        raise BadInput(WHERE, field, found, "sorted times")


def same_length(field: str, array: NDArray[Any], length: int, of: str) -> None:
    """Raise `BadInput` unless `array` has `length` rows, as many as there are `of`."""
    if array.ndim == 0 or len(array) != length:
        found = len(array) if array.ndim else "a scalar"
        raise BadInput(WHERE, f"{field} length", found, f"{length}, the number of {of}")


def positive(field: str, value: float) -> float:
    """Return `value` as a float, or raise `BadInput` unless it is finite and above zero."""
    number = float(value)
    if not (np.isfinite(number) and number > 0):
        raise BadInput(WHERE, field, value, "a finite number above 0")
    return number
