"""The window recomputed for every bin, in torch on a GPU: eager, compiled, or as a CUDA graph.

The last layer is computed for the newest bin alone (`last_bin_only`), or for all tokens of the
window as the batch form has them. Both equal the streaming step for the first
`window` bins of a stream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neds.cudagraph_engine import LAYER_TENSORS, PRECISIONS, is_matrix, torch_device
from neds.model import rotary_phases
from neds_rt.bundle import Bundle


class WindowEngine:
    """Recompute the window every bin. `how` is "eager", "graph", or a mode of torch.compile."""

    name = "torch-window"
    precisions = tuple(PRECISIONS)

    def __init__(self, bundle: Bundle, precision: str = "float32", how: str = "eager",
                 last_bin_only: bool = False, device: str = "") -> None:
        manifest = bundle.manifest
        self.shape, self.modalities = manifest.shape, manifest.modalities
        self.precision, self.dtype = precision, PRECISIONS[precision]
        self.device, self.how = torch_device(device), how
        self.n_units = len(manifest.units)
        self.n_outputs = sum(m.n_outputs for m in manifest.modalities)
        self.last_bin_only = last_bin_only
        self.w = {
            n: torch.from_numpy(w.copy()).to(
                self.device, self.dtype if is_matrix(n) and not n.startswith("gru.")
                else torch.float32)
            for n, w in bundle.weights.items()
        }
        if self.shape.recurrent:
            # Bins before the stream's first must leave the GRU's memory zero: one more input, 1 for
            # such a bin, holds the update gate at "keep".
            hold = torch.zeros(3, self.shape.hidden, 1, device=self.device)
            hold[1] = 1e4
            self.w["gru.weight_ih"] = torch.cat((self.w["gru.weight_ih"], hold.flatten(0, 1)), 1)
        window = self.shape.window
        bins = torch.arange(window)
        head = self.shape.hidden // self.shape.heads
        cos, sin = rotary_phases(bins, head, self.shape.rope_base)
        self.cos, self.sin = cos.to(self.device), sin.to(self.device)
        self.causal = (bins[:, None] >= bins).to(self.device)
        pinned = self.device.type == "cuda"
        # Counts, present, and whether the bin is one of the stream.
        self._host = torch.zeros(window, self.n_units + 2, pin_memory=pinned)
        self._rows = self._host.numpy()
        self._sent = torch.zeros(window, self.n_units + 2, device=self.device)
        self._result = torch.zeros(self.n_outputs, pin_memory=pinned)
        self._outputs: NDArray[np.float32] = np.zeros(self.n_outputs, np.float32)
        self._compute: Callable[[Tensor], Tensor] = self.compute
        if how not in ("eager", "graph"):
            fixed = (*self.w.values(), self.cos, self.sin, self.causal, self._sent)
            for tensor in fixed:
                torch._dynamo.mark_static_address(tensor)  # else each would be copied every call
            self._compute = torch.compile(self.compute, mode=how, fullgraph=True)
        self._graph: torch.cuda.CUDAGraph | None = None
        for _ in range(3):
            self.warm()
        if how == "graph":
            graph = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(graph):
                self._transfer_and_compute()
            self._graph = graph

    def reset(self) -> None:
        """Forget all bins."""
        self._rows.fill(0)

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Shift the window by one bin and recompute it; returns the newest bin's outputs."""
        if counts.shape != (self.n_units,):
            raise ValueError(f"counts: found shape {counts.shape}, expected ({self.n_units},)")
        self._rows[:-1] = self._rows[1:]
        self._rows[-1, :-2] = counts if present else 0
        self._rows[-1, -2:] = present, True
        self.warm()
        np.copyto(self._outputs, self._result.numpy())
        return self._outputs

    def skip(self, n_bins: int) -> None:
        """Shift the window by lost bins."""
        for _ in range(min(n_bins, self.shape.window)):
            self._rows[:-1] = self._rows[1:]
            self._rows[-1, :-1], self._rows[-1, -1] = 0, True

    def warm(self) -> None:
        """Recompute the window as it is."""
        if self._graph is not None:
            self._graph.replay()
        else:
            with torch.inference_mode():
                self._transfer_and_compute()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _transfer_and_compute(self) -> None:
        self._sent.copy_(self._host, non_blocking=True)
        with torch.backends.cudnn.flags(allow_tf32=False):  # for the GRU: 1e-3 otherwise
            self._result.copy_(self._compute(self._sent), non_blocking=True)

    def compute(self, rows: Tensor) -> Tensor:
        """Outputs of the newest bin (n_outputs,) from the rows that `step` fills."""
        w, layers = self.w, self.shape.layers
        present = rows[:, -2] > 0
        x = torch.where(present[:, None], self._stem(rows) + w["input.token"], w["input.lost"])
        sees = self.causal & present
        blind = ~sees.any(-1, keepdim=True)
        for layer in range(layers):
            asking = 1 if self.last_bin_only and layer == layers - 1 else len(x)
            x = self._layer(layer, x, sees | blind, blind, asking)
        z = F.layer_norm(x[-1], (self.shape.hidden,), w["norm.weight"], w["norm.bias"], 1e-5)
        parts, begin = [], 0
        for modality in self.modalities:
            chosen = slice(begin, begin + modality.n_outputs)
            raw = F.linear(z, w["head.weight"][chosen], w["head.bias"][chosen])
            parts.append(raw.softmax(-1) if modality.kind == "categorical" else raw)
            begin += modality.n_outputs
        return torch.cat(parts)

    def _stem(self, rows: Tensor) -> Tensor:
        """Embeddings (window, H) after convolution and GRU."""
        w = self.w
        e = (rows[:, :-2].to(self.dtype) @ w["input.weight"]).float() + w["input.bias"]
        e = e * (rows[:, -2:-1] > 0)
        if self.shape.conv:
            padded = F.pad(e, (0, 0, self.shape.conv - 1, 0))
            taps = padded.unfold(0, self.shape.conv, 1).flip(-1)  # (window, H, taps)
            g = (taps * w["conv.weight"].T).sum(-1) + w["conv.bias"]
            e = e + F.gelu(g, approximate="tanh")
        if self.shape.recurrent:
            weights = [w[f"gru.{n}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            x = torch.cat((e, 1 - rows[:, -1:]), 1)
            start = e.new_zeros(1, 1, self.shape.hidden)
            memories, _ = torch.gru(x[:, None], start, weights, True, 1, 0.0, False, False, False)
            e = e + memories[:, 0]
        return e

    def _layer(self, layer: int, x: Tensor, sees: Tensor, blind: Tensor, asking: int) -> Tensor:
        """The layer's output of the newest `asking` rows of x (window, H)."""
        hidden, heads = self.shape.hidden, self.shape.heads
        w = {n: self.w[f"layers.{layer}.{n}"] for n in LAYER_TENSORS}
        y = F.layer_norm(x, (hidden,), w["norm1.weight"], w["norm1.bias"], 1e-5)
        last = slice(len(x) - asking, None)
        q = self._linear(y[last], w["qkv.weight"][:hidden], w["qkv.bias"][:hidden])
        kv = self._linear(y, w["qkv.weight"][hidden:], w["qkv.bias"][hidden:])
        query = self._turn(q.view(asking, heads, -1).transpose(0, 1), last)
        key, value = kv.view(len(x), 2, heads, -1).permute(1, 2, 0, 3)  # each (heads, window, D)
        key = self._turn(key, slice(None))
        mixed = F.scaled_dot_product_attention(
            query.to(self.dtype)[None], key.to(self.dtype)[None], value.to(self.dtype)[None],
            attn_mask=sees[last])[0].float()
        merged = mixed.transpose(0, 1).reshape(asking, hidden).masked_fill(blind[last], 0.0)
        x = x[last] + self._linear(merged, w["out.weight"], w["out.bias"])
        y = F.layer_norm(x, (hidden,), w["norm2.weight"], w["norm2.bias"], 1e-5)
        inner = F.gelu(self._linear(y, w["up.weight"], w["up.bias"]), approximate="tanh")
        return x + self._linear(inner, w["down.weight"], w["down.bias"])

    def _turn(self, x: Tensor, bins: slice) -> Tensor:
        a, b = x.chunk(2, -1)
        cos, sin = self.cos[bins], self.sin[bins]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), weight).float() + bias
