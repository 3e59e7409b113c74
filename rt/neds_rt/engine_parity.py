"""What a bundle says about how its engines' precisions decode: written by export, read by serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from neds_rt.errors import BadInput

if TYPE_CHECKING:
    from neds_rt.engines import Engine
    from neds_rt.manifest import Manifest

SCORE_LIMIT = 0.005
"""A score, R2 for one, that changes by more is worth a warning."""


class EngineParity(msgspec.Struct, frozen=True):
    """One entry of `parity["engines"]` in a manifest: held-back bins through one engine.

    `max` and `rms` are errors against float32 torch, of the largest output. `score_change` is, for
    every behaviour, the engine's score less that of torch: R2, circular R2 or balanced accuracy;
    null where a score is not a number.
    """

    engine: str
    precision: str
    max: float
    rms: float
    score_change: dict[str, float | None]


def engine_parities(manifest: Manifest, where: object) -> list[EngineParity]:
    """Return what the manifest lists, nothing for a bundle from before there was such a list.

    Raises `BadInput` naming `where` for a list of another form.
    """
    listed = manifest.parity.get("engines", [])
    try:
        return msgspec.convert(listed, list[EngineParity])
    except msgspec.ValidationError as error:
        raise BadInput(where, "parity.engines", error, "what neds export writes") from None


def precision_warning(engine: Engine, manifest: Manifest, where: object) -> str:
    """One line if the engine's precision changes a score by more than `SCORE_LIMIT`, else ""."""
    for parity in engine_parities(manifest, where):
        if (parity.engine, parity.precision) != (engine.name, engine.precision):
            continue
        changes = {k: v for k, v in parity.score_change.items() if v is not None}
        far = {k: v for k, v in changes.items() if abs(v) > SCORE_LIMIT}
        if far:
            name, change = max(far.items(), key=lambda item: abs(item[1]))
            return (f"warning: precision {engine.precision} of engine {engine.name} changes the "
                    f"score of {name} by {change:+.4f} on held-back bins, more than {SCORE_LIMIT}")
    return ""
