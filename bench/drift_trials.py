"""A small model of a recording, its bundle, and the test part replayed as it was and disturbed.

What is measured is the runtime's own watch (`neds_rt._core.Health`) on the runtime's own engine,
with the limits that `neds export` would ship.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.config import RunConfig
from neds.data.session import Session
from neds.dataset import Recording, describe, fit_bins, to_recording
from neds.export import fold_weights, modalities_out
from neds.health import fit_health
from neds.train import train
from neds_rt import _core
from neds_rt.binning import bin_spikes
from neds_rt.bundle import Bundle, Shape, make_bundle
from neds_rt.engines.native import build_step_engine
from neds_rt.errors import BadInput
from neds_rt.health import make_health
from neds_rt.synthetic import SyntheticAnimal

KINDS = ("dropped", "swapped", "scaled")
WATCH_S = 60.0  # after the disturbance begins, in which it has to be seen
BEFORE_S = 30.0  # three times the smoothing, so that the running means are where they would be
HOLD_S = 20.0  # alarms closer than this to each other are one

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """A recording with a bundle of its own: what a trial needs."""

    recording: Recording
    bundle: Bundle
    kind: str  # "indy" or "synthetic"
    animal: SyntheticAnimal | None = None  # that it is of, to make more of

    @property
    def bins(self) -> NDArray[np.uint16]:
        """Counts (T, N) of the longest run of the test part."""
        first, stop = self.run
        return self.recording.counts[first:stop].numpy().astype(np.uint16)

    @property
    def run(self) -> tuple[int, int]:
        """Rows of the longest run of the test part."""
        return max(self.recording.runs_within("test"), key=lambda r: r[1] - r[0])

    def in_bins(self, seconds: float) -> int:
        """Seconds as bins."""
        return round(seconds / self.recording.bin_size_s)


def make_subject(session: Session, config: RunConfig, kind: str) -> Subject:
    """Train on the session's training part and fit the statistics; raises `BadInput` if too short.

    The weights go into the bundle as `neds export` folds them.
    """
    config = fit_bins(config, session)
    binned, state = describe(session, config.data, config.model.window)
    recording = to_recording(binned, state)
    model = train(config, [recording], progress=False, device="cpu").model
    c = config.model
    parts: dict[str, Any] = {
        "session": state.session, "subject": state.subject, "bin_size_s": recording.bin_size_s,
        "shape": Shape(hidden=c.hidden, layers=c.layers, heads=c.heads, mlp=c.mlp, window=c.window,
                       conv=c.conv, recurrent=c.recurrent, rope_base=c.rope_base),
        "units": state.units, "modalities": modalities_out(model, recording, []),
        "weights": fold_weights(model, state, []),
    }
    fitted = fit_health(make_bundle(**parts), recording)
    if fitted is None:
        raise BadInput(state.session, "recording", "too short", "minutes to set limits on")
    health, data = fitted
    bundle = make_bundle(**parts, health=health, files={health.file: data})
    return Subject(recording, bundle, kind)


def further(
    subject: Subject, animal: SyntheticAnimal, seconds: float, session: int
) -> NDArray[np.uint16]:
    """Counts (T, N) of another session of the same animal, whose cells are what they were."""
    recording = animal.simulate(seconds, session)
    row_of = {(u.probe, u.channel, u.cluster): row
              for row, u in enumerate(subject.bundle.manifest.units)}
    names = zip(*(animal.units[key].tolist() for key in ("probe", "channel", "cluster")),
                strict=True)
    rows = np.array([row_of.get(name, -1) for name in names])[recording.unit]
    bin_s = subject.recording.bin_size_s
    return bin_spikes(recording.sample[rows >= 0], rows[rows >= 0], len(row_of), recording.fs,
                      bin_s, 0, int(seconds / bin_s))


def replay(subject: Subject, counts: NDArray[np.uint16]) -> tuple[dict[str, Floats], Floats]:
    """The gauges after every bin (T,), by name, and the decodes (T, n_outputs)."""
    engine = build_step_engine(subject.bundle)
    health = make_health(subject.bundle)
    assert health is not None
    gauges = np.empty((len(counts), len(_core.HEALTH)))
    decoded = np.empty((len(counts), engine.n_outputs))
    for t, row in enumerate(counts):
        engine.step(row)
        decoded[t] = engine.outputs
        health.observe(row, engine.state)
        gauges[t] = health.gauges
    return dict(zip(_core.HEALTH, gauges.T, strict=True)), decoded


def disturb(
    counts: NDArray[np.uint16], kind: str, share: float, onset: int, rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Counts with a share of the units changed from the bin `onset` on.

    dropped: silent; swapped: the chosen units' spikes go around among them, as where a sorter takes
    units for one another; scaled: each fires at half its rate or, by spikes doubled, at twice it.
    """
    changed = counts.copy()
    n = counts.shape[1]
    chosen = rng.permutation(n)[: max(2, round(share * n))]
    late = counts[onset:, chosen]
    if kind == "dropped":
        changed[onset:, chosen] = 0
    elif kind == "swapped":
        changed[onset:, chosen] = np.roll(late, 1, axis=1)
    else:
        up = rng.random(len(chosen)) < 0.5
        changed[onset:, chosen] = np.where(up, 2 * late, rng.binomial(late, 0.5))
    return changed


