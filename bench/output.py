"""How every measurement ends: a table for people, one JSON object, written whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neds_rt.errors import BadInput
from neds_rt.machine import commit, machine_facts

MISSED = 1  # exit code: it ran, and what it is there to show does not hold


def verdict(name: str, broken: Sequence[str]) -> int:
    """Say on standard error, a line each, what does not hold; return the exit code."""
    for line in broken:
        print(f"bench/{name}.py: failed: {line}", file=sys.stderr)
    return MISSED if broken else 0


def lend_path(root: Path) -> None:
    """Put `root` before what else Python imports from in the processes that are started now."""
    paths = [str(root), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write `result` so that a reader never finds a part of it. Raises `BadInput`."""
    path = Path(path)
    staged = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(as_text(result), encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        raise BadInput(path, "output", error.strerror, "a file to write") from error


def as_text(result: dict[str, Any]) -> str:
    """JSON with a line for each innermost object: a file of rows has as many lines as rows."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\{\n[^{}\[\]]*\}", lambda found: re.sub(r"\n *", " ", found[0]), text) + "\n"


def finish(
    name: str, args: argparse.Namespace, report: dict[str, Any],
    print_table: Callable[[dict[str, Any]], None],
) -> None:
    """Print `report`, as JSON if `args.json`, and write it to `args.out` if there is one.

    Adds the command `python bench/NAME.py` (a name with a folder is taken as it is), the commit and
    the machine. Raises as `write_json`.
    """
    program = name if "/" in name else f"bench/{name}"
    command = " ".join([f"python {program}.py", *sys.argv[1:]])
    whole = {"command": command, "commit": commit(), **report, "machine": machine_facts()}
    if args.out:
        write_json(args.out, whole)
    if args.json:
        print(json.dumps(whole))
    else:
        print_table(whole)
