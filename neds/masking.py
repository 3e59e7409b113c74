"""The five masking schemes of NEDS: which tokens are hidden and so must be predicted.

Encoding is the paper's neural masking, decoding its behaviour masking, both self schemes its
within-modality masking, random_token its cross-modality masking (Zhang et al. 2025).

    scheme          spike tokens hidden   behaviour tokens hidden
    encoding        all                   none
    decoding        none                  all
    self_spike      random bins           none
    self_behaviour  none                  random bins, drawn apart for each behaviour
    random_token    random bins           the same bins in every modality

Each sample of a batch draws its own scheme and its own bins (the reference shared one bin pattern
among all samples of a scheme). A hidden token is both the input mask and the loss mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neds.config import MaskingConfig

SCHEMES = ("encoding", "decoding", "self_spike", "self_behaviour", "random_token")


@dataclass(frozen=True)
class Masks:
    """True where a token is hidden: `spikes` (B, T), `behaviours` (B, M, T)."""

    spikes: Tensor
    behaviours: Tensor


def draw_schemes(config: MaskingConfig, batch: int, generator: torch.Generator) -> Tensor:
    """Index into `SCHEMES` per sample, shape (B,), int64, drawn with the configured shares."""
    shares = torch.tensor([float(getattr(config, name)) for name in SCHEMES])
    return torch.multinomial(shares, batch, replacement=True, generator=generator)


def apply_schemes(
    schemes: Tensor, n_behaviours: int, bins: int, ratio: float, generator: torch.Generator
) -> Masks:
    """Draw the hidden bins of each sample for its scheme; `ratio` is the share of random bins."""
    batch = schemes.shape[0]
    own = torch.rand(batch, 1 + n_behaviours, bins, generator=generator) < ratio
    encoding, decoding, self_spike, self_behaviour, token = (
        (schemes == index)[:, None] for index in range(len(SCHEMES))
    )
    shared = own[:, 0]  # (B, T): the spike tokens' own pattern, and everybody's in random_token
    spikes = encoding | ((self_spike | token) & shared)
    behaviours = (
        decoding[..., None]
        | (self_behaviour[..., None] & own[:, 1:])
        | (token[..., None] & shared[:, None])
    ).expand(batch, n_behaviours, bins)
    return Masks(spikes.expand(batch, bins), behaviours)


def draw_masks(
    config: MaskingConfig, batch: int, n_behaviours: int, bins: int, generator: torch.Generator
) -> Masks:
    """Draw a scheme and its hidden bins for every sample of a batch."""
    schemes = draw_schemes(config, batch, generator)
    return apply_schemes(schemes, n_behaviours, bins, config.ratio, generator)
