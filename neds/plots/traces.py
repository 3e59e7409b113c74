"""Decoded traces over time, against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.checkpoint import BehaviourState
from neds.plots.style import COLOURS, figure, style

MAX_BINS = 600  # more cannot be told apart in one picture

Floats = NDArray[np.floating]


def decoded_traces(
    behaviours: Sequence[BehaviourState], pairs: Sequence[tuple[Floats, Floats]], bin_size_s: float
) -> Any:
    """One row of axes per behaviour column: truth and prediction over the first bins of a part.

    `pairs` are (truth, predicted) of each behaviour, as `neds.evaluate.decode_part` gives them.
    """
    rows = [(b, pair, column) for b, pair in zip(behaviours, pairs, strict=True)
            for column in range(_columns(b))]
    with style():
        picture = figure(8, 1.4 * len(rows) + 0.5)
        axes = picture.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (b, (truth, predicted), column) in zip(axes, rows, strict=True):
            n = min(len(truth), MAX_BINS)
            _draw(axis, b, truth[:n], predicted[:n], column, np.arange(n) * bin_size_s)
        axes[-1].set_xlabel("seconds recorded")
    return picture


def _draw(
    axis: Any, b: BehaviourState, truth: Floats, predicted: Floats, column: int, seconds: Floats
) -> None:
    axis.set_ylabel(f"{b.name} {b.unit}".strip())
    axis.margins(x=0)
    if b.kind == "categorical":
        label = b.classes[column]
        # The same height in every class: 1 is certain.
        axis.fill_between(seconds, truth[:, 0] == column, color=COLOURS["truth"], alpha=0.2,
                          step="post", lw=0, label=f"is {label}")
        if np.isnan(truth).any():
            axis.fill_between(seconds, np.isnan(truth[:, 0]), facecolor="none", edgecolor="0.85",
                              hatch="////", step="post", lw=0, label="unknown")
        axis.plot(seconds, predicted[:, column], color=COLOURS["neds"], label=f"p({label})")
        axis.set_ylim(0, 1.02)
    elif b.kind == "circular":  # dots: a line would cross the whole axis at every turn
        shown = np.arctan2(predicted[:, 2 * column + 1], predicted[:, 2 * column])
        axis.plot(seconds, truth[:, column], ".", ms=2.5, color=COLOURS["truth"], label="truth")
        axis.plot(seconds, shown, ".", ms=2.5, color=COLOURS["neds"], label="decoded")
    else:
        axis.plot(seconds, truth[:, column], color=COLOURS["truth"], label="truth")
        axis.plot(seconds, predicted[:, column], color=COLOURS["neds"], label="decoded")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.96), ncols=3, borderaxespad=0,
                handlelength=1.2)


def _columns(behaviour: BehaviourState) -> int:
    if behaviour.kind == "categorical":
        return len(behaviour.classes) if len(behaviour.classes) > 2 else 1
    return behaviour.width
