"""Predictions of a trained model on a part of a recording, and their scores.

Decoding hides every behaviour token and shows the spikes; encoding hides the spikes and shows the
behaviours; co-smoothing and forecasting (`neds.spike_tasks`) predict spikes from spikes. Each run
of consecutive bins starts cold, as a server does when a stream starts.

Streaming form: a long run is computed in chunks that overlap by the receptive field, which changes
nothing. Window form: a run is cut into windows, and one shorter than a window is filled up with
hidden bins, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neds.checkpoint import BehaviourState
from neds.dataset import Recording
from neds.metrics import bits_per_spike, score
from neds.model import Neds
from neds_rt.errors import BadInput

CHUNK = 512  # bins of new output a chunk
LAST_BINS = 64  # windows at a time where each gives its last bin

Floats = NDArray[np.float32]


def to_units(behaviour: BehaviourState, outputs: Tensor) -> Tensor:
    """Model outputs (..., n_outputs) as they are reported and served, of the same shape.

    Continuous: in behaviour units; circular: (cos, sin) as predicted; categorical: probabilities.
    """
    if behaviour.kind == "continuous":
        return outputs * torch.tensor(behaviour.sd) + torch.tensor(behaviour.mean)
    if behaviour.kind == "categorical":
        return outputs.softmax(-1)
    return outputs


def decode_rows(model: Neds, recording: Recording, first: int, stop: int) -> list[Floats]:
    """Decode rows [first, stop) of one run, starting cold: per behaviour (stop - first, n)."""
    hidden = torch.ones(len(recording.encoded), stop - first, dtype=torch.bool)
    show = torch.zeros(stop - first, dtype=torch.bool)
    parts: list[list[Tensor]] = []
    for _, outputs in chunks(model, recording, first, stop, show, hidden):
        parts.append(outputs)
    joined = [torch.cat([p[m] for p in parts]) for m in range(len(recording.encoded))]
    return [
        to_units(b, outputs).numpy()
        for b, outputs in zip(recording.state.behaviours, joined, strict=True)
    ]


def decode_part(
    model: Neds, recording: Recording, part: str
) -> list[tuple[Floats, Floats]]:
    """(truth, predicted) of each behaviour over all rows of a part, run by run."""
    runs = recording.runs_within(part)
    predicted = [decode_rows(model, recording, a, b) for a, b in runs]
    pairs = []
    for m, b in enumerate(recording.state.behaviours):
        values = recording.values[b.name]
        truth = np.concatenate([values[:0], *(values[a:z] for a, z in runs)])
        # A part without rows, such as the training part of a zero-shot decoder, has no pairs.
        blank = np.zeros((0, b.spec.n_outputs), np.float32)
        pairs.append((truth, np.concatenate([blank, *(p[m] for p in predicted)])))
    return pairs


def decode_last_bins(model: Neds, recording: Recording, part: str) -> list[Floats]:
    """What a window form could say in real time: each bin decoded as the last of its own window.

    Per behaviour (T, n) in the order of `decode_part`'s rows. A run's first windows are shorter.
    Raises `BadInput` for a model of the streaming form, whose every bin is decoded so.
    """
    if model.config.form != "window":
        raise BadInput("decode_last_bins", "model.form", model.config.form, "window")
    parts: list[list[Tensor]] = []
    model.eval()
    with torch.inference_mode():
        for first, stop in recording.runs_within(part):
            for start in range(first, stop, LAST_BINS):
                lasts = range(start, min(stop, start + LAST_BINS))
                parts.append(_last_bins(model, recording, first, lasts))
    return [
        to_units(b, torch.cat([p[m] for p in parts])).numpy()
        for m, b in enumerate(recording.state.behaviours)
    ]


def _last_bins(model: Neds, recording: Recording, first: int, lasts: range) -> list[Tensor]:
    """Outputs of the rows `lasts`, a window each; the rows before `first` are of another run."""
    size, device = model.config.window, model.device
    rows = torch.tensor([[last - size + 1 + i for i in range(size)] for last in lasts])
    # A window at the start of a run begins with the run: what lacks is at its end, as in training.
    rows += (first - rows[:, :1]).clamp(min=0)
    there = rows <= torch.tensor(lasts)[:, None]
    rows = rows.clamp(max=lasts[-1])
    at = torch.tensor(lasts) - rows[:, 0]
    hidden = torch.ones(len(lasts), len(recording.encoded), size, dtype=torch.bool)
    absent = torch.cat((~there[:, None], ~(recording.known[:, rows].transpose(0, 1)
                                           & there[:, None])), 1)
    _, outputs = model(
        [recording.state.session],
        (recording.counts[rows].float() * there[..., None]).to(device),
        [e[rows].to(device) for e in recording.encoded],
        (~there).to(device), hidden.to(device), absent=absent.to(device),
    )
    return [o[torch.arange(len(lasts)), at].cpu() for o in outputs]


def encode_part(
    model: Neds, recording: Recording, part: str, shown: Sequence[int] | None = None
) -> tuple[Floats, Floats]:
    """(counts, predicted rates) (T, N), spikes per bin, of a part from behaviours alone.

    `shown` are the indices of the behaviours to see, all by default; the others are hidden.
    """
    rates = []
    for first, stop in recording.runs_within(part):
        hide = torch.ones(stop - first, dtype=torch.bool)
        hidden = ~recording.known[:, first:stop]
        if shown is not None:
            unseen = [m for m in range(len(hidden)) if m not in shown]
            hidden[unseen] = True
        for log_rates, _ in chunks(model, recording, first, stop, hide, hidden):
            rates.append(log_rates.exp().numpy())
    return part_counts(recording, part), np.concatenate(rates)


def part_counts(recording: Recording, part: str) -> Floats:
    """Counts (T, N) float32 of all rows of a part."""
    return recording.counts[torch.from_numpy(recording.rows(part))].float().numpy()


def evaluate(model: Neds, recording: Recording, part: str) -> dict[str, dict[str, float]]:
    """All scores of a part: {behaviour: {metric: value}} and {"spikes": bits per spike}."""
    result = {
        b.name: score(b.kind, truth, predicted)
        for b, (truth, predicted) in zip(
            recording.state.behaviours, decode_part(model, recording, part), strict=True
        )
    }
    counts, rates = encode_part(model, recording, part)
    neuron_mean, pooled = bits_per_spike(counts, rates, np.array(recording.state.null_rates))
    result["spikes"] = {"bps_neuron_mean": neuron_mean, "bps_pooled": pooled}
    return result


def chunks(
    model: Neds, recording: Recording, first: int, stop: int, hide: Tensor, hidden: Tensor
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Outputs of rows [first, stop) chunk by chunk; `hide` and `hidden` count from `first`."""
    form = _windows if model.config.form == "window" else _stream
    model.eval()
    with torch.inference_mode():
        for log_rates, outputs in form(model, recording, first, stop, hide, hidden):
            yield log_rates.cpu(), [o.cpu() for o in outputs]


