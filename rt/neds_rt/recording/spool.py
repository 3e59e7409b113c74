"""The spool: every frame as it came, appended, so that a recording that is cut off loses nothing.

A file of records, each `[tag 4 bytes][u4 size of head][u4 size of body][i8 ns][head][body]`,
little-endian; `ns` is the monotonic clock when the record was written, of frames and edges when
they were received. Tags:

    NEDS   first record; head is JSON: version, session, subject, ns of the wall clock
    FRAM   a spike frame; head and body are its two parts, rt/README.md, in the one sample clock
    OWNC   before a frame that was put into another clock: head is its own watermark, i8
    EDGE   a rising edge of the line that probes share; head is JSON: probe, its own sample
    NAME   a unit's name; head is JSON: probe, number, stream, electrode, sorted id

The last record of a recording that was cut off may be a part of one; it is left out.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from neds_rt.errors import BadInput
from neds_rt.wire import MAX_HEADER_BYTES, MAX_SPIKES_PER_FRAME, SPIKE_DTYPE

VERSION = 2
MAX_HEAD_BYTES = 1 << 16
MAX_BODY_BYTES = MAX_SPIKES_PER_FRAME * SPIKE_DTYPE.itemsize
_RECORD = struct.Struct("<4sIIq")
_OWN = struct.Struct("<q")
START, FRAME, OWN_CLOCK, EDGE, NAME = b"NEDS", b"FRAM", b"OWNC", b"EDGE", b"NAME"


class Record(NamedTuple):
    """One record; `body` is empty but for frames."""

    tag: bytes
    ns: int
    head: bytes
    body: bytes


class Spool:
    """Appends records to a file that must not be there yet; raises `BadInput` if it is."""

    def __init__(self, path: Path, session: str, subject: str) -> None:
        try:
            self._file = path.open("xb", buffering=1 << 20)
        except OSError as error:
            raise BadInput(path, "file", error.strerror, "a new file") from error
        self.path, self.frames = path, 0
        self._write(START, json.dumps([VERSION, session, subject, time.time_ns()]).encode())
        self._file.flush()

    def frame(
        self, header: bytes, payload: bytes, ns: int | None = None, own: int | None = None
    ) -> None:
        """Append a frame received at `ns`, whose watermark was `own` in the probe's own clock.

        One that is larger than frames may be is left out.
        """
        if len(header) <= MAX_HEADER_BYTES and len(payload) <= MAX_BODY_BYTES:
            if own is not None:
                self._write(OWN_CLOCK, _OWN.pack(own))
            self._write(FRAME, header, payload, ns)
            self.frames += 1

    def edge(self, probe: str, sample: int, ns: int) -> None:
        """Append an edge, heard of at `ns`."""
        self._write(EDGE, json.dumps([probe, sample]).encode(), ns=ns)

    def name(self, *fields: Any) -> None:
        """Append a unit's name: probe, number, stream, electrode, sorted id."""
        self._write(NAME, json.dumps(fields).encode())

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(
        self, tag: bytes, head: bytes, body: bytes = b"", ns: int | None = None
    ) -> None:
        ns = time.monotonic_ns() if ns is None else ns
        self._file.write(_RECORD.pack(tag, len(head), len(body), ns) + head + body)


def own_watermark(record: Record) -> int:
    """Return the watermark that an `OWN_CLOCK` record holds; raises `ValueError`."""
    try:
        return int(_OWN.unpack(record.head)[0])
    except struct.error as error:
        raise ValueError(error) from error


def read_spool(path: Path) -> Iterator[Record]:
    """Yield the whole records of a spool; raises `BadInput` for a file that is none."""
    try:
        with path.open("rb") as file:
            first = True
            while len(start := file.read(_RECORD.size)) == _RECORD.size:
                tag, head, body, ns = _RECORD.unpack(start)
                known = tag == START if first else tag in (FRAME, OWN_CLOCK, EDGE, NAME)
                if not known or head > MAX_HEAD_BYTES or body > MAX_BODY_BYTES:
                    raise BadInput(path, "record", repr(tag), "a spool of neds-rt record")
                record = Record(tag, ns, file.read(head), file.read(body))
                if len(record.head) < head or len(record.body) < body:
                    return
                yield record
                first = False
            if first:
                raise BadInput(path, "file", "no record", "a spool of neds-rt record")
    except OSError as error:
        raise BadInput(path, "file", error.strerror, "a spool of neds-rt record") from error
