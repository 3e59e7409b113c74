"""Predictions of a trained model on a part of a recording, and their scores.

Decoding hides every behaviour token and shows the spikes; encoding hides the spikes and shows the
behaviours. Each run of consecutive bins starts cold, as a server does when a stream starts.

Streaming form: a long run is computed in chunks that overlap by the receptive field, which changes
nothing. Window form: a run is cut into windows, and one shorter than a window is filled up with
hidden bins, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neds.checkpoint import BehaviourState
from neds.dataset import Recording
from neds.metrics import bits_per_spike, score
from neds.model import Neds

CHUNK = 512  # bins of new output a chunk

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
    for _, outputs in _chunks(model, recording, first, stop, show, hidden):
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
        truth = np.concatenate([recording.values[b.name][a:z] for a, z in runs])
        pairs.append((truth, np.concatenate([p[m] for p in predicted])))
    return pairs


def encode_part(model: Neds, recording: Recording, part: str) -> tuple[Floats, Floats]:
    """(counts, predicted rates), spikes per bin, of a part with all behaviours shown."""
    counts, rates = [], []
    for first, stop in recording.runs_within(part):
        hide = torch.ones(stop - first, dtype=torch.bool)
        hidden = ~recording.known[:, first:stop]
        for log_rates, _ in _chunks(model, recording, first, stop, hide, hidden):
            rates.append(log_rates.exp().numpy())
        counts.append(recording.counts[first:stop].numpy())
    return np.concatenate(counts), np.concatenate(rates)


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


def _chunks(
    model: Neds, recording: Recording, first: int, stop: int, hide: Tensor, hidden: Tensor
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Outputs of rows [first, stop) chunk by chunk; `hide` and `hidden` count from `first`."""
    window = model.config.form == "window"
    size = model.config.window if window else CHUNK
    past = 0 if window else model.receptive_field
    model.eval()
    with torch.inference_mode():
        for start in range(first, stop, size):
            begin, end = max(first, start - past), min(stop, start + size)
            if window:
                begin = max(first, end - size)  # the last window overlaps the one before it
            near = slice(begin - first, end - first)
            short = size - (end - begin) if window else 0
            log_rates, outputs = model(
                recording.state.session,
                F.pad(recording.counts[None, begin:end], (0, 0, 0, short)),
                [F.pad(e[None, begin:end], (0, 0, 0, short)) for e in recording.encoded],
                F.pad(hide[None, near], (0, short), value=True),
                F.pad(hidden[None, :, near], (0, short), value=True),
                first_bin=0 if window else begin - first,
            )
            new = slice(start - begin, end - begin)
            yield log_rates[0, new], [o[0, new] for o in outputs]
