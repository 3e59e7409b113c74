"""What a step costs against the size of the model: a panel a size that was varied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neds.plots.style import colours, figure, style

Curve = Mapping[float, float]  # size -> cost


def scaling_panels(
    panels: Mapping[str, Mapping[str, tuple[Curve, Curve]]], ylabel: str, styles: tuple[str, str]
) -> Any:
    """A panel for each size: for each name two curves, solid and dashed, on logarithmic axes.

    `panels` maps the size's words to names to the two curves; `styles` are the words for them.
    """
    from matplotlib.ticker import NullLocator, ScalarFormatter

    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colour = colours(names)
    with style():
        picture = figure(2.8 * len(panels), 2.9)
        axes = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (words, curves) in zip(axes, panels.items(), strict=True):
            sizes: set[float] = set()
            for name, pair in curves.items():
                for curve, line in zip(pair, ("-", "--"), strict=True):
                    at = sorted(curve)
                    sizes |= set(at)
                    axis.plot(at, [curve[x] for x in at], line, marker="o", ms=3,
                              color=colour[name])
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(sorted(sizes))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_locator(NullLocator())
            axis.tick_params(axis="x", labelrotation=45)
            axis.set_xlabel(words)
        axes[0].set_ylabel(ylabel)
        for name in names:
            axes[-1].plot([], [], color=colour[name], label=name)
        for words, line in zip(styles, ("-", "--"), strict=True):
            axes[-1].plot([], [], line, color="#444444", label=words)
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return picture
