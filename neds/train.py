"""The training loop: random sequences of many recordings, masked anew for every sample.

One loop serves training, pretraining and fine-tuning, on a CPU, a GPU, or several processes under
torchrun. Deterministic by seed on a CPU: a step's batch and masks follow from seed and step, so a
run that was killed goes on as if it had not been (`neds.resume`). The best weights by validation
are kept; the log is one JSON line per validation.
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
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neds.batches import Batch, Sampler, collate, drop_units, masks_for, step_generator
from neds.config import MaskingConfig, RunConfig, TrainConfig
from neds.dataset import Recording
from neds.evaluate import decode_part, encode_part
from neds.graphed import GraphedSteps, can_be_graphed
from neds.masking import Masks
from neds.metrics import bits_per_spike, score
from neds.modalities import KINDS
from neds.model import Neds, SessionSpec, poisson_null_log_rate
from neds.processes import Processes
from neds.resume import resume, save
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
            rows = torch.from_numpy(recording.rows("train"))
            stitch = model.stitcher(recording.state.session)
            stitch.spikes_out.bias.copy_(poisson_null_log_rate(recording.counts[rows]))
    return model


class Run:
    """One training run: the model, its optimiser, and how far it has come."""

    def __init__(
        self, config: RunConfig, recordings: list[Recording], device: str = "cpu",
        init: Neds | None = None, processes: Processes | None = None,
    ) -> None:
        self.config, self.recordings, self.device = config, recordings, torch.device(device)
        self.model = (init or build_model(config, recordings)).to(self.device)
        self.knobs = config.train
        self.processes = processes or Processes()
        self.sampler = Sampler.make(recordings, self.knobs, config.model.form)
        self.optimiser = make_optimiser(self.model, self.knobs)
        self.factor = one_cycle(self.knobs)
        self.averaged = self.model
        if self.knobs.ema:
            self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.step, self.best, self.best_step, self.stale = 0, -math.inf, 0, 0
        self.best_weights = self._weights()
        self.loss = torch.zeros(())

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.averaged.state_dict().items()}

    @property
    def done(self) -> bool:
        """Whether all steps are made, or validation has stopped getting better."""
        patient = self.knobs.patience
        return self.step >= self.knobs.steps or (patient > 0 and self.stale >= patient)

    def advance(self, progress: float | None = None) -> None:
        """Make one step. `progress` (0 to 1) replaces the schedule's own share of steps made."""
        at = self.step if progress is None else progress * self.knobs.steps
        for group in self.optimiser.param_groups:
            group["lr"] = self.knobs.learning_rate * group["rate"] * self.factor(at)
        self.step += 1
        self.optimiser.zero_grad(set_to_none=True)
        self.loss = training_loss(self.model, self.sampler, self.config, self.step, self.processes)
        if self.loss.requires_grad:  # not so if no hidden token of this batch was ever recorded
            self.loss.backward()
        self.processes.add_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.knobs.clip)
        self.optimiser.step()
        if self.knobs.ema:
            decay = min(self.knobs.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.averaged.parameters()),
                                 list(self.model.parameters()), 1 - decay)

    def check_finite(self) -> float:
        """The last step's loss over all processes; raises `BadInput` when it is not finite."""
        value = self.processes.total(self.loss)
        if not math.isfinite(value):
            raise BadInput("training", f"loss at step {self.step}", value,
                           "a finite one: lower train.learning_rate or train.clip")
        return value

    def validate(self) -> float | None:
        """Score the validation parts; keep the weights if they are the best so far."""
        value = validation_score(self.averaged, self.recordings, self.config.masking)
        if value is None or value > self.best:  # with nothing to choose by, the newest are kept
            self.best_step, self.stale, self.best_weights = self.step, 0, self._weights()
            self.best = self.best if value is None else value
        else:
            self.stale += 1
        return value

    def result(self, seconds: float) -> TrainResult:
        """The model with its best weights, in evaluation mode."""
        self.model.load_state_dict(self.best_weights)
        self.model.eval()
        return TrainResult(self.model, self.best_step,
                           self.best if math.isfinite(self.best) else None, seconds)


