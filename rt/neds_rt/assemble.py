"""Frames of spikes -> closed bins, and closed bins -> decode messages: thin over `rt/src`.

The rules of late, early, repeated and lost frames are stated in README.md and implemented in
`rt/src/assembler.hpp`. Here a bundle's manifest is turned into what the C++ parts are built from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neds_rt import _core
from neds_rt.engines.native import NativeEngine
from neds_rt.errors import BadInput
from neds_rt.sources.units import UnitMap
from neds_rt.wire import MAX_NAME_BYTES, SPIKE_DTYPE, WIRE_VERSION, SpikeHeader, encode_spikes

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle
    from neds_rt.engines import Engine
    from neds_rt.manifest import Manifest
    from neds_rt.sources.units import UnitFile

COUNTERS: tuple[str, ...] = _core.COUNTERS
FIRST_REFUSAL = COUNTERS.index("duplicate")  # counters from here on are refused frames, by reason
PARTS = COUNTERS.index("bad_parts")
OVERSIZE = COUNTERS.index("oversize")

REASONS: tuple[str, ...] = _core.REASONS
(OK, WARMING_UP, GAP, STALE, NOT_FINITE, ENGINE_FAILED, STREAM_MISSING, UNITS_SILENT,
 UNITS_SATURATED, CLOCK_JUMP, FAILED_OVER, DRIFT, DEADLINE_MISSED) = range(len(REASONS))

DEFAULT_OPEN_BINS = 512


def stream_rows(manifest: Manifest, probes: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return, per probe, the model rows of its units: `unit` in a frame indexes that list.

    Units of a probe count in the manifest's order. A bundle with a single probe takes any one name.
    Raises `BadInput` when the bundle was made for other probes.
    """
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(manifest.units):
        rows.setdefault(unit.probe, []).append(row)
    if len(rows) == 1 and len(probes) == 1:
        return [(probes[0], next(iter(rows.values())))]
    if sorted(probes) != sorted(rows):
        found = ", ".join(probes) or "none"
        expected = f"the {len(rows)} of the bundle: {', '.join(sorted(rows))}"
        raise BadInput("--probe", "names", found, expected)
    return [(name, rows[name]) for name in probes]


def unit_maps(
    manifest: Manifest, probes: Sequence[str], unit_file: UnitFile | None = None
) -> dict[str, UnitMap]:
    """Return, per probe, what a source's own unit names mean; `unit_file` is that of `--units`."""
    return {
        name: UnitMap([manifest.units[row] for row in rows], unit_file)
        for name, rows in stream_rows(manifest, probes)
    }


def give_templates(maps: dict[str, UnitMap], bundle: Bundle) -> None:
    """Hand each probe's units the templates that the bundle has of them. Raises `BadInput`."""
    if not bundle.manifest.templates:
        return
    from neds_rt.templates import bundle_templates

    templates = bundle_templates(bundle)
    for units in maps.values():
        units.templates = templates.get(units.units[0].probe)


def make_assembler(
    manifest: Manifest, probes: Sequence[str], open_bins: int = DEFAULT_OPEN_BINS,
    close_after_s: float | None = None, clock_jump_s: float | None = None,
) -> _core.Assembler:
    """Return the assembler of a bundle's units; `probes` names its streams.

    Without the last two, in seconds, bins wait for every stream for ever, and clocks are not looked
    at: arrival times play no part.
    """
    for name in probes:
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise BadInput("--probe", "name", repr(name), f"1 to {MAX_NAME_BYTES} bytes")
    streams = stream_rows(manifest, probes)
    return _core.Assembler(manifest.bin_size_s, streams, len(manifest.units), open_bins,
                           close_after_s, clock_jump_s)


def make_encoder(
    manifest: Manifest, n_streams: int = 1, deadline_s: float | None = None
) -> _core.DecodeEncoder:
    """Return the encoder of a bundle's decode messages.

    One that is written later than `deadline_s` after its frame came says so; None for never.
    """
    modalities = [
        _core.Modality(m.name, m.kind, m.n_outputs, m.classes, m.sd) for m in manifest.modalities
    ]
    encoder = _core.DecodeEncoder(
        modalities, manifest.model_hash, n_streams * (MAX_NAME_BYTES + 1))
    if deadline_s is not None:
        encoder.set_deadline(round(deadline_s * 1e9))
    return encoder


def make_stepper(engine: Engine, counts: NDArray[np.uint16], *, dry: bool = False) -> _core.Stepper:
    """Return what a pipeline steps with: the native engine directly, any other through Python.

    `counts` is the assembler's array. With `dry` a step leaves the engine's stream as it is.
    """
    if type(engine) is NativeEngine:  # a subclass may have a step of its own
        return _core.NativeStepper(engine.core, dry)
    return _core.PythonStepper(engine, counts, engine.n_outputs, dry)


class Rehearsal:
    """Goes from a frame to a message that nobody gets to see, by the code that real ones take.

    All it changes is its own: another assembler and encoder, and the engine's `warm` for a step.
    """

    def __init__(self, manifest: Manifest, engine: Engine) -> None:
        n_units = len(manifest.units)
        rows = list(range(n_units))
        assembler = _core.Assembler(manifest.bin_size_s, [("rehearsal", rows)], n_units, 4)
        stepper = make_stepper(engine, assembler.counts, dry=True)
        self._pipeline = _core.Pipeline(
            assembler, make_encoder(manifest), stepper, _core.LatencyRing(1), 1
        )
        spikes = np.zeros(n_units, SPIKE_DTYPE)
        spikes["unit"] = rows
        fs = 600 / manifest.bin_size_s
        # Each frame is one bin long, and each starts a session anew, so that two do for ever.
        headers = [
            SpikeHeader(WIRE_VERSION, "rehearsal", session, 0, 0, 600, fs, 0, 0, n_units)
            for session in ("odd", "even")
        ]
        self._frames = [encode_spikes(header, spikes) for header in headers]

    def __call__(self) -> None:
        """Rehearse one bin. Raises whatever the engine's `warm` raises."""
        self._frames.reverse()
        header, payload = self._frames[0]
        self._pipeline.feed(header, payload, _core.monotonic_ns())
        self._pipeline.next()
