"""Training steps replayed as one CUDA graph: a step of small sessions is all launches otherwise.

Needs every session in every batch, so that shapes and parameters are the same in every step. The
random part of a step (rows, masks, silenced units) is drawn on the CPU as ever and copied into the
graph's inputs; the arithmetic, the optimiser included, is recorded once and replayed.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neds.losses import Inputs, draw_inputs, inputs_loss, loss_weights

if TYPE_CHECKING:
    from neds.train import Run

WARM_STEPS = 3


def can_be_graphed(run: Run) -> bool:
    """Whether the run's steps are all alike: one process, a GPU, every session in every batch.

    Replayed steps compute in float32 (TF32): where launches are all the cost, bf16 saves nothing.
    """
    return (run.device.type == "cuda" and run.processes.world == 1
            and not run.knobs.freeze and run.knobs.precision != "bf16"
            and run.sampler.sessions == len(run.recordings))


class GraphedSteps:
    """Makes a run's steps by replaying them."""

    def __init__(self, run: Run) -> None:
        if not can_be_graphed(run):
            raise ValueError("steps that differ in shape cannot be replayed")
        self.run = run
        torch.set_float32_matmul_precision("high")
        for group in run.optimiser.param_groups:
            group["capturable"] = run.device.type == "cuda"
            group["lr"] = torch.tensor(group["lr"], device=run.device)
        names = [r.state.session for r in run.recordings]
        self.weights = loss_weights(run.model, names, run.knobs).to(run.device)
        self.inputs = self._drawn(1, run.device)
        self.loss = torch.zeros((), device=run.device)
        self._record()

    def _drawn(self, step: int, device: torch.device) -> Inputs:
        run = self.run
        return draw_inputs(run.model, run.sampler, run.config, step, run.processes, device)

    def _step(self) -> Tensor:
        run = self.run
        loss = inputs_loss(run.model, self.inputs, self.weights, run.processes)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.knobs.clip)
        run.optimiser.step()
        return loss.detach()

    def _record(self) -> None:
        run = self.run
        run.model.train()
        before = copy.deepcopy(run.model.state_dict())
        moments = copy.deepcopy({id(p): s for p, s in run.optimiser.state.items()})
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_STEPS):
                run.optimiser.zero_grad(set_to_none=True)
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        run.optimiser.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self._step()
        # The warm-up steps were not part of the run.
        run.model.load_state_dict(before)
        for parameter, state in run.optimiser.state.items():
            kept = moments.get(id(parameter), {})
            for name, value in state.items():
                value.copy_(kept[name]) if name in kept else value.zero_()

    def advance(self, progress: float | None = None) -> None:
        """Make the run's next step, as `Run.advance`."""
        run = self.run
        at = run.step if progress is None else progress * run.knobs.steps
        for group in run.optimiser.param_groups:
            group["lr"].fill_(run.knobs.learning_rate * group["rate"] * run.factor(at))
        run.step += 1
        run.model.train()
        run.processes.seed_dropout(run.knobs.seed, run.step)
        _copy(self._drawn(run.step, torch.device("cpu")), self.inputs)
        self.graph.replay()
        run.loss = self.loss


def _copy(source: Inputs, target: Inputs) -> None:
    """Fill the graph's inputs with newly drawn ones."""
    for a, b in _pairs(source, target):
        b.copy_(a.pin_memory(), non_blocking=True)


def _pairs(source: Inputs, target: Inputs) -> list[tuple[Tensor, Tensor]]:
    pairs = [(source.counts, target.counts), (source.masks.spikes, target.masks.spikes),
             (source.masks.behaviours, target.masks.behaviours)]
    if source.keep_own is not None and target.keep_own is not None:
        pairs.append((source.keep_own, target.keep_own))
    for field in fields(source.batch):
        a, b = getattr(source.batch, field.name), getattr(target.batch, field.name)
        if isinstance(a, Tensor):
            pairs.append((a, b))
        elif field.name == "encoded":
            pairs += list(zip(a, b, strict=True))
    return pairs
