"""The NEDS transformer, whole: tokenisers, encoder, heads; window form and streaming form.

After Zhang et al., "Neural Encoding and Decoding at Scale", ICML 2025 (arXiv 2504.08201), where the
window form is described; what differs is said where it differs.

One spike token and one token per behaviour for every bin. A hidden token is replaced by the mask
token and predicted from the visible ones, so the same weights encode (behaviour to spikes) and
decode (spikes to behaviour).

The two forms share every module and differ in who sees whom:

    window   every token sees every token of the window, hidden ones too (the paper's full
             attention); a learned position table is added to the tokens. For offline use: a
             bin's outputs need the bins after it
    stream   a token of bin t sees the visible tokens of bins t-window+1 .. t and nothing ever sees
             a hidden token; rotary positions only. Then a stream needs one new spike token and one
             query per decoded behaviour a bin, against cached keys and values, and equals this
             batch form to float rounding

Shapes: B sequences, T bins, N units, M behaviours, H hidden width, D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neds.config import ModelConfig
from neds.modalities import n_outputs


@dataclass(frozen=True)
class BehaviourSpec:
    """What the model must know of one behaviour of a session; `kind` is a key of `KINDS`."""

    name: str
    kind: str
    width: int
    classes: tuple[str, ...] = ()
    unit: str = ""

    @property
    def n_outputs(self) -> int:
        """Numbers predicted per bin."""
        return n_outputs(self.kind, self.width, len(self.classes))


@dataclass(frozen=True)
class SessionSpec:
    """What the model must know of one session: its unit count and behaviours, in order."""

    session: str
    n_units: int
    behaviours: tuple[BehaviourSpec, ...]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: turn the pairs (x[i], x[i + D/2]) by the phase of their bin."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rotary_phases(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (T, D/2) of bin positions; angles in double, a stream may run for days."""
    half = head_width // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = positions.to(torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


