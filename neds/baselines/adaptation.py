"""A pretrained multi-session net on a new session: its map in first, then everything.

The new map starts, unit by unit, as the mean of the pretrained maps of the units on the same probe
and channel. With calibration data two stages follow: the session's own parameters on the frozen
core, then all of them at a lower rate. How many steps each takes is chosen on the validation rows
(none is a choice too); the stages are then run again for as many steps on all calibration rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neds.baselines import Budget
from neds.baselines.layout import Output, Sampler, SessionRows, session_rows
from neds.baselines.nets import SessionNet
from neds.baselines.rows import n_rows
from neds.dataset import Recording
from neds_rt.bundle import Unit

BATCH, BINS = 16, 100
PATIENCE = 8  # validations without a better score before a stage ends


@dataclass(frozen=True)
class Stage:
    """One stage: which parameters, how fast, for how long at most."""

    everything: bool
    learning_rate: float
    steps: int
    every: int = 20


STAGES = (Stage(False, 3e-3, 400), Stage(True, 5e-4, 800))


def adapt(net: SessionNet, units: Sequence[list[Unit]], recording: Recording,
          outputs: list[Output], seed: int, budget: Budget) -> SessionNet:
    """The net with one session, the new one; `units` are those of the sessions it knows."""
    device = net.out_bias.device
    data = session_rows(recording, outputs, str(device))
    start = for_new_session(net, units, recording.state.units, bool(data.fit_on), seed).to(device)
    if not data.fit_on:
        return start
    stages = STAGES if budget == "full" else tuple(replace(s, steps=60) for s in STAGES)
    scaled = tuple(replace(s, steps=enough(s.steps, data)) for s in stages)
    trial = copy.deepcopy(start)
    for module in trial.modules():
        if isinstance(module, nn.GRU):  # a copy's weights lie scattered, which cuDNN minds
            module.flatten_parameters()
    taken = [run_stage(trial, data, outputs, stage, seed) for stage in scaled]
    whole = replace(data, fit_on=[*data.fit_on, *data.choose_on], choose_on=[])
    for stage, steps in zip(scaled, taken, strict=True):
        run_stage(start, whole, outputs, stage, seed, steps)
    return start.eval()


def enough(steps: int, data: SessionRows) -> int:
    """Half the steps for little data, up to twice for ten minutes and more of it."""
    return round(steps * min(2.0, max(0.5, n_rows(data.fit_on) / 4000)))


def for_new_session(net: SessionNet, known: Sequence[list[Unit]], units: list[Unit],
                    trained: bool, seed: int) -> SessionNet:
    """A copy of the net with the new session alone, nothing trained yet.

    Units on a channel that no pretrained session had start at zero, or, if they will be trained,
    as in a fresh net.
    """
    fresh = nn.Linear(len(units), net.sizes.width)
    nn.init.uniform_(fresh.weight, -len(units) ** -0.5, len(units) ** -0.5,
                     generator=torch.Generator().manual_seed(seed))
    start = fresh.weight.detach().T if trained else torch.zeros(len(units), net.sizes.width)
    maps = torch.cat([m.detach().cpu() for m in net.maps])
    weights = channel_means(maps, [u for session in known for u in session], units, start)
    new = SessionNet(net.kind, net.sizes, [len(units)], net.out_bias.shape[1], net.own_out)
    new.core.load_state_dict(net.core.state_dict())
    with torch.no_grad():
        new.maps[0].copy_(weights)
        new.bias.copy_(net.bias.detach().mean(0, keepdim=True))
        new.out_bias.copy_(net.out_bias.detach().mean(0, keepdim=True))
        if new.out is not None and net.out is not None:
            new.out.copy_(net.out.detach().mean(0, keepdim=True))
    return new


def channel_means(rows: Tensor, known: list[Unit], units: list[Unit], otherwise: Tensor) -> Tensor:
    """Mean over the known units' rows (n, H) on each new unit's channel; `otherwise` without one.

    Channels are told apart by probe; a negative channel is unknown and matches nothing.
    """
    places: dict[tuple[str, int], list[int]] = {}
    for i, unit in enumerate(known):
        places.setdefault((unit.probe, unit.channel), []).append(i)
    result = otherwise.clone()
    for i, unit in enumerate(units):
        if unit.channel >= 0 and (unit.probe, unit.channel) in places:
            result[i] = rows[places[unit.probe, unit.channel]].mean(0)
    return result


def run_stage(net: SessionNet, data: SessionRows, outputs: list[Output], stage: Stage, seed: int,
              steps: int | None = None) -> int:
    """Train one stage and return the number of steps that was best on `data.choose_on`.

    The net is left as it was after that step. With `steps` given nothing is chosen: so many are
    taken, at the same rates. Where no score exists, all steps are.
    """
    from neds.baselines.sequence import update, validation

    chosen = net.parameters() if stage.everything else net.own_parameters() + (
        [net.out_bias] if net.kind != "rrr" else [])
    parameters = list({id(p): p for p in chosen}.values())
    optimiser = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=0.0)
    sampler = Sampler([data], BATCH, BINS, seed)
    best, best_step, weights = -math.inf, 0, copy.deepcopy(net.state_dict())
    if steps is None and (value := validation(net, [data], outputs)) is not None:
        best = value
    devices = [net.out_bias.device] if net.out_bias.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout
        for step in range(1, (stage.steps if steps is None else steps) + 1):
            for group in optimiser.param_groups:
                group["lr"] = stage.learning_rate * (1 - (step - 1) / stage.steps)
            update(net, sampler, outputs, 0.2, optimiser)
            if steps is not None or step % stage.every:
                continue
            value = validation(net, [data], outputs)
            if value is None or value > best:
                best = best if value is None else value
                best_step, weights = step, copy.deepcopy(net.state_dict())
            elif step - best_step >= PATIENCE * stage.every:
                break
    if steps is None:
        net.load_state_dict(weights)
    return best_step
