"""Decodes as lines of a terminal: a small curve an output, red where it is not to be believed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from neds_rt.dashboard.history import WINDOW_S, Snapshot
from neds_rt.status import ModalityStatus

BLOCKS = "▁▂▃▄▅▆▇█"
NO_VALUE = "·"  # decoded, without a value
MAX_ROWS, MAX_OUTPUTS = 8, 3  # lines, and those of one behaviour
VALID, NOT_VALID = "green", "bold red"

Values = NDArray[np.float64]


def traces(shot: Snapshot, modalities: list[ModalityStatus], columns: int) -> Table:
    """Return a table of a line an output: name, curve of the last seconds, newest value."""
    table = Table.grid(padding=(0, 2))
    valid = np.array([decode.valid for decode in shot.decodes], bool)
    lines = [line for modality in modalities for line in _lines(shot, modality)]
    for name, values, low, high, newest in lines[:MAX_ROWS]:
        table.add_row(Text(name, style="dim"), spark(shot.x, values, valid, columns, low, high),
                      Text(newest, style="" if len(valid) and valid[-1] else NOT_VALID))
    if len(lines) > MAX_ROWS:
        table.add_row(Text(f"and {len(lines) - MAX_ROWS} more", style="dim"))
    return table


def spark(
    x: Values, values: Values, valid: NDArray[np.bool_], columns: int, low: float, high: float
) -> Text:
    """Return `columns` characters of the `WINDOW_S` before now; `x` (n,) are seconds before it.

    A character is the last value of its stretch of time, as a height between `low` and `high`. It
    is red if any decode of the stretch was not valid, and blank if none came.
    """
    text = Text(no_wrap=True)
    seen = x > -WINDOW_S
    column = np.minimum(((x[seen] / WINDOW_S + 1) * columns).astype(int), columns - 1)
    shown, bad = np.full(columns, np.nan), np.zeros(columns, bool)
    there = np.zeros(columns, bool)
    there[column] = True
    bad[column[~valid[seen]]] = True
    known = np.isfinite(values[seen])
    shown[column[known]] = values[seen][known]
    heights = (np.clip(shown, low, high) - low) / max(high - low, 1e-12) * (len(BLOCKS) - 1)
    for height, is_there, is_bad in zip(heights, there, bad, strict=True):
        character = NO_VALUE if np.isnan(height) else BLOCKS[round(float(height))]
        text.append(character if is_there else " ", style=NOT_VALID if is_bad else VALID)
    return text


def _lines(
    shot: Snapshot, modality: ModalityStatus
) -> Iterator[tuple[str, Values, float, float, str]]:
    """Yield name, values, lowest and highest, and the newest value in words."""
    if modality.kind == "circular":
        angle = shot.angle(modality)
        yield modality.name, angle, -180.0, 180.0, _words(angle, "°")
    elif modality.kind == "categorical":
        p = shot.probabilities(modality)
        best = _likeliest(p)
        label = modality.classes[best] if best < len(modality.classes) else f"class {best}"
        yield modality.name, p[best], 0.0, 1.0, f"{label} {_words(p[best], '')}"
    else:
        mean, _ = shot.continuous(modality)
        for i, values in enumerate(mean[:MAX_OUTPUTS]):
            known = values[np.isfinite(values)]
            low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
            name = f"{modality.name} {i}" if len(mean) > 1 else modality.name
            yield name, values, float(low), float(high), _words(values, f" {modality.unit}")


def _likeliest(p: Values) -> int:
    """Return the likeliest class of the newest decode that has probabilities, 0 before any."""
    known = np.flatnonzero(np.isfinite(p).all(axis=0))
    return int(p[:, known[-1]].argmax()) if len(known) else 0


def _words(values: Values, unit: str) -> str:
    """Return the newest value, – where there is none."""
    if not len(values) or not np.isfinite(values[-1]):
        return "–"
    return f"{values[-1]:.3g}{unit}".rstrip()
