"""The window recomputed for every bin, in torch on a GPU: eager, compiled, or as a CUDA graph.

Only the window's spike tokens and the newest bin's queries are computed (`last_bin_only`), or all
tokens of the window as the batch form has them. Both equal the streaming step for the first
`window` bins of a stream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neds.cudagraph_engine import LAYER_TENSORS, PRECISIONS, torch_device
from neds.model import rotary_phases
from neds_rt.bundle import Bundle


class WindowEngine:
    """Recompute the window every bin. `how` is "eager", "graph", or a mode of torch.compile."""

    name = "torch-window"

    def __init__(self, bundle: Bundle, precision: str = "float32", how: str = "eager",
                 last_bin_only: bool = False, device: str = "") -> None:
        manifest = bundle.manifest
        self.shape, self.modalities = manifest.shape, manifest.modalities
        self.precision, self.dtype = precision, PRECISIONS[precision]
        self.device, self.how = torch_device(device), how
        self.n_units = len(manifest.units)
        self.n_outputs = sum(m.n_outputs for m in manifest.modalities)
        matrices = {n for n, w in bundle.weights.items() if w.ndim == 2 and n.startswith("layers")}
        self.w = {
            n: torch.from_numpy(w.copy()).to(
                self.device, self.dtype if n in matrices | {"input.weight"} else torch.float32)
            for n, w in bundle.weights.items()
        }
        window = self.shape.window
        groups = [torch.arange(window)]  # bins of the tokens: spikes, then each behaviour's queries
        groups += [torch.arange(window - 1 if last_bin_only else 0, window)
                   for _ in self.modalities]
        self.bins = torch.cat(groups).to(self.device)
        self.counts_of = [len(group) for group in groups]
        last = torch.cumsum(torch.tensor(self.counts_of), 0)[1:] - 1
        self.last = last.to(self.device)  # the newest bin's tokens of the behaviours
        head = self.shape.hidden // self.shape.heads
        cos, sin = rotary_phases(self.bins.cpu(), head, self.shape.rope_base)
        self.cos, self.sin = cos.to(self.device), sin.to(self.device)
        age = self.bins[:, None] - torch.arange(window, device=self.device)
        self.causal = age >= 0
        pinned = self.device.type == "cuda"
        self._host = torch.zeros(window, self.n_units + 1, pin_memory=pinned)  # counts, present
        self._rows = self._host.numpy()
        self._sent = torch.zeros(window, self.n_units + 1, device=self.device)
        self._result = torch.zeros(self.n_outputs, pin_memory=pinned)
        self._outputs: NDArray[np.float32] = np.zeros(self.n_outputs, np.float32)
        self._compute: Callable[[Tensor], Tensor] = self.compute
        if how not in ("eager", "graph"):
            fixed = (*self.w.values(), self.cos, self.sin, self.causal, self.last, self._sent)
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
        self._rows[-1, :-1] = counts
        self._rows[-1, -1] = present
        self.warm()
        np.copyto(self._outputs, self._result.numpy())
        return self._outputs

    def skip(self, n_bins: int) -> None:
        """Shift the window by lost bins."""
        for _ in range(min(n_bins, self.shape.window)):
            self._rows[:-1] = self._rows[1:]
            self._rows[-1] = 0

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
        self._result.copy_(self._compute(self._sent), non_blocking=True)

    def compute(self, rows: Tensor) -> Tensor:
        """Outputs of the newest bin (n_outputs,) from counts and presence (window, units + 1)."""
        w, hidden = self.w, self.shape.hidden
        present = rows[:, -1] > 0
        e = (rows[:, :-1].sqrt().to(self.dtype) @ w["input.weight"]).float() + w["input.bias"]
        e = e * present[:, None]
        token = e + w["input.token"]
        if self.shape.conv:
            padded = F.pad(e, (0, 0, self.shape.conv - 1, 0))
            taps = padded.unfold(0, self.shape.conv, 1).flip(-1)  # (window, H, taps)
            g = (taps * w["conv.weight"].T).sum(-1) + w["conv.bias"]
            token = token + F.gelu(g, approximate="tanh")
        queries = [q.expand(n, hidden)
                   for q, n in zip(w["queries"], self.counts_of[1:], strict=True)]
        x = torch.cat((token, *queries))
        sees = self.causal & present
        blind = ~sees.any(-1, keepdim=True)
        for layer in range(self.shape.layers):
            x = self._layer(layer, x, sees | blind, blind)
        z = F.layer_norm(x[self.last], (hidden,), w["norm.weight"], w["norm.bias"], 1e-5)
        parts, begin = [], 0
        for m, modality in enumerate(self.modalities):
            chosen = slice(begin, begin + modality.n_outputs)
            raw = F.linear(z[m], w["head.weight"][chosen], w["head.bias"][chosen])
            parts.append(raw.softmax(-1) if modality.kind == "categorical" else raw)
            begin += modality.n_outputs
        return torch.cat(parts)

    def _layer(self, layer: int, x: Tensor, sees: Tensor, blind: Tensor) -> Tensor:
        hidden, heads, window = self.shape.hidden, self.shape.heads, self.shape.window
        w = {n: self.w[f"layers.{layer}.{n}"] for n in LAYER_TENSORS}
        y = F.layer_norm(x, (hidden,), w["norm1.weight"], w["norm1.bias"], 1e-5)
        qkv = self._linear(y, w["qkv.weight"], w["qkv.bias"]).view(len(x), 3, heads, -1)
        query, key, value = qkv.permute(1, 2, 0, 3)  # each (heads, tokens, D)
        query, key = self._turn(query), self._turn(key)
        mixed = F.scaled_dot_product_attention(
            query.to(self.dtype)[None], key[:, :window].to(self.dtype)[None],
            value[:, :window].to(self.dtype)[None], attn_mask=sees)[0].float()
        merged = mixed.transpose(0, 1).reshape(len(x), hidden).masked_fill(blind, 0.0)
        x = x + self._linear(merged, w["out.weight"], w["out.bias"])
        y = F.layer_norm(x, (hidden,), w["norm2.weight"], w["norm2.bias"], 1e-5)
        inner = F.gelu(self._linear(y, w["up.weight"], w["up.bias"]), approximate="tanh")
        return x + self._linear(inner, w["down.weight"], w["down.bias"])

    def _turn(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), weight).float() + bias
