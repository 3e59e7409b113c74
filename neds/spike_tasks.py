"""Spikes predicted from spikes: co-smoothing and forecasting. No behaviour is shown in either.

The model's rates are trained at hidden spike tokens, so both tasks read them there and nowhere
else. Rates read at visible tokens, which have seen the very bin, were measured and are worse than
the mean rate: on Indy with a short training, -0.04 bits per spike against 0.015 at hidden ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neds.dataset import Recording
from neds.evaluate import Floats, chunks, part_counts
from neds.model import Neds

HELD_SHARE = 0.2
"""Share of the units that co-smoothing holds out."""

EVERY = 3
"""Co-smoothing hides every third bin at a time, about the share that training hides."""

BATCH = 16  # windows a forward pass of forecasting


@dataclass(frozen=True, eq=False)
class RatePrediction:
    """Counts and predicted rates (n, k), spikes per bin, at `rows` (n,) of a part, of `units` (k,).

    Rows count from the part's first row, units in model order.
    """

    counts: Floats
    rates: Floats
    rows: NDArray[np.int64]
    units: NDArray[np.int64]


def held_units(n_units: int, seed: int) -> NDArray[np.int64]:
    """The units that co-smoothing holds out: a fifth, drawn by `seed`, sorted; none of one unit."""
    if n_units < 2:
        return np.zeros(0, np.int64)
    order = np.random.default_rng(seed).permutation(n_units)
    return np.sort(order[: max(1, round(HELD_SHARE * n_units))]).astype(np.int64)


def co_smooth_part(
    model: Neds, recording: Recording, part: str, seed: int = 0
) -> RatePrediction | None:
    """Rates of held-out units from the spikes of the others; None for a session of one unit.

    The counts of `held_units` are zeroed in every bin of the input. In three passes, each hides
    every third bin, so that every bin is once hidden; the held-out units' rates are read there.
    The streaming form predicts a bin from the other units' spikes in earlier bins, the window form
    from those around it; neither sees the bin itself, unlike the Neural Latents Benchmark's
    co-smoothing, so the scores are not comparable with that.
    """
    counts = part_counts(recording, part)
    held = held_units(counts.shape[1], seed)
    if not held.size:
        return None
    rates = np.zeros((len(counts), len(held)), np.float32)
    others = silenced(recording, part, held)
    for first, stop in others.runs.tolist():
        unseen = torch.ones(len(others.encoded), stop - first, dtype=torch.bool)
        for phase in range(min(EVERY, stop - first)):
            hide = torch.arange(stop - first) % EVERY == phase
            passed = [log_rates[:, held].exp().numpy()
                      for log_rates, _ in chunks(model, others, first, stop, hide, unseen)]
            rates[first + phase : stop : EVERY] = np.concatenate(passed)[hide.numpy()]
    return RatePrediction(counts[:, held], rates, np.arange(len(counts)), held)


def silenced(recording: Recording, part: str, units: NDArray[np.int64]) -> Recording:
    """The rows of one part alone, from row 0, with the counts of some units zeroed."""
    rows = recording.rows(part)
    taken = torch.from_numpy(rows)
    counts = recording.counts[taken]  # a copy
    counts[:, units] = 0
    lengths = [stop - first for first, stop in recording.runs_within(part)]
    stops = np.cumsum(lengths)
    return replace(
        recording,
        counts=counts,
        encoded=[e[taken] for e in recording.encoded],
        known=recording.known[:, taken],
        values={name: values[rows] for name, values in recording.values.items()},
        bin=recording.bin[rows],
        runs=np.stack([stops - lengths, stops], 1),
    )


def forecast_part(
    model: Neds, recording: Recording, part: str, ahead: int
) -> RatePrediction | None:
    """Rates of all units in the last `ahead` bins of a window, from the window's earlier spikes.

    Windows are `model.config.window` bins, or a whole run where that is shorter, half a window (or
    `ahead`, if more) apart. None where no run is longer than `ahead`.
    """
    own = recording.rows(part)
    rows: list[NDArray[np.int64]] = []
    rates: list[Floats] = []
    for starts, length in _windows(model, recording, part, ahead):
        for i in range(0, len(starts), BATCH):
            first = torch.tensor(starts[i : i + BATCH])
            taken = first[:, None] + torch.arange(length)
            log_rates = _forecast(model, recording, taken, ahead)
            rows.append(taken[:, length - ahead :].reshape(-1).numpy())
            rates.append(log_rates.exp().numpy().reshape(-1, log_rates.shape[-1]))
    if not rows:
        return None
    joined = np.concatenate(rows)
    counts = recording.counts[torch.from_numpy(joined)].float().numpy()
    place = np.searchsorted(own, joined)
    return RatePrediction(counts, np.concatenate(rates), place, np.arange(counts.shape[1]))


def _windows(
    model: Neds, recording: Recording, part: str, ahead: int
) -> Iterator[tuple[list[int], int]]:
    """(first rows, length) of windows of the same length."""
    by_length: dict[int, list[int]] = {}
    for first, stop in recording.runs_within(part):
        length = min(model.config.window, stop - first)
        if length > ahead:
            step = max(ahead, length // 2)
            by_length.setdefault(length, []).extend(range(first, stop - length + 1, step))
    for length, starts in by_length.items():
        yield starts, length


def _forecast(model: Neds, recording: Recording, rows: Tensor, ahead: int) -> Tensor:
    """Log rates (B, ahead, N) at the end of the windows `rows` (B, T)."""
    device, bins = model.device, rows.shape[1]
    short = model.config.window - bins if model.config.form == "window" else 0
    hide = torch.zeros(rows.shape, dtype=torch.bool)
    hide[:, bins - ahead :] = True
    never = ~torch.cat([torch.ones(len(rows), 1, bins, dtype=torch.bool),
                        recording.known[:, rows].transpose(0, 1)], 1)
    model.eval()
    with torch.inference_mode():
        log_rates, _ = model(
            [recording.state.session],
            F.pad(recording.counts[rows].float(), (0, 0, 0, short)).to(device),
            [F.pad(e[rows], (0, 0, 0, short)).to(device) for e in recording.encoded],
            F.pad(hide, (0, short), value=True).to(device),
            torch.ones(len(rows), len(recording.encoded), bins + short, dtype=torch.bool,
                       device=device),
            absent=F.pad(never, (0, short), value=True).to(device),
        )
    result: Tensor = log_rates[:, bins - ahead : bins].cpu()
    return result
