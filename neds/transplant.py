"""A pretrained model for sessions it has not seen: the same backbone, maps guessed from others'.

All sessions of a model speak to one backbone, so their maps lie in one space and an average over
them is a map. A new unit starts with the mean map of the units that were recorded on its channel
(a chronic implant), else in its brain region, else of all units: what one would expect of it before
seeing a spike. Heads of known behaviours start likewise, new ones at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from neds.config import RunConfig
from neds.dataset import Recording
from neds.model import BehaviourStitch, Neds, SessionSpec, Stitcher, poisson_null_log_rate


def transplant(model: Neds, config: RunConfig, recordings: Sequence[Recording]) -> Neds:
    """A model of the recordings' sessions alone, on the pretrained backbone.

    `config` is the recipe that `model` was trained with. Rates of spikes start at the mean counts
    of the training part, or, where it has no rows, at the recording's null rates. Draws the heads
    of behaviours that `model` lacks from torch's random source.
    """
    new = Neds(config.model, [r.state.spec for r in recordings]).to(model.device)
    with torch.no_grad():
        _copy_backbone(model, new)
        # Maps that training took away at random are not needed to make sense of a new session.
        alone = bool(config.model.shared and config.train.own_dropout)
        for recording in recordings:
            spec = recording.state.spec
            stitch, known = new.stitcher(spec.session), relatives(model, spec)
            _start_units(stitch, known, config.model.shared, alone)
            stitch.spikes_out.bias.copy_(_log_rates(recording))
            _start_heads(stitch, known, bool(config.model.shared), alone)
    return new


def relatives(model: Neds, spec: SessionSpec) -> list[Stitcher]:
    """The stitchers of the sessions that share a channel with this one, or of all sessions."""
    mine = set(known_channels(spec)) - {""}
    related = [s for s in model.stitch_list() if mine & set(known_channels(s.spec))]
    return related or model.stitch_list()


def known_channels(spec: SessionSpec) -> tuple[str, ...]:
    """Per unit the channel it was recorded on, empty where that is not known (channel -1)."""
    return tuple("" if c.endswith("/-1") else c for c in spec.channels)


def _copy_backbone(model: Neds, new: Neds) -> None:
    old, own = model.state_dict(), new.state_dict()
    apart = ("stitchers.", "place_in", "place_out", "common.", "modality")
    new.load_state_dict({**own, **{k: v for k, v in old.items() if not k.startswith(apart)}})
    new.modality[0] = model.modality[0]
    for name, i in new.modality_index.items():
        if name in model.modality_index:
            j = model.modality_index[name]
            new.modality[i] = model.modality[j]
            if model.config.shared and _same(model.common[j - 1], new.common[i - 1]):
                new.common[i - 1].load_state_dict(model.common[j - 1].state_dict())
    for table, known in ((new.place_in, model.place_in), (new.place_out, model.place_out)):
        if len(known):
            table.copy_(known.mean(0).expand_as(table))
        for place, i in new.place_index.items():
            if place in model.place_index:
                table[i] = known[model.place_index[place]]


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two behaviour stitches are of behaviours that mean the same."""
    assert isinstance(a, BehaviourStitch)
    assert isinstance(b, BehaviourStitch)
    return (a.spec.kind, a.spec.width, a.spec.classes) == (b.spec.kind, b.spec.width,
                                                           b.spec.classes)


def _start_units(stitch: Stitcher, known: list[Stitcher], shared: str, alone: bool) -> None:
    """The unit maps: a session's own part of them, where tables hold the rest."""
    tables = len(stitch.places) > 0
    stitch.spikes_in.bias.copy_(torch.stack([s.spikes_in.bias for s in known]).mean(0))
    stitch.embedding.zero_()
    if not alone:
        stitch.embedding.copy_(torch.stack([s.embedding for s in known]).mean(0))
    for weight, rows in (
        (stitch.spikes_in.weight.T, [s.spikes_in.weight.T for s in known]),
        (stitch.spikes_out.weight, [s.spikes_out.weight for s in known]),
    ):
        if tables and alone:
            weight.zero_()
            continue
        table = torch.cat(rows)
        blank = torch.zeros_like(table[0]) if tables else table.mean(0)
        weight.copy_(_means(stitch.spec, [s.spec for s in known], table, blank, tables))


def _means(
    spec: SessionSpec, known: list[SessionSpec], rows: Tensor, otherwise: Tensor, tables: bool
) -> Tensor:
    """For each unit the mean of the rows of its channel, else of its region, else `otherwise`."""
    result = otherwise.expand(spec.n_units, -1).clone()
    keys: list[Callable[[SessionSpec], tuple[str, ...]]] = [known_channels]
    if not tables:
        keys.insert(0, lambda s: s.regions)  # channels after it: they say more
    for key in keys:
        labels = [label for s in known for label in (key(s) or ("",) * s.n_units)]
        found = _grouped(labels)
        for i, label in enumerate(key(spec)):
            if label and label in found:
                result[i] = rows[found[label]].mean(0)
    return result


def _grouped(labels: Iterable[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    return groups


def _log_rates(recording: Recording) -> Tensor:
    rows = torch.from_numpy(recording.rows("train"))
    if len(rows):
        return poisson_null_log_rate(recording.counts[rows])
    return torch.tensor(recording.state.null_rates).log()


def _start_heads(stitch: Stitcher, known: list[Stitcher], shared: bool, alone: bool) -> None:
    for part in stitch.parts():
        alike = [p for s in known for p in s.parts()
                 if p.spec.name == part.spec.name and _same(p, part)]
        for name, parameter in part.named_parameters():
            if alike and not alone:
                found: list[Tensor] = [dict(p.named_parameters())[name] for p in alike]
                parameter.copy_(torch.stack(found).mean(0))
            elif shared:
                parameter.zero_()
