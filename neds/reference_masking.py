"""What the paper's NEDS hides from itself in training, with the flaws of its two releases.

The five schemes are those of `neds.masking`. Who draws them, and what then really happens, differs
by version (`ReferenceConfig.mask`):

    paper_apr2025  the release that the paper's numbers most likely come from. Every trial has its
                   own scheme, which decides where its loss is; but the tokens blanked in the whole
                   batch are those of trial 0's scheme, so most targets stay in view. And drawing a
                   pattern of random bins also emptied those bins of the spike input, six times
                   over (two patterns for spikes, one for each of four behaviours): a share of
                   1 - (1 - ratio)^6 of all bins is empty, 88 % at ratio 0.3
    head           repaired in March 2026: own scheme for every trial. The random bins of a scheme
                   are still drawn once a batch and shared by all trials of the scheme
    fixed          own scheme and own random bins for every trial

Random bins are Bernoulli(ratio) per bin; "self_behaviour" draws them apart for each behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neds.masking import SCHEMES
from neds.reference_config import ReferenceConfig


@dataclass(frozen=True)
class ReferenceMasks:
    """Hidden tokens of B trials; modality 0 is spikes, 1 + m behaviour m.

    schemes (B,) index into `SCHEMES`; blank (B, 1 + M, T) bool, tokens replaced at the input;
    asked (B, 1 + M, T) bool, tokens with a loss; emptied (B, T) bool, bins whose spikes are set
    to zero before anything else.
    """

    schemes: Tensor
    blank: Tensor
    asked: Tensor
    emptied: Tensor

    def to(self, device: torch.device) -> ReferenceMasks:
        """The same masks on another device."""
        return ReferenceMasks(self.schemes.to(device), self.blank.to(device),
                              self.asked.to(device), self.emptied.to(device))


def draw_reference_masks(
    config: ReferenceConfig, batch: int, n_behaviours: int, generator: torch.Generator
) -> ReferenceMasks:
    """Draw schemes and random bins for a batch of trials in training.

    A unimodal model hides nothing of its inputs and is asked for all its outputs.
    """
    n, bins = 1 + n_behaviours, config.bins
    nothing = torch.zeros(batch, n, bins, dtype=torch.bool)
    if config.mode != "mm":
        asked = nothing.clone()
        asked[:, :1] = config.mode == "encoding"
        asked[:, 1:] = config.mode == "decoding"
        return ReferenceMasks(torch.full((batch,), -1), nothing, asked, nothing[:, 0])
    schemes = torch.randint(len(SCHEMES), (batch,), generator=generator)
    if config.one_scheme_per_batch:
        schemes = schemes[:1].expand(batch)
    # Pattern 0 is self_spike's, 1 is random_token's, 2 + m is self_behaviour's for behaviour m.
    drawn = torch.rand(batch, 2 + n_behaviours, bins, generator=generator) < config.mask_ratio
    patterns = drawn if config.mask == "fixed" else drawn[:1].expand_as(drawn)
    asked = scheme_tokens(schemes, patterns)
    if config.mask != "paper_apr2025":
        return ReferenceMasks(schemes, asked, asked, nothing[:, 0])
    return ReferenceMasks(schemes, asked[:1].expand_as(asked), asked, drawn.any(1))


def scheme_tokens(schemes: Tensor, patterns: Tensor) -> Tensor:
    """Tokens (B, 1 + M, T) that each trial's scheme hides, given patterns (B, 2 + M, T) of bins."""
    encoding, decoding, self_spike, self_behaviour, token = (
        (schemes == index)[:, None, None] for index in range(len(SCHEMES))
    )
    spikes = encoding | (self_spike & patterns[:, :1]) | (token & patterns[:, 1:2])
    behaviours = decoding | (self_behaviour & patterns[:, 2:]) | (token & patterns[:, 1:2])
    return torch.cat((spikes, behaviours), 1)


def task_masks(
    config: ReferenceConfig, batch: int, n_behaviours: int, task: str, shown: int | None = None
) -> ReferenceMasks:
    """Masks of an evaluation task: "encoding" hides all spikes, "decoding" all behaviours.

    `shown` leaves behaviour number `shown` alone in view (encoding by one variable).
    """
    asked = torch.zeros(batch, 1 + n_behaviours, config.bins, dtype=torch.bool)
    asked[:, :1] = task == "encoding"
    asked[:, 1:] = task == "decoding"
    blank = asked.clone()
    if shown is not None:
        blank[:, 1:] = True
        blank[:, 1 + shown] = False
    return ReferenceMasks(torch.full((batch,), SCHEMES.index(task)), blank, asked,
                          torch.zeros(batch, config.bins, dtype=torch.bool))
