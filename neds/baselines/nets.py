"""The nets of the multi-session baselines: a map in per session, a shared core, a map out.

Shapes: G sessions of a batch, R sequences of each, T bins, N units (the most of the batch's
sessions), H width, K outputs (all behaviours of all sessions side by side).

    gru   two recurrent layers
    mlp   a causal convolution over lags and a hidden layer: a perceptron on lagged inputs
    ndt   causal transformer over the bins' spike tokens, attention over a band, rotary positions,
          after the Neural Data Transformer (Ye and Pandarinath 2021), decoding only
    rrr   reduced rank: outputs = sum over lags of (x_{t-l} U_session) V_l + b_session, linear
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from neds.model import rotary_phases, rotate


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a core; each uses the ones it has."""

    width: int = 192
    layers: int = 2
    lags: int = 15  # taps of mlp and rrr
    heads: int = 4
    window: int = 30  # bins a bin of ndt sees in a layer, itself included
    dropout: float = 0.3


class GruCore(nn.Module):
    """Recurrent layers with dropout before, between and after."""

    receptive = 0  # 0: everything since the start of the run

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        between = sizes.dropout if sizes.layers > 1 else 0.0
        self.dropout = nn.Dropout(sizes.dropout)
        self.gru = nn.GRU(sizes.width, sizes.width, sizes.layers, batch_first=True, dropout=between)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H)."""
        hidden: Tensor = self.dropout(self.gru(self.dropout(x))[0])
        return hidden


class MlpCore(nn.Module):
    """Causal convolution over the last bins, then a hidden layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.receptive = sizes.lags
        self.dropout = nn.Dropout(sizes.dropout)
        self.taps = nn.Conv1d(sizes.width, 2 * sizes.width, sizes.lags)
        self.hidden = nn.Linear(2 * sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H)."""
        past = F.pad(self.dropout(x).transpose(1, 2), (self.receptive - 1, 0))
        y = self.dropout(F.gelu(self.taps(past).transpose(1, 2)))
        out: Tensor = self.dropout(F.gelu(self.hidden(y)))
        return out


class NdtLayer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, sees: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, T, H); `sees` (T, T) bool: rows are queries."""
        batch, bins, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, bins, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            rotate(query, cos, sin), rotate(key, cos, sin), value, attn_mask=sees)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, bins, width)))
        hidden = self.dropout(F.gelu(self.up(self.norm2(x))))
        x = x + self.dropout(self.down(hidden))
        return x


class NdtCore(nn.Module):
    """Transformer layers over the bins of a sequence."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.receptive = sizes.layers * (sizes.window - 1) + 1
        self.dropout = nn.Dropout(sizes.dropout)
        self.layers = nn.ModuleList(NdtLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H)."""
        positions = torch.arange(x.shape[1])
        age = (positions[:, None] - positions).to(x.device)
        sees = (age >= 0) & (age < self.sizes.window)
        cos, sin = (phase.to(x) for phase in rotary_phases(
            positions, self.sizes.width // self.sizes.heads, 10000.0))
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, sees, cos, sin)
        normed: Tensor = self.norm(x)
        return normed


class RrrCore(nn.Module):
    """Lags of the rank's components to outputs, shared by all sessions; no nonlinearity."""

    def __init__(self, sizes: Sizes, outputs: int) -> None:
        super().__init__()
        self.receptive = sizes.lags
        self.taps = nn.Conv1d(sizes.width, outputs, sizes.lags, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, rank) to (B, T, K)."""
        past = F.pad(x.transpose(1, 2), (self.receptive - 1, 0))
        out: Tensor = self.taps(past).transpose(1, 2)
        return out


CORES = {"gru": GruCore, "mlp": MlpCore, "ndt": NdtCore}


class SessionNet(nn.Module):
    """counts -> square root -> the session's map -> core -> map out, shared or the session's own.

    `rrr` has the core's outputs as they are, and of each session's map out only the bias.
    """

    def __init__(
        self, core: str, sizes: Sizes, units: list[int], outputs: int, own_out: bool
    ) -> None:
        super().__init__()
        self.kind, self.sizes, self.own_out = core, sizes, own_out
        self.core: nn.Module = (
            RrrCore(sizes, outputs) if core == "rrr" else CORES[core](sizes))
        self.maps = nn.ParameterList(nn.Linear(n, sizes.width).weight.T.clone() for n in units)
        self.bias = nn.Parameter(torch.zeros(len(units), sizes.width))
        rows = len(units) if own_out or core == "rrr" else 1
        self.out_bias = nn.Parameter(torch.zeros(rows, outputs))
        self.out: nn.Parameter | None = None
        if core != "rrr":
            drawn = nn.Linear(sizes.width, outputs).weight.T.clone()
            self.out = nn.Parameter(drawn.repeat(rows, 1, 1))

    @property
    def receptive(self) -> int:
        """Bins that reach a bin's outputs, itself included; 0 for all since the run's start."""
        return cast(int, self.core.receptive)

    def own_parameters(self) -> list[nn.Parameter]:
        """What belongs to sessions, not to all of them together."""
        own = [*self.maps, self.bias]
        if len(self.out_bias) == len(self.maps) and (self.own_out or self.kind == "rrr"):
            own += [self.out_bias] + ([self.out] if self.out is not None else [])
        return own

    def forward(self, sessions: list[int], counts: Tensor) -> Tensor:
        """Counts (G, R, T, N) of the sessions with these numbers to outputs (G, R, T, K)."""
        return self.read_out(sessions, self.through_core(self.embed(sessions, counts)))

    def embed(self, sessions: list[int], counts: Tensor) -> Tensor:
        """Counts (G, R, T, N) to (G, R, T, H)."""
        groups, rows, bins, units = counts.shape
        maps = pad_sequence([self.maps[s] for s in sessions], batch_first=True)
        x = torch.bmm(counts.sqrt().view(groups, rows * bins, units), maps)
        if self.kind != "rrr":  # its core has no use for a constant that its lags would repeat
            x = x + self.bias[sessions, None]
        return x.view(groups, rows, bins, -1)

    def through_core(self, x: Tensor) -> Tensor:
        """(G, R, T, H) to the core's (G, R, T, H), or (G, R, T, K) of `rrr`."""
        y: Tensor = self.core(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return y

    def read_out(self, sessions: list[int], y: Tensor) -> Tensor:
        """The core's output to outputs (G, R, T, K)."""
        which = sessions if len(self.out_bias) > 1 else [0] * len(sessions)
        if self.out is not None:
            y = torch.bmm(y.flatten(1, 2), self.out[which]).unflatten(1, y.shape[1:3])
        return y + self.out_bias[which, None, None]
