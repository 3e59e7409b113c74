"""What a flight recording is: a folder of three files, and what the first says of the run.

    recording.json   this header: configuration, model, engine, versions, machine
    model.neds       the bundle that was served, so that the recording replays years later
    tape             what went in and what came out, see `tape.py`
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from neds_rt.assemble import REASONS
from neds_rt.bundle import Bundle, read_bundle
from neds_rt.config import ServeConfig
from neds_rt.errors import BadInput
from neds_rt.machine import commit, machine_facts

FORMAT, VERSION = "neds-rt recording", 1
HEADER, MODEL, TAPE = "recording.json", "model.neds", "tape"
MAX_HEADER_BYTES = 1 << 20


class EngineFacts(msgspec.Struct, frozen=True):
    """The engine that made the decodes; `isa` is empty where it has none."""

    name: str
    precision: str
    isa: str = ""


class Header(msgspec.Struct, frozen=True):
    """`recording.json`."""

    format: str
    version: int
    id: str  # 16 hex digits, in every chunk of the tape
    started: str  # ISO 8601, UTC
    started_real_ns: int  # the same, ns since 1970, and what the monotonic clock said then
    started_mono_ns: int
    model: str  # hash of the model
    bundle: str  # where it was read from; a copy of it lies beside this file
    engine: EngineFacts
    config: ServeConfig
    reasons: list[str]  # by code
    machine: dict[str, Any]  # with versions of the packages
    commit: str | None = None


@dataclass(frozen=True)
class Recording:
    """A recording that was opened: its folder, its header, and the header's sha256."""

    path: Path
    header: Header
    digest: bytes

    @property
    def tape_id(self) -> int:
        """What every chunk of its tape carries."""
        return int(self.header.id, 16)


def engine_facts(engine: Any) -> EngineFacts:
    """Return what a header says of an engine."""
    return EngineFacts(engine.name, engine.precision, getattr(engine, "isa", ""))


def make_header(config: ServeConfig, model_hash: str, engine: Any) -> Header:
    """Return the header of a recording that begins now."""
    real_ns = time.time_ns()
    return Header(
        format=FORMAT, version=VERSION, id=secrets.token_hex(8),
        started=datetime.fromtimestamp(real_ns / 1e9, UTC).isoformat(), started_real_ns=real_ns,
        started_mono_ns=time.monotonic_ns(), model=model_hash, bundle=os.path.abspath(config.model),
        engine=engine_facts(engine), config=config, reasons=list(REASONS), machine=machine_facts(),
        commit=commit(),
    )


def is_recording(path: Path) -> bool:
    """Whether `path` is the folder of a flight recording."""
    return (path / HEADER).is_file()


def open_recording(path: Path) -> Recording:
    """Read the header of the recording at `path`; raises `BadInput`."""
    where = path / HEADER
    try:
        with where.open("rb") as file:
            data = file.read(MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise BadInput(where, "file", error.strerror, "a recording of serve --record") from error
    if len(data) > MAX_HEADER_BYTES:
        raise BadInput(where, "size", f"over {MAX_HEADER_BYTES} bytes", "a recording's header")
    try:
        header = msgspec.json.decode(data, type=Header)
        int(header.id, 16)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BadInput(where, "JSON", error, "a recording's header") from error
    try:
        header.config.check()
    except BadInput as error:
        raise BadInput(where, "config", error, "options that a server takes") from None
    if (header.format, header.version) != (FORMAT, VERSION) or len(header.id) != 16:
        raise BadInput(where, "format", f"{header.format!r} {header.version}",
                       f"{FORMAT!r} {VERSION}")
    return Recording(path, header, sha256(data).digest())


def recorded_bundle(recording: Recording, model: str | None) -> Bundle:
    """Return the bundle that was served: the copy in the recording, or the one at `model`.

    Raises `BadInput` unless it is that one.
    """
    bundle = read_bundle(model or recording.path / MODEL)
    found, expected = bundle.manifest.model_hash, recording.header.model
    if found != expected:
        raise BadInput(bundle.where, "model_hash", f"{found[:12]}…",
                       f"{expected[:12]}…, which was recorded")
    return bundle
