"""The fast path at the rig: from the first minutes of a new session to a decoder that is served.

The first minutes are calibration data, their last fifth chooses when to stop. All that comes later
is held back and says what accuracy to expect; where nothing comes later, that fifth has to, and the
report says so. With no minutes at all the decoder is what the pretrained sessions share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from neds.adapt import HELD_BACK, fit_to, fitted_on
from neds.checkpoint import BehaviourState, CheckpointInfo, SessionState
from neds.config import TrainConfig
from neds.data.session import Binned, Session
from neds.dataset import Recording, to_recording, unit_table
from neds.evaluate import decode_part
from neds.export import export
from neds.fits import check_behaviours
from neds.model import Neds
from neds.report import scores_json
from neds.scoring import Estimates, Settings, context, score_decoding
from neds_rt.bundle import Manifest
from neds_rt.errors import BadInput

RESERVE = 0.2
"""Share of the budget kept for scoring and for writing the bundle."""

BLOCKS = 5
"""Held-back windows below which the calibration's own last fifth is scored instead."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A new session's decoder and what is known of it."""

    model: Neds
    recording: Recording
    info: CheckpointInfo
    report: dict[str, Any]


def calibration_recording(
    session: Session, info: CheckpointInfo, minutes: float, behaviours: Sequence[str]
) -> Recording:
    """The session with its first minutes as training and validation parts, the rest as test part.

    `behaviours`: names to decode; by default those of the session that the checkpoint knows, all of
    the session's if it knows none, and without a minute of data those of the checkpoint. One that
    the checkpoint knows and the session lacks is unknown throughout. Raises `BadInput` for a name
    that neither knows, and for a session shorter than a window.
    """
    window = info.config.model.window
    states = _behaviours(session, info, behaviours)
    kept = {b.name: session.behaviours[b.name] for b in states if b.name in session.behaviours}
    binned = replace(session, behaviours=kept).binned(info.config.data.bin_size_s)
    if len(binned) < window:
        raise BadInput(session.session, "recording", f"{len(binned)} bins",
                       f"one window of {window} bins or more")
    for b in states:
        if b.name not in kept:
            binned.values[b.name] = np.full((len(binned), b.width), np.nan, np.float32)
    units = unit_table(session, np.arange(session.n_units))
    state = SessionState(
        session=session.session, subject=session.subject, units=units,
        unit_rows=list(range(len(units))), behaviours=states, null_rates=[1.0] * len(units),
        split=_split(binned, minutes, window),
    )
    return fitted_on(to_recording(binned, state), state, info.sessions)


def _behaviours(
    session: Session, info: CheckpointInfo, wanted: Sequence[str]
) -> list[BehaviourState]:
    known = {b.name: b for s in info.sessions for b in s.behaviours}
    both = [name for name in session.behaviours if name in known]
    states = []
    for name in list(wanted) or both or list(session.behaviours) or list(known):
        if name in session.behaviours:
            b = session.behaviours[name]
            n = b.width * {"continuous": 1, "circular": 2, "categorical": 0}[b.kind]
            states.append(BehaviourState(name=name, kind=b.kind, width=b.width,
                                         classes=list(b.classes), unit=b.unit,
                                         mean=[0.0] * n, sd=[1.0] * n))
        elif name in known:
            states.append(known[name])
        else:
            raise BadInput("--behaviours", "name", repr(name), "some of "
                           f"{', '.join(dict.fromkeys([*session.behaviours, *known]))}")
    return states


def _split(binned: Binned, minutes: float, window: int) -> dict[str, list[int]]:
    """Row ranges; bins after the calibration data that a window of them could see are left out."""
    rows = min(len(binned), round(60 * minutes / binned.bin_size_s))
    cut = rows - round(HELD_BACK * rows)
    rest = int(np.searchsorted(binned.bin, binned.bin[rows - 1] + 1 + window)) if rows else 0
    test = [rest, len(binned)] if len(binned) - rest >= BLOCKS * window or not rows else [cut, rows]
    return {"train": [0, cut], "val": [cut, rows], "test": test}


def calibrate(
    session: Session, model: Neds, info: CheckpointInfo, checkpoint: Path, *, minutes: float,
    budget_s: float, knobs: TrainConfig, behaviours: Sequence[str] = (), device: str = "cpu",
    progress: bool = False, started: float | None = None,
) -> Calibrated:
    """Fit the pretrained model to a session's first minutes, within `budget_s` since `started`.

    Raises `BadInput` as `calibration_recording` does, and for behaviours that mean something else
    in the checkpoint.
    """
    started = time.monotonic() if started is None else started
    recording = calibration_recording(session, info, minutes, behaviours)
    first = session.session
    check_behaviours([recording.state], info, checkpoint,
                     f"calibrate {first} --init {checkpoint}")
    left = (1 - RESERVE) * budget_s - (time.monotonic() - started)
    begun = time.monotonic()
    result = fit_to(model, info.config, [recording], knobs, budget_s=max(0.0, left),
                    device=device, progress=progress)
    fit_s = time.monotonic() - begun
    fitted = result.model.cpu()
    report = _report(model, info, fitted, recording, session)
    split = recording.state.split
    report |= {
        "calibration_s": round((split["val"][1] - split["train"][0]) * recording.bin_size_s, 3),
        "best_step": result.best_step, "validation": result.best_score,
        "fit_seconds": round(fit_s, 1),
    }
    new = msgspec.structs.replace(
        info, sessions=[recording.state], step=result.best_step,
        provenance={"calibrated_from": checkpoint.name, "minutes": minutes,
                    "validation": result.best_score, "expected": report["metrics"]})
    return Calibrated(fitted, recording, new, report)


def _report(
    model: Neds, info: CheckpointInfo, fitted: Neds, recording: Recording, session: Session
) -> dict[str, Any]:
    """Accuracy to expect, with 95 % intervals: this decoder's, and what costs less to have."""
    at = context(recording, session.trials, recording.bin_size_s, Settings(tasks=("decoding",)))
    scores = score_decoding(at, decode_part(fitted, recording, "test"))
    baselines: dict[str, Estimates] = {}
    if recording.runs_within("train") and recording.known.any():
        torch.manual_seed(0)
        from neds.transplant import transplant

        zero = transplant(model, info.config, [recording]).eval()
        baselines["not calibrated"] = score_decoding(at, decode_part(zero, recording, "test"))
        linear = _linear(recording)
        if linear is not None:
            baselines["linear"] = score_decoding(at, linear)
    held_back = recording.state.split["test"] != recording.state.split["val"]
    rows = len(recording.rows("test"))
    return {
        "held_back": held_back, "held_back_s": round(rows * recording.bin_size_s, 3),
        **scores_json(scores, baselines),
    }


def _linear(recording: Recording) -> list[Any] | None:
    """What ridge or logistic regression on the same calibration data predicts of the test part."""
    from neds.baselines import fit

    try:
        fitted = fit("linear", [recording], seed=0, budget="quick")
        predicted = fitted.decode_part(recording, "test")
    except BadInput:  # a class or a value that the calibration data never show
        return None
    rows = recording.rows("test")
    return [(recording.values[b.name][rows], p)
            for b, p in zip(recording.state.behaviours, predicted, strict=True)]


def write_decoder(calibrated: Calibrated, out: Path) -> Manifest:
    """The bundle of a calibrated session, as `neds-rt serve --model` loads it."""
    return export(calibrated.model, calibrated.info, calibrated.recording, out,
                  behaviours=[], graphs=["step"])