def train(
    config: RunConfig,
    recordings: list[Recording],
    log: TextIO | None = None,
    progress: bool = True,
    *,
    device: str = "cpu",
    init: Neds | None = None,
    saved: Path | None = None,
    save_every: int = 0,
    budget_s: float | None = None,
    report: Callable[[int, float | None], None] | None = None,
) -> TrainResult:
    """Train on the training parts of `recordings`, in batches that mix sessions.

    `init`: a model to go on from instead of a fresh one. `saved`: a folder where the run's state is
    kept every `save_every` steps and found again, for exact resuming. `budget_s`: end within these
    seconds, the learning rate falling in time for it. `report(step, score)` is called after each
    validation. Raises `BadInput` for what `build_model` refuses, when a saved state is of another
    recipe, and when the loss is no longer finite.
    """
    processes = Processes.joined()
    run = Run(config, recordings, device, init, processes)
    knobs = config.train
    if saved is not None:
        resume(run, saved)
    advance = run.advance
    if knobs.cuda_graph and budget_s is None and can_be_graphed(run):
        advance = GraphedSteps(run).advance
    started = time.monotonic()
    bar = _progress(knobs.steps, run.step, progress and processes.rank == 0)
    while not run.done:
        spent = time.monotonic() - started
        share = None if budget_s is None else max(run.step / knobs.steps, spent / budget_s)
        if share is not None and share >= 1:
            break
        advance(share)
        bar.update(1)
        if run.step % 20 == 0 or run.device.type == "cpu":
            run.check_finite()
        last = run.step == knobs.steps
        if run.step % knobs.validate_every == 0 or last:
            _validated(run, log, bar, time.monotonic() - started, report)
        if saved is not None and save_every and (run.step % save_every == 0 or last):
            save(run, saved)
    if budget_s is not None and run.step % knobs.validate_every and run.step < knobs.steps:
        _validated(run, log, bar, time.monotonic() - started, report)
    bar.close()
    return run.result(time.monotonic() - started)


def _validated(
    run: Run, log: TextIO | None, bar: Any, seconds: float,
    report: Callable[[int, float | None], None] | None,
) -> None:
    loss, value = run.check_finite(), run.validate()
    shown = "–" if value is None else f"{value:.3f} (best {run.best:.3f})"
    bar.set_postfix(loss=f"{loss:.3f}", val=shown)
    if run.processes.rank == 0:
        _log(log, step=run.step, loss=loss, val=value, seconds=seconds)
    if report is not None:
        report(run.step, value)


@dataclass(frozen=True)
class Inputs:
    """Everything random of one step, drawn: what a training step computes on."""

    batch: Batch
    counts: Tensor  # with units silenced
    masks: Masks
    keep_own: Tensor | None


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
    return Inputs(batch, counts, masks, keep)


def inputs_loss(model: Neds, inputs: Inputs, weights: Tensor, processes: Processes) -> Tensor:
    """The loss of drawn inputs; `weights` (1 + M,) as `loss_weights` gives them."""
    batch, masks, absent = inputs.batch, inputs.masks, inputs.batch.absent
    log_rates, outputs = model(
        batch.sessions, inputs.counts, batch.encoded,
        masks.spikes | absent[:, 0], masks.behaviours | absent[:, 1:],
        absent=absent, keep_own=inputs.keep_own,
    )
    sums, known = masked_losses(model, batch, masks, log_rates.float(),
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
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        return inputs_loss(model, inputs, weights, processes)


def masked_losses(
    model: Neds, batch: Batch, masks: Masks, log_rates: Tensor, outputs: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Summed loss and number of its terms, (1 + M,) each, over hidden tokens that were recorded.

    Spikes: Poisson, one term a unit and bin. Categorical: cross-entropy, one term a bin (the
    reference's is implicitly weighted by 1/100). Else: squared error, one term a number.
    """
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


def make_optimiser(model: Neds, knobs: TrainConfig) -> torch.optim.AdamW:
    """AdamW; no weight decay on biases, norms, embeddings and stitchers."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        shared = name.startswith(("blocks.", "stem."))
        (decayed if shared and parameter.ndim >= 2 else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": knobs.weight_decay, "rate": 1.0},
              {"params": free, "weight_decay": 0.0, "rate": 1.0}]
    return torch.optim.AdamW(groups, lr=knobs.learning_rate, betas=(0.9, 0.98), fused=True)


def one_cycle(knobs: TrainConfig) -> Callable[[float], float]:
    """Learning rate factor by step: linear warm-up to 1, then a cosine down to 0.001."""
    rise = max(1, round(knobs.warmup * knobs.steps))

    def factor(step: float) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, knobs.steps - rise)
        return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def validation_score(
    model: Neds, recordings: list[Recording], masking: MaskingConfig | None = None
) -> float | None:
    """Mean over sessions and behaviours of each behaviour's headline metric when decoding.

    Behaviours without a score (none known there, or constant) are left out; None if all are. A
    model that was never trained to decode is scored by its bits per spike.
    """
    if masking is not None and masking.decoding + masking.random_token == 0:
        values = [encoding_score(model, recording) for recording in recordings]
    else:
        values = []
        for recording in recordings:
            for b, (truth, predicted) in zip(
                recording.state.behaviours, decode_part(model, recording, "val"), strict=True
            ):
                values.append(score(b.kind, truth, predicted)[KINDS[b.kind].metrics[0]])
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else None


def encoding_score(model: Neds, recording: Recording) -> float:
    """Pooled bits per spike on the validation part."""
    counts, rates = encode_part(model, recording, "val")
    return bits_per_spike(counts, rates, np.array(recording.state.null_rates))[1]


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


def _progress(total: int, made: int, wanted: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=made, unit="step", disable=not wanted, file=sys.stderr)
