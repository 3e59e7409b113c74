"""Trials for the paper's NEDS: equal windows, one class a trial, padded batches across sessions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neds.data.session import Counts, Session, Spikes
from neds.dataset import Recording
from neds.model import SessionSpec
from neds.reference import is_static
from neds.reference_config import PADDING, ReferenceBatch
from neds_rt.errors import BadInput


@dataclass(frozen=True, eq=False)
class TrialSet:
    """The trials of one session: K of T bins.

    counts (K, T, N), the recording's dtype; behaviours[m]: static (K,) float class index, dynamic
    (K, T, width) float as the recording scales it; parts: "train", "val", "test" -> (n,) trial
    numbers; null_rates (N,) mean count per bin on the training rows; unknown: trials left out
    because a behaviour is unknown in them.
    """

    spec: SessionSpec
    counts: Tensor
    behaviours: list[Tensor]
    parts: dict[str, Tensor]
    null_rates: NDArray[np.float64]
    unknown: int

    def __len__(self) -> int:
        return len(self.counts)


def align(
    session: Session, bin_size_s: float, column: str = "stimOn_times", before_s: float = 0.5,
    after_s: float = 1.5,
) -> Session:
    """Keep of a continuous session only the windows around a column of its trials table.

    Windows start on the bin grid, at most half a bin off. A trial is left out where its time is
    unknown, its window leaves the recording, or begins before the one before has ended. Raises
    `BadInput` for a session without the column, or when no window is left.
    """
    if column not in session.trials:
        raise BadInput(session.session, "trials", ", ".join(session.trials) or "none",
                       f"a column {column}")
    times = np.asarray(session.trials[column], np.float64)
    bins = round((before_s + after_s) / bin_size_s)
    first = np.rint((np.sort(times[np.isfinite(times)]) - before_s) / bin_size_s).astype(np.int64)
    domain, last = [], -1
    for start in first:
        inside = ((session.intervals[:, 0] <= start * bin_size_s + 1e-9)
                  & (session.intervals[:, 1] >= (start + bins) * bin_size_s - 1e-9)).any()
        if inside and start >= max(last, 0):
            last = int(start) + bins
            domain.append((start * bin_size_s, last * bin_size_s))
    if not domain:
        raise BadInput(session.session, f"trials.{column}", f"{len(times)} times",
                       f"windows of {before_s + after_s} s inside the recording")
    edges = np.array(domain)
    spikes = session.spikes
    if isinstance(spikes, Counts):
        keep = _inside(spikes.bin * spikes.bin_size_s + 0.5 * spikes.bin_size_s, edges)
        return replace(session, spikes=replace(spikes, counts=spikes.counts[keep],
                                               bin=spikes.bin[keep]), domain=edges)
    keep = _inside(spikes.sample, np.rint(edges * spikes.fs))
    events = Spikes(sample=spikes.sample[keep], unit_index=spikes.unit_index[keep], fs=spikes.fs)
    return replace(session, spikes=events, domain=edges)


def _inside(at: NDArray[np.number], edges: NDArray[np.float64]) -> NDArray[np.bool_]:
    row = np.searchsorted(edges[:, 0], at, side="right") - 1
    return np.asarray((row >= 0) & (at < edges[row, 1]))


def trial_set(recording: Recording, bins: int) -> TrialSet:
    """Cut a recording into trials of `bins` bins, each run of consecutive bins from its start.

    What is left at a run's end is not used, nor are trials in which a behaviour is unknown: a
    static one throughout, a dynamic one in any bin. A static behaviour's class is the one that
    holds in most bins. Raises `BadInput` when no training trial is left.
    """
    starts = {part: _starts(recording, part, bins) for part in ("train", "val", "test")}
    rows = torch.cat(list(starts.values()))[:, None] + torch.arange(bins)
    specs = recording.state.spec.behaviours
    values, known = [], torch.ones(len(rows), dtype=torch.bool)
    for m, b in enumerate(specs):
        there, x = recording.known[m][rows], recording.encoded[m][rows].float()
        known &= there.any(1) if is_static(b) else there.all(1)
        # Unknown bins are all-zero one-hots, so that they do not count.
        values.append(x.sum(1).argmax(-1).float() if is_static(b) else x)
    number = torch.cumsum(known, 0) - 1
    parts, done = {}, 0
    for part, mine in starts.items():
        span = slice(done, done + len(mine))
        parts[part] = number[span][known[span]]
        done += len(mine)
    if not len(parts["train"]):
        raise BadInput(recording.state.session, "trials", f"{len(starts['train'])} in training",
                       f"some of {bins} bins in which every behaviour is known")
    return TrialSet(
        spec=recording.state.spec,
        counts=recording.counts[rows[known]],
        behaviours=[v[known] for v in values],
        parts=parts,
        null_rates=np.array(recording.state.null_rates),
        unknown=int((~known).sum()),
    )


def _starts(recording: Recording, part: str, bins: int) -> Tensor:
    """First rows of a part's trials, (n,) int64."""
    runs = recording.runs_within(part)
    cut = [torch.arange(a, b - bins + 1, bins) for a, b in runs if b - a >= bins]
    return torch.cat(cut) if cut else torch.zeros(0, dtype=torch.int64)


def collate(
    sets: list[TrialSet], session: Tensor, trial: Tensor, n_units: int
) -> ReferenceBatch:
    """The batch of trials `trial` (B,) of the sessions numbered `session` (B,), one by one.

    Counts are padded to `n_units` with `PADDING`.
    """
    bins = sets[0].counts.shape[1]
    counts = torch.full((len(session), bins, n_units), PADDING)
    for row, (s, k) in enumerate(zip(session.tolist(), trial.tolist(), strict=True)):
        own = sets[s].counts[k]
        counts[row, :, : own.shape[1]] = own.float()
    behaviours = [
        torch.stack([sets[s].behaviours[m][k]
                     for s, k in zip(session.tolist(), trial.tolist(), strict=True)])
        for m in range(len(sets[0].behaviours))
    ]
    return ReferenceBatch(session, counts, behaviours)
