"""Small line plots for a terminal: two curves on braille dots, 2 by 4 dots a character."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

BRAILLE = 0x2800
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # [row, column]


def curve_dots(
    values: NDArray[np.float64], columns: int, rows: int, low: float, high: float
) -> NDArray[np.bool_]:
    """Return which dots the newest `2 * columns` values light, (4 * rows, 2 * columns).

    The newest value is at the right edge; NaN leaves a hole. Neighbours are joined by vertical
    runs of dots, so a steep flank stays a line.
    """
    height, width = 4 * rows, 2 * columns
    lit = np.zeros((height, width), np.bool_)
    shown = values[-width:]
    scaled = (high - np.clip(shown, low, high)) / max(high - low, 1e-12) * (height - 1)
    left = width - len(shown)
    before = -1
    for i, value in enumerate(scaled):
        if np.isnan(value):
            before = -1
            continue
        row = round(value)
        first, last = (row, row) if before < 0 else (min(row, before), max(row, before))
        # Meet the neighbour half way: the whole run in one column would look like a bar.
        if before >= 0 and last - first > 1:
            middle = (first + last) // 2
            first, last = (row, middle) if row < before else (middle, row)
        lit[first : last + 1, left + i] = True
        before = row
    return lit


def plot(
    truth: NDArray[np.float64],
    decoded: NDArray[np.float64],
    columns: int,
    rows: int,
    styles: tuple[str, str] = ("grey50", "bold cyan"),
) -> Text:
    """Draw both curves on one scale, `rows` lines of `columns` characters; decoded lies on top."""
    both = np.concatenate([truth[-2 * columns :], decoded[-2 * columns :]])
    both = both[np.isfinite(both)]
    low, high = (float(both.min()), float(both.max())) if len(both) else (-1.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    lit = [curve_dots(v, columns, rows, low, high) for v in (truth, decoded)]
    weights = np.tile(DOTS, (rows, columns))
    codes = [
        (dots * weights).reshape(rows, 4, columns, 2).sum(axis=(1, 3)).tolist() for dots in lit
    ]
    text = Text(end="")
    for row in range(rows):
        line = zip(codes[0][row], codes[1][row], strict=True)
        for on_top, run in groupby(line, key=lambda pair: pair[1] > 0):
            characters = "".join(chr(BRAILLE + (under | over)) for under, over in run)
            text.append(characters, style=styles[on_top])
        if row < rows - 1:
            text.append("\n")
    return text


def bar(fraction: float, columns: int, style: str = "cyan") -> Text:
    """Return a horizontal bar of `fraction` (0 to 1) of `columns` characters, in eighths."""
    eighths = round(min(max(fraction, 0.0), 1.0) * columns * 8)
    full, rest = divmod(eighths, 8)
    blocks = "█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")
    return Text(blocks.ljust(columns), style=style)
