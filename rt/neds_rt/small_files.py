"""Files that are read whole: never more of them than a limit, whatever the file turns out to be."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from neds_rt.errors import BadInput

MAX_TEXT_BYTES = 1 << 20  # of what people write by hand


def read_small(
    path: str | PathLike[str], field: str, expected: str, most: int = MAX_TEXT_BYTES
) -> bytes:
    """Return the bytes of a file. Raises `BadInput` for one that cannot be read or is too large.

    `most` is in bytes. One byte more is asked for, so that a device or a pipe without end is
    refused as well, before it has taken memory.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte in it
        raise BadInput(path, field, getattr(error, "strerror", None) or error, expected) from None
    if len(data) > most:
        raise BadInput(path, "size", f"more than {most} bytes", f"at most {most}: {expected}")
    return data
