"""How every measurement is written: one JSON file, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neds_rt.errors import BadInput


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write `result` so that a reader never finds a part of it. Raises `BadInput`."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        raise BadInput(path, "output", error.strerror, "a file to write") from error
