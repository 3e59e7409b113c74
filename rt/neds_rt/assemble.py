"""Frames of spikes -> closed bins, and closed bins -> decode messages: thin over `rt/src`.

The rules of late, early, repeated and lost frames are stated in README.md and implemented in
`rt/src/assembler.hpp`. Here a bundle's manifest is turned into what the C++ parts are built from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.wire import MAX_NAME_BYTES

if TYPE_CHECKING:
    from neds_rt.manifest import Manifest

COUNTERS: tuple[str, ...] = _core.COUNTERS
FIRST_REFUSAL = COUNTERS.index("duplicate")  # counters from here on are refused frames, by reason
PARTS = COUNTERS.index("bad_parts")
OVERSIZE = COUNTERS.index("oversize")

REASONS: tuple[str, ...] = _core.REASONS
OK, WARMING_UP, GAP, STALE, NOT_FINITE, ENGINE_FAILED = range(len(REASONS))

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


def make_assembler(
    manifest: Manifest, probes: Sequence[str], open_bins: int = DEFAULT_OPEN_BINS
) -> _core.Assembler:
    """Return the assembler of a bundle's units; `probes` names its streams."""
    for name in probes:
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise BadInput("--probe", "name", repr(name), f"1 to {MAX_NAME_BYTES} bytes")
    streams = stream_rows(manifest, probes)
    return _core.Assembler(manifest.bin_size_s, streams, len(manifest.units), open_bins)


def make_encoder(manifest: Manifest, n_streams: int = 1) -> _core.DecodeEncoder:
    """Return the encoder of a bundle's decode messages."""
    modalities = [
        _core.Modality(m.name, m.kind, m.n_outputs, m.classes, m.sd) for m in manifest.modalities
    ]
    return _core.DecodeEncoder(modalities, manifest.model_hash, n_streams * (MAX_NAME_BYTES + 1))


class Validity:
    """Says why a decode is or is not valid, from the bins a window of the model can see.

    A lost bin inside the window makes it "gap"; fewer than `window` bins since the (re)start make
    it "warming up".
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.reset()

    def reset(self) -> None:
        """Start anew, as the engine does."""
        self.since_start = 0
        self.since_lost = self.window  # bins since the last lost one; `window` or more: none seen

    def advance(self, present: bool, n_bins: int = 1) -> int:
        """Move on by `n_bins` bins and return the reason code of the last of them."""
        self.since_start += n_bins
        self.since_lost = self.since_lost + n_bins if present else 0
        if self.since_lost < self.window:
            return GAP
        return WARMING_UP if self.since_start < self.window else OK
