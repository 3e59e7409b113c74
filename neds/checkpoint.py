"""Checkpoints: a folder with `model.safetensors` and `checkpoint.json`, written atomically.

The JSON holds everything needed to use the weights without the run that made them: the recipe, and
per session its units, behaviours, scalers and the split it was trained on. No pickle.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from neds.config import RunConfig, check
from neds.model import BehaviourSpec, Neds, SessionSpec
from neds_rt.bundle import Unit
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

CHECKPOINT_SCHEMA = 2
MAX_INFO_BYTES = 256 << 20  # all units of a thousand sessions have a tenth of it


class BehaviourState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One behaviour of a session as the model was trained on it."""

    name: str
    kind: str
    width: int
    classes: list[str]
    unit: str
    mean: list[float]  # of the training part, per column; 0 where the kind is not scaled
    sd: list[float]

    @property
    def spec(self) -> BehaviourSpec:
        """What the model needs of it."""
        return BehaviourSpec(self.name, self.kind, self.width, tuple(self.classes), self.unit)


class SessionState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One session as the model was trained on it."""

    session: str
    subject: str
    units: list[Unit]  # in model order
    unit_rows: list[int]  # which units of the stored session these are
    behaviours: list[BehaviourState]
    null_rates: list[float]  # mean count per bin on the training part
    split: dict[str, list[int]]  # part -> [first row, one past the last] on the session's bins
    trials: dict[str, list[int]] | None = None  # random split: part -> its runs; split says nothing

    @property
    def train_bins(self) -> int:
        """Bins in the training part; of a random split, that share of all bins."""
        first, stop = self.split["train"]
        if self.trials is None:
            return stop - first
        dealt = sum(len(numbers) for numbers in self.trials.values())
        return round((stop - first) * len(self.trials["train"]) / dealt)

    @property
    def spec(self) -> SessionSpec:
        """What the model needs of it."""
        return SessionSpec(
            self.session, len(self.units), tuple(b.spec for b in self.behaviours),
            channels=tuple(f"{self.subject}/{u.probe}/{u.channel}" for u in self.units),
            regions=tuple(u.region for u in self.units),
        )


class CheckpointInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`checkpoint.json`."""

    schema: int
    created_by: str
    config: RunConfig
    sessions: list[SessionState]
    step: int
    provenance: dict[str, Any]

    def session(self, name: str | None) -> SessionState:
        """The session called `name`, or the only one; raises `BadInput` naming those there are."""
        names = [s.session for s in self.sessions]
        if name is None and len(names) == 1:
            return self.sessions[0]
        if name not in names:
            raise BadInput("--session", "session", repr(name), f"one of {', '.join(names)}, or a "
                           "checkpoint that neds finetune SESSION.h5 --init CKPT makes of it")
        return self.sessions[names.index(name)]


def save_checkpoint(folder: Path, model: Neds, info: CheckpointInfo) -> None:
    """Write the checkpoint so that a reader finds the old one or the new one, never a part.

    Raises `BadInput` for a folder that `check_writable` refuses.
    """
    check_writable(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        staged = Path(name) / "new"
        staged.mkdir()
        state = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
        save_file(state, staged / "model.safetensors")
        (staged / "checkpoint.json").write_bytes(msgspec.json.format(msgspec.json.encode(info)))
        old = Path(name) / "old"
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(staged, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise


def check_writable(folder: Path) -> None:
    """Raise `BadInput` unless a checkpoint may be written as `folder`; makes its parent.

    What is there and is not a checkpoint alone is never replaced.
    """
    expected = "a new folder, or one with a checkpoint alone"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            others = {p.name for p in folder.iterdir()} - {"checkpoint.json", "model.safetensors"}
            if others:
                raise BadInput(folder, "output", f"other files ({min(others)})", expected)
        with tempfile.TemporaryDirectory(dir=folder.parent):
            pass
    except OSError as error:
        raise BadInput(folder, "output", error.strerror, expected) from error


def read_info(folder: Path) -> CheckpointInfo:
    """Read `checkpoint.json`; raises `BadInput` if it is not a checkpoint of this schema."""
    path = folder / "checkpoint.json"
    data = read_small(path, "checkpoint", "a folder written by neds train", MAX_INFO_BYTES)
    try:
        info = msgspec.json.decode(data, type=CheckpointInfo)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        expected = "a checkpoint.json of this version"
        raise BadInput(path, "checkpoint", str(error), expected) from error
    if info.schema != CHECKPOINT_SCHEMA:
        raise BadInput(path, "schema", info.schema, str(CHECKPOINT_SCHEMA))
    return info


def load_checkpoint(folder: Path) -> tuple[Neds, CheckpointInfo]:
    """Build the model of a checkpoint with its weights, in evaluation mode.

    Raises `BadInput` when the weights do not fit the sessions and sizes the JSON states.
    """
    info = read_info(folder)
    check(info.config, str(folder / "checkpoint.json"))
    model = Neds(info.config.model, [s.spec for s in info.sessions])
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        expected = "the tensors that checkpoint.json implies"
        raise BadInput(path, "weights", str(error)[:200], expected) from error
    model.eval()
    return model, info


def created_by() -> str:
    """Program and version, for provenance."""
    from importlib.metadata import version

    return f"neds {version('neds')}, torch {torch.__version__}"
