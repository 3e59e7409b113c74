"""Reader `session`: session files, such as `neds-rt record` writes, checked whole and written anew.

Everything that a session holds comes through as it is; what was kept of when it was received
(group `received`) stays in the recorded file. Where it came from stays in the metadata.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import h5py
import msgspec

from neds.data.checks import naming
from neds.data.dropped import KEY, DropReport
from neds.data.reader import Reader, one_file, parse_options
from neds.data.session import Session
from neds.data.store import read_session
from neds_rt.errors import BadInput

RECEIVED = "received"


class StoredOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """session, subject: names in place of the file's."""

    session: str = ""
    subject: str = ""


def session_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Make the reader; see `neds.data.reader`. Raises `BadInput` for options it does not have."""
    if preset:
        raise BadInput("session reader", "--preset", preset, "none")
    options = parse_options(words, StoredOptions, "session reader")
    return Reader(read=lambda source: read_stored(source, options), files=one_file)


def read_stored(path: str | Path, options: StoredOptions | None = None) -> Session:
    """Read one session file, its provenance in `metadata["origin"]`. Raises `BadInput`."""
    source, options = Path(path), options or StoredOptions()
    session = read_session(source)
    metadata = dict(session.metadata)
    metadata["origin"] = metadata.pop("provenance")
    name = options.session or session.session
    report = DropReport()
    with h5py.File(source, "r") as file:
        if RECEIVED in file:
            report.add("column", name, RECEIVED, "times of receipt stay in the recorded file")
    metadata[KEY] = [*metadata.get(KEY, []), *report.entries()]
    with naming(source):
        return dataclasses.replace(session, session=name, metadata=metadata,
                                   subject=options.subject or session.subject)
