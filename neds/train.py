"""The training loop: random sequences of many recordings, masked anew for every sample.

One loop serves training, pretraining and fine-tuning, on a CPU, a GPU, or several processes under
torchrun. Deterministic by seed on a CPU: a step's batch and masks follow from seed and step, so a
run that was killed goes on as if it had not been (`neds.resume`). The best weights by validation
are kept; the log is one JSON line per validation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from neds.batches import Sampler, without_first
from neds.components import hold_to_components, release
from neds.config import MaskingConfig, RunConfig
from neds.dataset import Recording
from neds.evaluate import decode_part, encode_part
from neds.graphed import GraphedSteps, can_be_graphed
from neds.losses import training_loss
from neds.metrics import bits_per_spike, score
from neds.modalities import KINDS
from neds.model import Neds, SessionSpec, poisson_null_log_rate
from neds.optimise import freeze_backbone, make_optimiser, one_cycle
from neds.processes import Processes
from neds.resume import resume, save
from neds.runlog import RunLog, progress_bar
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
        if self.knobs.components:
            hold_to_components(self.model, recordings, self.knobs.components, init is None)
        self.processes = processes or Processes()
        asked = [without_first(r, self.knobs.skip_bins) for r in recordings]
        self.sampler = Sampler.make(asked, self.knobs, config.model.form)
        self.optimiser = make_optimiser(self.model, self.knobs)
        self.factor = one_cycle(self.knobs)
        self.step, self.best, self.best_step, self.stale = 0, -math.inf, 0, 0
        self.best_weights = self._weights()
        self.loss = torch.zeros(())
        self.seconds = 0.0  # spent in earlier runs that this one goes on from

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

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
        if self.knobs.freeze:
            freeze_backbone(self.model, at < self.knobs.freeze * self.knobs.steps)
        self.step += 1
        self.optimiser.zero_grad(set_to_none=True)
        self.loss = training_loss(self.model, self.sampler, self.config, self.step, self.processes)
        if self.loss.requires_grad:  # not so if no hidden token of this batch was ever recorded
            self.loss.backward()
        self.processes.add_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.knobs.clip)
        self.optimiser.step()

    def check_finite(self) -> float:
        """The last step's loss over all processes; raises `BadInput` when it is not finite."""
        value = self.processes.total(self.loss)
        if not math.isfinite(value):
            raise BadInput("training", f"loss at step {self.step}", value,
                           "a finite one: lower train.learning_rate or train.clip")
        return value

    def validate(self) -> float | None:
        """Score the validation parts; keep the weights if they are the best so far."""
        value = validation_score(self.model, self.recordings, self.config.masking,
                                 self.processes)
        if value is None or value > self.best:  # with nothing to choose by, the newest are kept
            self.best_step, self.stale, self.best_weights = self.step, 0, self._weights()
            self.best = self.best if value is None else value
        else:
            self.stale += 1
        return value

    def result(self, seconds: float) -> TrainResult:
        """The model with its best weights, in evaluation mode."""
        self.model.load_state_dict(self.best_weights)
        release(self.model)
        self.model.eval()
        return TrainResult(self.model, self.best_step,
                           self.best if math.isfinite(self.best) else None, seconds)


