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
from safetensors.torch import load_file, save_file
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
    seconds: float = 0.0


def save(run: Run, folder: Path) -> None:
    """Write the run's state; the first of several processes does it for all."""
    if run.processes.rank:
        return
    tensors = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in run.best_weights.items()}
    for name, parameter in run.model.named_parameters():
        state = run.optimiser.state.get(parameter, {})
        tensors |= {f"optimiser.{kind}.{name}": state[kind] for kind in MOMENTS if kind in state}
    progress = Progress(run.config, [r.state.session for r in run.recordings], run.step,
                        run.best, run.best_step, run.stale, run.seconds)
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


def read_progress(folder: Path) -> Progress | None:
    """How far the run in `folder` has come, None without one; raises `BadInput` if unreadable."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("progress", "")
        return msgspec.json.decode(text, type=Progress)
    except (OSError, SafetensorError, msgspec.DecodeError) as error:
        raise BadInput(path, "state", str(error)[:200],
                       "what neds writes while it trains; --overwrite begins anew") from error


def resume(run: Run, folder: Path) -> bool:
    """Take up the state in `folder` if there is one. Raises `BadInput` if it is another run's."""
    progress = read_progress(folder)
    at = 0 if progress is None else progress.step
    if run.processes.agreed(at, run.device) != at:
        raise BadInput(folder, "step", at, "the first process's: a folder that all machines share")
    if progress is None:
        return False
    path = folder / NAME
    check_same(progress, run.config, [r.state.session for r in run.recordings], path)
    tensors = load_file(path)
    _take(run, tensors)
    run.step, run.best_step, run.stale = progress.step, progress.best_step, progress.stale
    run.best = progress.best if progress.best > -1e300 else float("-inf")
    run.seconds = progress.seconds
    return True


def check_same(progress: Progress, config: RunConfig, sessions: list[str], path: Path) -> None:
    """Raise `BadInput`, naming what differs, unless the state is of this recipe and sessions."""
    expected = "this run's: the same command, or --overwrite to begin anew"
    if progress.sessions != sessions:
        differ = sorted(set(progress.sessions) ^ set(sessions)) or sessions
        raise BadInput(path, "state", f"of other sessions ({', '.join(differ[:3])})", expected)
    ours, theirs = msgspec.to_builtins(config), msgspec.to_builtins(progress.config)
    for table, fields in ours.items():
        for field, value in fields.items():
            if theirs[table][field] != value:
                raise BadInput(path, "state", f"of another recipe ({table}.{field} = "
                               f"{theirs[table][field]!r}, now {value!r})", expected)


def _take(run: Run, tensors: dict[str, Tensor]) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        start = len(prefix) + 1
        return {k[start:]: v.to(run.device) for k, v in tensors.items()
                if k.startswith(prefix + ".")}

    run.model.load_state_dict(under("model"))
    run.best_weights = under("best")
    for name, parameter in run.model.named_parameters():
        found = {kind: tensors[f"optimiser.{kind}.{name}"] for kind in MOMENTS
                 if f"optimiser.{kind}.{name}" in tensors}
        if found:
            run.optimiser.state[parameter] = {k: v.to(run.device) for k, v in found.items()}
