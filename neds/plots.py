"""Pictures of results: decoded traces against truth, and bars of models by session.

matplotlib is imported when a picture is asked for. Top and right spines are off, truth is grey,
each model keeps its colour over all pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.checkpoint import BehaviourState
from neds_rt.errors import BadInput

COLOURS = {"neds": "#1b6ca8", "gru": "#d98c21", "ridge": "#8a8a8a", "truth": "#444444"}
MAX_BINS = 600  # more cannot be told apart in one picture

Floats = NDArray[np.floating]


def save(figure: Any, path: Path) -> None:
    """Write a figure under its final name only when it is whole. Raises as `check_picture`."""
    import matplotlib as mpl

    check_picture(path)
    staged = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        # Text stays text: an SVG with glyphs as paths is ten times the size and cannot be searched.
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "neds"}):
            figure.savefig(staged, dpi=150, bbox_inches="tight")
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


def decoded_traces(
    behaviours: Sequence[BehaviourState], pairs: Sequence[tuple[Floats, Floats]], bin_size_s: float
) -> Any:
    """One row of axes per behaviour column: truth and prediction over the first bins of a part."""
    rows = [(b, column) for b in behaviours for column in range(_columns(b))]
    figure, axes = _axes(len(rows), height=1.5)
    for axis, (b, column) in zip(axes, rows, strict=True):
        truth, predicted = pairs[[x.name for x in behaviours].index(b.name)]
        n = min(len(truth), MAX_BINS)
        seconds = np.arange(n) * bin_size_s
        axis.set_ylabel(f"{b.name} {b.unit}".strip())
        if b.kind == "categorical":
            label = b.classes[column]
            axis.fill_between(seconds, truth[:n, 0] == column, color=COLOURS["truth"], alpha=0.2,
                              step="post", lw=0, label=f"is {label}")
            axis.plot(seconds, predicted[:n, column], color=COLOURS["neds"], lw=1,
                      label=f"p({label})")
        else:
            shown = predicted[:n, column]
            if b.kind == "circular":
                shown = np.arctan2(predicted[:n, 2 * column + 1], predicted[:n, 2 * column])
            axis.plot(seconds, truth[:n, column], color=COLOURS["truth"], lw=1, label="truth")
            axis.plot(seconds, shown, color=COLOURS["neds"], lw=1, label="decoded")
        axis.legend(loc="upper right", frameon=False, fontsize=7, ncols=2)
    axes[-1].set_xlabel("seconds")
    return figure


def model_bars(scores: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str) -> Any:
    """Bars of each model by session; `scores[session][model]` holds one value per seed.

    A session that a model was not run on has no bar of it.
    """
    figure, (axis,) = _axes(1, height=3.0)
    models = [m for m in COLOURS if any(m in by_model for by_model in scores.values())]
    models.sort(key=("ridge", "gru", "neds").index)
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        label: str | None = model
        for x, by_model in enumerate(scores.values()):
            values = list(by_model.get(model, []))
            if not values:
                continue
            at = x + (i - (len(models) - 1) / 2) * width
            axis.bar(at, np.mean(values), width * 0.9, color=COLOURS[model],
                     label=label)
            label = None
            axis.plot([at] * len(values), values, ".", color="black", ms=3)
    axis.set_xticks(range(len(scores)), list(scores), rotation=20, ha="right", fontsize=8)
    axis.set_ylabel(ylabel)
    axis.legend(frameon=False, ncols=len(models), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _columns(behaviour: BehaviourState) -> int:
    if behaviour.kind == "categorical":
        return len(behaviour.classes) if len(behaviour.classes) > 2 else 1
    return behaviour.width


def _axes(rows: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height * rows + 0.5))
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)
