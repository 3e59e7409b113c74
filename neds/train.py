"""The training loop: random sequences of a recording, masked anew for every sample.

One loop serves every recipe. Deterministic by seed on a CPU. The best weights by validation are
kept; the log is one JSON line per validation.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from neds.config import RunConfig, TrainConfig
from neds.dataset import Batch, Recording, draw_batch
from neds.evaluate import decode_part
from neds.masking import Masks, draw_masks
from neds.metrics import score
from neds.modalities import KINDS
from neds.model import Neds, SessionSpec, Stitcher, poisson_null_log_rate
from neds_rt.errors import BadInput


@dataclass(frozen=True)
class TrainResult:
    """What training left: the model with its best weights, and how it got there."""

    model: Neds
    best_step: int
    best_score: float | None  # None where no behaviour is known on the validation parts
    seconds: float


def build_model(config: RunConfig, recordings: list[Recording]) -> Neds:
    """A fresh model for these sessions, seeded, with spike heads starting at the mean rates.

    Raises `BadInput` for a session given twice, or weights for a behaviour that no session has.
    """
    names = [r.state.session for r in recordings]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(name, "session", "given twice", "every session once")
    behaviours = {b.name for r in recordings for b in r.state.behaviours}
    for name in config.train.behaviour_weights:
        if name not in behaviours:
            raise BadInput("train.behaviour_weights", "name", repr(name),
                           f"some of {', '.join(sorted(behaviours)) or 'no behaviours'}")
    torch.manual_seed(config.train.seed)
    specs: list[SessionSpec] = [r.state.spec for r in recordings]
    model = Neds(config.model, specs)
    with torch.no_grad():
        for recording in recordings:
            first, stop = recording.part("train")
            stitch = model.stitcher(recording.state.session)
            stitch.spikes_out.bias.copy_(poisson_null_log_rate(recording.counts[first:stop]))
    return model


def train(
    config: RunConfig, recordings: list[Recording], log: TextIO | None = None, progress: bool = True
) -> TrainResult:
    """Train on the training parts of `recordings`, one session a step in turn.

    Raises `BadInput` for what `build_model` refuses, and when the loss is no longer finite.
    """
    model = build_model(config, recordings)
    knobs = config.train
    generator = torch.Generator().manual_seed(knobs.seed)
    optimiser = make_optimiser(model, knobs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, one_cycle(knobs))
    started = time.monotonic()
    best, best_step, best_weights = -math.inf, 0, copy.deepcopy(model.state_dict())
    bar = _progress(knobs.steps, progress)
    for step in range(1, knobs.steps + 1):
        recording = recordings[(step - 1) % len(recordings)]
        loss = training_loss(model, recording, config, generator)
        if not math.isfinite(loss.item()):
            bar.close()
            raise BadInput(recording.state.session, f"loss at step {step}", loss.item(),
                           "a finite one: lower train.learning_rate or train.clip")
        optimiser.zero_grad(set_to_none=True)
        if loss.requires_grad:  # not so if no hidden token of this batch was ever recorded
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), knobs.clip)
        optimiser.step()
        schedule.step()
        bar.update(1)
        if step % knobs.validate_every == 0 or step == knobs.steps:
            value = validation_score(model, recordings)
            if value is None or value > best:  # with nothing to choose by, the newest are kept
                best_step, best_weights = step, copy.deepcopy(model.state_dict())
                best = best if value is None else value
            shown = "–" if value is None else f"{value:.3f} (best {best:.3f})"
            bar.set_postfix(loss=f"{loss.item():.3f}", val=shown)
            _log(log, step=step, loss=loss.item(), val=value, seconds=time.monotonic() - started)
    bar.close()
    model.load_state_dict(best_weights)
    model.eval()
    return TrainResult(model, best_step, best if math.isfinite(best) else None,
                       time.monotonic() - started)


def training_loss(
    model: Neds, recording: Recording, config: RunConfig, generator: torch.Generator
) -> Tensor:
    """Loss of one freshly drawn and masked batch."""
    knobs = config.train
    bins = knobs.bins
    if config.model.form == "stream":  # padding past the longest trial would teach nothing
        bins = min(bins, max(b - a for a, b in recording.runs_within("train")))
    batch = draw_batch(recording, knobs.batch, bins, generator)
    n_behaviours = len(recording.encoded)
    masks = draw_masks(config.masking, knobs.batch, n_behaviours, bins, generator)
    counts = drop_units(batch.counts, knobs.unit_dropout, generator)
    model.train()
    log_rates, outputs = model(
        recording.state.session,
        counts,
        batch.encoded,
        masks.spikes | ~batch.there,
        masks.behaviours | ~batch.known,
    )
    return masked_loss(model.stitcher(recording.state.session), batch, masks, log_rates, outputs,
                       knobs)


def masked_loss(
    stitch: Stitcher,
    batch: Batch,
    masks: Masks,
    log_rates: Tensor,
    outputs: list[Tensor],
    knobs: TrainConfig,
) -> Tensor:
    """Sum over modalities of weight * mean loss on hidden, known tokens.

    A modality without a hidden token adds nothing. The categorical term is a mean cross-entropy
    over hidden tokens (the reference's is implicitly 1/100 of that).
    """
    total = log_rates.new_zeros(())
    hidden = masks.spikes & batch.there
    if hidden.any():
        nll = F.poisson_nll_loss(log_rates[hidden].clamp(max=8.0), batch.counts[hidden])
        total = total + knobs.spike_weight * nll
    for m, spec in enumerate(stitch.spec.behaviours):
        asked = masks.behaviours[:, m] & batch.known[:, m]
        if not asked.any():
            continue
        target, output = batch.encoded[m][asked], outputs[m][asked]
        if KINDS[spec.kind].loss == "cross_entropy":
            loss = F.cross_entropy(output, target.argmax(-1))
        else:
            loss = F.mse_loss(output, target)
        total = total + knobs.behaviour_weights.get(spec.name, 1.0) * loss
    return total


def drop_units(counts: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Silence a share of units for a whole sequence each, scaling the others up.

    Model inputs are square roots of counts, hence the square of the usual factor.
    """
    if share <= 0:
        return counts
    kept = torch.rand(counts.shape[0], 1, counts.shape[2], generator=generator) >= share
    return counts * (kept / (1 - share) ** 2)


def make_optimiser(model: Neds, knobs: TrainConfig) -> torch.optim.AdamW:
    """AdamW; no weight decay on biases, norms, embeddings and stitchers."""
    stitchers = {id(p) for p in model.stitchers.parameters()}
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name in ("modality", "position") or id(parameter) in stitchers
        (free if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": knobs.weight_decay},
              {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=knobs.learning_rate, betas=(0.9, 0.98))


def one_cycle(knobs: TrainConfig) -> Callable[[int], float]:
    """Learning rate factor by step: linear warm-up to 1, then a cosine down to 0.001."""
    rise = max(1, round(knobs.warmup * knobs.steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, knobs.steps - rise)
        return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def validation_score(model: Neds, recordings: list[Recording]) -> float | None:
    """Mean over sessions and behaviours of each behaviour's headline metric when decoding.

    Behaviours without a score (none known there, or constant) are left out; None if all are.
    """
    values = []
    for recording in recordings:
        for b, (truth, predicted) in zip(
            recording.state.behaviours, decode_part(model, recording, "val"), strict=True
        ):
            values.append(score(b.kind, truth, predicted)[KINDS[b.kind].metrics[0]])
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else None


def open_log(path: Path) -> TextIO:
    """The run's JSONL log, line by line on disk; raises `BadInput` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", buffering=1)
    except OSError as error:
        raise BadInput(path, "log", error.strerror, "a file that can be written") from error


def _log(log: TextIO | None, **fields: Any) -> None:
    if log is not None:
        log.write(msgspec.json.encode(fields).decode() + "\n")


def _progress(total: int, wanted: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="step", disable=not wanted, file=sys.stderr)
