"""What `neds-rt replay RECORDING --verify` does: find the bundles, replay, say what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from neds_rt.errors import CheckFailed
from neds_rt.machine import machine_facts
from neds_rt.recording.changes import find_bundles, read_bundles, scan
from neds_rt.recording.header import engine_facts, open_recording, recorded_bundle
from neds_rt.recording.replay_engine import replay_engine, tolerance_for
from neds_rt.recording.verify import Verification


def verify(
    path: Path, model: str | None = None, engine_text: str | None = None,
    wanted: float | None = None, given: Sequence[str] = (),
) -> dict[str, Any]:
    """Replay the recording at `path`; returns the report of `Verification` and what served.

    `model` is another copy of the bundle that served first, `given` are those that were swapped in,
    where the recording has no copy. Raises `BadInput`.
    """
    recording = open_recording(path)
    bundles = read_bundles(given)
    bundle = bundles.get(recording.header.model) or recorded_bundle(recording, model)
    changes = scan(recording)
    bundles = find_bundles(recording, bundle, changes, bundles)
    engine = replay_engine(recording.header, bundle, engine_text)
    tolerance = tolerance_for(recording.header, engine, wanted)
    found = Verification(recording, bundle, engine, tolerance, changes=changes, bundles=bundles,
                         engine_text=engine_text).run()
    return {
        "recording": str(path), "recorded": msgspec.to_builtins(recording.header.engine),
        "replayed": msgspec.to_builtins(engine_facts(engine)), "model": recording.header.model,
    } | found


def run_verify(
    path: Path, model: str | None, engine_text: str | None, wanted: float | None, as_json: bool,
    given: Sequence[str] = (),
) -> int:
    """Do `neds-rt replay PATH --verify`: print the verdict and return 0.

    Raises `CheckFailed` if a decode differs or none could be compared, `BadInput`.
    """
    found = verify(path, model, engine_text, wanted, given)
    print(_text(found))
    if as_json:
        print(json.dumps(found | {"machine": machine_facts()}), flush=True)
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
    for change in found["changes"]:
        engine = change["engine"]
        lines.append(f"{change['kind']} at decode {change['decode']} (bin {change['bin']}): "
                     f"{change['model'][:12]} by {engine['name']} {engine['precision']}")
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
