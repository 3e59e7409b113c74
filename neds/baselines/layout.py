"""What many sessions have in common: one row of outputs for all behaviours, and batches of both.

The behaviours of all sessions lie side by side in one vector of K outputs, by name; a session that
lacks one has it unknown in every row.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from neds.baselines.rows import Run, n_rows, tuning_runs
from neds.checkpoint import BehaviourState
from neds.dataset import Recording
from neds.model import encode_behaviour
from neds_rt.errors import BadInput


@dataclass(frozen=True)
class Output:
    """One behaviour's columns among the outputs, and its scaling averaged over the sessions."""

    behaviour: BehaviourState
    columns: slice
    mean: Tensor  # (width,) of continuous behaviours
    sd: Tensor


def layout(recordings: list[Recording]) -> list[Output]:
    """The behaviours of all sessions; raises `BadInput` where two of one name differ in kind."""
    named: dict[str, list[BehaviourState]] = {}
    for recording in recordings:
        for b in recording.state.behaviours:
            named.setdefault(b.name, []).append(b)
            check_same(recording.state.session, b, named[b.name][0])
    outputs, start = [], 0
    for states in named.values():
        stop = start + states[0].spec.n_outputs
        mean = torch.tensor([s.mean for s in states]).mean(0)
        sd = torch.tensor([s.sd for s in states]).square().mean(0).sqrt()
        outputs.append(Output(states[0], slice(start, stop), mean, sd))
        start = stop
    return outputs


def check_same(session: str, found: BehaviourState, expected: BehaviourState) -> None:
    """Raise `BadInput` unless two behaviours have the same kind, width and classes."""
    for name in ("kind", "width", "classes"):
        if getattr(found, name) != getattr(expected, name):
            raise BadInput(session, f"behaviour {found.name}: {name}", getattr(found, name),
                           f"{getattr(expected, name)}, as in the other sessions")


def scaling(recording: Recording, outputs: list[Output]) -> list[BehaviourState]:
    """The behaviours with the scaling that predictions are given back in.

    The session's own where it has training rows, else the average of the fitted sessions: without
    calibration data there is nothing that the session's own could have been fitted on.
    """
    if recording.runs_within("train"):
        return recording.state.behaviours
    named = {o.behaviour.name: o for o in outputs}
    return [msgspec.structs.replace(b, mean=named[b.name].mean.tolist(),
                                    sd=named[b.name].sd.tolist())
            for b in recording.state.behaviours]


@dataclass(frozen=True)
class SessionRows:
    """One session's rows on the device: counts as stored, targets (T, K), known (T, M) bool."""

    recording: Recording
    counts: Tensor
    targets: Tensor
    known: Tensor
    fit_on: list[Run]
    choose_on: list[Run]


def session_rows(recording: Recording, outputs: list[Output], device: str) -> SessionRows:
    """Lay out a session; raises `BadInput` for a behaviour that is not among the outputs."""
    rows = len(recording.counts)
    targets = torch.zeros(rows, outputs[-1].columns.stop)
    known = torch.zeros(rows, len(outputs), dtype=torch.bool)
    names = [o.behaviour.name for o in outputs]
    fitted = bool(recording.runs_within("train"))
    for m, b in enumerate(recording.state.behaviours):
        if b.name not in names:
            raise BadInput(recording.state.session, "behaviour", b.name,
                           f"one of {', '.join(names)}, which were fitted")
        at = names.index(b.name)
        check_same(recording.state.session, b, outputs[at].behaviour)
        columns = outputs[at].columns
        if fitted or b.kind != "continuous":
            targets[:, columns] = recording.encoded[m]
        else:  # see `scaling`
            values = torch.from_numpy(recording.values[b.name])
            targets[:, columns] = encode_behaviour(b.spec, values, outputs[at].mean, outputs[at].sd)
        known[:, at] = recording.known[m]
    fit_on, choose_on = tuning_runs(recording)
    return SessionRows(recording, recording.counts.to(device), targets.to(device),
                       known.to(device), fit_on, choose_on)


@dataclass(frozen=True)
class Batch:
    """Sequences of G sessions, R each: counts (G, R, T, N), targets (.., K), known (.., M)."""

    sessions: list[int]
    counts: Tensor
    targets: Tensor
    known: Tensor


class Sampler:
    """Draws batches that mix sessions, each in proportion to its rows; seeded.

    A sequence lies in one run. Runs shorter than a sequence are filled up with unknown rows.
    """

    def __init__(self, data: list[SessionRows], batch: int, bins: int, seed: int) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(seed)
        self.groups = min(len(data), max(1, batch // 4))
        self.rows = max(1, batch // self.groups)
        self.bins = min(bins, max(b - a for d in data for a, b in d.fit_on))
        self.weights = torch.tensor([float(n_rows(d.fit_on)) for d in data])
        self.runs = [torch.tensor(d.fit_on) for d in data]

    def draw(self) -> Batch:
        """One batch, on the device of the data."""
        picked = torch.multinomial(self.weights, self.groups, generator=self.generator).tolist()
        most = max(self.data[s].counts.shape[1] for s in picked)
        counts, targets, known = [], [], []
        for s in picked:
            d = self.data[s]
            rows, there = self._rows(self.runs[s])
            device = d.counts.device
            rows, there = rows.to(device), there.to(device)
            counts.append(F.pad(d.counts[rows].float(), (0, most - d.counts.shape[1])))
            targets.append(d.targets[rows])
            known.append(d.known[rows] & there[..., None])
        return Batch(picked, torch.stack(counts), torch.stack(targets), torch.stack(known))

    def _rows(self, runs: Tensor) -> tuple[Tensor, Tensor]:
        starts = (runs[:, 1] - runs[:, 0] - self.bins + 1).clamp(min=1)
        pick = torch.multinomial(starts.double(), self.rows, replacement=True,
                                 generator=self.generator)
        share = torch.rand(self.rows, generator=self.generator, dtype=torch.float64)
        first = runs[pick, 0] + (share * starts[pick]).long()
        rows = first[:, None] + torch.arange(self.bins)
        there = rows < runs[pick, 1][:, None]
        return torch.where(there, rows, runs[pick, 0][:, None]), there

    def dropped(self, counts: Tensor, share: float) -> Tensor:
        """Silence a share of the units for a whole sequence each; the rest makes up for it.

        The nets take square roots, hence the square of the usual factor.
        """
        if share <= 0:
            return counts
        groups, rows, _, units = counts.shape
        kept = torch.rand(groups, rows, 1, units, generator=self.generator) >= share
        return counts * (kept / (1 - share) ** 2).to(counts)


def loss_of(outputs: Tensor, batch: Batch, layout: list[Output]) -> Tensor:
    """Sum over behaviours of the mean loss over known rows: squared error, or cross-entropy."""
    total = outputs.new_zeros(())
    for m, o in enumerate(layout):
        predicted, target = outputs[..., o.columns], batch.targets[..., o.columns]
        if o.behaviour.kind == "categorical":
            each = F.cross_entropy(predicted.flatten(0, -2), target.argmax(-1).flatten(),
                                   reduction="none").view(target.shape[:-1])
        else:
            each = (predicted - target).square().mean(-1)
        known = batch.known[..., m]
        total = total + (each * known).sum() / known.sum().clamp(min=1)
    return total
