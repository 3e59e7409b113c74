"""Training batches: sequences of several sessions side by side, masked anew for every sample.

What a batch holds is a function of the seed and the step alone, so that a run that was stopped goes
on exactly where it was, and the processes of a parallel run agree without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from neds.config import MaskingConfig, TrainConfig
from neds.dataset import Recording
from neds.masking import Masks, draw_masks
from neds.model import Neds


@dataclass(frozen=True)
class Batch:
    """B sequences of G sessions, B / G of each, in the sessions' order.

    counts (B, T, N) float, N the most units of any session; units (B, N) bool, False for padding;
    encoded[m] (B, T, n) and known (B, M, T) of the behaviours `model.behaviours_of(sessions)`;
    there (B, T), False where a sequence runs past the end of its recording.
    """

    sessions: list[str]
    counts: Tensor
    units: Tensor
    encoded: list[Tensor]
    known: Tensor
    there: Tensor

    @property
    def absent(self) -> Tensor:
        """Tokens (B, 1 + M, T) that were never recorded, spikes first."""
        return torch.cat((~self.there[:, None], ~self.known), 1)


@dataclass(frozen=True)
class Sampler:
    """Draws sessions in proportion to how much of them there is, and sequences at random phases."""

    recordings: Sequence[Recording]
    batch: int
    sessions: int  # a batch
    bins: int
    sizes: Tensor  # (G,) training bins of each recording

    @classmethod
    def make(cls, recordings: Sequence[Recording], knobs: TrainConfig, form: str) -> Sampler:
        """Sizes from the recipe; the stream form needs no padding past the longest trial."""
        bins = knobs.bins
        if form == "stream":
            bins = min(bins, max(longest_run(r) for r in recordings))
        sessions = min(knobs.sessions_per_batch, len(recordings), knobs.batch)
        each = max(1, round(knobs.batch / sessions))
        sizes = [float(sum(b - a for a, b in r.runs_within("train"))) for r in recordings]
        return cls(recordings, each * sessions, sessions, bins, torch.tensor(sizes))

    def rows(self, generator: torch.Generator) -> list[tuple[Recording, Tensor, Tensor]]:
        """Draw sessions, and of each rows (B / G, T) and whether they are there."""
        picked = list(range(len(self.recordings)))
        if self.sessions < len(picked):
            picked = torch.multinomial(self.sizes, self.sessions, generator=generator).tolist()
        share = self.batch // self.sessions
        return [(self.recordings[i],
                 *draw_rows(self.recordings[i], share, self.bins, generator)) for i in picked]


def without_first(recording: Recording, bins: int) -> Recording:
    """The recording as if behaviours were unknown in the first `bins` of every run of bins."""
    if not bins:
        return recording
    known = recording.known.clone()
    for first, stop in recording.runs.tolist():
        known[:, first : min(first + bins, stop)] = False
    return replace(recording, known=known)


def longest_run(recording: Recording) -> int:
    """Bins of the longest run of consecutive training bins."""
    return max(b - a for a, b in recording.runs_within("train"))


def draw_rows(
    recording: Recording, n: int, bins: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows (n, bins) of sequences at random phases, each from one run, and which of them exist.

    A run is drawn with a chance in proportion to the sequences that start in it; runs shorter than
    `bins` are padded at the end, with their first row marked as not there.
    """
    runs = torch.tensor(recording.runs_within("train"))  # (n, 2)
    starts = (runs[:, 1] - runs[:, 0] - bins + 1).clamp(min=1)
    pick = torch.multinomial(starts.double(), n, replacement=True, generator=generator)
    offset = (torch.rand(n, generator=generator, dtype=torch.float64) * starts[pick]).long()
    rows = (runs[pick, 0] + offset)[:, None] + torch.arange(bins)
    there = rows < runs[pick, 1][:, None]
    return torch.where(there, rows, runs[pick, 0][:, None]), there


def collate(
    model: Neds, drawn: Sequence[tuple[Recording, Tensor, Tensor]], device: torch.device
) -> Batch:
    """Gather the drawn rows of every session into one batch on the device."""
    sessions = [recording.state.session for recording, _, _ in drawn]
    most = max(recording.counts.shape[1] for recording, _, _ in drawn)
    specs = model.behaviours_of(sessions)
    counts, units, known = [], [], []
    encoded: list[list[Tensor]] = [[] for _ in specs]
    for recording, rows, there in drawn:
        n, bins = rows.shape
        width = recording.counts.shape[1]
        counts.append(F.pad(recording.counts[rows], (0, most - width)))
        units.append((torch.arange(most) < width).expand(n, most))
        order = [b.name for b in recording.state.behaviours]
        found = []
        for m, spec in enumerate(specs):
            if spec.name in order:
                own = order.index(spec.name)
                encoded[m].append(recording.encoded[own][rows])
                found.append(recording.known[own][rows] & there)
            else:
                encoded[m].append(torch.zeros(n, bins, spec.n_outputs))
                found.append(torch.zeros(n, bins, dtype=torch.bool))
        known.append(torch.stack(found, 1) if found
                     else torch.zeros(n, 0, bins, dtype=torch.bool))
    return Batch(
        sessions=sessions,
        counts=torch.cat(counts).to(device).float(),
        units=torch.cat(units).to(device),
        encoded=[torch.cat(e).to(device) for e in encoded],
        known=torch.cat(known).to(device),
        there=torch.cat([there for _, _, there in drawn]).to(device),
    )


def drop_units(
    counts: Tensor, share: float, inputs: str, batch: int, mine: Tensor, generator: torch.Generator
) -> Tensor:
    """Silence a share of units for a whole sequence each, scaling the others up.

    counts (B', T, N) are the rows `mine` (B',) of the whole batch of `batch` sequences. Model
    inputs are square roots of counts, hence the square of the usual factor.
    """
    if share <= 0:
        return counts
    kept = torch.rand(batch, 1, counts.shape[2], generator=generator)[mine] >= share
    factor = {"sqrt": (1 - share) ** -2, "counts": 1 / (1 - share), "table": 1.0}[inputs]
    return counts * (kept * factor).to(counts)


def masks_for(
    batch: Batch, config: MaskingConfig, size: int, mine: Tensor, generator: torch.Generator
) -> Masks:
    """Schemes and hidden bins for every sample of a batch, on its device.

    Drawn for the whole batch of `size` sequences, of which these are the rows `mine`.
    """
    _, n_behaviours, bins = batch.known.shape
    masks = draw_masks(config, size, n_behaviours, bins, generator)
    device = batch.counts.device
    return Masks(masks.spikes[mine].to(device), masks.behaviours[mine].to(device))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random source of one step, a function of seed and step alone."""
    return torch.Generator().manual_seed(mixed_seed(seed, step))


def mixed_seed(*numbers: int) -> int:
    """One well-spread seed of several small numbers."""
    mixed = 0x94D049BB133111EB
    for number in numbers:
        mixed = (mixed ^ number) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63
