"""A session's trial table on the rows of a part: which rows are a trial's, and its condition.

Rows count from the part's first row. Only trials that lie wholly inside the part take part: one
that is cut by the part's border would be decoded from less than the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.session import TRIAL_STARTS
from neds.dataset import Recording
from neds.metrics.resample import MIN_BLOCKS
from neds_rt.errors import BadInput

TRIAL_ENDS = ("end", "intervals_1")

CONDITIONS = (
    ("choice", "response"),
    ("reward", "feedbackType", "feedback", "rewardVolume"),
    ("block", "probabilityLeft"),
)
"""Columns whose combinations are the conditions of PSTHs, as in the NEDS reference: of each line
the first that the table has."""

EVENT = "stimOn_times"
AROUND_EVENT_S = (-0.5, 1.5)
"""Trials with this event are aligned to it, over these seconds (the reference's window); others
are aligned to their start and followed for the median trial's length."""


@dataclass(frozen=True, eq=False)
class Trials:
    """n trials inside a part of T rows.

    extent (n, 2): rows [first, stop) of each; aligned (n, L): the row at each bin from the event,
    -1 where the trial has none; condition (n,): index into labels, -1 where a column is NaN;
    start_s: seconds from the event to the first aligned bin.
    """

    extent: NDArray[np.int64]
    aligned: NDArray[np.int64]
    condition: NDArray[np.int64]
    labels: list[str]
    start_s: float

    def __len__(self) -> int:
        return len(self.extent)

    def take(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values (T, k) at the aligned bins, (n, L, k), NaN where a trial has no row."""
        taken = values[np.maximum(self.aligned, 0)].astype(np.float64)
        taken[self.aligned < 0] = np.nan
        return np.asarray(taken)


def trials_within(
    table: Mapping[str, NDArray[Any]],
    recording: Recording,
    part: str,
    bin_size_s: float,
    conditions: Sequence[str] = (),
) -> Trials | None:
    """The trials of a session's table that lie inside a part; None without any.

    `conditions` names the columns whose combinations are the conditions (by default the ones in
    `CONDITIONS`); a column that the table lacks is refused as `BadInput`.
    """
    for name in conditions:
        if name not in table:
            known = ", ".join(table) or "none, this session has no trial table"
            raise BadInput(recording.state.session, "--conditions", repr(name), known)
    start = _column(table, TRIAL_STARTS)
    if start is None:
        return None
    stop = _column(table, TRIAL_ENDS)
    if stop is None:  # then a trial lasts until the next, and the last one has no known end
        stop = np.r_[start[1:], np.nan]
    bins = recording.bin[recording.rows(part)]
    slack = 1e-3
    begin = np.ceil(start / bin_size_s - slack)
    end = np.floor(stop / bin_size_s + slack)
    proper = np.isfinite(begin) & np.isfinite(end) & (end > begin)
    inside = proper & (begin >= bins[0]) & (end <= bins[-1] + 1)
    extent = np.stack([np.searchsorted(bins, np.where(inside, x, 0)) for x in (begin, end)], 1)
    inside &= (extent[:, 1] - extent[:, 0]) == np.where(inside, end - begin, -1)  # no gap within
    if not inside.any():
        return None
    origin, length, start_s = _window(table, begin, (end - begin)[proper], bin_size_s)
    condition, labels = _conditions(table, conditions)
    return Trials(
        extent=extent[inside].astype(np.int64),
        aligned=_aligned(bins, origin[inside], length),
        condition=condition[inside],
        labels=labels,
        start_s=start_s,
    )


def trial_blocks(trials: Trials | None, bins: NDArray[np.int64], block_bins: int) -> tuple[
    NDArray[np.int64], str
]:
    """Blocks to resample, one label a row (T,), and their name: "trials" or "seconds".

    A block is a trial and what follows it until the next one, where five trials or more lie in the
    part; else a stretch of `block_bins` bins of the clock. bins (T,): absolute bin of each row.
    """
    if trials is not None and len(trials) >= MIN_BLOCKS:
        rows = np.arange(len(bins))
        return np.searchsorted(np.sort(trials.extent[:, 0]), rows, side="right"), "trials"
    return (bins - bins[0]) // max(1, block_bins), "seconds"


def constant_in_trials(values: NDArray[np.floating], trials: Trials | None) -> bool:
    """Whether a categorical behaviour (T, 1) has one class, or is unknown, in every trial."""
    if trials is None:
        return False
    known = False
    for a, b in trials.extent.tolist():
        codes = values[a:b, 0][~np.isnan(values[a:b, 0])]
        if codes.size and np.ptp(codes) > 0:
            return False
        known = known or bool(codes.size)
    return known


def trial_votes(
    truth: NDArray[np.floating], probabilities: NDArray[np.floating], trials: Trials
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """One decision a trial: its class (n,), -1 unknown, and two ways to vote, each (n, classes).

    truth (T, 1), probabilities (T, classes) of every bin. The votes are the probabilities in the
    last bin, and the mean of their logarithms over the bins, of those bins in which the trial's
    class holds (a choice does not before the stimulus).
    """
    n = len(trials)
    codes = np.full(n, -1, np.int64)
    last = np.zeros((n, probabilities.shape[1]))
    mean = np.zeros_like(last)
    for i, (a, b) in enumerate(trials.extent.tolist()):
        rows = a + np.flatnonzero(~np.isnan(truth[a:b, 0]))
        if rows.size:
            codes[i] = int(truth[rows[-1], 0])
            last[i] = probabilities[rows[-1]]
            mean[i] = np.log(np.maximum(probabilities[rows], 1e-12)).mean(0)
    return codes, last, mean


def _column(table: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[np.float64] | None:
    for name in names:
        if name in table and table[name].dtype.kind in "fiu":
            return np.asarray(table[name], np.float64)
    return None


def _window(
    table: Mapping[str, NDArray[Any]],
    begin: NDArray[np.float64],
    lengths: NDArray[np.float64],
    bin_size_s: float,
) -> tuple[NDArray[np.float64], int, float]:
    """First aligned bin of every trial, how many there are, and their start in seconds."""
    event = _column(table, (EVENT,))
    if event is None:
        return begin, int(np.median(lengths)), 0.0
    before = round(AROUND_EVENT_S[0] / bin_size_s)
    length = max(1, round((AROUND_EVENT_S[1] - AROUND_EVENT_S[0]) / bin_size_s))
    return np.floor(event / bin_size_s + 1e-3) + before, length, before * bin_size_s


def _aligned(
    bins: NDArray[np.int64], origin: NDArray[np.float64], length: int
) -> NDArray[np.int64]:
    wanted = np.nan_to_num(origin, nan=-1e9).astype(np.int64)[:, None] + np.arange(length)
    row = np.clip(np.searchsorted(bins, wanted), 0, len(bins) - 1)
    return np.where(bins[row] == wanted, row, -1)


def _conditions(
    table: Mapping[str, NDArray[Any]], wanted: Sequence[str]
) -> tuple[NDArray[np.int64], list[str]]:
    """Condition of every trial of the table and the conditions' labels."""
    n = len(next(iter(table.values())))
    names = list(wanted)
    if not names:
        firsts = (next((c for c in line if c in table), None) for line in CONDITIONS)
        names = [name for name in firsts if name is not None]
    known = np.ones(n, bool)
    texts = [""] * n
    for name in names:
        column = table[name]
        if column.dtype.kind == "f":
            known &= ~np.isnan(column)
        for i, value in enumerate(column.tolist()):
            shown = f"{value:g}" if isinstance(value, float | int) else str(value)
            texts[i] += f"{', ' if texts[i] else ''}{name} {shown}"
    labels = sorted({text for text, k in zip(texts, known, strict=True) if k})
    place = {text: i for i, text in enumerate(labels)}
    pairs = zip(texts, known, strict=True)
    return np.array([place[t] if k else -1 for t, k in pairs], np.int64), labels
