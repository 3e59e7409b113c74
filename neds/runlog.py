"""What a run says while it trains: JSON lines always, a progress bar, and trackers where wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from neds_rt.errors import BadInput


class Tracker(Protocol):
    """Takes the numbers of a validation."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Keep the numbers of one step."""

    def close(self) -> None:
        """Write what is pending."""


class RunLog:
    """The JSONL log of a run, one line a validation, and whatever trackers follow it."""

    def __init__(self, file: TextIO | None, trackers: list[Tracker] | None = None) -> None:
        self.file, self.trackers = file, trackers or []

    def write(self, step: int, **fields: float | None) -> None:
        """Log one validation; trackers are given what is known."""
        if self.file is not None:
            line = msgspec.json.encode({"step": step, **fields})
            self.file.write(line.decode() + "\n")
        for tracker in self.trackers:
            tracker.add(step, {k: v for k, v in fields.items() if v is not None})

    def close(self) -> None:
        """Close the file and the trackers."""
        if self.file is not None:
            self.file.close()
        for tracker in self.trackers:
            tracker.close()


def open_log(path: Path, until: int | None = None) -> TextIO:
    """The run's JSONL log, line by line on disk.

    A run that goes on from step `until` keeps the lines up to there: later ones, or one that was
    cut short, are of steps that are made again. Raises `BadInput` where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if until is None else _lines(path, until)
        staged = path.with_name(f".{path.name}.new")
        staged.write_text("".join(kept))
        os.replace(staged, path)
        return path.open("a", buffering=1)
    except OSError as error:
        raise BadInput(path, "log", error.strerror, "a file that can be written") from error


def _lines(path: Path, until: int) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            if msgspec.json.decode(line)["step"] <= until:
                kept.append(line)
        except (msgspec.DecodeError, KeyError, TypeError):
            break
    return kept


class TensorBoard:
    """Scalars for TensorBoard."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Keep the numbers of one step."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is pending."""
        self.writer.close()


class WeightsAndBiases:
    """Scalars for Weights & Biases, which sends them over the network."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Keep the numbers of one step."""
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Send what is pending."""
        self.run.finish()


def trackers(out: Path, wandb: str, config: dict[str, Any]) -> list[Tracker]:
    """TensorBoard where it is installed; Weights & Biases where a project is named for it.

    The project comes from `wandb` or the environment's NEDS_WANDB. Raises `BadInput` when it is
    asked for and not installed.
    """
    found: list[Tracker] = []
    writer = _tensorboard()
    if writer is not None:
        found.append(TensorBoard(writer(log_dir=str(out.with_name(out.name + ".tensorboard")))))
    project = wandb or os.environ.get("NEDS_WANDB", "")
    if project:
        try:
            import wandb as client
        except ImportError as error:
            raise BadInput("--wandb", "package", "none", "wandb: pip install wandb") from error
        found.append(WeightsAndBiases(client.init(project=project, name=out.name, config=config)))
    return found


def _tensorboard() -> Callable[..., Any] | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Callable[..., Any] = SummaryWriter
    return writer


def progress_bar(total: int, made: int, wanted: bool) -> Any:
    """A bar on standard error with the steps made and the time that is left."""
    from tqdm import tqdm

    return tqdm(total=total, initial=made, unit="step", disable=not wanted, file=sys.stderr)
