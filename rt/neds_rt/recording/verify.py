"""Replays a flight recording through the same pipeline and compares every decode.

What the pipeline was given is given to it again, in the same order: frames, and when it was asked
for a message without a bin; models and standbys take over where they did. Its messages have to be
those of the recording. Where the recording has a hole that may have held input, what follows cannot
be verified, until the source restarts and the model with it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from neds_rt import _core
from neds_rt.assemble import COUNTERS, DEADLINE_MISSED, make_assembler
from neds_rt.recording.changes import CHANGES, SERVES, Change
from neds_rt.recording.compare import differing, message_field, message_seq
from neds_rt.recording.flight import ENGINE_FAILED_EVENT
from neds_rt.recording.header import Recording
from neds_rt.recording.replay_engine import replay_engine
from neds_rt.recording.succession import Succession
from neds_rt.recording.tape import DECODE, EVENT, FRAME, NOTHING, Hole, Record, TapeReader
from neds_rt.wire import SpikeHeader, decode_header

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle
    from neds_rt.engines import Engine

RESTARTS = COUNTERS.index("restarts")
INPUTS = (FRAME, NOTHING)
MAX_TOLD = 20  # differences and holes that are told one by one


@dataclass
class Begun:
    """Which streams have been heard since a hole, and which sessions from their first frame on."""

    last: dict[str, str] = field(default_factory=dict)  # stream -> its session
    whole: set[tuple[str, str]] = field(default_factory=set)

    def take(self, header: SpikeHeader) -> None:
        """Note a frame."""
        self.last[header.stream] = header.session
        if header.seq == 0:
            self.whole.add((header.stream, header.session))

    def anew(self, header: SpikeHeader, n_streams: int) -> bool:
        """Whether the restart that this frame made leaves nothing of what a hole may have held."""
        if header.seq != 0 or len(self.last) < n_streams:
            return False
        return all(session != header.session or (stream, session) in self.whole
                   for stream, session in self.last.items())


class Verification:
    """One replay of one recording; `run` returns its report."""

    def __init__(
        self, recording: Recording, bundle: Bundle, engine: Engine, tolerance: float, *,
        changes: Sequence[Change] = (), bundles: Mapping[str, Bundle] | None = None,
        engine_text: str | None = None,
    ) -> None:
        """Build the pipeline as the server that was recorded did; raises `BadInput`.

        `changes` are those to follow, `bundles` has those of their models by hash.
        """
        header = recording.header
        config, manifest = header.config, bundle.manifest
        self.tolerance = tolerance
        self._tape = TapeReader(recording)
        self._assembler = make_assembler(
            manifest, list(config.probe), config.open_bins, config.close_after, config.clock_jump)
        self._models = Succession(
            config, bundles or {}, engine, lambda b: replay_engine(header, b, engine_text),
            self._assembler, bundle, changes)
        self._latency = _core.LatencyRing(1)
        self._pipeline = _core.Pipeline(
            self._assembler, self._models.stint.candidate, self._latency)
        self._pipeline.keep(self._models.history)
        self._n_streams = len(config.probe)
        # Replayed and not yet met in the recording, and by how much their numbers are off.
        self._expected: deque[tuple[bytes, int]] = deque()
        self._shift = 0  # how much further the recorded messages count than the replayed ones
        self._shift_known = True
        self._lost: Begun | None = None  # since a hole; None where everything before is known
        self._followed = True  # whether all changes so far were; none is behind a hole
        self._unknown: set[str] = set()
        self._planned = deque(changes)
        self._changes: list[dict[str, Any]] = []
        self.equal = self.different = self.unverifiable = self.frames = 0
        self.largest = 0.0
        self.told: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Replay all of it; returns figures, JSON-ready. Raises `BadInput` for an unusable tape."""
        started = time.monotonic()
        for group in grouped(self._tape):
            self._replay(group)
        unpublished = len(self._expected)  # the server was stopped, or killed, before it sent them
        return {
            "decodes": self.equal + self.different, "equal": self.equal,
            "different": self.different, "unverifiable": self.unverifiable,
            "unpublished": unpublished, "frames": self.frames,
            "tolerance": self.tolerance, "largest_error": self.largest,
            "differences": self.told, "changes": self._changes,
            "complete": self._tape.complete, "tail_bytes": self._tape.tail_bytes,
            "holes": len(self._tape.holes),
            "holes_told": [hole._asdict() for hole in self._tape.holes[:MAX_TOLD]],
            "unknown_events": sorted(self._unknown),
            "seconds": round(time.monotonic() - started, 3),
        }

    def _replay(self, group: list[Record | Hole]) -> None:
        """Give the pipeline one input, then meet what the recording has of its messages."""
        first = group[0]
        if not isinstance(first, Hole) and first.kind in INPUTS:
            if first.kind == FRAME:
                self._frame(first, events_ahead(group))
            else:
                self._nothing(first)
            del group[0]
        for item in group:
            if isinstance(item, Hole):
                self._hole(item)
            elif item.kind == DECODE:
                self._decode(item)
            else:
                self._event(item)

    def _frame(self, record: Record, ahead: Mapping[int, list[str]]) -> None:
        self._all_met()
        self.frames += 1
        restarts = int(self._assembler.counters[RESTARTS])
        n = 0
        self._take_over(ahead.get(n, []))
        size = self._pipeline.feed(record.head, record.body, record.ns)
        while size:
            self._keep(size)
            n += 1
            self._take_over(ahead.get(n, []))
            size = self._pipeline.next()
        if self._lost is None:
            self._models.advance()
        else:
            self._hear(record.head, int(self._assembler.counters[RESTARTS]) > restarts)

    def _take_over(self, kinds: list[str]) -> None:
        """Let the changes happen that the recording has ahead of the message to come."""
        for kind in kinds:
            self._followed = (self._followed and self._lost is None
                              and self._models.take_over(kind, self._pipeline))

    def _nothing(self, record: Record) -> None:
        if record.body[0] == DEADLINE_MISSED:
            self._overdue(record)
        else:
            self._all_met()
            self._keep(self._pipeline.nothing(record.body[0], record.ns))

    def _overdue(self, record: Record) -> None:
        """A word from within a step: its number comes before those of what was replayed already."""
        size = self._pipeline.nothing(record.body[0], record.ns)
        steps = [(message, off + 1) for message, off in self._expected]
        self._expected = deque([(self._written(size), -len(steps)), *steps])

    def _keep(self, size: int) -> None:
        if self._followed and self._lost is None:
            self._followed = self._models.settle(self._pipeline)
        self._expected.append((self._written(size), 0))

    def _written(self, size: int) -> bytes:
        return self._models.stint.encoder.buffer[:size].tobytes()

    def _event(self, record: Record) -> None:
        kind = record.head.decode(errors="replace")
        if kind == ENGINE_FAILED_EVENT:  # what it would have said was never published
            self._shift -= len(self._expected)
            self._expected.clear()
        elif kind == SERVES and self._followed:
            self._changed()
        elif kind not in CHANGES or not self._followed:
            self._unknown.add(kind)
            self._lose()

    def _changed(self) -> None:
        """Tell the change that the replay has just followed."""
        if self._planned:
            kind, serves = self._planned[0].kind, self._planned.popleft().serves
            self._changes.append({"kind": kind, "bin": None} | msgspec.to_builtins(serves))

    def _decode(self, record: Record) -> None:
        if self._lost is not None:
            self.unverifiable += 1
            return
        if not self._expected:
            self._differs(record.body, ["not replayed"], 0.0)
            return
        replayed, off = self._expected.popleft()
        try:
            if self._changes and self._changes[-1]["bin"] is None:
                self._changes[-1]["bin"] = message_field(record.body, "bin")
            if not self._shift_known and not self._anchored(record.body, replayed, off):
                return
            fields, error = differing(record.body, replayed, self._shift + off, self.tolerance)
        except (ValueError, KeyError, TypeError):  # a tape that was forged holds anything
            fields, error = ["no decode message"], 0.0
        self.largest = max(self.largest, error)
        if fields:
            self._differs(record.body, fields, error)
        else:
            self.equal += 1

    def _anchored(self, recorded: bytes, replayed: bytes, off: int) -> bool:
        """Count on from the first decode after a hole; False if another model had taken over."""
        if message_field(recorded, "model") != message_field(replayed, "model"):
            self._unknown.add("another model, in a hole")
            self._lose()
            self.unverifiable += 1
            return False
        self._shift = message_seq(recorded) - message_seq(replayed) - off
        self._shift_known = True
        return True

    def _all_met(self) -> None:
        """Count what was replayed and is not in the recording, though the next input is."""
        if self._lost is None:
            for message, _ in self._expected:
                self._differs(message, ["not recorded"], 0.0)
        self._expected.clear()

    def _differs(self, message: bytes, fields: list[str], error: float) -> None:
        self.different += 1
        if len(self.told) < MAX_TOLD:
            try:
                seq: int | None = message_seq(message)
            except (ValueError, KeyError, TypeError):
                seq = None
            self.told.append({"seq": seq, "fields": fields, "error": error})

    def _hole(self, hole: Hole) -> None:
        if hole.records is not None and hole.inputs == 0:
            for _ in range(min(hole.records, len(self._expected))):
                self._expected.popleft()
                self.unverifiable += 1
        else:
            self._lose()

    def _lose(self) -> None:
        self._lost = Begun()
        self._expected.clear()

    def _hear(self, head: bytes, restarted: bool) -> None:
        """After a hole: believe the replay again once a restart has made everything anew."""
        assert self._lost is not None
        try:
            header = decode_header(head)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # refused, here as there
        self._lost.take(header)
        if restarted and self._lost.anew(header, self._n_streams) and not self._unknown:
            self._lost, self._shift_known = None, False


def grouped(items: Iterable[Record | Hole]) -> Iterator[list[Record | Hole]]:
    """Yield each input with all that follows it up to the next one."""
    group: list[Record | Hole] = []
    for item in items:
        if group and not isinstance(item, Hole) and item.kind in INPUTS:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def events_ahead(group: Iterable[Record | Hole]) -> dict[int, list[str]]:
    """Return the kinds of the changes in a group, by how many of its messages are before them."""
    found: dict[int, list[str]] = {}
    n = 0
    for item in group:
        if isinstance(item, Hole):
            n += item.records or 0
        elif item.kind == DECODE:
            n += 1
        elif item.kind == EVENT and (kind := item.head.decode(errors="replace")) in CHANGES:
            found.setdefault(n, []).append(kind)
    return found
