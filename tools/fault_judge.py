"""The judge of a broken rig: the engine run offline over what was sent, against every decode.

What the server says it did not get is left out; a decode that claims to be valid and differs is
wrong. Nothing of the server's own path is used but its engine, on counts that the rig kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines import Engine, load_engine
from neds_rt.wire import Decode
from tools.fault_rig import UNITS_A_PROBE, Rig

TOLERANCE = 1e-4  # of a value, beside which rounding is nothing


class Verdict(NamedTuple):
    """What the judge found."""

    checked: int  # decodes that claimed to be valid
    wrong: list[int]  # of these, the sequence numbers of those that differ from the truth
    unreported: int  # bins that no decode, gap or counter told of


class Judge:
    """Follows the server's bins with two engines, one a step behind in its beliefs.

    Around a gap no message tells which bins were lost and which only look back at one. What was
    published does: it is the step of a lost bin or that of the bin's true counts.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._engines = [load_engine("native", bundle) for _ in range(2)]
        self._zero = np.zeros(self._engines[0].n_units, np.uint16)
        self.restart()

    def restart(self) -> None:
        """Another session: bins are stepped from nothing."""
        self._history: list[NDArray[np.uint16] | int | None] = []  # counts, bins skipped, lost
        for engine in self._engines:
            engine.reset()

    def skip(self, n_bins: int) -> None:
        """Bins that no message came for."""
        self._history.append(n_bins)
        for engine in self._engines:
            engine.skip(n_bins)

    def take(self, counts: NDArray[np.uint16] | None) -> None:
        """A bin that nobody heard the message of."""
        self._history.append(counts)
        for engine in self._engines:
            engine.step(self._zero if counts is None else counts, counts is not None)

    def step(
        self, counts: NDArray[np.uint16] | None, found: NDArray[np.float32], doubtful: bool
    ) -> tuple[bool, bool]:
        """Take a bin whose outputs were `found`; return (lost, whether they are right)."""
        given, lost = self._engines
        if counts is not None:
            right = _close(given.step(counts), found)
            if not doubtful:
                lost.step(counts)
            elif not right and _close(lost.step(self._zero, False), found):
                counts = None
        else:
            lost.step(self._zero, False)
        if counts is None:
            self._history.append(None)
            self._replay(given)
            return True, True
        self._history.append(counts)
        if doubtful:
            self._replay(lost)
        return False, right

    def _replay(self, engine: Engine) -> None:
        engine.reset()
        for each in self._history:
            if isinstance(each, int):
                engine.skip(each)
            else:
                engine.step(self._zero if each is None else each, each is not None)


def _close(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    return bool(np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE))


def judge(rig: Rig) -> Verdict:
    """Compare every decode of every server with the engine run over the counts that were sent."""
    begins = [life.began_ns for life in rig.lives]
    found = []
    for k, life in enumerate(rig.lives):
        until = begins[k + 1] if k + 1 < len(begins) else 2**63
        mine = [d for d in rig.decodes if begins[k] <= d.pub_ns < until]
        found.append(judge_life(rig, mine, life.summary))
    return Verdict(sum(v.checked for v in found), [seq for v in found for seq in v.wrong],
                   sum(v.unreported for v in found))


def judge_life(rig: Rig, decodes: Sequence[Decode], summary: dict[str, Any]) -> Verdict:
    """Judge one server's decodes by what was sent and, for long gaps, by its own summary."""
    engines = Judge(rig.bundle)
    wrong, checked, missing, lost_told = [], 0, 0, 0
    session, last = "", -1
    for decode in decodes:
        if decode.bin < 0:
            continue
        if decode.session != session or decode.bin <= last:
            engines.restart()
            session, last = decode.session, decode.bin - 1
            if decode is decodes[0]:  # those before it were published before we were subscribed
                for bin_ in range(decode.bin - decode.seq, decode.bin):
                    engines.take(rig.counts(session, bin_))
        if decode.bin > last + 1:
            missing += decode.bin - last - 1
            engines.skip(decode.bin - last - 1)
        last = decode.bin
        counts = rig.counts(session, last)
        if decode.missing and counts is not None:  # stepped without them, and said so
            counts = counts.copy()
            for k, probe in enumerate(rig.names):
                if probe in decode.missing:
                    counts[k * UNITS_A_PROBE : (k + 1) * UNITS_A_PROBE] = 0
        found = np.array(decode.values["velocity"].mean, np.float32)
        lost, right = engines.step(counts, found, not decode.valid)
        lost_told += lost
        if decode.valid:
            checked += 1
            if lost or not right:
                wrong.append(decode.seq)
    reported = summary.get("counters", {}).get("lost_bins", 0) - lost_told
    seqs = {decode.seq for decode in decodes}
    unheard = max(seqs) - min(seqs) + 1 - len(seqs) if seqs else 0
    return Verdict(checked, wrong, max(0, missing - reported) + unheard)
