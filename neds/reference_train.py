"""Training and scoring of the paper's NEDS, with the released code's schedule and losses.

AdamW with weight decay on every parameter; one cycle of the learning rate, and of beta1 against
it: rate peak/10 -> peak at 15 % of the steps -> peak/100 000, beta1 0.95 -> 0.85 -> 0.95. Trials of
all sessions are shuffled together each epoch. No gradient clipping.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neds.metrics import bits_per_spike, score
from neds.modalities import KINDS
from neds.reference import ReferenceNeds, is_static
from neds.reference_config import PADDING, ReferenceBatch, ReferenceConfig
from neds.reference_data import TrialSet, collate
from neds.reference_masking import ReferenceMasks, draw_reference_masks, task_masks
from neds_rt.errors import BadInput

OneCycle = torch.optim.lr_scheduler.OneCycleLR
EVALUATED = 64  # trials at a time


class ReferenceTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The training loop's numbers, by default those the paper uses for one session."""

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    validate_every: int = 0  # steps; 0 keeps the last weights, else the best by validation
    seed: int = 42


def train_reference(
    config: ReferenceConfig, sets: list[TrialSet], knobs: ReferenceTraining, device: str = "cpu"
) -> ReferenceNeds:
    """Train on the training trials of `sets`; repeats with its seed on a CPU.

    With `validate_every` the weights kept are those with the best mean of all validation scores
    (bits per spike, R2, balanced accuracy), as the released code chooses. Raises `BadInput` for a
    batch larger than all training trials, or a loss that is no longer finite.
    """
    torch.manual_seed(knobs.seed)
    model = ReferenceNeds(config, [s.spec for s in sets]).to(device)
    optimiser, schedule = make_optimiser(model, knobs)
    generator = torch.Generator().manual_seed(knobs.seed)
    best, kept = -math.inf, None
    for step, batch in enumerate(draw_trials(sets, knobs, model.n_units, generator), start=1):
        loss = make_step(model, optimiser, schedule, batch, generator)
        if not math.isfinite(loss.item()):
            raise BadInput("reference", f"loss at step {step}", loss.item(), "a finite one")
        if knobs.validate_every and (step % knobs.validate_every == 0 or step == knobs.steps):
            value = mean_score(model, sets, "val")
            if value > best:
                best, kept = value, copy.deepcopy(model.state_dict())
    if kept is not None:
        model.load_state_dict(kept)
    return model.eval()


def make_step(
    model: ReferenceNeds, optimiser: torch.optim.AdamW, schedule: OneCycle, batch: ReferenceBatch,
    generator: torch.Generator,
) -> Tensor:
    """One training step on a batch, masks drawn from `generator`; returns its loss."""
    model.train()
    device = model.mask_token.device
    masks = draw_reference_masks(model.config, len(batch.session), len(batch.behaviours), generator)
    loss, _ = step_loss(model, to_device(batch, device), masks.to(device))
    optimiser.zero_grad(set_to_none=True)
    if loss.requires_grad:  # not so when nothing of a batch is hidden
        loss.backward()
    optimiser.step()
    schedule.step()
    return loss.detach()


def make_optimiser(
    model: ReferenceNeds, knobs: ReferenceTraining
) -> tuple[torch.optim.AdamW, OneCycle]:
    """AdamW over all parameters and its one-cycle schedule (which also cycles beta1)."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=knobs.learning_rate,
                                  weight_decay=knobs.weight_decay)
    schedule = OneCycle(optimiser, max_lr=knobs.learning_rate, total_steps=knobs.steps,
                        pct_start=0.15, div_factor=10.0, final_div_factor=1e4)
    return optimiser, schedule


def draw_trials(
    sets: list[TrialSet], knobs: ReferenceTraining, n_units: int, generator: torch.Generator
) -> Iterator[ReferenceBatch]:
    """`steps` batches; every epoch shuffles the training trials of all sessions together."""
    session = torch.cat([torch.full_like(s.parts["train"], i) for i, s in enumerate(sets)])
    trial = torch.cat([s.parts["train"] for s in sets])
    if len(trial) < knobs.batch:
        raise BadInput("reference", "batch", knobs.batch, f"at most {len(trial)} training trials")
    order = torch.zeros(0, dtype=torch.int64)
    for _ in range(knobs.steps):
        if len(order) < knobs.batch:
            order = torch.randperm(len(trial), generator=generator)
        pick, order = order[: knobs.batch], order[knobs.batch :]
        yield collate(sets, session[pick], trial[pick], n_units)


def step_loss(
    model: ReferenceNeds, batch: ReferenceBatch, masks: ReferenceMasks
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one masked batch, and its terms by modality."""
    shown = batch.with_counts(batch.counts.masked_fill(masks.emptied[..., None], 0.0))
    log_rates, outputs = model(shown, masks.blank)
    return reference_loss(model, batch, log_rates, outputs, masks.asked)


