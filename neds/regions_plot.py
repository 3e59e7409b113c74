"""Pictures of region probes: one confusion matrix a task, rows adding up to 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def confusion_matrices(tasks: Mapping[str, Mapping[str, Any]]) -> Any:
    """A panel for each task (name -> {"confusion": {"regions": [...], "counts": [[...]]}}).

    A row is a true region and shows where its units went; the number of its units stands behind
    its name. Save with `neds.plots.save`. Returns a matplotlib Figure.
    """
    from matplotlib.figure import Figure

    side = max(len(task["confusion"]["regions"]) for task in tasks.values())
    size = max(3.0, 0.35 * side + 1.8)
    figure = Figure(figsize=((size + 1) * len(tasks) + 0.6, size), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    shown: Any = None
    for axis, (name, task) in zip(panels, tasks.items(), strict=True):
        regions = list(task["confusion"]["regions"])
        counts = np.asarray(task["confusion"]["counts"], np.float64)
        total = counts.sum(1)
        share = counts / np.maximum(total, 1)[:, None]
        shown = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axis.set_xticks(range(len(regions)), regions, rotation=90, fontsize=8)
        labels = [f"{region} ({int(n)})" for region, n in zip(regions, total, strict=True)]
        axis.set_yticks(range(len(regions)), labels, fontsize=8)
        if len(regions) <= 12:
            _numbers(axis, share)
        axis.set_xlabel("predicted region")
        score = task.get("balanced_accuracy")
        axis.set_title(name if score is None else f"{name}: balanced accuracy {score:.2f}",
                       fontsize=9)
    panels[0].set_ylabel("true region (units)")
    figure.colorbar(shown, ax=list(panels), shrink=0.8, label="share of the region's units")
    return figure


def _numbers(axis: Any, share: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.005:
            axis.text(column, row, f"{value:.2f}".lstrip("0") if value < 1 else "1", ha="center",
                      va="center", fontsize=7, color="white" if value > 0.6 else "black")
