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

import functools
import math
from collections.abc import Sequence
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
    """What the model must know of one session: its unit count and behaviours, in order.

    `channels` names per unit the channel it was recorded on (subject/probe/channel), `regions` its
    brain region: what units of different sessions may have in common.
    """

    session: str
    n_units: int
    behaviours: tuple[BehaviourSpec, ...]
    channels: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def places(self, shared: str) -> tuple[str, ...]:
        """Per unit the place whose map it shares with other sessions' units, if it does."""
        return {"channels": self.channels, "regions": self.regions}.get(shared, ())


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
        query, key = rotate(query, cos, sin).to(value), rotate(key, cos, sin).to(value)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees)
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, width).masked_fill(blind, 0.0)
        x = x + self.dropout(self.out(mixed))
        hidden = F.gelu(self.up(self.norm2(x)), approximate="tanh")
        x = x + self.dropout(self.down(hidden))
        return x


class BehaviourStitch(nn.Module):
    """A way in and out for one behaviour."""

    def __init__(self, spec: BehaviourSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.into = nn.Linear(spec.n_outputs, width)
        self.out = nn.Linear(width, spec.n_outputs)

    def pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight (n, H) and bias (H,) in, weight (H, n) and bias (n,) out."""
        return self.into.weight.T, self.into.bias, self.out.weight.T, self.out.bias


class Stitcher(nn.Module):
    """A session's own parameters: one linear map in and one out per modality, one embedding.

    Sized to the session's own units (the reference pads all sessions to the largest and uses two
    layers, which is quadratic in the number of units).
    """

    places: Tensor  # (N,) row of each unit in the shared tables, empty where nothing is shared

    def __init__(self, spec: SessionSpec, width: int, places: list[int]) -> None:
        super().__init__()
        self.spec = spec
        self.spikes_in = nn.Linear(spec.n_units, width)
        self.spikes_out = nn.Linear(width, spec.n_units)
        self.behaviours = nn.ModuleList(BehaviourStitch(b, width) for b in spec.behaviours)
        self.embedding = nn.Parameter(torch.zeros(width))
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)

    def parts(self) -> list[BehaviourStitch]:
        """The behaviours' stitches, in the session's order."""
        return [part for part in self.behaviours if isinstance(part, BehaviourStitch)]


class Stem(nn.Module):
    """What spike tokens learn of the bins before them ahead of the attention, O(1) a bin.

    A causal depthwise convolution, a recurrent layer, or nothing; added to its input. Its state
    is all that a later call needs to go on where this one ended.
    """

    conv: nn.Conv1d | None
    gru: nn.GRU | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden
        self.taps = config.conv
        self.conv = nn.Conv1d(width, width, config.conv, groups=width) if config.conv else None
        self.gru = nn.GRU(width, width, batch_first=True) if config.recurrent else None

    def forward(
        self, x: Tensor, state: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
        """x (B, T, H), zero where a bin is hidden; returns the same shape and the next state."""
        past, memory = state
        if self.conv is not None:
            if past is None:
                past = x.new_zeros(x.shape[0], self.taps - 1, x.shape[2])
            padded = torch.cat((past, x), 1)
            past = padded[:, padded.shape[1] - (self.taps - 1) :]
            mixed = self.conv(padded.transpose(1, 2)).transpose(1, 2)
            x = x + F.gelu(mixed, approximate="tanh")
        if self.gru is not None:
            remembered, memory = self.gru(x, memory)
            x = x + remembered
        return x, (past, memory)


@dataclass(frozen=True)
class Maps:
    """The maps of G sessions as one batch computation needs them, padded to the most units.

    Every pair is (weight, bias): into (G, n, H) and (G, 1, H), out (G, H, n) and (G, 1, n).
    """

    spikes_in: tuple[Tensor, Tensor]
    spikes_out: tuple[Tensor, Tensor]
    behaviours_in: list[tuple[Tensor, Tensor]]
    behaviours_out: list[tuple[Tensor, Tensor]]
    embedding: Tensor  # (G, H)


def grouped(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Map (B, T, n) whose B rows are G equal groups, each group with its own weights."""
    weight, bias = pair
    groups, batch, bins = weight.shape[0], x.shape[0], x.shape[1]
    rows = x.reshape(groups, batch // groups * bins, x.shape[2])
    return torch.baddbmm(bias.to(rows), rows, weight.to(rows)).view(batch, bins, -1)


class Neds(nn.Module):
    """Spikes and behaviours of one or more sessions in, predictions of every modality out.

    1. counts (B, T, N) -> sqrt -> the session's linear map -> stem -> spike tokens
    2. behaviours, as the model sees them (B, T, n_outputs) -> linear maps -> behaviour tokens
    3. hidden tokens become the mask token; modality and session embeddings are added
    4. pre-norm transformer; tokens of the same bin apart ("separate": ordered by modality, then
       bin) or added up ("summed")
    5. the session's heads: log spike rates (B, T, N) and one output per behaviour
    """

    norm: nn.LayerNorm

    def __init__(self, config: ModelConfig, sessions: list[SessionSpec]) -> None:
        super().__init__()
        self.config = config
        width = config.hidden
        specs = {b.name: b for s in sessions for b in s.behaviours}
        names = sorted(specs)
        self.modality_index = {name: i + 1 for i, name in enumerate(names)}  # 0 is spikes
        self.index = {spec.session: i for i, spec in enumerate(sessions)}
        places = sorted({place for s in sessions for place in s.places(config.shared)})
        self.place_index = {place: i for i, place in enumerate(places)}
        self.stitchers = nn.ModuleList(
            Stitcher(s, width, [self.place_index[p] for p in s.places(config.shared)])
            for s in sessions
        )
        self.place_in = nn.Parameter(torch.empty(len(places), width))
        self.place_out = nn.Parameter(torch.empty(len(places), width))
        if config.shared:
            self.common = nn.ModuleList(BehaviourStitch(specs[name], width) for name in names)
        self.modality = nn.Parameter(torch.randn(1 + len(names), width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(width))
        if config.form == "window":
            self.position = nn.Parameter(torch.randn(config.window, width) * 0.02)
        if config.inputs == "table":
            self.table = nn.Parameter(torch.arange(16.0).sqrt())
        self.stem = Stem(config)
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
            if self.config.shared:
                # What sessions share starts as one session's map would, their own part at zero.
                units = max((s.spec.n_units for s in self.stitch_list()), default=1)
                self.place_in.uniform_(-(units**-0.5), units**-0.5)
                bound = self.config.hidden**-0.5
                self.place_out.uniform_(-bound, bound)
                for stitch in self.stitch_list():
                    if len(stitch.places):
                        stitch.spikes_in.weight.zero_()
                        stitch.spikes_out.weight.zero_()
                    for part in stitch.parts():
                        for parameter in part.parameters():
                            parameter.zero_()

    def layers(self) -> list[Block]:
        """The transformer layers, first to last."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def stitch_list(self) -> list[Stitcher]:
        """Every session's own parameters, in order."""
        return [s for s in self.stitchers if isinstance(s, Stitcher)]

    def stitcher(self, session: str) -> Stitcher:
        """The session's own parameters; raises KeyError for a session the model does not have."""
        return self.stitch_list()[self.index[session]]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mask_token.device

    def behaviours_of(self, sessions: Sequence[str]) -> list[BehaviourSpec]:
        """The behaviours of these sessions in order of first appearance, as `forward` has them."""
        found: dict[str, BehaviourSpec] = {}
        for session in sessions:
            for spec in self.stitcher(session).spec.behaviours:
                found.setdefault(spec.name, spec)
        return list(found.values())

    def maps(self, sessions: Sequence[str], keep_own: Tensor | None = None) -> Maps:
        """The sessions' own maps, with what they share added, stacked.

        keep_own (G,) float: 0 takes a session's own part away, which leaves what a new session
        without any data of its own would use. Its baseline rates and scaling stay.
        """
        stitches = [self.stitcher(s) for s in sessions]
        # Few large operations: a graphics card pays for each of them, whatever its size.
        keep = None if keep_own is None else keep_own.view(-1, 1, 1)
        into = _padded([s.spikes_in.weight.T for s in stitches])
        out = _padded([s.spikes_out.weight for s in stitches])
        into, out = _times(into, keep), _times(out, keep)
        if len(self.place_in):
            places = nn.utils.rnn.pad_sequence([s.places for s in stitches], batch_first=True,
                                               padding_value=-1)
            known = (places >= 0)[..., None]
            into = into + self.place_in[places] * known
            out = out + self.place_out[places] * known
        embedding = torch.stack([s.embedding for s in stitches])[:, None]
        specs = self.behaviours_of(sessions)
        behaviours = [self._behaviour_maps(stitches, spec, keep) for spec in specs]
        return Maps(
            spikes_in=(into, torch.stack([s.spikes_in.bias for s in stitches])[:, None]),
            spikes_out=(out.transpose(1, 2),
                        _padded([s.spikes_out.bias for s in stitches])[:, None]),
            behaviours_in=[(b[0], b[1]) for b in behaviours],
            behaviours_out=[(b[2], b[3]) for b in behaviours],
            embedding=_times(embedding, keep)[:, 0],
        )

    def _behaviour_maps(
        self, stitches: list[Stitcher], spec: BehaviourSpec, keep: Tensor | None
    ) -> list[Tensor]:
        """Weight (G, n, H) and bias (G, 1, H) in, weight (G, H, n) and bias (G, 1, n) out."""
        width, blank = self.config.hidden, self.mask_token.new_zeros
        # Zeros for a session that lacks the behaviour: its tokens are hidden anyway.
        lacking = (blank(spec.n_outputs, width), blank(width), blank(width, spec.n_outputs),
                   blank(spec.n_outputs))
        rows = [next((p.pieces() for p in s.parts() if p.spec.name == spec.name), lacking)
                for s in stitches]
        stacked = [torch.stack(pieces) for pieces in zip(*rows, strict=True)]
        stacked = [_times(x if x.ndim == 3 else x[:, None], keep) for x in stacked]
        if self.config.shared:
            common = self.common[self.modality_index[spec.name] - 1]
            assert isinstance(common, BehaviourStitch)
            stacked = [x + piece for x, piece in zip(stacked, common.pieces(), strict=True)]
        return stacked

    def forward(
        self,
        sessions: Sequence[str],
        counts: Tensor,
        behaviours: list[Tensor],
        hidden_spikes: Tensor,
        hidden_behaviours: Tensor,
        first_bin: int = 0,
        absent: Tensor | None = None,
        keep_own: Tensor | None = None,
        rates: bool = True,
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict every modality of every bin.

        The B rows are as many equal groups as there are sessions, in their order; N is the most
        units of any of them, M the behaviours of `behaviours_of(sessions)`. counts (B, T, N)
        float; behaviours[m] (B, T, n_outputs) as `encode_behaviour` gives them; hidden_spikes
        (B, T) and hidden_behaviours (B, M, T) bool, True where the token is hidden or was never
        recorded; absent (B, 1 + M, T) bool, True where it was never recorded: nothing ever sees
        such a token. Returns log rates (B, T, N), or (B, T, 0) without `rates`, and per behaviour
        (B, T, n_outputs).
        """
        maps = self.maps(sessions, keep_own)
        embedded, _ = self.embed_spikes(maps, counts, hidden_spikes)
        x, visible = self.tokens(maps, sessions, embedded, behaviours, hidden_spikes,
                                 hidden_behaviours)
        bins = counts.shape[1]
        if absent is not None:
            absent = absent.all(1) if self.config.tokens == "summed" else absent.flatten(1)
        x = self.encode(x, visible, bins, first_bin, absent)
        return self.heads(maps, x, bins, rates)

    def embed_spikes(
        self, maps: Maps, counts: Tensor, hidden: Tensor,
        state: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
        """Spike embeddings (B, T, H) after the stem, and the stem's state for the bins to come.

        counts (B, T, N) float, as recorded: the square root that evens out Poisson variance is
        taken here. A hidden bin enters the stem as zero, so its counts reach no other token.
        """
        if self.config.inputs == "sqrt":
            counts = counts.sqrt()
        elif self.config.inputs == "table":
            counts = self.table[counts.clamp(max=15).long()]
        embedded = grouped(counts, maps.spikes_in).masked_fill(hidden[..., None], 0.0)
        result: tuple[Tensor, tuple[Tensor | None, Tensor | None]] = self.stem(embedded, state)
        return result

    def tokens(
        self, maps: Maps, sessions: Sequence[str], embedded: Tensor, behaviours: list[Tensor],
        hidden_spikes: Tensor, hidden_behaviours: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, S, H) and which of them may be seen (B, S); S is T or (1 + M) T."""
        order = [self.modality_index[b.name] for b in self.behaviours_of(sessions)]
        values = [embedded] + [
            grouped(b, pair) for b, pair in zip(behaviours, maps.behaviours_in, strict=True)
        ]
        hidden = [hidden_spikes, *hidden_behaviours.unbind(1)]
        bins = embedded.shape[1]
        summed = self.config.tokens == "summed"
        parts = []
        for index, value, hide in zip([0, *order], values, hidden, strict=True):
            value = self.token_dropout(value)
            if summed:  # the modality's embedding marks what is hidden
                parts.append(torch.where(hide[..., None], self.modality[index].to(value), value))
            else:
                token = torch.where(hide[..., None], self.mask_token.to(value), value)
                parts.append(token + self.modality[index])
        visible = torch.stack([~h for h in hidden], 1)  # (B, 1 + M, T)
        if summed:
            # A behaviour that no session of the batch has is hidden like one that some lack.
            lacking = [i for i in self.modality_index.values() if i not in order]
            x = torch.stack(parts).sum(0) + self.modality[lacking].sum(0)
            visible = visible.any(1)
        else:
            x, visible = torch.cat(parts, 1), visible.flatten(1)
        share = x.shape[0] // len(sessions)
        x = x + maps.embedding.repeat_interleave(share, 0)[:, None]
        if self.config.form == "window":
            x = x + self.position[:bins].repeat(x.shape[1] // bins, 1)
        return x, visible

    def heads(
        self, maps: Maps, x: Tensor, bins: int, rates: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """Log rates and behaviour outputs from the encoder's output (B, S, H)."""
        n = len(maps.behaviours_out)
        parts = [x] * (1 + n) if self.config.tokens == "summed" else list(x.split(bins, dim=1))
        outputs = [grouped(z, pair) for z, pair in zip(parts[1:], maps.behaviours_out, strict=True)]
        return grouped(parts[0], maps.spikes_out) if rates else parts[0][..., :0], outputs

    def encode(
        self, x: Tensor, visible: Tensor, bins: int, first_bin: int, absent: Tensor | None = None
    ) -> Tensor:
        """Run the layers over x (B, S, H), S tokens ordered by modality then bin.

        `visible` (B, S) bool, False for hidden tokens; `absent` (B, S), True where nothing was
        recorded; `first_bin` is the stream's position of the first of the `bins` bins. Returns
        (B, S, H), after the last norm.
        """
        groups = x.shape[1] // bins
        cos, sin = _phases(first_bin, bins, groups, self.config.hidden // self.config.heads,
                           self.config.rope_base, x.device)
        everything = "all" if self.config.form == "window" else "visible"
        if (self.config.attend or everything) == "all":
            visible = torch.ones_like(visible) if absent is None else ~absent
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
        t = torch.arange(bins, device=visible.device)
        age = t[:, None] - t[None]
        band = (age >= 0) & (age < self.config.window)
        if self.config.form == "window":
            band = torch.ones_like(band)
        groups = tokens // bins
        return band.repeat(groups, groups)[None] & visible[:, None]

    @property
    def receptive_field(self) -> int:
        """Bins of the past whose tokens can reach a bin's outputs by attention (stream form)."""
        return self.config.layers * (self.config.window - 1)


@functools.lru_cache(maxsize=64)
def _phases(
    first: int, bins: int, groups: int, head_width: int, base: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Phases of `groups` tokens a bin, kept on the device for the next call."""
    with torch.inference_mode(False):  # they will be of use in training too
        cos, sin = rotary_phases(torch.arange(first, first + bins), head_width, base)
        return cos.repeat(groups, 1).to(device), sin.repeat(groups, 1).to(device)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _padded(rows: list[Tensor]) -> Tensor:
    """Stack tensors of unequal first size, filled up with zeros at the end."""
    if len(rows) == 1:
        return rows[0][None]
    flat = torch.cat([*rows, rows[0].new_zeros(1, *rows[0].shape[1:])])
    return flat[_padding(tuple(len(row) for row in rows), flat.device)]


@functools.lru_cache(maxsize=256)
def _padding(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the rows of `_padded` come from, (G, most) int64: the last row is the filling."""
    with torch.inference_mode(False):  # it will be of use in training too
        index = torch.full((len(sizes), max(sizes)), sum(sizes))
        start = 0
        for row, size in zip(index, sizes, strict=True):
            row[:size] = torch.arange(start, start + size)
            start += size
        return index.to(device)


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
    mean = counts.flatten(0, -2).sum(0) / max(1, counts.flatten(0, -2).shape[0])
    return (mean + math.exp(-7)).log()
