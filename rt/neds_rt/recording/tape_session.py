"""One probe of a flight recording as a session to play live: what `neds-rt replay --to` sends."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from neds_rt.assemble import stream_rows
from neds_rt.errors import BadInput
from neds_rt.manifest import Manifest
from neds_rt.recording.header import open_recording, recorded_bundle
from neds_rt.recording.streams import Probe
from neds_rt.recording.tape import FRAME, Hole, TapeReader
from neds_rt.sources.replay import EventRecording, Units
from neds_rt.wire import decode_header


def read_tape_session(
    path: Path, model: str | None, probe: str | None
) -> tuple[EventRecording, Manifest]:
    """Return a probe's spikes as they were recorded, units numbered as in its frames.

    The manifest is that of the recorded bundle, of which `model` may name another copy.

    Only the first session counts: after a restart of the source samples count anew. Raises
    `BadInput` for a probe that is not there.
    """
    recording = open_recording(path)
    bundle = recorded_bundle(recording, model)
    names = list(recording.header.config.probe)
    if probe is None and len(names) > 1:
        raise BadInput(recording.path, "--probe", "not given", f"one of {', '.join(names)}")
    chosen = names[0] if probe is None else probe
    if chosen not in names:
        raise BadInput(recording.path, "--probe", repr(chosen), f"one of {', '.join(names)}")
    rows = dict(stream_rows(bundle.manifest, names))[chosen]
    known = [bundle.manifest.units[row] for row in rows]
    n_units = len(known)
    played = Probe()
    for record in TapeReader(recording):
        if not isinstance(record, Hole) and record.kind == FRAME:
            try:
                mine = decode_header(record.head).stream == chosen
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # was refused when it came
            if mine:
                played.take(record.head, record.body)
    if not played.streams:
        raise BadInput(recording.path, f"frames of {chosen}", "none", "a session to play")
    first = played.streams[0]
    spikes = first.spikes()
    spikes = spikes[spikes["unit"] < n_units]
    units = Units(chosen, np.arange(n_units), n_units,
                  [(unit.channel, unit.cluster) for unit in known])
    session = EventRecording(first.session, first.fs, units, np.array(first.spans, np.int64),
                             spikes["sample"].astype(np.int64), spikes["unit"])
    return session, bundle.manifest
