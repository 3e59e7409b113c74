"""How a benchmark ends: a table for people, one JSON object for the record."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from neds_rt.errors import BadInput
from neds_rt.machine import commit, machine_facts


def finish(
    name: str, args: argparse.Namespace, report: dict[str, Any],
    print_table: Callable[[dict[str, Any]], None],
) -> None:
    """Print `report` (as JSON with `args.json`) and write it to `args.out`, if there is one.

    Adds the command, the commit and the machine. Raises `BadInput` for a file that cannot be
    written.
    """
    command = " ".join([f"python bench/{name}.py", *sys.argv[1:]])
    whole = {"command": command, "commit": commit(), **report, "machine": machine_facts()}
    if args.out:
        staged = args.out.with_name(f".{args.out.name}.part")
        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
            staged.replace(args.out)
        except OSError as error:
            raise BadInput(args.out, "--out", error.strerror, "a file to write") from error
    if args.json:
        print(json.dumps(whole))
    else:
        print_table(whole)