def _stream(
    model: Neds, recording: Recording, first: int, stop: int, hide: Tensor, hidden: Tensor
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The streaming form, chunk by chunk: the stem's state and the tokens in reach are carried."""
    sessions = [recording.state.session]
    maps, device = model.maps(sessions), model.device
    memory: tuple[Tensor | None, Tensor | None] = (None, None)
    held: list[tuple[Tensor, Tensor]] = []  # per chunk tokens (1, G, T, H) and visible (1, G, T)
    for start in range(first, stop, CHUNK):
        end = min(stop, start + CHUNK)
        near = slice(start - first, end - first)
        show, known = hide[None, near].to(device), hidden[None, :, near].to(device)
        embedded, memory = model.embed_spikes(
            maps, recording.counts[None, start:end].to(device).float(), show, memory
        )
        encoded = [e[None, start:end].to(device) for e in recording.encoded]
        x, visible = model.tokens(maps, sessions, embedded, encoded, show, known)
        bins = end - start
        held.append((x.unflatten(1, (-1, bins)), visible.unflatten(1, (-1, bins))))
        x, visible = (torch.cat([h[i] for h in held], 2) for i in range(2))
        past = x.shape[2] - bins
        z = model.encode(x.flatten(1, 2), visible.flatten(1), past + bins, start - first - past)
        z = z.unflatten(1, (-1, past + bins))[:, :, past:].flatten(1, 2)
        log_rates, outputs = model.heads(maps, z, bins)
        yield log_rates[0], [o[0] for o in outputs]
        reach = model.receptive_field
        held = [(x[:, :, -reach:], visible[:, :, -reach:])] if reach else []


def _windows(
    model: Neds, recording: Recording, first: int, stop: int, hide: Tensor, hidden: Tensor
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The window form: windows side by side, the last one moved back to end with the run."""
    device, size = model.device, model.config.window
    for start in range(first, stop, size):
        end = min(stop, start + size)
        begin = max(first, end - size)
        near, short = slice(begin - first, end - first), size - (end - begin)
        known = F.pad(recording.known[None, :, begin:end], (0, short)).to(device)
        there = F.pad(torch.ones(1, 1, end - begin, dtype=torch.bool), (0, short)).to(device)
        log_rates, outputs = model(
            [recording.state.session],
            F.pad(recording.counts[None, begin:end].float(), (0, 0, 0, short)).to(device),
            [F.pad(e[None, begin:end], (0, 0, 0, short)).to(device) for e in recording.encoded],
            F.pad(hide[None, near], (0, short), value=True).to(device),
            F.pad(hidden[None, :, near], (0, short), value=True).to(device),
            absent=torch.cat((~there, ~known), 1),
        )
        new = slice(start - begin, end - begin)
        yield log_rates[0, new], [o[0, new] for o in outputs]
