"""Reading the tape of a flight recording, whatever has happened to it.

Its layout is in README.md, "Flight recordings". A tape that was cut off at any byte opens: what is
torn at its end is left out and counted. A chunk that was damaged is left out and leaves a hole that
says which. Sizes in the file are held against limits before anything is read by them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.recording.header import HEADER, TAPE, Recording

MAGIC = b"NTC1"
MAX_BODY_BYTES = max(1 << 20, _core.MAX_TAPE_RECORD)
SEARCH_BYTES = 1 << 20
_CHUNK = struct.Struct("<4sIQQIIII")
_RECORD = struct.Struct("<IHcxq")
_HOLE = struct.Struct("<QQQ")
STAMPS = struct.Struct("<5q")  # received, assembled, stepped, encoded, sent

START, FRAME, DECODE, NOTHING, EVENT, HOLE, END = (
    b"S", b"F", b"D", b"N", b"E", b"H", b"Z"
)
HEADS = {START: (0,), DECODE: (0, STAMPS.size), NOTHING: (0,), HOLE: (0,), END: (0,)}
BODIES = {START: 32, NOTHING: 1, HOLE: _HOLE.size, END: _HOLE.size}


class Record(NamedTuple):
    """One record: `kind` FRAME, DECODE, NOTHING or EVENT.

    `ns` is when a frame was received, a message written, or an event noted. Frames have their two
    parts as head and body, decodes the stamps and the message, events their kind and their data.
    """

    kind: bytes
    ns: int
    head: bytes
    body: bytes


class Hole(NamedTuple):
    """Where something is missing: `records` of which `inputs` decide decodes, None for unknown."""

    at: int  # bytes into the tape
    why: str
    records: int | None = None
    inputs: int | None = None


class _Chunk(NamedTuple):
    magic: bytes
    header_crc: int
    id: int
    sequence: int
    body_size: int
    body_crc: int
    records: int
    inputs: int


class TapeReader:
    """Iterates over the records and holes of a recording's tape, once.

    Afterwards `complete` says whether the recording was ended on purpose, `tail_bytes` how much was
    torn off at its end, `holes` what is missing before that. Raises `BadInput` for a tape that
    cannot be read at all, or that belongs to another header.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.chunks = self.records = self.tail_bytes = 0
        self.complete = False
        self.holes: list[Hole] = []

    def __iter__(self) -> Iterator[Record | Hole]:
        """Yield everything in the order in which it was recorded."""
        path = self._recording.path / TAPE
        try:
            with path.open("rb") as file:
                for item in self._read(file, os.fstat(file.fileno()).st_size):
                    if isinstance(item, Hole):
                        self.holes.append(item)
                    else:
                        self.records += 1
                    yield item
        except OSError as error:
            raise BadInput(path, "file", error.strerror, "a readable tape") from error

    def _read(self, file: BinaryIO, size: int) -> Iterator[Record | Hole]:
        at = expected = 0
        while at < size:
            chunk = self._chunk(file, at)
            if chunk is None:
                after = self._find(file, at + 1, size)
                if after is None:
                    break
                at = after
                continue
            body = file.read(chunk.body_size)
            sound = zlib.crc32(body) == chunk.body_crc
            end = at + _CHUNK.size + chunk.body_size
            if len(body) < chunk.body_size or (not sound and end >= size):
                break
            if chunk.sequence < expected:  # copied from elsewhere in the tape
                yield Hole(at, f"chunk {chunk.sequence} is out of order")
                at = end
                continue
            if chunk.sequence > expected:
                yield self._missing(at, expected, chunk.sequence)
            expected = chunk.sequence + 1
            if sound:
                self.chunks += 1
                yield from self._records(body, at)
            else:
                yield Hole(at, f"chunk {chunk.sequence} is damaged", chunk.records, chunk.inputs)
            at = end
        self.tail_bytes = max(0, size - at)

    @staticmethod
    def _missing(at: int, first: int, after: int) -> Hole:
        if after == 1:  # the first chunk holds nothing but the digest of the header
            return Hole(at, "chunk 0 is damaged", 1, 0)
        return Hole(at, f"chunks {first} to {after - 1} are damaged or missing")

    def _chunk(self, file: BinaryIO, at: int) -> _Chunk | None:
        """Return the head of the chunk at a byte, None if there is none that is sound."""
        file.seek(at)
        data = file.read(_CHUNK.size)
        if len(data) < _CHUNK.size:
            return None
        chunk = _Chunk(*_CHUNK.unpack(data))
        sound = chunk.magic == MAGIC and chunk.header_crc == zlib.crc32(data[8:])
        mine = chunk.id == self._recording.tape_id and chunk.body_size <= MAX_BODY_BYTES
        return chunk if sound and mine else None

    def _find(self, file: BinaryIO, at: int, size: int) -> int | None:
        """Return where the next sound chunk begins, at byte `at` or later."""
        while at < size:
            file.seek(at)
            block = file.read(SEARCH_BYTES)
            found = block.find(MAGIC)
            while found >= 0:
                if self._chunk(file, at + found) is not None:
                    return at + found
                found = block.find(MAGIC, found + 1)
            at += max(1, len(block) - len(MAGIC) + 1)
        return None

    def _records(self, body: bytes, at: int) -> Iterator[Record | Hole]:
        place = 0
        while place < len(body):
            record = _parse(body, place)
            if record is None:
                yield Hole(at, f"a record that this version does not know, {place} bytes into it")
                return
            place += _RECORD.size + len(record.head) + len(record.body)
            if record.kind == START:
                self._check_digest(record.body)
            elif record.kind in (HOLE, END):
                records, inputs, _ = _HOLE.unpack(record.body)
                self.complete |= record.kind == END
                if records:
                    yield Hole(at, "the recorder's ring was full", records, inputs)
            else:
                yield record

    def _check_digest(self, digest: bytes) -> None:
        if digest != self._recording.digest:
            where = self._recording.path / HEADER
            raise BadInput(where, "sha256", f"{self._recording.digest.hex()[:12]}…",
                           f"{digest.hex()[:12]}…, which the tape was begun with")


def _parse(body: bytes, place: int) -> Record | None:
    """Return the record at a byte of a chunk, None if it is none."""
    if len(body) - place < _RECORD.size:
        return None
    size, head_size, kind, ns = _RECORD.unpack_from(body, place)
    start = place + _RECORD.size
    if head_size > size or size > len(body) - start:
        return None
    if kind not in (FRAME, EVENT) and head_size not in HEADS.get(kind, ()):
        return None
    if kind in BODIES and size != BODIES[kind]:
        return None
    middle = start + head_size
    return Record(kind, ns, body[start:middle], body[middle : start + size])
