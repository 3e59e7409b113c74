"""The paper's NEDS as its authors' released code computes it: the parity configuration.

`neds.model` is our model; this one is kept beside it to reproduce published numbers and to measure
against. It follows Zhang et al., "Neural Encoding and Decoding at Scale", ICML 2025 (arXiv
2504.08201) and the behaviour of the released code, including what that code does unintentionally,
each behind a switch of `ReferenceConfig`. It is the straightforward implementation: every session
of a batch is looped over, spikes are padded to the largest session, nothing is optimised.

Where it differs from `neds.model`: trials of a fixed number of bins; per-session tokenisers of two
layers, quadratic in the number of units; three embedding tables per modality; rotary and learned
positions at once; a categorical behaviour is one scalar spread over all bins, pooled back by
learned weights; full attention, hidden tokens included.

Shapes: B trials, T bins, N units of the largest session, M behaviours, H hidden width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neds.model import BehaviourSpec, SessionSpec
from neds.reference_config import ReferenceBatch, ReferenceConfig, check_sessions


def is_static(spec: BehaviourSpec) -> bool:
    """Whether a behaviour is one class a trial; the others are traces over its bins."""
    return spec.kind == "categorical"


class Tokeniser(nn.Module):
    """Values (B, T, n) to tokens (B, T, H): two linear layers with softsign between, or one."""

    def __init__(self, size: int, config: ReferenceConfig) -> None:
        super().__init__()
        one = config.stitcher == "linear"
        self.first = None if one else nn.Linear(size, 2 * size)
        self.last = nn.Linear(size if one else 2 * size, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, n)."""
        tokens: Tensor = self.last(x if self.first is None else F.softsign(self.first(x)))
        return tokens


class StaticTokeniser(nn.Module):
    """A class index (B,) to T tokens (B, T, H): one scalar spread over the bins."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.bins = config.bins
        one = config.stitcher == "linear"
        self.first = None if one else nn.Linear(1, 2 * config.bins)
        self.last = nn.Linear(1 if one else 2, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,) class index as a float."""
        if self.first is None:
            spread = x[:, None, None].expand(-1, self.bins, 1)
        else:
            spread = F.softsign(self.first(x[:, None]).view(-1, self.bins, 2))
        tokens: Tensor = self.last(spread)
        return tokens


class SessionStitch(nn.Module):
    """One session's tokenisers, heads and static pooling weights, as the mode needs them."""

    def __init__(self, spec: SessionSpec, n_padded: int, config: ReferenceConfig) -> None:
        super().__init__()
        self.n_units = n_padded if config.stitcher == "mlp_max" else spec.n_units
        width, kinds = config.hidden, spec.behaviours
        reads, writes = config.mode != "encoding", config.mode != "decoding"
        inputs = [StaticTokeniser(config) if is_static(b) else Tokeniser(b.width, config)
                  for b in (kinds if writes else ())]
        outputs = [nn.Linear(width, b.n_outputs) for b in (kinds if reads else ())]
        n_static = sum(map(is_static, kinds)) if reads else 0
        self.spikes_in = Tokeniser(self.n_units, config) if reads else None
        self.behaviours_in = nn.ModuleList(inputs)
        wide = width * len(kinds) if config.mode == "encoding" else width
        self.spikes_out = nn.Linear(wide, self.n_units) if writes else None
        self.behaviours_out = nn.ModuleList(outputs)
        self.pool = nn.ParameterList(torch.rand(config.bins) for _ in range(n_static))


class Tables(nn.Module):
    """What is added to a modality's tokens: modality, position and session embeddings.

    Every modality owns all three tables, and uses one row of its modality table.
    """

    def __init__(self, n_modalities: int, config: ReferenceConfig) -> None:
        super().__init__()
        self.modality = nn.Embedding(n_modalities, config.hidden)
        self.position = nn.Embedding(config.bins, config.hidden)
        self.session = nn.Embedding(config.n_session_rows, config.hidden)


