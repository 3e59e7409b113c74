"""The one style of all pictures, and how a picture is written.

Top and right spines are off, truth is grey, each model keeps its colour over all pictures.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neds_rt.errors import BadInput

COLOURS = {
    "ridge": "#8a8a8a",
    "rrr": "#5a9367",
    "glm": "#7a6a53",
    "mlp": "#a05195",
    "gru": "#d98c21",
    "ndt": "#c8553d",
    "unimodal": "#6fa8dc",
    "neds": "#1b6ca8",
    "truth": "#444444",
}
"""Of models, in the order in which they stand beside each other."""

OTHERS = ("#2f4b7c", "#f95d6a", "#ffa600", "#665191", "#4f9da6", "#9c6644", "#b5838d", "#588157")
"""For models without a colour of their own, and for conditions."""

RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    # Text stays text: an SVG with glyphs as paths is ten times the size and cannot be searched.
    "svg.fonttype": "none",
    "svg.hashsalt": "neds",
}


def style() -> Any:
    """The style as a context: figures are made, and saved, inside it."""
    import matplotlib as mpl

    return mpl.rc_context(RC)


def figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches that lays itself out; call inside `style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for every name, in order: its own where it has one."""
    free = iter(OTHERS * 100)
    return {name: COLOURS[name] if name in COLOURS else next(free) for name in names}


def save(picture: Any, path: Path) -> None:
    """Write a figure under its final name only when it is whole. Raises as `check_picture`."""
    check_picture(path)
    staged = path.with_name(f".{path.stem}.part{path.suffix}")
    # Without a date the same numbers give the same file.
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    try:
        with style():
            picture.savefig(staged, dpi=150, bbox_inches="tight", metadata=undated)
        staged.replace(path)
    except OSError as error:
        raise BadInput(path, "picture", error.strerror, "a file that can be written") from error


def check_picture(path: Path) -> None:
    """Raise `BadInput` for an unknown format or a folder that cannot be made; makes the folder."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise BadInput(path, "picture", repr(path.suffix), ".png, .svg or .pdf")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(path, "picture", error.strerror, "a file that can be written") from error
