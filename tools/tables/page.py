"""Results in, text out: reading result files, Markdown, and the blocks of a page they fill."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neds_rt.errors import BadInput

NONE = "–"
Result = dict[str, Any]


def read_result(path: Path) -> Result:
    """Read one JSON object: the whole file, or its last line. Raises `BadInput`.

    `name` becomes what follows the kind in the file's name, `file` the file's name.
    """
    text = path.read_text(encoding="utf-8").strip()
    for part in (text, text.rpartition("\n")[2]):
        try:
            found = json.loads(part)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return {**found, "name": path.stem.partition("-")[2] or path.stem, "file": path.name}
    raise BadInput(path, "result", "no JSON object", "the output of a program with --json")


def origin(results: Sequence[Result]) -> str:
    """Names and commits of the files a table is made of."""
    return ", ".join(f"{r['file']} at {str(r['commit'])[:12]}" if r.get("commit") else r["file"]
                     for r in results)


def replace_block(text: str, kind: str, made_of: str, block: str, where: object) -> str:
    """Put `block` between `<!-- kind: ... -->` and `<!-- end: kind -->`; the first names origins.

    Raises `BadInput` unless the page has exactly one such place.
    """
    pattern = re.compile(rf"^<!-- {kind}: [^>]*-->\n.*?^<!-- end: {kind} -->\n", re.M | re.S)
    found = len(pattern.findall(text))
    if found != 1:
        raise BadInput(where, f"<!-- {kind}: ... -->", f"{found} with an end",
                       f"one, and <!-- end: {kind} --> below it")
    note = f"<!-- {kind}: from bench/results ({made_of}), written by tools/make_tables.py -->\n"
    return pattern.sub(lambda _: f"{note}{block}<!-- end: {kind} -->\n", text)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lines of a Markdown table, the first row its head."""
    head, *body = rows
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def details(summary: str, table: str) -> str:
    """A table that is folded until its summary is clicked."""
    return f"<details><summary>{summary}</summary>\n\n{table}\n</details>\n"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and, of several values, their standard deviation (n - 1); `sign` "+" shows it always."""
    if not values:
        return NONE
    mean = f"{statistics.fmean(values):{sign}.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def bold(cells: Sequence[str]) -> list[str]:
    """The same cells in bold, but for those without a figure."""
    return [cell if cell == NONE else f"**{cell}**" for cell in cells]
