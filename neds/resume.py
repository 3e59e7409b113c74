"""The state of an unfinished run on disk, so that a killed run goes on exactly where it was.

One safetensors file holds the weights, their average, the best weights so far and the optimiser's
moments; its metadata hold the step and the recipe. It is replaced as a whole, so a kill at any
moment leaves the state before or the state after.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neds.config import RunConfig
from neds_rt.errors import BadInput

if TYPE_CHECKING:
    from neds.train import Run

NAME = "state.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a run has come."""

    config: RunConfig
    sessions: list[str]
    step: int
    best: float
    best_step: int
    stale: int


def save(run: Run, folder: Path) -> None:
    """Write the run's state; the first of several processes does it for all."""
    if run.processes.rank:
        return
    tensors = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in run.averaged.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in run.best_weights.items()}
    for name, parameter in run.model.named_parameters():
        state = run.optimiser.state.get(parameter, {})
        tensors |= {f"optimiser.{kind}.{name}": state[kind] for kind in MOMENTS if kind in state}
    progress = Progress(run.config, [r.state.session for r in run.recordings], run.step,
                        run.best, run.best_step, run.stale)
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{NAME}.new"
    # A clone each: the same memory under two names is not what the format allows.
    save_file({k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
               for k, v in tensors.items()}, staged,
              metadata={"progress": _encoded(progress)})
    os.replace(staged, folder / NAME)


def _encoded(progress: Progress) -> str:
    # JSON has no infinity: a run without a validation has no best.
    finite = progress.best if progress.best > -1e300 else -1e300
    return msgspec.json.encode(msgspec.structs.replace(progress, best=finite)).decode()


def resume(run: Run, folder: Path) -> bool:
    """Take up the state in `folder` if there is one. Raises `BadInput` if it is another run's."""
    path = folder / NAME
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            progress = msgspec.json.decode((file.metadata() or {}).get("progress", ""),
                                           type=Progress)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, msgspec.DecodeError) as error:
        raise BadInput(path, "state", str(error)[:200], "what neds writes while it trains"
                       ) from error
    sessions = [r.state.session for r in run.recordings]
    if progress.config != run.config or progress.sessions != sessions:
        raise BadInput(path, "state", "of another recipe or other sessions",
                       "this run's, or none: give another --out, or --overwrite")
    _take(run, tensors)
    run.step, run.best_step, run.stale = progress.step, progress.best_step, progress.stale
    run.best = progress.best if progress.best > -1e300 else float("-inf")
    return True


def _take(run: Run, tensors: dict[str, Tensor]) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        start = len(prefix) + 1
        return {k[start:]: v.to(run.device) for k, v in tensors.items()
                if k.startswith(prefix + ".")}

    run.model.load_state_dict(under("model"))
    if run.averaged is not run.model:
        run.averaged.load_state_dict(under("averaged"))
    run.best_weights = under("best")
    for name, parameter in run.model.named_parameters():
        found = {kind: tensors[f"optimiser.{kind}.{name}"] for kind in MOMENTS
                 if f"optimiser.{kind}.{name}" in tensors}
        if found:
            run.optimiser.state[parameter] = {k: v.to(run.device) for k, v in found.items()}
