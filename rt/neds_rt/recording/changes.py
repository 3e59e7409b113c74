"""What a tape says of a model or an engine that took over, so that a replay can have it so again.

The pipeline notes "model swapped" or "failed over" ahead of the first decode that is made by
another engine; the server adds what serves from there on. An engine that took over began to follow
the stream at some entry of the history (`rt/src/history.hpp`), and from there it is the same to the
bit.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from neds_rt.bundle import Bundle, read_bundle
from neds_rt.errors import BadInput
from neds_rt.models import check_replacement, history_bins
from neds_rt.recording.header import EngineFacts, Recording, engine_facts
from neds_rt.recording.tape import DECODE, EVENT, Hole, TapeReader

if TYPE_CHECKING:
    from neds_rt.engines import Engine

SWAPPED, FAILED_OVER = "model swapped", "failed over"  # as rt/src/pipeline.hpp has them
SERVES = "serves"
CHANGES = (SWAPPED, FAILED_OVER)
MODELS = "models"  # folder of a recording: bundles that were swapped in, by hash


class Serves(msgspec.Struct, frozen=True):
    """What serves from decode `decode` (its `seq`) on; the data of a "serves" event, as JSON."""

    model: str  # hash
    engine: EngineFacts
    begun: int  # entry of the history at which the engine began to follow
    decode: int


@dataclass(frozen=True)
class Change:
    """One change, of a kind in `CHANGES`."""

    kind: str
    serves: Serves


def encode_serves(model: str, engine: Engine, begun: int, decode: int) -> bytes:
    """Return the data of a "serves" event."""
    return msgspec.json.encode(Serves(model, engine_facts(engine), begun, decode))


def scan(recording: Recording) -> list[Change]:
    """Return the changes that a replay can follow, in order, up to the first that it cannot.

    It cannot follow what comes after a hole that may have held input, nor a change of which the
    tape does not say to what. Raises `BadInput` for an unusable tape.
    """
    found: list[Change] = []
    waiting: deque[str] = deque()  # for what serves: both may happen at the same decode
    for item in TapeReader(recording):
        if isinstance(item, Hole):
            if item.inputs != 0:
                break
        elif item.kind == DECODE and waiting:
            break
        elif item.kind == EVENT:
            told = item.head.decode(errors="replace")
            if told in CHANGES:
                waiting.append(told)
            elif told == SERVES and waiting:
                serves = _serves(item.body)
                if serves is None:
                    break
                found.append(Change(waiting.popleft(), serves))
    return found


def _serves(data: bytes) -> Serves | None:
    try:
        found = msgspec.json.decode(data, type=Serves)
    except (ValueError, RecursionError):
        return None
    whole = re.fullmatch(r"[0-9a-f]{64}", found.model) and found.begun >= 0
    return found if whole else None


def read_bundles(paths: Iterable[str]) -> dict[str, Bundle]:
    """Return the bundles at `paths` by their hash; raises `BadInput`."""
    return {b.manifest.model_hash: b for b in map(read_bundle, paths)}


def find_bundles(
    recording: Recording, first: Bundle, changes: Iterable[Change], given: Mapping[str, Bundle]
) -> dict[str, Bundle]:
    """Return the bundle of every model that serves in a recording, by its hash.

    They are `first`, those `given`, and those that lie in the recording. Raises `BadInput` for one
    that is nowhere, that does not fit the first, or that was given and never served.
    """
    found = {first.manifest.model_hash: first}
    for change in changes:
        model = change.serves.model
        if model in found:
            continue
        path = kept_path(recording.path, model)
        if model not in given and not path.exists():
            raise BadInput(recording.path, f"the model from decode {change.serves.decode} on",
                           f"no bundle of {model[:12]}…", "--bundle with it")
        bundle = given[model] if model in given else read_bundle(path)
        if bundle.manifest.model_hash != model:
            raise BadInput(bundle.where, "model_hash", f"{bundle.manifest.model_hash[:12]}…",
                           f"{model[:12]}…, as its name says")
        check_replacement(first.manifest, bundle.manifest, history_bins(first.manifest),
                          bundle.where)
        found[model] = bundle
    for model, bundle in given.items():
        if model not in found:
            raise BadInput(bundle.where, "model_hash", f"{model[:12]}…",
                           "a model that serves in this recording")
    return found


def kept_path(recording: Path, model_hash: str) -> Path:
    """Return where a recording keeps a bundle that was swapped in."""
    return recording / MODELS / f"{model_hash}.neds"
