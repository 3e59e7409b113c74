"""Whether recordings fit a checkpoint, and what to do where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from neds.checkpoint import BehaviourState, CheckpointInfo, SessionState
from neds.config import RunConfig
from neds.data.rebin import rebinned
from neds.data.session import Counts, Session
from neds_rt.errors import BadInput


def in_bins(
    session: Session, info: CheckpointInfo, checkpoint: Path, rebin: bool, command: str
) -> tuple[Session, int]:
    """The session in the checkpoint's bins, and how many bins were left over in making them.

    Spike events come back as they are. Raises `BadInput` that names both bin sizes and the command
    that would work.
    """
    size, spikes = info.config.data.bin_size_s, session.spikes
    if not isinstance(spikes, Counts) or abs(spikes.bin_size_s - size) <= 1e-9 * size:
        return session, 0
    factor = round(size / spikes.bin_size_s)
    whole = factor > 1 and abs(size - factor * spikes.bin_size_s) <= 1e-6 * size
    if whole and rebin:
        return rebinned(session, size)
    if whole:
        way = f"neds {command} --rebin, which adds up {factor} of its bins"
    else:
        way = f"a checkpoint of neds pretrain --set data.bin_size_s={spikes.bin_size_s:g}"
    raise BadInput(session.session, "bin_size_s", f"bins of {spikes.bin_size_s:g} s",
                   f"the {size:g} s of {checkpoint}: {way}")


def check_behaviours(
    states: Sequence[SessionState], info: CheckpointInfo, checkpoint: Path, command: str
) -> None:
    """Raise `BadInput` for a behaviour that means something else in the checkpoint."""
    known = {b.name: b for s in info.sessions for b in s.behaviours}
    for state in states:
        for b in state.behaviours:
            other = known.get(b.name)
            if other is None or meaning(other) == meaning(b):
                continue
            rest = ",".join(x.name for x in state.behaviours
                            if x.name not in known or meaning(known[x.name]) == meaning(x))
            way = f"neds {command} --behaviours {rest}" if rest else "another name for it"
            raise BadInput(state.session, f"behaviour {b.name}", meaning(b),
                           f"{meaning(other)} as in {checkpoint}: {way}")


def meaning(b: BehaviourState) -> str:
    """Kind, width and classes of a behaviour in words."""
    return f"{b.kind} x {b.width}" + (f" ({', '.join(b.classes)})" if b.classes else "")


def recipe_on(info: CheckpointInfo, recipe: RunConfig, given: Sequence[str]) -> RunConfig:
    """The checkpoint's recipe with the training table of `recipe`, and with the overrides `given`.

    Raises `BadInput` for an override of what only a new model could have.
    """
    data, masking = info.config.data, info.config.masking
    for item in given:
        key = item.partition("=")[0]
        table, _, name = key.partition(".")
        if table == "model" or key == "data.bin_size_s":
            raise BadInput("--set", key, item.partition("=")[2],
                           "no such override: the checkpoint decides, or neds pretrain anew")
        if table == "data":
            data = msgspec.structs.replace(data, **{name: getattr(recipe.data, name)})
        if table == "masking":
            masking = recipe.masking
    return msgspec.structs.replace(info.config, data=data, masking=masking, train=recipe.train)
