"""Engines in eager torch that recompute the window for every bin: the baseline to be beaten.

Chosen as `--engine neds.torch_engine:EagerWindow` (all tokens of the window, as the batch form
computes them) or `neds.torch_engine:EagerLastBin` (the last layer is asked for the newest bin
alone). Both equal the streaming engines for the first `window` bins of a stream; after that a
recomputed window forgets what its first bins had seen, which the stream does not.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neds.export import BatchDecoder
from neds.model import Block, rotary_phases, rotate
from neds_rt.bundle import Bundle


class EagerWindow:
    """Recompute all tokens of the window a bin, one thread; the first windows are shorter."""

    name = "eager-window"
    precisions = ("float32",)

    def __init__(self, bundle: Bundle, precision: str = "float32") -> None:
        self.precision = precision
        torch.set_num_threads(1)
        manifest = bundle.manifest
        self.n_units = len(manifest.units)
        self.n_outputs = sum(m.n_outputs for m in manifest.modalities)
        self.window = manifest.shape.window
        self.decoder = BatchDecoder(bundle).eval()
        self.reset()

    def reset(self) -> None:
        """Forget all bins."""
        self.counts = torch.zeros(1, self.window, self.n_units)
        self.lost = torch.ones(1, self.window, dtype=torch.bool)
        self.seen = 0  # bins since then, the window at most

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Shift the window by one bin and recompute it; returns the newest bin's outputs."""
        self.shift()
        self.counts[0, -1] = torch.from_numpy(counts.astype(np.float32))
        self.lost[0, -1] = not present
        return self.recompute()

    def shift(self) -> None:
        """Move the window on by a lost bin."""
        self.counts, self.lost = torch.roll(self.counts, -1, 1), torch.roll(self.lost, -1, 1)
        self.counts[0, -1], self.lost[0, -1] = 0, True
        self.seen = min(self.seen + 1, self.window)

    def recompute(self) -> NDArray[np.float32]:
        """Outputs of the newest bin (n_outputs,) from the bins seen, or one blank one."""
        held = slice(self.window - max(self.seen, 1), None)
        with torch.inference_mode():
            return self.compute(self.counts[:, held], self.lost[:, held]).numpy()

    def compute(self, counts: Tensor, lost: Tensor) -> Tensor:
        """Outputs of the newest bin (n_outputs,)."""
        outputs: Tensor = self.decoder(counts, lost)
        return outputs[0, -1]

    def skip(self, n_bins: int) -> None:
        """Shift the window by lost bins."""
        for _ in range(min(n_bins, self.window)):
            self.shift()

    def warm(self) -> None:
        """Recompute the window as it is."""
        self.recompute()


class EagerLastBin(EagerWindow):
    """Recompute the window's tokens, and in the last layer the newest bin's row alone."""

    name = "eager-last-bin"

    def compute(self, counts: Tensor, lost: Tensor) -> Tensor:
        """Outputs of the newest bin (n_outputs,)."""
        model, config = self.decoder.model, self.decoder.model.config
        sessions, bins = [self.decoder.session], counts.shape[1]
        maps = model.maps(sessions)
        embedded, _ = model.embed_spikes(maps, counts, lost)
        n_behaviours = len(maps.behaviours_out)
        blank = [counts.new_zeros(1, bins, pair[0].shape[1]) for pair in maps.behaviours_in]
        hidden = torch.ones(1, n_behaviours, bins, dtype=torch.bool)
        x, visible = model.tokens(maps, sessions, embedded, blank, lost, hidden)
        sees = model.attention_mask(visible, bins)
        blind = ~sees.any(-1, keepdim=True)
        sees = (sees | blind)[:, None]
        cos, sin = rotary_phases(torch.arange(bins), config.hidden // config.heads,
                                 config.rope_base)
        *inner, last = model.layers()
        for block in inner:
            x = block(x, sees, blind, cos, sin)
        z: Tensor = model.norm(newest_row(last, x, sees, blind, cos, sin))
        _, outputs = model.heads(maps, z, 1)
        return self.decoder.finished(outputs)[0, 0]


def newest_row(
    block: Block, x: Tensor, sees: Tensor, blind: Tensor, cos: Tensor, sin: Tensor
) -> Tensor:
    """The last of the rows that `block(x, sees, blind, cos, sin)` gives, (1, 1, H)."""
    width, heads = x.shape[2], block.heads
    y = block.norm1(x)
    weight, bias = block.qkv.weight, block.qkv.bias

    def split(rows: Tensor) -> Tensor:
        parts: Tensor = rows.unflatten(2, (-1, heads, width // heads))
        return parts.permute(2, 0, 3, 1, 4)

    (query,) = split(F.linear(y[:, -1:], weight[:width], bias[:width]))
    key, value = split(F.linear(y, weight[width:], bias[width:]))
    query, key = rotate(query, cos[-1:], sin[-1:]), rotate(key, cos, sin)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees[:, :, -1:])
    row = mixed.transpose(1, 2).flatten(2).masked_fill(blind[:, -1:], 0.0)
    row = x[:, -1:] + block.out(row)
    hidden = F.gelu(block.up(block.norm2(row)), approximate="tanh")
    result: Tensor = row + block.down(hidden)
    return result
