"""Where the benchmark cuts a recording, and which units it holds out.

Intervals are (n, 2) seconds, sorted and disjoint. Trials are the spans that all windows of a trial
cover; no cut goes through one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neds.bwb.tasks import CONTEXT_S
from neds_rt.errors import BadInput

Spans = NDArray[np.float64]

FRACTIONS = (0.4, 0.2, 0.4)
"""TS1: shares of the time in trials; training first, test last."""
CHUNK_S = 300.0
PATTERN = ("train", "test", "train", "val", "test")
"""TS2: parts of consecutive chunks, over and over."""
HELD_OUT = 0.1
SALTS = {"test": "ts2_co_smoothing_test", "val": "ts2_co_smoothing_val"}


def causal_split(
    domain: Spans, trials: Spans, fractions: Sequence[float] = FRACTIONS, gap_s: float = CONTEXT_S
) -> dict[str, Spans]:
    """Training, validation and test part in this order in time, one interval (1, 2) each.

    Cuts are at shares of the time spent in trials, moved to the nearest border of a trial; the next
    part starts `gap_s` or more later, at a border or outside trials. Raises `BadInput` where the
    recording is too short for that.
    """
    trials = intersect(trials, domain)
    if not len(trials):
        raise BadInput("split", "trials", "none in the recording", "some")
    first, last = float(domain[0, 0]), float(domain[-1, 1])
    lengths = trials[:, 1] - trials[:, 0]
    done = np.cumsum(lengths)
    ends = []
    for share in np.cumsum(fractions)[:2]:
        offset = share * done[-1]
        i = min(int(np.searchsorted(done, offset)), len(done) - 1)
        before = done[i] - lengths[i]
        ends.append(float(trials[i, 0] if offset - before <= done[i] - offset else trials[i, 1]))
    starts = [_outside(end + gap_s, trials) for end in ends]
    parts = {"train": (first, ends[0]), "val": (starts[0], ends[1]), "test": (starts[1], last)}
    for name, (start, stop) in parts.items():
        if stop <= start:
            raise BadInput("split", f"{name} part", "no time left",
                           f"a longer recording or a gap below {gap_s:g} s")
    return {name: np.array([part]) for name, part in parts.items()}


def _outside(time: float, trials: Spans) -> float:
    """`time`, or the end of the trial that it lies in."""
    inside = (trials[:, 0] < time) & (time < trials[:, 1])
    return float(trials[inside, 1][0]) if inside.any() else time


def chunked_split(
    domain: Spans, trials: Spans, chunk_s: float = CHUNK_S, gap_s: float = CONTEXT_S
) -> dict[str, Spans]:
    """Parts of interleaved chunks of the recording, {part: (n, 2)}.

    A trial on a border goes whole to the chunk that has most of it. Every chunk but the first
    starts at the first trial that begins `gap_s` or more after the chunk before it; one in which no
    such trial begins is left out.
    """
    edges = np.arange(domain[0, 0], domain[-1, 1], chunk_s)
    chunks = np.stack([edges, np.r_[edges[1:], domain[-1, 1]]], 1)
    for start, stop in trials:
        touched = np.flatnonzero((chunks[:, 0] <= stop) & (chunks[:, 1] >= start))
        if len(touched) == 2:
            one, two = touched
            border = chunks[one, 1]
            chunks[one, 1] = chunks[two, 0] = stop if border - start >= stop - border else start
    for i in range(1, len(chunks)):
        later = trials[trials[:, 0] >= chunks[i - 1, 1] + gap_s, 0]
        chunks[i, 0] = min(later[0], chunks[i, 1]) if len(later) else chunks[i, 1]
    part = np.resize(np.array(PATTERN), len(chunks))
    there = chunks[:, 0] < chunks[:, 1]
    return {name: chunks[there & (part == name)] for name in ("train", "val", "test")}


def held_out_units(ids: Sequence[str], part: str) -> NDArray[np.bool_]:
    """The units (U,) that co-smoothing holds out in "test" or "val": a tenth, one at least.

    Those that come first by the SHA-256 of salt and id, so that it depends on the ids alone.
    """
    digests = [hashlib.sha256(f"{SALTS[part]}:{name}".encode()).hexdigest() for name in ids]
    order = sorted(range(len(ids)), key=digests.__getitem__)
    held = np.zeros(len(ids), bool)
    held[order[:max(1, round(HELD_OUT * len(ids)))]] = True
    return held


def intersect(a: Spans, b: Spans) -> Spans:
    """What two sets of intervals share, sorted, as (n, 2)."""
    starts = np.maximum(a[:, None, 0], b[None, :, 0])
    stops = np.minimum(a[:, None, 1], b[None, :, 1])
    both = np.stack([starts, stops], -1)[stops > starts]
    return np.asarray(both[np.argsort(both[:, 0], kind="stable")])
