"""Recordings as `bench/accuracy.py` takes them: archives of the known sets, or session files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neds.data.presets import guess_preset, read_preset
from neds.data.session import Session
from neds.data.store import read_session
from neds.dataset import Recording
from neds_rt.errors import BadInput
from neds_rt.synthetic import SyntheticAnimal

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


def true_rates(session: Session, recording: Recording, part: str) -> NDArray[np.float64]:
    """Expected spikes per bin (T, N) of a part of a synthetic session, as it was made.

    Raises `BadInput` for a session that was not made here, or bins that are not its steps.
    """
    made = session.metadata.get("synthetic")
    if made is None:
        raise BadInput(session.session, "true rates", "not recorded", "a session of neds synth")
    animal = SyntheticAnimal(made["animal_seed"], made["units"], n_probes=made["probes"])
    truth = animal.simulate(made["seconds"], made["session_seed"])
    if not np.isclose(recording.bin_size_s, truth.step_s):
        raise BadInput(session.session, "data.bin_size_s", recording.bin_size_s, truth.step_s)
    bins = recording.bin[recording.rows(part)]
    rates = truth.rates[bins][:, recording.state.unit_rows]
    return rates.astype(np.float64) * truth.step_s
