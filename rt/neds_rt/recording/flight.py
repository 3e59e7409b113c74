"""The flight recorder of a server: `neds-rt serve --record PATH`.

The serving thread puts what goes in and comes out on a ring in memory and never waits; a thread in
C++ (`rt/src/tape_writer.hpp`), which never takes the GIL, writes it to the tape. What does not fit
the ring is counted, and the tape says so where it is missing. A disk that is full or broken ends
the recording with one warning, never the decoding.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from neds_rt import _core, bundle_files
from neds_rt.bundle import MANIFEST
from neds_rt.errors import BadInput, StartError
from neds_rt.housekeeping import logger
from neds_rt.manifest import parse_manifest
from neds_rt.recording.changes import kept_path
from neds_rt.recording.header import HEADER, MODEL, TAPE, make_header

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle
    from neds_rt.config import ServeConfig
    from neds_rt.engines import Engine

RING_BYTES = 32 << 20  # three minutes of 1200 units at 10 Hz, should the disk stand still so long
DRAIN_S = 0.05  # what a killed process may lose
# The event of an engine that raised: what the frame before it closed was never published.
ENGINE_FAILED_EVENT = "engine failed"
STOP_S = 5.0  # a disk that takes longer than this at the end is left alone


class FlightRecorder:
    """Records one server; a `name`, `counters`, `messages` and `tend` as sources have them."""

    name = "recording"
    messages: Mapping[str, str] = {
        "lost_records": "the disk did not keep up; what is missing is marked in the recording",
    }

    def __init__(self, config: ServeConfig, bundle: Bundle, engine: Engine) -> None:
        """Check that a recording can be made; raises `BadInput`."""
        self.path = recording_path(config.record)
        self._config, self._bundle, self._engine = config, bundle, engine
        self._tape: _core.Tape | None = None
        self._told = self._end = ""
        if bundle.path is None:
            raise BadInput("--record", "bundle", "one made in memory", "one that is on disk")
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise BadInput("--record", "path", f"{self.path}, which exists", "a new folder")

    def start(self, pipeline: _core.Pipeline) -> None:
        """Write the header and the bundle, and record all that `pipeline` does from now on.

        Raises `BadInput` or `StartError` when the folder cannot be written: that is found out
        before the experiment.
        """
        reserve = self._config.record_reserve_mb * 1_000_000
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path).free
            if free < reserve:
                raise StartError(f"{self.path}: {free // 1_000_000} MB free, and "
                                 f"--record-reserve-mb leaves {reserve // 1_000_000} free")
            self._copy_bundle()
            header = make_header(self._config, self._bundle.manifest.model_hash, self._engine)
            data = msgspec.json.format(msgspec.json.encode(header), indent=1)
            _write_whole(self.path / HEADER, data)
            fd = os.open(self.path / TAPE, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC,
                         0o644)
            _sync_folder(self.path)
        except OSError as error:
            raise StartError(f"{self.path}: cannot record: {error.strerror}") from error
        self._tape = _core.Tape(fd, sha256(data).digest(), int(header.id, 16), RING_BYTES, DRAIN_S,
                                self._config.record_sync, reserve)
        if self._tape.error:
            raise StartError(f"{self.path}: cannot record: {self._trouble()}")
        self._tape.record(pipeline)

    def event(self, kind: str, data: bytes = b"") -> None:
        """Record what decides later decodes and is not a frame; for the serving thread alone.

        `kind` has up to 255 bytes and `data` up to 60 000. `verify.py` has to know what to do
        when it meets the kind: decodes after one that it does not know are unverifiable.
        """
        if self._tape is not None:
            self._tape.event(kind, data)

    def keep_bundle(self, path: str, model_hash: str) -> None:
        """Copy a bundle that was swapped in into the recording; a warning where that fails.

        For the thread that brought it in, when it serves. A replay looks at the copy's hash.
        """
        kept = kept_path(self.path, model_hash)
        if self._tape is None or model_hash == self._bundle.manifest.model_hash or kept.exists():
            return
        staged = kept.with_suffix(".part")
        try:
            kept.parent.mkdir(exist_ok=True)
            if Path(path).is_dir():
                shutil.copytree(path, staged)
            else:
                shutil.copyfile(path, staged)
            os.replace(staged, kept)
        except OSError as error:
            logger.warning("%s: no copy of %s: %s; a replay needs it by --bundle", self.name, path,
                           error.strerror or error)

    @property
    def counters(self) -> dict[str, int]:
        """Records that found the ring full."""
        return {"lost_records": 0 if self._tape is None else self._tape.lost}

    def tend(self) -> str:
        """Return why the recording has ended, empty while it goes on; for housekeeping."""
        self._told = self._trouble()
        return self._told

    def stop(self) -> None:
        """Write what is left and end the recording, waiting no longer than `STOP_S`."""
        if self._tape is None or self._end:
            return
        ended = self._tape.stop(STOP_S)
        trouble = self._trouble()
        self._end = trouble or ("complete" if ended else f"unfinished after {STOP_S:g} s")
        if not ended or trouble != self._told:
            logger.warning("%s: %s", self.name, self._end)

    def report(self) -> dict[str, Any]:
        """Return how the recording is, JSON-ready: for the summary and for status."""
        tape = self._tape
        if tape is None:
            return {"path": str(self.path), "state": "not started"}
        return {
            "path": str(self.path), "state": self._end or self._trouble() or "recording",
            "bytes": tape.bytes, "chunks": tape.chunks, "syncs": tape.syncs,
            "waiting_bytes": tape.waiting, "lost_records": tape.lost,
        }

    def _trouble(self) -> str:
        error = 0 if self._tape is None else self._tape.error
        if not error:
            return ""
        why = os.strerror(error) if error > 0 else (
            f"less than {self._config.record_reserve_mb} MB are free (--record-reserve-mb)")
        return f"stopped: {why}; decoding goes on, unrecorded"

    def _copy_bundle(self) -> None:
        assert self._bundle.path is not None
        files = bundle_files.read_files(self._bundle.path)
        where = self._bundle.path / MANIFEST
        found = parse_manifest(files.get(MANIFEST, b""), where).model_hash
        if found != self._bundle.manifest.model_hash:
            raise BadInput(where, "model_hash", found, "that of the model which is served")
        bundle_files.write_files(self.path / MODEL, files)


def recording_path(text: str) -> Path:
    """Return the folder that `--record` names, dates as strftime writes them filled in."""
    return Path(time.strftime(text) if "%" in text else text)


def _write_whole(path: Path, data: bytes) -> None:
    staged = path.with_name(f".{path.name}.part")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def _sync_folder(path: Path) -> None:
    """Make the names of new files last through a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