class Block(nn.Module):
    """One pre-norm layer: x += out(attention(norm1(x))); x += down(gelu(up(norm2(x))))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, config.mlp), nn.Linear(config.mlp, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, sees: Tensor, blind: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, S, H); `sees` (B, 1, S, S) bool; `blind` (B, S, 1) rows that see nothing."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, S, D)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, width).masked_fill(blind, 0.0)
        x = x + self.dropout(self.out(mixed))
        hidden = F.gelu(self.up(self.norm2(x)), approximate="tanh")
        x = x + self.dropout(self.down(hidden))
        return x


class BehaviourStitch(nn.Module):
    """A session's own way in and out for one behaviour."""

    def __init__(self, spec: BehaviourSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.into = nn.Linear(spec.n_outputs, width)
        self.out = nn.Linear(width, spec.n_outputs)


class Stitcher(nn.Module):
    """A session's own parameters: one linear map in and one out per modality, one embedding.

    Sized to the session's own units (the reference pads all sessions to the largest and uses two
    layers, which is quadratic in the number of units).
    """

    def __init__(self, spec: SessionSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.spikes_in = nn.Linear(spec.n_units, width)
        self.spikes_out = nn.Linear(width, spec.n_units)
        self.behaviours = nn.ModuleList(BehaviourStitch(b, width) for b in spec.behaviours)
        self.embedding = nn.Parameter(torch.zeros(width))

    def parts(self) -> list[BehaviourStitch]:
        """The behaviours' stitches, in the session's order."""
        return [part for part in self.behaviours if isinstance(part, BehaviourStitch)]


class Neds(nn.Module):
    """Spikes and behaviours of one session in, predictions of every modality out.

    1. counts (B, T, N) -> sqrt -> the session's linear map -> causal convolution -> spike tokens
    2. behaviours, as the model sees them (B, T, n_outputs) -> linear maps -> behaviour tokens
    3. hidden tokens become the mask token; modality and session embeddings are added
    4. pre-norm transformer over the (1 + M) T tokens, ordered by modality, then bin
    5. the session's heads: log spike rates (B, T, N) and one output per behaviour
    """

    conv: nn.Conv1d | None
    norm: nn.LayerNorm

    def __init__(self, config: ModelConfig, sessions: list[SessionSpec]) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        names = sorted({b.name for s in sessions for b in s.behaviours})
        self.modality_index = {name: i + 1 for i, name in enumerate(names)}  # 0 is spikes
        self.index = {spec.session: i for i, spec in enumerate(sessions)}
        self.stitchers = nn.ModuleList(Stitcher(spec, width) for spec in sessions)
        self.modality = nn.Parameter(torch.randn(1 + len(names), width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(width))
        if config.form == "window":
            self.position = nn.Parameter(torch.randn(config.window, width) * 0.02)
        self.conv = nn.Conv1d(width, width, config.conv, groups=width) if config.conv else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self._init_weights()

    def _init_weights(self) -> None:
        # Residual branches start small, so that depth trains at once ("fixup" in the NEDS code,
        # whose further scaling of the value weights is left out).
        scale = 0.67 * self.config.layers**-0.25
        with torch.no_grad():
            for block in self.layers():
                for linear in (block.out, block.up, block.down):
                    linear.weight.mul_(scale)

    def layers(self) -> list[Block]:
        """The transformer layers, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def stitcher(self, session: str) -> Stitcher:
        """The session's own parameters; raises KeyError for a session the model does not have."""
        stitch = self.stitchers[self.index[session]]
        assert isinstance(stitch, Stitcher)
        return stitch

    def forward(
        self,
        session: str,
        counts: Tensor,
        behaviours: list[Tensor],
        hidden_spikes: Tensor,
        hidden_behaviours: Tensor,
        first_bin: int = 0,
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict every modality of every bin.

        counts (B, T, N) float; behaviours[m] (B, T, n_outputs) as `encode_behaviour` gives them;
        hidden_spikes (B, T) and hidden_behaviours (B, M, T) bool, True where the token is hidden
        or was never recorded. Returns log rates (B, T, N) and per behaviour (B, T, n_outputs).
        """
        stitch = self.stitcher(session)
        bins = counts.shape[1]
        tokens = [self.spike_tokens(stitch, counts, hidden_spikes)]
        for m, part in enumerate(stitch.parts()):
            token = torch.where(
                hidden_behaviours[:, m, :, None],
                self.mask_token,
                self.token_dropout(part.into(behaviours[m])),
            )
            tokens.append(token + self.modality[self.modality_index[part.spec.name]])
        x = torch.cat(tokens, 1) + stitch.embedding  # (B, (1 + M) T, H)
        if self.config.form == "window":
            x = x + self.position[:bins].repeat(len(tokens), 1)
        visible = torch.cat((~hidden_spikes, (~hidden_behaviours).flatten(1)), 1)
        x = self.encode(x, visible, bins, first_bin)
        parts = x.split(bins, dim=1)
        outputs = [part.out(z) for part, z in zip(stitch.parts(), parts[1:], strict=True)]
        return stitch.spikes_out(parts[0]), outputs

    def spike_tokens(self, stitch: Stitcher, counts: Tensor, hidden: Tensor) -> Tensor:
        """Spike tokens (B, T, H): embedding, causal convolution, mask token where hidden.

        counts (B, T, N) float, as recorded: the square root that evens out Poisson variance is
        taken here. hidden (B, T) bool. Session embedding is not yet added, modality embedding is.
        A hidden bin enters the convolution as zero, so its counts reach no other token.
        """
        embedded = stitch.spikes_in(counts.sqrt()).masked_fill(hidden[..., None], 0.0)
        if self.conv is not None:
            padded = F.pad(embedded.transpose(1, 2), (self.config.conv - 1, 0))
            embedded = embedded + F.gelu(self.conv(padded), approximate="tanh").transpose(1, 2)
        tokens = torch.where(hidden[..., None], self.mask_token, self.token_dropout(embedded))
        return tokens + self.modality[0]

    def encode(self, x: Tensor, visible: Tensor, bins: int, first_bin: int) -> Tensor:
        """Run the layers over x (B, S, H), S = (1 + M) T tokens ordered by modality then bin.

        `visible` (B, S) bool, False for hidden tokens; `first_bin` is the stream's position of the
        first of the `bins` bins. Returns (B, S, H), after the last norm.
        """
        groups = x.shape[1] // bins
        positions = torch.arange(first_bin, first_bin + bins)
        cos, sin = rotary_phases(positions, self.config.hidden // self.config.heads,
                                 self.config.rope_base)
        cos, sin = cos.repeat(groups, 1).to(x), sin.repeat(groups, 1).to(x)
        sees = self.attention_mask(visible, bins)
        blind = ~sees.any(-1, keepdim=True)  # (B, S, 1): a row without anything to see adds zero
        sees = (sees | blind)[:, None]
        for block in self.layers():
            x = block(x, sees, blind, cos, sin)
        normed: Tensor = self.norm(x)
        return normed

    def attention_mask(self, visible: Tensor, bins: int) -> Tensor:
        """Who sees whom, (B, S, S) bool: rows are queries, columns keys."""
        tokens = visible.shape[1]
        if self.config.form == "window":
            return torch.ones(visible.shape[0], tokens, tokens, dtype=torch.bool,
                              device=visible.device)
        t = torch.arange(bins, device=visible.device)
        age = t[:, None] - t[None]
        band = (age >= 0) & (age < self.config.window)
        groups = tokens // bins
        return band.repeat(groups, groups)[None] & visible[:, None]

    @property
    def receptive_field(self) -> int:
        """Bins of the past that can reach a bin's outputs in the streaming form."""
        depth = self.config.layers * (self.config.window - 1)
        return depth + max(self.config.conv - 1, 0)


def encode_behaviour(spec: BehaviourSpec, values: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Behaviour values (..., width) as the model sees and predicts them (..., n_outputs).

    Continuous: z-scored; circular: (cos, sin) per angle; categorical: one-hot. Unknown (NaN)
    values become zero: whoever calls hides those tokens. `mean` and `sd` (width,) are those of
    the training part (`neds.data.windows.fit_scaling`), used by continuous behaviours only;
    `neds.evaluate.to_units` is the way back.
    """
    if spec.kind == "continuous":
        return torch.nan_to_num((values - mean) / sd)
    if spec.kind == "circular":
        pairs = torch.stack((values.cos(), values.sin()), -1)
        return torch.nan_to_num(pairs.flatten(-2))
    codes = torch.nan_to_num(values[..., 0], nan=0.0).long()
    known = ~torch.isnan(values[..., :1])
    return F.one_hot(codes, len(spec.classes)).to(values.dtype) * known


def count_parameters(model: Neds) -> dict[str, int]:
    """Parameters of the shared backbone and of the sessions' stitchers, counted apart."""
    stitchers = sum(p.numel() for p in model.stitchers.parameters())
    total = sum(p.numel() for p in model.parameters())
    return {"backbone": total - stitchers, "stitchers": stitchers, "total": total}


def poisson_null_log_rate(counts: Tensor) -> Tensor:
    """Log of the mean count per bin of each unit (N,), where the spike head's bias starts.

    counts (..., N). The small constant keeps a unit that is silent in training finite, at -7.
    """
    mean = counts.flatten(0, -2).mean(0)
    return (mean + math.exp(-7)).log()
