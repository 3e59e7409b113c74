"""The paper's trials of an IBL session: which are kept, and their counts and traces.

What the NEDS release does with a trials table (stimulus onset -0.5 to 1.5 s, 20 ms bins), in plain
arrays. What it does unintentionally is a name of `BUGS`; without one the intent is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput

EVENT, WINDOW_S, BIN_S = "stimOn_times", (-0.5, 1.5), 0.02
BINS = round((WINDOW_S[1] - WINDOW_S[0]) / BIN_S)
NEEDED = ("stimOn_times", "choice", "feedback_times", "probabilityLeft", "firstMovement_times",
          "feedbackType")
MOST_S = 10.0
MOST_MISSING = 0.3
"""A trace that this share of all trials lacks is left out, instead of the trials."""

BUGS = {
    "whisker": "the right camera is taken even where there is a left one",
    "session": "a kept trial without wheel or whisker ends the session, not the trial",
    "scale": "traces become 0 to 1 over all kept trials, those of the test part too",
    "rate": "the rate of a unit is its mean over all trials, bad ones too",
}
"""Switch -> what the release does there."""

Trials = Mapping[str, NDArray[Any]]
Reasons = list[tuple[NDArray[np.bool_], str]]


def bugs_of(words: str) -> frozenset[str]:
    """The switches of a comma-separated list, or of "all"; `BadInput` for an unknown one."""
    names = list(BUGS) if words == "all" else [w.strip() for w in words.split(",") if w.strip()]
    for name in names:
        if name not in BUGS:
            raise BadInput("ibl reader", "bugs", repr(name), f"all, or some of {', '.join(BUGS)}")
    return frozenset(names)


def kept_trials(trials: Trials) -> tuple[NDArray[np.bool_], Reasons]:
    """Mask (n,) of the trials the paper keeps, and each rule's mask of those it drops.

    A trial is dropped by the first rule that it breaks. Raises `BadInput` for a table without one
    of the columns.
    """
    for name in (*NEEDED, "goCue_times"):
        if name not in trials:
            raise BadInput("trials", "column", f"no {name}", ", ".join(NEEDED))
    at = {name: np.asarray(column, np.float64) for name, column in trials.items()
          if np.asarray(column).dtype.kind in "fiub"}
    reaction = at["firstMovement_times"] - at[EVENT]
    length = at["feedback_times"] - at["goCue_times"]
    rules = [(np.isnan(at[name]), f"no {name}") for name in NEEDED]
    rules += [
        (reaction < 0, "moved before the stimulus"),
        (reaction > MOST_S, f"first movement more than {MOST_S:g} s after the stimulus"),
        (length > MOST_S, f"feedback more than {MOST_S:g} s after the go cue"),
        (at["choice"] == 0, "no choice"),
    ]
    kept, reasons = np.ones(len(reaction), bool), []
    for broken, reason in rules:
        reasons.append((kept & broken, reason))
        kept &= ~broken
    return kept, [(mask, reason) for mask, reason in reasons if mask.any()]


def windows(trials: Trials) -> NDArray[np.float64]:
    """Start and end (n, 2) in seconds of every trial's window, NaN where its event is unknown."""
    event = np.asarray(trials[EVENT], np.float64)
    return np.stack([event + WINDOW_S[0], event + WINDOW_S[1]], axis=1)


def trial_counts(
    times: NDArray[np.float64], unit: NDArray[np.int32], n_units: int,
    window: NDArray[np.float64],
) -> NDArray[np.uint16]:
    """Spikes (n, BINS, n_units) of each trial's window; bin k holds [start + k bins, + 1).

    times (m,) seconds, sorted; unit (m,). Windows (n, 2) that are NaN have no spikes.
    """
    counts = np.zeros((len(window), BINS, n_units), np.uint16)
    known = np.isfinite(window).all(axis=1)
    lo = np.searchsorted(times, np.where(known, window[:, 0], np.inf))
    hi = np.searchsorted(times, np.where(known, window[:, 1], np.inf))
    for k in np.flatnonzero(known):
        row = np.floor((times[lo[k]:hi[k]] - window[k, 0]) / BIN_S).astype(np.int64)
        inside = row < BINS  # rounding may push the last spike out
        flat = row[inside] * n_units + unit[lo[k]:hi[k]][inside]
        counts[k] = np.bincount(flat, minlength=BINS * n_units).reshape(BINS, n_units)
    return counts


def trial_traces(
    times: NDArray[np.float64], values: NDArray[np.float64], window: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A trace at the right edges of each trial's bins (n, BINS), and which trials have it (n,).

    Linear interpolation, and extrapolation beyond the samples inside the window, which must reach
    within one bin of both its ends. NaN inside a trace are kept.
    """
    out = np.full((len(window), BINS), np.nan)
    there = np.zeros(len(window), bool)
    for k in np.flatnonzero(np.isfinite(window).all(axis=1)):
        start, end = window[k]
        lo = np.searchsorted(times, start, side="right")
        hi = np.searchsorted(times, end, side="left")
        t, y = times[lo:hi], values[lo:hi]
        if len(t) < 2 or abs(start - t[0]) > BIN_S or abs(end - t[-1]) > BIN_S:
            continue
        x = np.linspace(start + BIN_S, end, BINS)
        right = np.clip(np.searchsorted(t, x), 1, len(t) - 1)
        left = right - 1
        slope = (y[right] - y[left]) / (t[right] - t[left])
        out[k] = slope * (x - t[left]) + y[left]
        there[k] = True
    return out, there


def settle(
    traces: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]], kept: NDArray[np.bool_],
    bugs: frozenset[str],
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_], Reasons, dict[str, str]]:
    """Which trials and traces stay where some trials lack a trace.

    traces: name -> what `trial_traces` gives. Returns the traces that stay, the trials kept (n,),
    the masks of those dropped here, and the reason for each trace left out. With the bug
    "session" raises `BadInput` where a kept trial lacks a trace, and does not check the trace
    after one that is left out.
    """
    left_out: dict[str, str] = {}
    unchecked = False
    for name, (_, there) in traces.items():
        missing = 1 - there.mean()
        if missing >= MOST_MISSING and not unchecked:
            left_out[name] = f"missing in {missing:.0%} of the trials"
            unchecked = "session" in bugs
        else:
            unchecked = False
    stay = {name: trace for name, trace in traces.items() if name not in left_out}
    reasons: Reasons = []
    for name, (_, there) in stay.items():
        lacking = kept & ~there
        if lacking.any() and "session" in bugs:
            raise BadInput("trials", name, f"missing in {lacking.sum()} kept trials",
                           "none missing, with the bug switch session")
        if lacking.any():
            reasons.append((lacking, f"no {name} in its window"))
        kept = kept & there
    return {name: values for name, (values, _) in stay.items()}, kept, reasons, left_out


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values as shares of their range, with one minimum and one maximum for all."""
    low, high = np.nanmin(values), np.nanmax(values)
    return np.asarray((values - low) / (high - low if high > low else 1.0))
