"""The optimiser of a run: which parameters move how fast and when, and in which precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from neds.config import TrainConfig
from neds.model import Neds


def make_optimiser(model: Neds, knobs: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on the backbone's matrices alone.

    None on biases, norms, embeddings and stitchers, but for `train.own_decay` on sessions' own
    spike maps. What sessions share moves at `train.backbone_rate` of the learning rate.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    own: list[Tensor] = []
    maps: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if name.startswith("stitchers."):
            # In components the weight goes by another name, under the same module.
            pulled = ".spikes_" in name and not name.endswith(".bias")
            (maps if pulled else own).append(parameter)
        else:
            matrix = name.startswith(("blocks.", "stem.")) and parameter.ndim >= 2
            (decayed if matrix else free).append(parameter)
    rate = knobs.backbone_rate
    groups = [{"params": decayed, "weight_decay": knobs.weight_decay, "rate": rate},
              {"params": free, "weight_decay": 0.0, "rate": rate},
              {"params": own, "weight_decay": 0.0, "rate": 1.0},
              {"params": maps, "weight_decay": knobs.own_decay, "rate": 1.0}]
    return torch.optim.AdamW(groups, lr=knobs.learning_rate, betas=(0.9, 0.98), fused=True)


def one_cycle(knobs: TrainConfig) -> Callable[[float], float]:
    """Learning rate factor by step: linear warm-up to 1, then a cosine down to 0.001."""
    rise = max(1, round(knobs.warmup * knobs.steps))

    def factor(step: float) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, knobs.steps - rise)
        return 0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def freeze_backbone(model: nn.Module, frozen: bool) -> None:
    """Let gradients reach sessions' own parameters alone, or all: what has none stays put."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith("stitchers."))


def half_precision(knobs: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs in bf16; on a GPU, float32 may then use its TF32 units."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if knobs.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return knobs.precision == "bf16"
