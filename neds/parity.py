"""How far what serves a model is from the torch model, on rows of its session that were held back.

Every run of consecutive bins starts cold, up to `PARITY_BINS` bins in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.dataset import Recording
from neds.evaluate import decode_rows
from neds.metrics import score
from neds.model import Neds
from neds_rt.bundle import Bundle
from neds_rt.engines import load_engine
from neds_rt.errors import CheckFailed

Floats = NDArray[np.float32]
PARITY_BINS = 2000
PARITY_LIMIT = 1e-4  # of the largest output
SCORED = {"continuous": "r2", "circular": "circular_r2", "categorical": "balanced_accuracy"}


@dataclass(frozen=True)
class Truth:
    """One behaviour of the held-back bins: what it was, and which outputs predict it."""

    name: str
    kind: str
    values: Floats
    outputs: slice


@dataclass(frozen=True)
class HeldBack:
    """Held-back bins of a session, run by run, and what float32 torch makes of them."""

    counts: list[NDArray[np.uint16]]  # (T, U) of every run
    predicted: list[Floats]  # (T, n_outputs)
    truths: list[Truth]

    def first(self, bins: int) -> HeldBack:
        """So many bins of the first run, at most."""
        rows = slice(0, bins)
        kept = len(self.counts[0][rows])
        truths = [Truth(t.name, t.kind, t.values[:kept], t.outputs) for t in self.truths]
        return HeldBack([self.counts[0][rows]], [self.predicted[0][rows]], truths)

    def run(
        self, reset: Callable[[], None], step: Callable[[NDArray[np.uint16]], Floats]
    ) -> Floats:
        """Outputs (T, n_outputs) of all runs by an engine's methods."""
        found = []
        for counts in self.counts:
            reset()
            found += [step(row).copy() for row in counts]
        return np.stack(found)

    def compare(self, found: Floats, expected: Floats | None = None) -> dict[str, Any]:
        """Largest and RMS error, of the largest output, and the change of each behaviour's score.

        `expected` is what torch predicts, unless given. A score that is not a number changes by
        null.
        """
        expected = np.concatenate(self.predicted) if expected is None else expected
        error = np.abs(found - expected) / np.abs(expected).max()
        changes = {}
        for truth in self.truths:
            values = truth.values[: len(found)]
            before, after = (score(truth.kind, values, outputs[:, truth.outputs])
                             for outputs in (expected, found))
            name = SCORED[truth.kind]
            change = after[name] - before[name]
            changes[truth.name] = float(change) if np.isfinite(change) else None
        return {"bins": len(found), "max": float(error.max()),
                "rms": float(np.sqrt((error**2).mean())), "score_change": changes}


def held_back(model: Neds, recording: Recording, bundle: Bundle) -> HeldBack:
    """The first runs of the test part, cut to `PARITY_BINS` rows, for the bundle's behaviours."""
    runs = _first_runs(recording, PARITY_BINS)
    names = [m.name for m in bundle.manifest.modalities]
    kept = [m for m, b in enumerate(recording.state.behaviours) if b.name in names]
    decoded = [decode_rows(model, recording, first, stop) for first, stop in runs]
    truths, begin = [], 0
    for m in kept:
        b = recording.state.behaviours[m]
        values = np.concatenate([recording.values[b.name][a:z] for a, z in runs])
        truths.append(Truth(b.name, b.kind, values, slice(begin, begin + b.spec.n_outputs)))
        begin += b.spec.n_outputs
    return HeldBack(
        [recording.counts[first:stop].numpy().astype(np.uint16) for first, stop in runs],
        [np.concatenate([d[m] for m in kept], 1) for d in decoded],
        truths,
    )


def parity_report(held: HeldBack, bundle: Bundle) -> dict[str, Any]:
    """Largest and RMS error of each engine against torch, of the largest output.

    Raises `CheckFailed` when an engine is off by more than `PARITY_LIMIT`.
    """
    report: dict[str, Any] = {"reference": "torch batch form, float32",
                              "bins": sum(map(len, held.counts))}
    for name in ("native", "onnx"):
        engine = load_engine(name, bundle)
        found = held.compare(held.run(engine.reset, engine.step))
        if not found["max"] <= PARITY_LIMIT:
            raise CheckFailed(f"parity of engine {name} with torch: {found['max']:.2e}, "
                              f"expected at most {PARITY_LIMIT:.0e}")
        report[name] = {"max": found["max"], "rms": found["rms"]}
    return report


def _first_runs(recording: Recording, bins: int) -> list[tuple[int, int]]:
    """The first runs of the test part, cut to `bins` rows in all."""
    runs: list[tuple[int, int]] = []
    for first, stop in recording.runs_within("test"):
        if bins > 0:
            runs.append((first, min(stop, first + bins)))
        bins -= stop - first
    return runs
