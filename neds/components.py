"""Few trials of many units: sessions' maps from spikes, learnt in the space of a few components.

With some hundred trials of a thousand units, Adam fits each unit's weight on its own and learns the
trials by heart. The components that vary together over units are few and known without labels, so
training may be held to them (`train.components`): a session's own map is then a small matrix times
a fixed one, the principal components of its training counts. When training ends the two are
multiplied, and the model is what it would be without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from neds.dataset import Recording
from neds.model import Neds

SPAN_S = 0.05
"""Counts are added up over this span first: in single short bins nearly all variance is noise."""

QUIET = 0.5
"""Spikes a span added to every unit's deviation, so that units that hardly fire stay small."""


class Components(nn.Module):
    """A weight (H, N) as a small one (H, K) times fixed components of the N units."""

    basis: Tensor  # (N, K)
    inverse: Tensor  # (N, K), of which basis.T @ inverse is the identity

    def __init__(self, basis: Tensor, inverse: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.register_buffer("inverse", inverse)

    def forward(self, small: Tensor) -> Tensor:
        """The weight of every unit."""
        return small @ self.basis.T

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The small weight whose product is nearest to this one, in scaled units."""
        return weight @ self.inverse


def components(recording: Recording, number: int) -> Components:
    """The `number` strongest components of a session's training counts.

    Units are divided by their standard deviation plus `QUIET` before; the first component has
    variance 1. A session with fewer units than that has as many components as units.
    """
    span = max(1, round(SPAN_S / recording.bin_size_s))
    pieces = []
    for first, stop in recording.runs_within("train"):
        whole = (stop - first) // span * span
        rows = recording.counts[first : first + whole].float()
        pieces.append(rows.unflatten(0, (-1, span)).sum(1))
    x = torch.cat(pieces) if pieces else recording.counts[:0].float()
    if len(x) < 2:  # nothing to go by: any directions will do
        x = torch.eye(recording.counts.shape[1])
    scale = x.std(0) + QUIET
    x = (x - x.mean(0)) / scale
    variances, vectors = torch.linalg.eigh(x.T @ x / len(x))
    number = min(number, len(variances))
    chosen = vectors[:, -number:].flip(1)
    size = variances[-1].clamp(min=1e-6).sqrt()
    return Components(chosen / scale[:, None] / size, chosen * scale[:, None] * size)


def hold_to_components(
    model: Neds, recordings: Sequence[Recording], number: int, fresh: bool
) -> None:
    """Let the sessions' maps from spikes be learnt in components, until `release`.

    A `fresh` model's maps are drawn anew, at the size that suits components.
    """
    for recording in recordings:
        into = model.stitcher(recording.state.session).spikes_in
        held = components(recording, number).to(into.weight.device)
        parametrize.register_parametrization(into, "weight", held)
        if fresh:
            small = into.get_parameter("parametrizations.weight.original")
            nn.init.normal_(small, std=small.shape[1] ** -0.5)


def release(model: Neds) -> None:
    """Make plain weights of what components hold: the same map, as any other model's."""
    for stitch in model.stitch_list():
        if parametrize.is_parametrized(stitch.spikes_in, "weight"):
            parametrize.remove_parametrizations(stitch.spikes_in, "weight")
