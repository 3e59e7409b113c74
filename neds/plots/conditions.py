"""Averages over trials of a condition (PSTHs) and single trials, real beside predicted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.plots.style import OTHERS, figure, style

MAX_CONDITIONS = 6  # the most frequent ones: more lines cannot be told apart

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class TrialTraces:
    """One row of the picture: truth and predicted (n, L), a trace a trial, NaN where unknown.

    Of spike counts, `smooth` is the sd in bins of the Gaussian that both means are drawn with, and
    single trials have their own grey scales: counts and rates are far apart. Of behaviours, where
    `smooth` is 0, both have the scale of the truth.
    """

    label: str
    truth: Floats
    predicted: Floats
    smooth: float = 0.0


def trial_panels(
    rows: Sequence[TrialTraces], condition: NDArray[np.int64], labels: Sequence[str],
    seconds: Floats,
) -> Any:
    """For each row: real and predicted PSTHs, then real and predicted single trials.

    condition (n,) indexes `labels`, -1 unknown (those trials are not shown); seconds (L,) from the
    event. Trials are sorted by condition; a bar beside them has its PSTH's colour. Unknown bins are
    pale blue.
    """
    number = np.bincount(condition[condition >= 0], minlength=len(labels))
    shown = np.sort(np.argsort(-number, kind="stable")[:MAX_CONDITIONS])
    shown = shown[number[shown] > 0]
    with style():
        picture = figure(9.5, 1.8 * len(rows) + 0.9)
        axes = picture.subplots(len(rows), 4, squeeze=False, sharex="col",
                                width_ratios=(1, 1, 0.8, 0.8))
        for line, row in zip(axes, rows, strict=True):
            _averages(line[:2], row, condition, shown, seconds)
            _singles(picture, line[2:], row, condition, shown, seconds)
            line[0].set_ylabel(row.label)
        for axis, title in zip(axes[0], ("real mean", "predicted mean", "real trials",
                                         "predicted trials"), strict=True):
            axis.set_title(title)
        width = rows[0].smooth * (seconds[1] - seconds[0]) if len(seconds) > 1 else 0.0
        for i, axis in enumerate(axes[-1]):
            how = f", smoothed by {1000 * width:.0f} ms" if width and i < 2 else ""
            axis.set_xlabel(f"seconds{how}")
        handles, texts = _key(shown, labels)
        picture.legend(handles, texts, loc="outside lower center", ncols=min(3, len(texts)))
    return picture


def _averages(
    axes: Sequence[Any], row: TrialTraces, condition: NDArray[np.int64], shown: NDArray[np.int64],
    seconds: Floats,
) -> None:
    axes[1].sharey(axes[0])
    axes[1].tick_params(labelleft=False)
    for i, c in enumerate(shown):
        mine = condition == c
        for axis, traces in zip(axes, (row.truth, row.predicted), strict=True):
            known = np.where(np.isnan(row.truth[mine]), np.nan, traces[mine])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # bins that no trial knows
                mean = np.nanmean(known, 0)
            axis.plot(seconds, smoothed(mean, row.smooth), color=OTHERS[i])
    for axis in axes:
        axis.margins(x=0)
        if seconds[0] < 0:
            axis.axvline(0, color="0.8", lw=0.8, zorder=0)


def _singles(
    picture: Any, axes: Sequence[Any], row: TrialTraces, condition: NDArray[np.int64],
    shown: NDArray[np.int64], seconds: Floats,
) -> None:
    order = np.concatenate([np.flatnonzero(condition == c) for c in shown])
    step = seconds[1] - seconds[0] if len(seconds) > 1 else 1.0
    extent = (seconds[0], seconds[-1] + step, len(order), 0)
    low, high = _scale(row.truth[order])
    grey = _greys()
    for axis, traces in zip(axes, (row.truth, row.predicted), strict=True):
        known = np.where(np.isnan(row.truth[order]), np.nan, traces[order])
        if row.smooth:
            low, high = _scale(known)
        image = axis.imshow(known, aspect="auto", interpolation="nearest", cmap=grey,
                            extent=extent, vmin=low, vmax=high)
        picture.colorbar(image, ax=axis, pad=0.02, fraction=0.06)
        axis.set_yticks([])
        start = 0
        for i, c in enumerate(shown):
            n = int((condition == c).sum())
            axis.axvspan(seconds[0] - 0.04 * np.ptp(extent[:2]), seconds[0],
                         1 - start / len(order), 1 - (start + n) / len(order),
                         color=OTHERS[i], lw=0)
            start += n
        axis.set_xlim(seconds[0] - 0.04 * np.ptp(extent[:2]), extent[1])


def smoothed(trace: Floats, sd: float) -> Floats:
    """A trace (L,) under a Gaussian of `sd` bins; unknown bins stay unknown and do not count."""
    if sd <= 0:
        return trace
    lag = np.arange(-int(3 * sd) - 1, int(3 * sd) + 2)
    kernel = np.exp(-0.5 * (lag / sd) ** 2)
    known = np.isfinite(trace)
    near = slice(lag[-1], lag[-1] + len(trace))
    total = np.convolve(np.where(known, trace, 0.0), kernel)[near]
    held = np.convolve(known, kernel)[near]
    return np.where(known, total / np.where(known, held, 1.0), np.nan)


def _greys() -> Any:
    """Greys on which unknown bins are not mistaken for a value."""
    import matplotlib as mpl

    return mpl.colormaps["Greys"].with_extremes(bad="#dce6f2")


def _scale(traces: Floats) -> tuple[float, float]:
    finite = traces[np.isfinite(traces)]
    low, high = np.percentile(finite, [1, 99]).tolist() if finite.size else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def _key(shown: NDArray[np.int64], labels: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=OTHERS[i]) for i in range(len(shown))]
    return handles, [labels[c] or "all trials" for c in shown]
