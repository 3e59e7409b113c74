"""What a batch costs: every hidden token that was recorded is predicted and compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neds.batches import Batch, Sampler, collate, drop_units, masks_for, step_generator
from neds.config import RunConfig, TrainConfig
from neds.masking import Masks
from neds.modalities import KINDS
from neds.model import Neds
from neds.optimise import half_precision
from neds.processes import Processes


@dataclass(frozen=True)
class Inputs:
    """Everything random of one step, drawn: what a training step computes on."""

    batch: Batch
    counts: Tensor  # with units silenced
    masks: Masks
    keep_own: Tensor | None
    rates: bool  # whether any spikes may be asked for: without, their large head is left out


def draw_inputs(
    model: Neds, sampler: Sampler, config: RunConfig, step: int, processes: Processes,
    device: torch.device,
) -> Inputs:
    """Draw and mask the batch of a step; of several processes, this one's share of it."""
    knobs = config.train
    generator = step_generator(knobs.seed, step)
    drawn = sampler.rows(generator)
    keep = None
    if knobs.own_dropout:
        keep = (torch.rand(len(drawn), generator=generator) >= knobs.own_dropout).float().to(device)
    share = processes.share(sampler.batch, sampler.sessions)
    mine = [(r, rows[share.of_session], there[share.of_session]) for r, rows, there in drawn]
    batch = collate(model, mine, device)
    masks = masks_for(batch, config.masking, sampler.batch, share.of_batch, generator)
    counts = drop_units(batch.counts, knobs.unit_dropout, config.model.inputs,
                        sampler.batch, share.of_batch, generator)
    share_asked = 1 - config.masking.decoding - config.masking.self_behaviour
    return Inputs(batch, counts, masks, keep, rates=knobs.spike_weight > 0 and share_asked > 1e-6)


def inputs_loss(model: Neds, inputs: Inputs, weights: Tensor, processes: Processes) -> Tensor:
    """The loss of drawn inputs; `weights` (1 + M,) as `loss_weights` gives them."""
    batch, masks, absent = inputs.batch, inputs.masks, inputs.batch.absent
    log_rates, outputs = model(
        batch.sessions, inputs.counts, batch.encoded,
        masks.spikes | absent[:, 0], masks.behaviours | absent[:, 1:],
        absent=absent, keep_own=inputs.keep_own, rates=inputs.rates,
    )
    sums, known = masked_losses(model, batch, masks, log_rates.float() if inputs.rates else None,
                                [o.float() for o in outputs])
    return (weights * sums / processes.summed(known).clamp(min=1)).sum()


def training_loss(
    model: Neds, sampler: Sampler, config: RunConfig, step: int, processes: Processes
) -> Tensor:
    """Loss of one freshly drawn and masked batch; of several processes, this one's share of it."""
    inputs = draw_inputs(model, sampler, config, step, processes, model.device)
    weights = loss_weights(model, inputs.batch.sessions, config.train).to(model.device)
    processes.seed_dropout(config.train.seed, step)
    model.train()
    half = half_precision(config.train, model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        return inputs_loss(model, inputs, weights, processes)


def masked_losses(
    model: Neds, batch: Batch, masks: Masks, log_rates: Tensor | None, outputs: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Summed loss and number of its terms, (1 + M,) each, over hidden tokens that were recorded.

    Spikes: Poisson, one term a unit and bin. Categorical: cross-entropy, one term a bin (the
    reference's is implicitly weighted by 1/100). Else: squared error, one term a number.
    Without log rates spikes have no terms.
    """
    sums = [batch.counts.new_zeros(())]
    terms = [torch.zeros((), dtype=torch.long, device=batch.counts.device)]
    if log_rates is not None:
        asked = (masks.spikes & batch.there)[..., None] & batch.units[:, None]
        nll = F.poisson_nll_loss(log_rates.clamp(max=8.0), batch.counts, reduction="none")
        sums, terms = [(nll * asked).sum()], [asked.sum()]
    for m, spec in enumerate(model.behaviours_of(batch.sessions)):
        wanted = masks.behaviours[:, m] & batch.known[:, m]
        target, output = batch.encoded[m], outputs[m]
        if KINDS[spec.kind].loss == "cross_entropy":
            loss = F.cross_entropy(output.flatten(0, 1), target.argmax(-1).flatten(),
                                   reduction="none").view_as(wanted)
        else:
            loss = (output - target).square().mean(-1)
        sums.append((loss * wanted).sum())
        terms.append(wanted.sum())
    return torch.stack(sums), torch.stack(terms).float()


def loss_weights(model: Neds, sessions: list[str], knobs: TrainConfig) -> Tensor:
    """Weight (1 + M,) of each modality's mean loss in the total."""
    names = [b.name for b in model.behaviours_of(sessions)]
    return torch.tensor([knobs.spike_weight,
                         *(knobs.behaviour_weights.get(name, 1.0) for name in names)])
