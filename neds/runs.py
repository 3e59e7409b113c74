"""From a recipe and recordings to a checkpoint on disk: what train, pretrain and finetune share.

Beside the checkpoint OUT lie OUT.log.jsonl and, while a run that keeps its state is unfinished,
the folder OUT.state with that state and with the recordings' rows, mapped into memory.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from neds.checkpoint import (
    CHECKPOINT_SCHEMA,
    CheckpointInfo,
    check_writable,
    created_by,
    save_checkpoint,
)
from neds.config import RunConfig
from neds.data.dropped import DropReport
from neds.dataset import Recording
from neds.model import Neds, count_parameters
from neds.processes import Processes
from neds.resume import NAME, check_same, read_progress
from neds.runlog import RunLog, open_log, trackers
from neds.train import TrainResult, train
from neds_rt.errors import BadInput

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to carry out, as the command line asks for it."""

    out: Path
    recipe: str
    device: str = "cpu"
    save_every: int = 0  # steps between states on disk, 0 to keep none
    resume: bool = False
    overwrite: bool = False
    wandb: str = ""
    progress: bool = True
    provenance: Json = field(default_factory=dict)

    @classmethod
    def of(cls, args: argparse.Namespace, **more: Any) -> Job:
        """The job of a command's arguments, as `neds.run_arguments` declares them."""
        if args.threads < 0:
            raise BadInput("--threads", "number", args.threads, "0 (torch's default) or more")
        if args.threads:
            torch.set_num_threads(args.threads)
        if args.save_every < 0:
            raise BadInput("--save-every", "steps", args.save_every, "0 (never) or more")
        return cls(out=Path(args.out).absolute(), recipe=args.recipe,
                   device=choose_device(args.device), save_every=args.save_every,
                   resume=args.resume, overwrite=args.overwrite, wandb=args.wandb,
                   progress=not args.json, **more)

    @property
    def state(self) -> Path:
        """Where the unfinished run is kept."""
        return self.out.with_name(self.out.name + ".state")

    @property
    def log(self) -> Path:
        """The JSONL log."""
        return self.out.with_name(self.out.name + ".log.jsonl")


def choose_device(name: str) -> str:
    """The device of this process: `auto` takes a GPU where there is one; under torchrun its own.

    Raises `BadInput` for a device that is not there.
    """
    import os

    if name not in ("auto", "cpu", "cuda"):
        raise BadInput("--device", "name", repr(name), "auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device", "cuda", "no CUDA device", "--device cpu, or a GPU that torch "
                       "can use")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise BadInput("torchrun", "processes on this machine", local + 1,
                       f"at most {torch.cuda.device_count()}, one a GPU")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


@contextmanager
def kept(job: Job, processes: Processes) -> Iterator[Path]:
    """The run's folder with a folder for this process's rows, which goes when the run ends.

    The state stays when the run is cut short, to be found again. Raises `BadInput` for a state
    that nobody asked to resume.
    """
    check_writable(job.out)
    found = (job.state / NAME).exists()
    if found and not (job.resume or job.overwrite):
        progress = read_progress(job.state)
        raise BadInput(job.state, "unfinished run", f"step {progress.step if progress else 0}",
                       "--resume to go on with it, or --overwrite to begin anew")
    if job.overwrite and not job.resume and processes.rank == 0:
        (job.state / NAME).unlink(missing_ok=True)
    processes.wait()
    rows = job.state / f"rows-{processes.rank}"
    shutil.rmtree(rows, ignore_errors=True)
    rows.mkdir(parents=True)
    try:
        yield rows
    finally:
        shutil.rmtree(rows, ignore_errors=True)
        if job.state.is_dir() and not any(job.state.iterdir()):
            job.state.rmdir()


def carry_out(
    job: Job, config: RunConfig, recordings: list[Recording], sources: dict[str, str],
    drops: DropReport, processes: Processes, init: Neds | None = None,
) -> Json:
    """Train, write the checkpoint, and return what there is to say of the run.

    `sources` is the file of each session. The state of an unfinished run is taken up if there is
    one, and goes once the checkpoint is there.
    """
    names = [r.state.session for r in recordings]
    progress = read_progress(job.state) if job.state.is_dir() else None
    if progress is not None:
        check_same(progress, config, names, job.state / NAME)
    first = processes.rank == 0
    log = RunLog(None)
    if first:
        log = RunLog(open_log(job.log, None if progress is None else progress.step),
                     trackers(job.out, job.wandb, msgspec.to_builtins(config)))
    try:
        result = train(config, recordings, log, job.progress, device=job.device, init=init,
                       saved=job.state if job.save_every else None, save_every=job.save_every)
    finally:
        log.close()
    info = CheckpointInfo(
        schema=CHECKPOINT_SCHEMA, created_by=created_by(), config=config,
        sessions=[r.state for r in recordings], step=result.best_step,
        provenance={"recipe": job.recipe, "sessions": {n: sources[n] for n in names},
                    "validation": result.best_score, "seconds": round(result.seconds, 1),
                    **job.provenance},
    )
    if first:
        save_checkpoint(job.out, result.model.cpu(), info)
        (job.state / NAME).unlink(missing_ok=True)
    processes.wait()
    return summary(str(job.out), result, drops)


def summary(out: str, result: TrainResult, drops: DropReport) -> Json:
    """What a run is reported as."""
    return {
        "checkpoint": out,
        "validation": result.best_score,
        "best_step": result.best_step,
        "seconds": round(result.seconds, 1),
        "parameters": count_parameters(result.model),
        "dropped": drops.as_json(),
    }


def finished(job: Job, config: RunConfig, recordings: list[Recording]) -> bool:
    """Whether --resume finds nothing left to do: the checkpoint is there, of this very run."""
    from neds.checkpoint import read_info

    if not job.resume or (job.state / NAME).exists() or not job.out.exists():
        return False
    info = read_info(job.out)
    return info.config == config and info.sessions == [r.state for r in recordings]


def session_files(paths: list[str]) -> dict[str, str]:
    """The file of each session by its name; files that cannot be read are left out."""
    import h5py

    found: dict[str, str] = {}
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                found.setdefault(str(file.attrs["session"]), str(Path(path).resolve()))
        except (OSError, KeyError):
            continue  # the drop report names it
    return found
