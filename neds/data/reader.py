"""What a reader of recordings is, and how its options are given.

A reader is made by a function of the words on the command line (`--set KEY=VALUE ...`, or one TOML
file), named in the table `READERS` of `neds.commands.prepare`. Its options are a msgspec struct of
its own; a key with a dot fills a table: `behaviour.wheel=...` is `behaviour["wheel"]`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds.data.store import file_sha256
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Reader:
    """`read` makes a session of a source: a file, a folder, or a name the reader knows.

    `files` lists what `read` will read, fetched first where it must be: their content decides
    whether a session is up to date.
    """

    read: Callable[[str], Any]
    files: Callable[[str], list[Path]]


class EventOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of every reader of spike events: fs samples/s of the session's clock (0: what the
    file says, else 30000); keep: conditions on the columns of the unit table, such as
    "group=good, snr>=5"; keep_silent: keep units without spikes; session, subject: names."""

    fs: float = 0.0
    keep: str = ""
    keep_silent: bool = False
    session: str = ""
    subject: str = ""


class SeriesOptions(EventOptions, frozen=True, kw_only=True):
    """`EventOptions` and behaviour: name -> SERIES[:KIND[:UNIT]], which series are behaviours."""

    behaviour: dict[str, str] = msgspec.field(default_factory=dict)


def one_file(source: str) -> list[Path]:
    """The files of a source that is one file."""
    return [Path(source)]


def parse_options(words: Sequence[str], kind: type[T], where: str) -> T:
    """Read a reader's options from KEY=VALUE words or one TOML file. Raises `BadInput`."""
    known = ", ".join(kind.__struct_fields__)
    try:
        if len(words) == 1 and "=" not in words[0]:
            data = read_small(words[0], "options", "a TOML file or KEY=VALUE words")
            return msgspec.toml.decode(data, type=kind)
        fields: dict[str, Any] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not (equals and key and value):
                raise BadInput(where, "word", repr(word), "KEY=VALUE")
            table, dot, name = key.partition(".")
            if dot:
                fields.setdefault(table, {})[name] = value
            else:
                fields[key] = value
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(where, "options", error, f"options of this reader: {known}") from error
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise BadInput(words[0], "options", error, "a TOML file or KEY=VALUE words") from error


def needed(module: str, extra: str, where: str) -> Any:
    """Import an optional package; `BadInput` naming the extra where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise BadInput(where, name, f"not usable ({error})", f'pip install "neds[{extra}]"') \
            from error


def files_sha256(files: Iterable[Path]) -> str:
    """One SHA-256 of a source: of its only file, or of the names and digests of several."""
    paths = sorted(files)
    if len(paths) == 1:
        return file_sha256(paths[0])
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return total.hexdigest()


def chosen_units(
    keep: str, columns: dict[str, NDArray[Any]], n: int, where: object
) -> NDArray[np.bool_]:
    """The units (n,) that meet every condition of `keep`: COLUMN=TEXT, COLUMN>=N or COLUMN<=N.

    Conditions are separated by commas; a NaN meets none. Raises `BadInput` for a column that is not
    there.
    """
    kept = np.ones(n, bool)
    for condition in filter(None, (part.strip() for part in keep.split(","))):
        sign = next((s for s in (">=", "<=", "=") if s in condition), "")
        name, _, value = (part.strip() for part in condition.partition(sign or "="))
        if not (sign and value):
            raise BadInput(where, "keep", repr(condition), "COLUMN=TEXT, COLUMN>=N or COLUMN<=N")
        if name not in columns:
            raise BadInput(where, "keep", repr(name), f"a column of {', '.join(columns) or 'none'}")
        column = np.asarray(columns[name])
        try:
            kept &= _meets(column, sign, value)
        except ValueError as error:
            raise BadInput(where, "keep", f"{condition!r} on {column.dtype}", "numbers") from error
    return kept


def _meets(column: NDArray[Any], sign: str, value: str) -> NDArray[np.bool_]:
    if sign == "=" and column.dtype.kind not in "fiu":
        return np.asarray(column.astype(np.str_) == value)
    numbers, limit = column.astype(np.float64), float(value)
    compare = {"=": np.equal, ">=": np.greater_equal, "<=": np.less_equal}[sign]
    return np.asarray(compare(numbers, limit))