def train(
    config: RunConfig,
    recordings: list[Recording],
    log: TextIO | RunLog | None = None,
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

    `init`: a model to go on from instead of a fresh one; it is scored first and kept if nothing
    beats it. `saved`: a folder where the run's state is kept every `save_every` steps and found
    again, for exact resuming. `budget_s`: end within these seconds, the learning rate falling in
    time for it. `report(step, score)` is called after each validation. Raises `BadInput` for what
    `build_model` refuses, when a saved state is of another recipe, and when the loss is no longer
    finite.
    """
    processes = Processes.joined(device)
    run = Run(config, recordings, device, init, processes)
    if saved is not None:
        resume(run, saved)
    quiet = processes.rank > 0
    run_log = log if isinstance(log, RunLog) else RunLog(log)
    bar = progress_bar(config.train.steps, run.step, progress and not quiet)
    watch = Watch(run, RunLog(None) if quiet else run_log, bar, report)
    if init is not None and not run.step:
        watch.validated()
    advance = run.advance
    if config.train.cuda_graph and budget_s is None and can_be_graphed(run):
        advance = GraphedSteps(run).advance
    while not run.done:
        share = watch.share(budget_s)
        if share is not None and share >= 1:
            break
        advance(share)
        bar.update(1)
        if run.step % 20 == 0 or run.device.type == "cpu":
            run.check_finite()
        last = run.step == config.train.steps
        if run.step % config.train.validate_every == 0 or last:
            watch.validated()
        if saved is not None and save_every and (run.step % save_every == 0 or last):
            run.seconds, watch.started = watch.seconds, time.monotonic()
            save(run, saved)
    if budget_s is not None and watch.at != run.step:
        watch.validated()
    bar.close()
    return run.result(watch.seconds)


class Watch:
    """Looks at a run from outside: its clock, its validations, and who is told of them."""

    def __init__(
        self, run: Run, log: RunLog, bar: Any, report: Callable[[int, float | None], None] | None
    ) -> None:
        self.run, self.log, self.bar, self.report = run, log, bar, report
        self.started = time.monotonic()
        self.at = -1 if run.step == 0 else run.step  # the step of the last validation

    @property
    def seconds(self) -> float:
        """Time that the run has taken, earlier parts of it included."""
        return self.run.seconds + time.monotonic() - self.started

    def share(self, budget_s: float | None) -> float | None:
        """How much of the budget or of the steps is used up; all processes agree on it."""
        if budget_s is None:
            return None
        made = self.run.step / self.run.knobs.steps
        spent = self.seconds / budget_s if budget_s > 0 else 1.0
        return self.run.processes.agreed(max(made, spent), self.run.device)

    def validated(self) -> None:
        """Score the validation parts, and say so."""
        run = self.run
        loss = run.check_finite() if run.step else None  # no step, no loss
        value = run.validate()
        self.at = run.step
        shown = "–" if value is None else f"{value:.3f} (best {run.best:.3f})"
        self.bar.set_postfix(loss="–" if loss is None else f"{loss:.3f}", val=shown)
        self.log.write(run.step, loss=loss, val=value, seconds=self.seconds)
        if self.report is not None:
            self.report(run.step, value)


def validation_score(
    model: Neds, recordings: list[Recording], masking: MaskingConfig | None = None,
    processes: Processes | None = None,
) -> float | None:
    """Mean over sessions and behaviours of each behaviour's headline metric when decoding.

    Behaviours without a score (none known there, or constant) are left out; None if all are. A
    model that was never trained to decode is scored by its bits per spike. Several processes score
    some of the sessions each and agree on the mean.
    """
    processes = processes or Processes()
    encodes = masking is not None and masking.decoding + masking.random_token == 0
    known: list[float] = []
    for recording in processes.mine(recordings):
        if not recording.runs_within("val"):
            continue
        values = [encoding_score(model, recording)] if encodes else decoding_scores(
            model, recording)
        known += [v for v in values if not math.isnan(v)]
    found = torch.tensor([sum(known), len(known)], dtype=torch.float64, device=model.device)
    total, number = processes.summed(found).tolist()
    return total / number if number else None


def decoding_scores(model: Neds, recording: Recording) -> list[float]:
    """Each behaviour's headline metric on the validation part."""
    pairs = decode_part(model, recording, "val")
    return [score(b.kind, truth, predicted)[KINDS[b.kind].metrics[0]]
            for b, (truth, predicted) in zip(recording.state.behaviours, pairs, strict=True)]


def encoding_score(model: Neds, recording: Recording) -> float:
    """Pooled bits per spike on the validation part."""
    counts, rates = encode_part(model, recording, "val")
    return bits_per_spike(counts, rates, np.array(recording.state.null_rates))[1]
