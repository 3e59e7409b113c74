"""Files that appear whole or not at all: written under another name beside their place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neds_rt.errors import BadInput


@contextmanager
def whole_file(target: Path, kind: str) -> Iterator[str]:
    """A name in `target`'s folder to write under, moved to `target` if nothing goes wrong.

    `kind` says in errors what was to be written. Raises `BadInput` when it cannot be.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.",
                                        suffix=target.suffix)
    except OSError as error:
        raise BadInput(target, "folder", error.strerror, "a folder that can be written") from error
    os.close(handle)
    try:
        yield name
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):  # a full disk, a target that is a folder
            raise BadInput(target, "file", error, f"{kind} to be written") from error
        raise
