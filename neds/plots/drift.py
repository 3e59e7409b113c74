"""The drift alarm: what it notices against how often it cries wolf, and what it notices of what."""

from __future__ import annotations

from typing import Any

from neds.plots.style import colours, figure, style

WORDS = {"firing": "firing rates", "likelihood": "predicted spikes", "drift": "either"}


def drift_curves(report: dict[str, Any]) -> Any:
    """Two panels of a report of bench/drift.py: all disturbances, and those that cost accuracy."""
    scores = list(dict.fromkeys(point["score"] for point in report["curves"]))
    colour = colours(scores)
    with style():
        picture = figure(6.4, 2.9)
        axes = picture.subplots(1, 2, sharey=True)
        for axis, kind, title in zip(axes, ("all", "harmful"), (
                "all disturbances", "those that cost 0.1 of R2"), strict=True):
            for score in scores:
                points = [p for p in report["curves"] if p["score"] == score
                          and p[kind] is not None]
                axis.plot([p["false_alarms_per_hour"] for p in points], [p[kind] for p in points],
                          "-o", ms=2.5, color=colour[score], label=WORDS.get(score, score))
                shipped = [p for p in points if p["factor"] == 1.0]
                axis.plot([p["false_alarms_per_hour"] for p in shipped],
                          [p[kind] for p in shipped], "o", ms=7, mfc="none", color=colour[score])
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(left=-0.1)
            axis.set_ylim(0, 1.02)
            axis.set_title(title)
            axis.set_xlabel("false alarms per hour")
        axes[0].set_ylabel("noticed within a minute")
        axes[0].legend(loc="lower right")
    return picture
