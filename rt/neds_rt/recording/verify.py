"""Replays a flight recording through the same pipeline and compares every decode.

What the pipeline was given is given to it again, in the same order: frames, and when it was asked
for a message without a bin. Its messages have to be those of the recording. Where the recording
has a hole that may have held input, what follows cannot be verified, until the source restarts and
the model with it.
"""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from neds_rt import _core
from neds_rt.assemble import COUNTERS, DEADLINE_MISSED, make_assembler, make_encoder, make_stepper
from neds_rt.errors import CheckFailed
from neds_rt.health import make_health
from neds_rt.machine import machine_facts
from neds_rt.recording.compare import differing, message_seq
from neds_rt.recording.flight import ENGINE_FAILED_EVENT
from neds_rt.recording.header import Recording, engine_facts, open_recording, recorded_bundle
from neds_rt.recording.replay_engine import replay_engine, tolerance_for
from neds_rt.recording.tape import DECODE, EVENT, FRAME, Hole, Record, TapeReader
from neds_rt.wire import SpikeHeader, decode_header

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle
    from neds_rt.engines import Engine

RESTARTS = COUNTERS.index("restarts")
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
        self, recording: Recording, bundle: Bundle, engine: Engine, tolerance: float
    ) -> None:
        """Build the pipeline as the server that was recorded did; raises `BadInput`."""
        config, manifest = recording.header.config, bundle.manifest
        self.tolerance = tolerance
        self._tape = TapeReader(recording)
        self._assembler = make_assembler(
            manifest, list(config.probe), config.open_bins, config.close_after, config.clock_jump)
        self._encoder = make_encoder(manifest, len(config.probe))
        self._pipeline = _core.Pipeline(
            self._assembler, self._encoder, make_stepper(engine, self._assembler.counts),
            _core.LatencyRing(1), manifest.shape.window, make_health(bundle, config.drift),
        )
        self._n_streams = len(config.probe)
        # Replayed and not yet met in the recording, and by how much their numbers are off.
        self._expected: deque[tuple[bytes, int]] = deque()
        self._shift = 0  # how much further the recorded messages count than the replayed ones
        self._shift_known = True
        self._lost: Begun | None = None  # since a hole; None where everything before is known
        self._unknown: set[str] = set()
        self.equal = self.different = self.unverifiable = self.frames = 0
        self.largest = 0.0
        self.told: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Replay all of it; returns figures, JSON-ready. Raises `BadInput` for an unusable tape."""
        started = time.monotonic()
        for item in self._tape:
            if isinstance(item, Hole):
                self._hole(item)
            elif item.kind == FRAME:
                self._frame(item)
            elif item.kind == DECODE:
                self._decode(item)
            elif item.kind == EVENT:
                self._event(item)
            else:
                self._nothing(item)
        unpublished = len(self._expected)  # the server was stopped, or killed, before it sent them
        return {
            "decodes": self.equal + self.different, "equal": self.equal,
            "different": self.different, "unverifiable": self.unverifiable,
            "unpublished": unpublished, "frames": self.frames,
            "tolerance": self.tolerance, "largest_error": self.largest,
            "differences": self.told,
            "complete": self._tape.complete, "tail_bytes": self._tape.tail_bytes,
            "holes": len(self._tape.holes),
            "holes_told": [hole._asdict() for hole in self._tape.holes[:MAX_TOLD]],
            "unknown_events": sorted(self._unknown),
            "seconds": round(time.monotonic() - started, 3),
        }

    def _frame(self, record: Record) -> None:
        self._all_met()
        self.frames += 1
        restarts = int(self._assembler.counters[RESTARTS])
        size = self._pipeline.feed(record.head, record.body, record.ns)
        while size:
            self._keep(size)
            size = self._pipeline.next()
        if self._lost is not None:
            self._hear(record.head, int(self._assembler.counters[RESTARTS]) > restarts)

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
        self._expected = deque([(self._encoder.buffer[:size].tobytes(), -len(steps)), *steps])

    def _keep(self, size: int) -> None:
        self._expected.append((self._encoder.buffer[:size].tobytes(), 0))

    def _event(self, record: Record) -> None:
        kind = record.head.decode(errors="replace")
        if kind == ENGINE_FAILED_EVENT:  # what it would have said was never published
            self._shift -= len(self._expected)
            self._expected.clear()
            return
        self._unknown.add(kind)
        self._lose()

    def _decode(self, record: Record) -> None:
        if self._lost is not None:
            self.unverifiable += 1
            return
        if not self._expected:
            self._differs(record.body, ["not replayed"], 0.0)
            return
        replayed, off = self._expected.popleft()
        try:
            if not self._shift_known:
                self._shift = message_seq(record.body) - message_seq(replayed) - off
                self._shift_known = True
            shift = self._shift + off
            fields, error = differing(record.body, replayed, shift, self.tolerance)
        except (ValueError, KeyError, TypeError):  # a tape that was forged holds anything
            fields, error = ["no decode message"], 0.0
        self.largest = max(self.largest, error)
        if fields:
            self._differs(record.body, fields, error)
        else:
            self.equal += 1

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


def run_verify(
    path: Path, model: str | None, engine_text: str | None, wanted: float | None, as_json: bool
) -> int:
    """Do `neds-rt replay PATH --verify`: print the verdict and return 0.

    Raises `CheckFailed` if a decode differs or none could be compared, `BadInput`.
    """
    recording = open_recording(path)
    bundle = recorded_bundle(recording, model)
    engine = replay_engine(recording.header, bundle, engine_text)
    tolerance = tolerance_for(recording.header, engine, wanted)
    found = Verification(recording, bundle, engine, tolerance).run()
    facts = {
        "recording": str(path), "recorded": msgspec.to_builtins(recording.header.engine),
        "replayed": msgspec.to_builtins(engine_facts(engine)), "model": recording.header.model,
    }
    print(_text(found))
    if as_json:
        print(json.dumps(facts | found | {"machine": machine_facts()}), flush=True)
    if found["different"]:
        raise CheckFailed(f"{path}: {found['different']} of {found['decodes']} decodes differ")
    if not found["decodes"]:
        raise CheckFailed(f"{path}: no decode could be compared")
    return 0


def _text(found: dict[str, Any]) -> str:
    """Return the report for people."""
    how = "bit for bit" if found["tolerance"] == 0 else f"within {found['tolerance']:g}"
    lines = [f"{found['decodes']} decodes of {found['frames']} frames compared {how}: "
             f"{found['equal']} equal, {found['different']} different, "
             f"{found['unverifiable']} unverifiable; largest error {found['largest_error']:.3g}"]
    for told in found["differences"]:
        lines.append(f"decode {told['seq']}: {', '.join(told['fields'])} ({told['error']:.3g})")
    for hole in found["holes_told"]:
        lost = "" if hole["records"] is None else f", {hole['records']} records"
        lines.append(f"hole at byte {hole['at']}: {hole['why']}{lost}")
    if found["unknown_events"]:
        lines.append(f"events that cannot be replayed: {', '.join(found['unknown_events'])}")
    if not found["complete"]:
        lines.append(f"the recording was cut off; {found['tail_bytes']} bytes torn at its end")
    return "\n".join(lines)
