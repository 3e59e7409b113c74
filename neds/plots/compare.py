"""Models, sessions, regions and ablations beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.plots.style import COLOURS, colours, figure, style

Floats = NDArray[np.floating]


def model_bars(scores: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str) -> Any:
    """Bars of each model by session; `scores[session][model]` holds one value per seed.

    A session that a model was not run on has no bar of it.
    """
    found = dict.fromkeys(m for by_model in scores.values() for m in by_model)
    models = sorted(found, key=_rank)
    paint = colours(models)
    width = 0.8 / max(1, len(models))
    with style():
        picture = figure(max(4.0, min(12.0, 1.5 + 0.5 * len(models) * len(scores))), 3.4)
        axis = picture.subplots()
        for i, model in enumerate(models):
            label: str | None = model
            for x, by_model in enumerate(scores.values()):
                values = list(by_model.get(model, []))
                if not values:
                    continue
                at = x + (i - (len(models) - 1) / 2) * width
                axis.bar(at, np.mean(values), width * 0.9, color=paint[model], label=label)
                label = None
                axis.plot([at] * len(values), values, ".", color="black", ms=3)
        axis.set_xticks(range(len(scores)), list(scores), rotation=20, ha="right")
        axis.set_ylabel(ylabel)
        axis.legend(ncols=len(models), loc="lower left", bbox_to_anchor=(0, 1))
    return picture


def session_scatter(
    x: Mapping[str, float], y: Mapping[str, float], xlabel: str, ylabel: str, metric: str
) -> Any:
    """One dot a session that both models were scored on: above the diagonal, `y` is better.

    x and y are {session: score}, of a single-session and a multi-session model for example.
    """
    names = [name for name in x if name in y]
    a, b = np.array([x[n] for n in names]), np.array([y[n] for n in names])
    with style():
        picture = figure(3.8, 4.0)
        axis = picture.subplots()
        low, high = (min(a.min(), b.min()), max(a.max(), b.max())) if names else (0.0, 1.0)
        edge = 0.06 * (high - low) or 0.1
        axis.plot([low - edge, high + edge], [low - edge, high + edge], color="0.7", lw=0.8)
        axis.plot(a, b, "o", ms=5, color=COLOURS["neds"], alpha=0.8, mew=0)
        axis.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge),
                 xlabel=f"{xlabel}, {metric}", ylabel=f"{ylabel}, {metric}", aspect="equal")
        axis.locator_params(nbins=5)
        axis.set_title(f"better in {int((b > a).sum())} of {len(names)} sessions, "
                       f"mean {b.mean() - a.mean():+.3f}" if names else "no session in common",
                       loc="left")
    return picture


def calibration_curve(
    scores: Mapping[str, Mapping[float, Sequence[float]]], ylabel: str
) -> Any:
    """Score against minutes of calibration data: `scores[model][minutes]` holds a value per seed.

    The line is the mean over seeds, the band its least and greatest seed. Minutes are spaced as
    their square root, so that 0 has a place.
    """
    paint = colours(scores)
    with style():
        picture = figure(5.0, 3.4)
        axis = picture.subplots()
        ticks: set[float] = set()
        for model, curve in scores.items():
            minutes = np.array(sorted(curve))
            values = [np.asarray(curve[m], float) for m in sorted(curve)]
            ticks |= set(minutes.tolist())
            axis.plot(minutes, [v.mean() for v in values], "o-", ms=4, color=paint[model],
                      label=model, zorder=3 if model == "neds" else 2)
            axis.fill_between(minutes, [v.min() for v in values], [v.max() for v in values],
                              color=paint[model], alpha=0.2, lw=0)
        axis.set_xscale("function", functions=(lambda m: np.sqrt(np.maximum(m, 0)), np.square))
        axis.set_xticks(sorted(ticks), [f"{t:g}" for t in sorted(ticks)])
        axis.set_xlim(left=0)
        axis.set(xlabel="minutes of calibration data", ylabel=ylabel)
        axis.grid(axis="y", color="0.92")
        axis.legend(loc="lower right")
    return picture


def confusion_matrix(counts: NDArray[Any], labels: Sequence[str], chance: float | None = None
                     ) -> Any:
    """Confusion of classes such as brain regions: counts (C, C), rows the truth, by row share.

    Each field says its share of the row; a row without a case is left white. `chance` is the
    balanced accuracy of shuffled labels, named in the title beside the found one.
    """
    counts = np.asarray(counts, float)
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    with style():
        side = 1.8 + 0.45 * len(labels)
        picture = figure(side + 0.7, side)
        axis = picture.subplots()
        image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(share.shape):
            if total[i, 0] > 0:
                axis.text(j, i, f"{share[i, j]:.2f}".lstrip("0") or "0", ha="center", va="center",
                          fontsize=7, color="white" if share[i, j] > 0.55 else "black")
        names = [f"{name} ({int(n)})" for name, n in zip(labels, total[:, 0], strict=True)]
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axis.set_yticks(range(len(labels)), names)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="predicted", ylabel="true (cases)")
        found = share.diagonal()[total[:, 0] > 0]
        title = f"balanced accuracy {found.mean():.2f}" if found.size else ""
        axis.set_title(title + ("" if chance is None else f", chance {chance:.2f}"), loc="left")
        picture.colorbar(image, ax=axis, pad=0.02, fraction=0.046, label="share of the row")
    return picture


def ablation_bars(
    scores: Mapping[str, Mapping[str, Sequence[float]]], whole: str, ylabels: Mapping[str, str]
) -> Any:
    """What leaving out a masking scheme changes: `scores[variant][metric]` has a value per seed.

    One row of axes per metric of `ylabels` (its label), a bar per variant; the line is the variant
    `whole`, with nothing left out.
    """
    variants = [whole, *(v for v in scores if v != whole)]
    with style():
        picture = figure(2.2 + 0.8 * len(variants), 1.9 * len(ylabels) + 0.9)
        axes = picture.subplots(len(ylabels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (metric, label) in zip(axes, ylabels.items(), strict=True):
            for x, variant in enumerate(variants):
                values = np.asarray(scores[variant].get(metric, []), float)
                if not values.size:
                    continue
                own = COLOURS["neds"] if variant == whole else COLOURS["ridge"]
                axis.bar(x, values.mean(), 0.7, color=own)
                axis.plot([x] * len(values), values, ".", color="black", ms=3)
                if variant == whole:
                    axis.axhline(values.mean(), color=own, lw=0.8, ls=":")
            axis.axhline(0, color="0.4", lw=0.6)
            axis.set_ylabel(label)
        axes[-1].set_xticks(range(len(variants)), variants, rotation=25, ha="right")
    return picture


def _rank(model: str) -> int:
    order = [*COLOURS]
    return order.index(model) if model in order else len(order)
