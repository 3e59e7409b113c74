"""Probes with clocks of their own, put into the first probe's sample clock before bins are made.

The serving thread passes every frame through `take`, which rewrites its sample numbers in C++
(`rt/src/clock_map.hpp`) by the line that is known, and notes when each watermark arrived. `tend`,
which the housekeeping thread calls, turns those notes and the sources' shared edges into lines
(`neds_rt/clocks.py`). Frames of a probe whose clock is not known yet are held back: dropped and
counted, for some seconds after its start.

What is recorded, binned and decoded afterwards is in one clock, so nothing that follows knows of
the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from neds_rt import _core
from neds_rt.clocks import Alignment, Side
from neds_rt.sources import OWN, scheme_of

if TYPE_CHECKING:
    from neds_rt.sources import Source
    from neds_rt.sources.frame import Frame


def wanted(choice: str, probes: Mapping[str, str]) -> bool:
    """Return whether to align `probes` (name -> URI): `on`, `off`, or `auto`.

    `auto` aligns several probes of acquisition programs. Native senders, and what is played, state
    samples of one clock unless told otherwise.
    """
    if choice != "auto":
        return choice == "on" and len(probes) > 1
    foreign = sum(scheme_of(name, uri) not in OWN for name, uri in probes.items())
    return foreign > 1


class Aligner:
    """Puts frames of all probes into the sample clock of the first."""

    def __init__(self, probes: Iterable[str]) -> None:
        self.probes = list(probes)
        self._map = _core.ClockMap(self.probes)
        self._sessions = [0] * len(self.probes)
        self._alignments: list[Alignment | None] = [None] * len(self.probes)

    @property
    def held(self) -> int:
        """Frames dropped because their clock was not known."""
        return int(self._map.held)

    def take(self, frame: Frame, received_ns: int) -> bool:
        """Rewrite `frame` where need be; False if it has to be dropped. The hot path."""
        if frame.parts != 2:
            return True
        verdict = self._map.take(frame.header, frame.payload, received_ns)
        if verdict == _core.REWRITTEN:
            frame.header, frame.payload = self._map.header(), self._map.payload()
        return bool(verdict != _core.HELD)

    def tend(self, sources: Iterable[Source]) -> str:
        """Take in what was noted since the last call; return the state of the clocks in words."""
        while (pair := self._map.next()) is not None:
            stream, session, watermark, received_ns = pair
            self._pair(stream, session, watermark, received_ns * 1e-9)
        for source in sources:
            self._take_edges(source)
        for k in range(1, len(self.probes)):
            alignment = self._alignments[k]
            line = None if alignment is None else alignment.line_of_samples()
            if line is not None:
                self._map.know(k, self._sessions[k], self._sessions[0], *line)
        return self.state()

    def state(self) -> str:
        """Return what is known of each clock, in words."""
        words = []
        for name, alignment in zip(self.probes[1:], self._alignments[1:], strict=True):
            line = None if alignment is None else alignment.line_of_samples()
            if line is None or alignment is None:
                words.append(f"{name}: clock not known yet, its frames are dropped")
            else:
                words.append(f"{name}: aligned by {alignment.by}")
        return "; ".join(words)

    def report(self) -> dict[str, Any]:
        """Return what was found, JSON-ready: for each probe but the first."""
        found: dict[str, Any] = {"reference": self.probes[0], "held_frames": self.held}
        for k, alignment in enumerate(self._alignments):
            line = None if alignment is None else alignment.line_of_samples()
            if alignment is None or line is None:
                continue
            rate = line[2] * alignment.other.clock.fs / alignment.reference.clock.fs
            found[self.probes[k]] = {
                "by": alignment.by, "ppm": round((rate - 1) * 1e6, 3),
                "rejected": alignment.line.rejected, "steps": alignment.line.steps,
                "unmatched_edges": alignment.reference.unmatched + alignment.other.unmatched,
            }
        return found

    def _pair(self, stream: int, session: int, watermark: int, host_s: float) -> None:
        if session != self._sessions[stream]:
            self._restart(stream, session)
        for alignment, side in self._sides(stream):
            alignment.pair(side, watermark, host_s)

    def _restart(self, stream: int, session: int) -> None:
        """A stream counts from another zero: whatever rested on its clock has to be found anew."""
        self._sessions[stream] = session
        fs = self._map.fs(stream)
        for k in range(1, len(self.probes)):
            if stream not in (0, k):
                continue
            alignment = self._alignments[k]
            if alignment is None or alignment.side(stream == 0).clock.fs != fs:
                if self._sessions[0] and self._sessions[k]:
                    self._alignments[k] = Alignment(self._map.fs(0), self._map.fs(k))
            else:
                alignment.restart(alignment.side(stream == 0))

    def _sides(self, stream: int) -> list[tuple[Alignment, Side]]:
        """Return the alignments that a stream is a side of, and which."""
        if stream:
            alignment = self._alignments[stream]
            return [] if alignment is None else [(alignment, alignment.other)]
        return [(a, a.reference) for a in self._alignments if a is not None]

    def _take_edges(self, source: Source) -> None:
        if source.edges is None or source.name not in self.probes:
            return
        stream = self.probes.index(source.name)
        while source.edges:
            sample, received_ns = source.edges.popleft()
            for alignment, side in self._sides(stream):
                alignment.edge(side, sample, received_ns * 1e-9)
