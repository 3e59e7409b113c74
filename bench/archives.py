"""Recordings as `bench/accuracy.py` takes them: archives of the known sets, or session files."""

from __future__ import annotations

from pathlib import Path

from neds.data.presets import guess_preset, read_preset
from neds.data.session import Session
from neds.data.store import read_session

STORED = "sessions"  # the preset of session files, which need none


def find(folder: str) -> list[Path]:
    """The archives (.npz) of a folder in order, or its session files (.h5) if it has no others."""
    return sorted(Path(folder).glob("*.npz")) or sorted(Path(folder).glob("*.h5"))


def preset_of(path: Path) -> str:
    """How to read this file. Raises `BadInput` for an archive that no preset knows."""
    return STORED if path.suffix == ".h5" else guess_preset(path)


def read(path: str, preset: str) -> Session:
    """Read one recording. Raises `BadInput`."""
    return read_session(path) if preset == STORED else read_preset(Path(path), preset)