def r2(subject: Subject, decoded: Floats, first: int) -> float:
    """Mean R2 of the continuous behaviours over decoded rows of the run from `first` on."""
    start, scores, column = subject.run[0] + first, [], 0
    for m in subject.bundle.manifest.modalities:
        mine = decoded[:, column : column + m.n_outputs]
        column += m.n_outputs
        if m.kind != "continuous":
            continue
        truth = subject.recording.values[m.name][start : start + len(decoded)]
        known = ~np.isnan(truth).any(1)
        error = ((truth - mine)[known] ** 2).sum(0)
        scores.append(np.mean(1 - error / ((truth[known] - truth[known].mean(0)) ** 2).sum(0)))
    return float(np.mean(scores))


def trials(
    subject: Subject, shares: tuple[float, ...], onsets: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Disturb the test part at random times; a row a trial, with its gauges in `series`.

    No trial for a test part that is too short to see a disturbance through.
    """
    counts = subject.bins
    before, after = subject.in_bins(BEFORE_S), subject.in_bins(WATCH_S)
    if len(counts) < before + after:
        return []
    rows = []
    for _ in range(onsets):
        first = int(rng.integers(0, len(counts) - before - after + 1))
        part = counts[first : first + before + after]
        _, natural = replay(subject, part)
        was = r2(subject, natural[before:], first + before)
        for kind in KINDS:
            for share in shares:
                gauges, decoded = replay(subject, disturb(part, kind, share, before, rng))
                rows.append({
                    "session": subject.bundle.manifest.session, "set": subject.kind, "kind": kind,
                    "share": share, "r2_before": was,
                    "r2_after": r2(subject, decoded[before:], first + before),
                    "series": {name: gauges[name][before - 1 :] for name in SCORES},
                    "bin_s": subject.recording.bin_size_s,
                })
    return rows


SCORES = ("firing", "likelihood", "drift")


def crossings(series: Floats, level: float, hold: int) -> int:
    """How many times a series comes to `level`; within `hold` bins of the last time is the same."""
    at = np.flatnonzero(np.nan_to_num(series) >= level)
    return int(len(at) > 0) + int((np.diff(at) > hold).sum())


def found_after(series: Floats, level: float) -> int | None:
    """Bins until a series comes to `level`; None if it does not, -1 if it was there before."""
    at = np.flatnonzero(np.nan_to_num(series) >= level)
    return None if len(at) == 0 else int(at[0]) - (1 if at[0] == 0 else 0)
