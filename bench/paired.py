"""Servers in turns, round by round: each one's times as a multiple of another's in the same round.

Whatever else the machine did in a round fell on all of them, and a round in which it did much is
one of many: the median over rounds is compared, not the tail of all of them together.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neds_rt.latency.rounds import LiveBench, Target
from neds_rt.stats import percentiles

LEVEL = 0.05  # the chance with which a median is outside of its interval
Rounds = Mapping[str, Sequence[Sequence[float]]]  # of each server, of each round: service in us


class PairedBench(LiveBench):
    """Keeps the service times of every round apart, in `service`."""

    service: dict[str, list[list[float]]]

    def run(self) -> dict[str, Any]:
        """Send all rounds and return the report."""
        self.service = {}
        return super().run()

    def _round(self, target: Target, bins: int) -> None:
        before = len(target.seen.service_us)
        super()._round(target, bins)
        self.service.setdefault(target.name, []).append(target.seen.service_us[before:])


def ratios(rounds: Rounds, name: str, base: str) -> dict[str, dict[str, float]]:
    """Return what p50 and p99 of `name`'s rounds are as multiples of those of `base`.

    `median` over the rounds, within `low` and `high` at 95 % (order statistics: the least and the
    most of up to eight rounds). Rounds that either did not answer are left out; empty if all are.
    """
    pairs = [(percentiles(np.array(ours)), percentiles(np.array(theirs)))
             for ours, theirs in zip(rounds[name], rounds[base], strict=True)]
    whole = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
    found = {}
    for key in ("p50", "p99") if whole else ():
        each = sorted(ours[key] / theirs[key] for ours, theirs in whole)
        cut = outside(len(each))
        found[key] = {"median": round(statistics.median(each), 3), "low": round(each[cut], 3),
                      "high": round(each[-1 - cut], 3), "rounds": len(each)}
    return found


def outside(n: int) -> int:
    """Of `n` values, how many at either end the median of their kind is between, at 95 %."""
    chance, cut = 0.0, -1
    while chance <= LEVEL / 2:
        cut += 1
        chance += math.comb(n, cut) / 2**n
    return max(0, cut - 1)


def above(name: str, found: Mapping[str, Mapping[str, float]], key: str, most: float) -> list[str]:
    """Return a line if the median over the rounds is above `most` and not by chance, or not there.

    By chance is a median that may as well be 1, or below.
    """
    if key not in found:
        return [f"{name}: no round was answered"]
    median, low = found[key]["median"], found[key]["low"]
    if median <= most or low <= 1:
        return []
    return [f"{name}: {key} of the service is {median:g} times that without, "
            f"at most {most:g} expected"]
