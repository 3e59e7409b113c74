"""What each precision of the CPU engine makes of a session's held-back rows.

Every run of consecutive bins starts cold, as in the evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neds.dataset import Recording
from neds.metrics import score
from neds_rt.bundle import Bundle
from neds_rt.engine_parity import EngineParity
from neds_rt.engines import load_engine
from neds_rt.engines.native import NativeEngine

Floats = NDArray[np.float32]
SCORES = {"continuous": "r2", "circular": "circular_r2", "categorical": "balanced_accuracy"}


class Streams(Protocol):
    """As much of an engine as it takes to decode runs."""

    def reset(self) -> None:
        """Forget all bins."""

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> Floats:
        """Outputs of the next bin, (n_outputs,)."""
        ...


def decode_with(engine: Streams, counts: Sequence[NDArray[np.uint16]]) -> Floats:
    """Outputs (T, n_outputs) of all runs, `counts` being (bins, units) of each."""
    found = []
    for run in counts:
        engine.reset()
        found += [engine.step(row).copy() for row in run]
    return np.stack(found)


def errors(found: Floats, expected: Floats) -> dict[str, float]:
    """Largest and RMS difference, of the largest expected output."""
    difference = np.abs(found - expected) / np.abs(expected).max()
    return {"max": float(difference.max()), "rms": float(np.sqrt((difference**2).mean()))}


def scores_of(recording: Recording, bundle: Bundle, rows: NDArray[np.int64], found: Floats
              ) -> dict[str, float]:
    """The score of every behaviour that the bundle decodes, over rows (T,) of the recording."""
    result, begin = {}, 0
    for modality in bundle.manifest.modalities:
        outputs = found[:, begin : begin + modality.n_outputs]
        begin += modality.n_outputs
        truth = recording.values[modality.name][rows]
        result[modality.name] = score(modality.kind, truth, outputs)[SCORES[modality.kind]]
    return result


def compared(
    recording: Recording, bundle: Bundle, rows: NDArray[np.int64], found: Floats, expected: Floats
) -> dict[str, Any]:
    """`max`, `rms` and `score_change` as in `EngineParity`, over rows (T,) of the recording."""
    after, before = (scores_of(recording, bundle, rows, part) for part in (found, expected))
    changes = {name: float(after[name] - value) for name, value in before.items()}
    changed = {name: v if np.isfinite(v) else None for name, v in changes.items()}
    return {**errors(found, expected), "score_change": changed}


def precision_report(
    recording: Recording, bundle: Bundle, runs: Sequence[tuple[int, int]], expected: Floats
) -> list[EngineParity]:
    """Errors and changes of scores of engine `native`, precision by precision.

    `runs` are row ranges [first, stop) of the recording, `expected` (T, n_outputs) what float32
    torch predicts over them.
    """
    rows = np.concatenate([np.arange(first, stop) for first, stop in runs])
    counts = [recording.counts[first:stop].numpy().astype(np.uint16) for first, stop in runs]
    report = []
    for precision in NativeEngine.precisions:
        engine = load_engine(f"native:{precision}", bundle)
        found = compared(recording, bundle, rows, decode_with(engine, counts), expected)
        report.append(EngineParity(engine.name, precision, **found))
    return report