def reference_loss(
    model: ReferenceNeds, batch: ReferenceBatch, log_rates: Tensor | None, outputs: list[Tensor],
    asked: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Plain sum over modalities of their losses on asked tokens; and the terms.

    Spikes: Poisson likelihood, mean over asked bins of real units. Dynamic: squared error, mean
    over asked bins. Static: as `static_loss_term`. A modality without an asked token gives nothing.
    """
    terms: dict[str, Tensor] = {}
    if log_rates is not None:
        real = asked[:, 0, :, None] & (batch.counts != PADDING)
        if real.any():
            each = F.poisson_nll_loss(log_rates, batch.counts, reduction="none")
            terms["spikes"] = (each * real).sum() / real.sum()
    for m, output in enumerate(outputs):
        spec, mine, target = model.behaviours[m], asked[:, 1 + m], batch.behaviours[m]
        if not mine.any():
            continue
        if is_static(spec):
            terms[spec.name] = static_loss_term(model.config, output, target, mine)
        else:
            terms[spec.name] = F.mse_loss(output[mine], target[mine])
    total = sum(terms.values(), start=batch.counts.new_zeros(()))
    return total, terms


def static_loss_term(
    config: ReferenceConfig, logits: Tensor, target: Tensor, asked: Tensor
) -> Tensor:
    """Cross-entropy of one class a trial; logits (B, classes), target (B,), asked (B, T).

    The released code sums over all trials, hidden or not, and divides by the number of asked
    tokens: 1/T of a mean when all are asked. "mean_ce" is the mean over trials with an asked token.
    """
    each = F.cross_entropy(logits, target.long(), reduction="none")
    if config.static_loss == "reference":
        return each.sum() / asked.sum()
    return each[asked.any(1)].mean()


def predict(
    model: ReferenceNeds, sets: list[TrialSet], session: int, part: str, task: str,
    shown: int | None = None,
) -> tuple[Tensor | None, list[Tensor]]:
    """Outputs for all trials of a part in an evaluation task, on the CPU; see `task_masks`."""
    device = next(model.parameters()).device
    trials = sets[session].parts[part]
    rates: list[Tensor] = []
    outputs: list[list[Tensor]] = []
    model.eval()
    with torch.inference_mode():
        for pick in trials.split(EVALUATED):
            batch = collate(sets, torch.full_like(pick, session), pick, model.n_units)
            masks = task_masks(model.config, len(pick), len(batch.behaviours), task, shown)
            log_rates, out = model(to_device(batch, device), masks.to(device).blank)
            rates += [] if log_rates is None else [log_rates.cpu()]
            outputs.append([o.cpu() for o in out])
    joined = torch.cat(rates) if rates else None
    return joined, [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def evaluate_reference(
    model: ReferenceNeds, sets: list[TrialSet], session: int, part: str = "test"
) -> dict[str, dict[str, float]]:
    """All scores of one session's part, for the tasks that the model's mode has.

    "spikes" holds both bits per spike over the null rates of the training part, and
    `bps_neuron_mean_test_null`, the paper's: over the mean counts of the very part scored.
    """
    own = sets[session]
    trials = own.parts[part]
    result: dict[str, dict[str, float]] = {}
    if not len(trials):
        return result
    if model.config.mode != "encoding":
        _, outputs = predict(model, sets, session, part, "decoding")
        for b, truth, output in zip(own.spec.behaviours, own.behaviours, outputs, strict=True):
            flat = truth[trials].reshape(-1, b.width).numpy()
            result[b.name] = score(b.kind, flat, output.reshape(-1, b.n_outputs).numpy())
    if model.config.mode != "decoding":
        log_rates, _ = predict(model, sets, session, part, "encoding")
        assert log_rates is not None
        n = own.spec.n_units
        rates = log_rates[..., :n].exp().reshape(-1, n).numpy().astype(np.float64)
        counts = own.counts[trials].reshape(-1, n).numpy().astype(np.float64)
        neuron_mean, pooled = bits_per_spike(counts, rates, own.null_rates)
        test_null, _ = bits_per_spike(counts, rates, counts.mean(0))
        result["spikes"] = {"bps_neuron_mean": neuron_mean, "bps_pooled": pooled,
                            "bps_neuron_mean_test_null": test_null}
    return result


def mean_score(model: ReferenceNeds, sets: list[TrialSet], part: str) -> float:
    """Mean over sessions and modalities of the headline scores that exist; -inf if none does."""
    values = [
        metrics[(KINDS["spikes"] if name == "spikes" else KINDS[kinds[name]]).metrics[0]]
        for session, own in enumerate(sets)
        for kinds in ({b.name: b.kind for b in own.spec.behaviours},)
        for name, metrics in evaluate_reference(model, sets, session, part).items()
    ]
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else -math.inf


def to_device(batch: ReferenceBatch, device: torch.device | str) -> ReferenceBatch:
    """The batch on a device."""
    return ReferenceBatch(batch.session.to(device), batch.counts.to(device),
                          [b.to(device) for b in batch.behaviours])
