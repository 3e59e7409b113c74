"""Engines in torch on a GPU: one streaming step, eager or captured as a CUDA graph.

`neds.cudagraph_engine:GraphStep` is the dependable engine for GPUs without a plan or a kernel of
their own, and the baseline that those are measured against; `TorchStep` is the same step launched
operation by operation, on the device that `NEDS_TORCH_DEVICE` names (cuda where there is one).
The window that is recomputed every bin is in `neds.window_engines`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neds_rt.bundle import Bundle
from neds_rt.engines.lost_bins import SETTLING_BINS
from neds_rt.errors import StartError

DEVICE_VARIABLE = "NEDS_TORCH_DEVICE"
MASKED = -1e30
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_device(wanted: str = "") -> torch.device:
    """The device to run on; raises `StartError` for a GPU that is not there."""
    name = wanted or os.environ.get(DEVICE_VARIABLE, "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise StartError("torch finds no GPU, expected one and its driver (nvidia-smi shows both)")
    return torch.device(name)


class TorchStep:
    """The streaming step, every operation launched by itself.

    Matrices are in `precision`; norms, softmax and rotary phases stay in float32. The rings have
    one slot more than the window, into which lost and rehearsed bins write.
    """

    name = "torch-step"
    precisions = tuple(PRECISIONS)

    def __init__(self, bundle: Bundle, precision: str = "float32", device: str = "") -> None:
        manifest = bundle.manifest
        shape = manifest.shape
        self.shape, self.modalities = shape, manifest.modalities
        self.precision, self.dtype = precision, PRECISIONS[precision]
        self.device = torch_device(device)
        self.n_units = len(manifest.units)
        self.n_outputs = sum(m.n_outputs for m in manifest.modalities)
        self.head_width = shape.hidden // shape.heads
        self.w = {
            name: torch.from_numpy(w.copy()).to(
                self.device, self.dtype if is_matrix(name) else torch.float32)
            for name, w in bundle.weights.items()
        }
        self._make_rings()
        self._make_buffers()
        self.reset()

    def _make_rings(self) -> None:
        shape, d = self.shape, self.head_width
        ring = (shape.layers, shape.heads, shape.window + 1, d)
        self.keys = torch.zeros(ring, dtype=self.dtype, device=self.device)
        self.values = torch.zeros_like(self.keys)
        self.past = torch.zeros(max(shape.conv - 1, 0), shape.hidden, device=self.device)
        self.memory = torch.zeros(shape.hidden, device=self.device)

    def _make_buffers(self) -> None:
        """One packed float buffer in host memory (pinned for a GPU), and its copy on the device."""
        half, window = self.head_width // 2, self.shape.window
        sizes = {"counts": self.n_units, "cos": half, "sin": half, "bias": window + 1, "live": 1,
                 "keep": 1, "some": 1, "slot": 1}
        total = sum(sizes.values())
        pinned = self.device.type == "cuda"
        self._host = torch.zeros(total, pin_memory=pinned)
        self._sent = torch.zeros(total, device=self.device)
        host = self._host.numpy()
        self._write: dict[str, NDArray[np.float32]] = {}
        self._read: dict[str, Tensor] = {}
        begin = 0
        for name, size in sizes.items():
            self._write[name] = host[begin : begin + size]
            self._read[name] = self._sent[begin : begin + size]
            begin += size
        self._result = torch.zeros(self.n_outputs, pin_memory=pinned)
        self._outputs: NDArray[np.float32] = np.zeros(self.n_outputs, np.float32)
        self._frequencies = self.shape.rope_base ** (-np.arange(half) / half)

    def reset(self) -> None:
        """Forget all bins: the next step is bin 0 of a new stream."""
        self._position = 0
        self._write["bias"].fill(MASKED)
        self.past.zero_()
        self.memory.zero_()
        self._settle()

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin; returns the engine's own buffer, shape (n_outputs,)."""
        if counts.shape != (self.n_units,):
            raise ValueError(f"counts: found shape {counts.shape}, expected ({self.n_units},)")
        window, write = self.shape.window, self._write
        slot = self._position % window
        write["counts"][:] = counts if present else 0
        write["bias"][slot] = 0.0 if present else MASKED
        self._place(slot if present else window, live=present, keep=True)
        self._run()
        self._position += 1
        np.copyto(self._outputs, self._result.numpy())
        return self._outputs

    def skip(self, n_bins: int) -> None:
        """Advance by `n_bins` lost bins without computing outputs."""
        if n_bins < 0:
            raise ValueError(f"n_bins: found {n_bins}, expected at least 0")
        slots = (self._position + np.arange(min(n_bins, self.shape.window))) % self.shape.window
        self._write["bias"][slots] = MASKED
        self._write["counts"][:] = 0
        self._write["live"][0], self._write["keep"][0] = False, True
        with torch.inference_mode():
            self._sent.copy_(self._host)
            for _ in range(min(n_bins, SETTLING_BINS if self.shape.recurrent else len(self.past))):
                self._token()  # moves on what a lost bin moves on
        self._settle()
        self._position += n_bins

    def warm(self) -> None:
        """Run a step whose result is dropped; later outputs are as if it had not been called."""
        self._write["counts"][:] = 1.0
        self._place(self.shape.window, live=True, keep=False)
        self._run()

    def _place(self, slot: int, live: bool, keep: bool) -> None:
        write = self._write
        write["slot"][0], write["live"][0], write["keep"][0] = slot, live, keep
        write["some"][0] = (write["bias"][:-1] == 0.0).any()
        angle = self._frequencies * self._position
        np.cos(angle, out=write["cos"], casting="same_kind")
        np.sin(angle, out=write["sin"], casting="same_kind")

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _run(self) -> None:
        with torch.inference_mode():
            self._transfer_and_compute()
        self._settle()

    def _transfer_and_compute(self) -> None:
        self._sent.copy_(self._host, non_blocking=True)
        self._result.copy_(self.compute(), non_blocking=True)

    def compute(self) -> Tensor:
        """Outputs of the bin that the device's input buffer describes, (n_outputs,)."""
        read, w = self._read, self.w
        x = self._token()[None]
        cos, sin = read["cos"], read["sin"]
        slot = read["slot"].long()
        for layer in range(self.shape.layers):
            x = self._layer(layer, x, slot, cos, sin)
        z = F.layer_norm(x, (self.shape.hidden,), w["norm.weight"], w["norm.bias"], 1e-5)
        parts, begin = [], 0
        for modality in self.modalities:
            rows = slice(begin, begin + modality.n_outputs)
            raw = F.linear(z[0], w["head.weight"][rows], w["head.bias"][rows])
            parts.append(raw.softmax(-1) if modality.kind == "categorical" else raw)
            begin += modality.n_outputs
        return torch.cat(parts)

    def _token(self) -> Tensor:
        read, w = self._read, self.w
        product = (read["counts"].to(self.dtype) @ w["input.weight"]).float()
        e = (product + w["input.bias"]) * read["live"]
        keep = read["keep"] > 0
        if self.shape.conv:
            taps = torch.cat((e[None], self.past))
            g = (w["conv.weight"] * taps).sum(0) + w["conv.bias"]
            e = e + F.gelu(g, approximate="tanh")
            if len(self.past):
                self.past.copy_(torch.where(keep, taps[:-1], self.past))
        if self.shape.recurrent:
            memory = self._recall(e)
            self.memory.copy_(torch.where(keep, memory, self.memory))
            e = e + memory
        return torch.where(read["live"] > 0, e + w["input.token"], w["input.lost"])

    def _recall(self, x: Tensor) -> Tensor:
        """The GRU's memory after this bin."""
        w = self.w
        now = self._linear(x, w["gru.weight_ih"], w["gru.bias_ih"]).chunk(3)
        back = self._linear(self.memory, w["gru.weight_hh"], w["gru.bias_hh"]).chunk(3)
        reset, update = (now[0] + back[0]).sigmoid(), (now[1] + back[1]).sigmoid()
        candidate = (now[2] + reset * back[2]).tanh()
        return candidate + update * (self.memory - candidate)

    def _layer(self, layer: int, x: Tensor, slot: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden, heads, d = self.shape.hidden, self.shape.heads, self.head_width
        w = {n: self.w[f"layers.{layer}.{n}"] for n in LAYER_TENSORS}
        y = F.layer_norm(x, (hidden,), w["norm1.weight"], w["norm1.bias"], 1e-5)
        qkv = self._linear(y, w["qkv.weight"], w["qkv.bias"]).view(-1, 3, heads, d)
        query = turn(qkv[:, 0], cos, sin).transpose(0, 1)
        key, value = turn(qkv[:1, 1], cos, sin)[0], qkv[0, 2]
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(1, slot, key[:, None].to(self.dtype))
        values.index_copy_(1, slot, value[:, None].to(self.dtype))
        scores = (query.to(self.dtype) @ keys.transpose(1, 2)).float() * d**-0.5
        share = (scores + self._read["bias"]).softmax(-1)
        mixed = (share.to(self.dtype) @ values).float() * self._read["some"]
        merged = mixed.transpose(0, 1).reshape(-1, hidden)
        x = x + self._linear(merged, w["out.weight"], w["out.bias"])
        y = F.layer_norm(x, (hidden,), w["norm2.weight"], w["norm2.bias"], 1e-5)
        inner = F.gelu(self._linear(y, w["up.weight"], w["up.bias"]), approximate="tanh")
        return x + self._linear(inner, w["down.weight"], w["down.bias"])

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), weight).float() + bias


LAYER_TENSORS = ("norm1.weight", "norm1.bias", "qkv.weight", "qkv.bias", "out.weight", "out.bias",
                 "norm2.weight", "norm2.bias", "up.weight", "up.bias", "down.weight", "down.bias")


def is_matrix(name: str) -> bool:
    """Whether the engine's precision is that of this tensor; vectors and heads stay in float32."""
    return name == "input.weight" or (
        name.startswith(("layers.", "gru.")) and "weight" in name and "norm" not in name)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (rows, heads, D) by the bin's phases (D/2,)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class GraphStep(TorchStep):
    """The same step captured once as a CUDA graph: copy in, all operations, copy out."""

    name = "cudagraph"

    def __init__(self, bundle: Bundle, precision: str = "float32", device: str = "") -> None:
        super().__init__(bundle, precision, device)
        if self.device.type != "cuda":
            raise StartError("engine cudagraph: found no GPU, expected one that torch can use")
        self._graph: Any = None
        for _ in range(3):  # libraries make their workspaces before the capture
            self.warm()
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self._transfer_and_compute()
        self._graph = graph
        self.reset()

    def _run(self) -> None:
        if self._graph is None:
            super()._run()
            return
        self._graph.replay()
        self._settle()