class EncoderLayer(nn.Module):
    """Pre-norm: x += attention(norm1(x)); x += mlp(norm2(x)); full attention, no mask."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads, self.rate = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, config.mlp), nn.Linear(config.mlp, width)
        self.dropout = nn.Dropout(config.dropout)
        # "fixup": branches start small, so that deep stacks train from the first step.
        scale = 0.67 * config.layers**-0.25
        with torch.no_grad():
            for linear in (self.out, self.up, self.down):
                linear.weight.mul_(scale)
            self.value.weight.mul_(scale * math.sqrt(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, S, H); cos and sin (S, D/2) of each token's bin, D the width of a head."""
        y = self.norm1(x)
        query, key, value = (
            linear(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(
            turn(query, cos, sin), turn(key, cos, sin), value,
            dropout_p=self.rate if self.training else 0.0,
        )
        x = x + self.out(self.dropout(mixed.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.up(self.norm2(x)))
        out: Tensor = x + self.dropout(self.down(hidden))
        return out


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split layout: dimension i is paired with i + D/2."""
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, low * sin + high * cos), -1)


class ReferenceNeds(nn.Module):
    """Trials of several sessions in; log spike counts and behaviours out.

    All sessions must have the same behaviours in the same order (raises `BadInput` otherwise);
    modality 0 is spikes, modality 1 + m is behaviour m.
    """

    def __init__(self, config: ReferenceConfig, sessions: list[SessionSpec]) -> None:
        super().__init__()
        check_sessions(config, sessions)
        self.config, self.sessions = config, sessions
        self.behaviours = sessions[0].behaviours
        self.n_units = max(s.n_units for s in sessions)
        n_modalities = 1 + len(self.behaviours)
        self.inputs = {"mm": list(range(n_modalities)), "decoding": [0],
                       "encoding": list(range(1, n_modalities))}[config.mode]
        self.stitches = nn.ModuleList(SessionStitch(s, self.n_units, config) for s in sessions)
        self.tables = nn.ModuleList(Tables(n_modalities, config) for _ in self.inputs)
        # Before its masking was repaired the released code blanked with a constant zero.
        self.mask_token = nn.Parameter(torch.zeros(config.hidden),
                                       requires_grad=config.mask != "paper_apr2025")
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)

    def stitch(self, session: int) -> SessionStitch:
        """The parameters of one session, by its index."""
        stitch = self.stitches[session]
        assert isinstance(stitch, SessionStitch)
        return stitch

    def forward(self, batch: ReferenceBatch, blank: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Log expected counts (B, T, N) and, per behaviour, (B, T, width) or (B, classes) logits.

        blank (B, 1 + M, T) bool: tokens replaced by the mask token. A unimodal model returns None,
        or an empty list, for what it does not predict.
        """
        groups = batch.groups()
        parts = [self._embedded(i, m, batch, groups, blank[:, m])
                 for i, m in enumerate(self.inputs)]
        cos, sin = self._phases(batch.counts)
        x = torch.cat(parts, 1)
        for layer in self.layers:
            x = layer(x, cos, sin)
        encoded = self.norm(x).split(self.config.bins, 1)
        spikes = self._spike_head(encoded, groups) if self.config.mode != "decoding" else None
        if self.config.mode == "encoding":
            return spikes, []
        source = encoded[1:] if self.config.mode == "mm" else encoded * len(self.behaviours)
        return spikes, [self._behaviour_head(m, y, groups) for m, y in enumerate(source)]

    def _embedded(self, table: int, modality: int, batch: ReferenceBatch,
                  groups: list[tuple[int, Tensor]], blank: Tensor) -> Tensor:
        tables = self.tables[table]
        assert isinstance(tables, Tables)
        shape = (*batch.counts.shape[:2], self.config.hidden)
        tokens, own = batch.counts.new_zeros(shape), batch.counts.new_zeros(shape)
        for session, rows in groups:
            stitch = self.stitch(session)
            if modality == 0:
                assert stitch.spikes_in is not None
                made = stitch.spikes_in(batch.counts[rows, :, :stitch.n_units])
            else:
                made = stitch.behaviours_in[modality - 1](batch.behaviours[modality - 1][rows])
            made = F.dropout(made, self.config.token_dropout, self.training)
            tokens[rows] = made.to(tokens.dtype)
            if not self._lost(rows):
                own[rows] = tables.session.weight[session]
        tokens = torch.where(blank[..., None], self.mask_token, tokens)
        return tokens + tables.modality.weight[modality] + tables.position.weight + own

    def _spike_head(self, encoded: tuple[Tensor, ...], groups: list[tuple[int, Tensor]]) -> Tensor:
        y = torch.cat(encoded, -1) if self.config.mode == "encoding" else encoded[0]
        out = y.new_zeros(*y.shape[:2], self.n_units)
        for session, rows in groups:
            stitch = self.stitch(session)
            assert stitch.spikes_out is not None
            out[rows, :, :stitch.n_units] = stitch.spikes_out(y[rows]).to(out.dtype)
        return out

    def _behaviour_head(self, m: int, y: Tensor, groups: list[tuple[int, Tensor]]) -> Tensor:
        spec = self.behaviours[m]
        pool = sum(map(is_static, self.behaviours[:m]))  # which of the pooling vectors
        shape = (len(y),) if is_static(spec) else y.shape[:2]
        out = y.new_zeros(*shape, spec.n_outputs)
        for session, rows in groups:
            stitch = self.stitch(session)
            own = y[rows]
            if is_static(spec):
                own = torch.einsum("bth,t->bh", own, stitch.pool[pool])
                own = own * 0 if self._lost(rows) else own
            out[rows] = stitch.behaviours_out[m](own).to(out.dtype)
        return out

    def _lost(self, rows: Tensor) -> bool:
        """Whether the released code's indexing drops a session that has these rows."""
        return self.config.lone_session == "dropped" and len(rows) == 1

    def _phases(self, like: Tensor) -> tuple[Tensor, Tensor]:
        half = self.config.hidden // self.config.heads // 2
        steps = torch.arange(half, device=like.device, dtype=torch.float32) / half
        bins = torch.arange(self.config.bins, device=like.device, dtype=torch.float32)
        angle = (bins[:, None] * self.config.rope_base**-steps).repeat(len(self.inputs), 1)
        return angle.cos(), angle.sin()


def count_reference(model: ReferenceNeds) -> dict[str, int]:
    """Parameters that all sessions share, the sessions' own, and their sum."""
    total = sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for p in model.stitches.parameters())
    return {"shared": total - own, "sessions": own, "total": total}
