"""The streaming step as an ONNX graph of static shapes, made from a bundle's tensors.

Inputs, all float32: `counts` (U,), `cos` and `sin` (d/2,) of the bin's position, `live` (1,) 1 or
0, `slot_bias` (W,) 0 or `MASKED`, `keys.i` (h, d, W) and `values.i` (h, W, d) of every layer i;
with a convolution `embeddings` (K-1, H), newest first; with a GRU its `memory` (H,). Outputs:
`outputs` (n_outputs,), `new_key` and `new_value` (L, h, d); with a convolution `embedding` (H,);
with a GRU `new_memory` (H,).

The rings are inputs only: the caller writes one key and value into its own ring, so that a step
moves none of it. The slot that the new bin will take must be masked in `slot_bias`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from neds_rt.engines.onnx_nodes import Nodes
from neds_rt.manifest import Manifest, ModalityOut

MASKED = -1e30  # finite: a row in which everything is masked must not become NaN


def build_step_graph(manifest: Manifest, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the serialised ONNX model of one step.

    Raises `StartError` when the package `onnx` is not installed.
    """
    return StepGraph(manifest, weights).build()


class ModelGraph(Nodes):
    """What one step and a whole window have in common, for x of shape (rows, H)."""

    def __init__(
        self,
        manifest: Manifest,
        weights: Mapping[str, NDArray[np.float32]],
        precision: str = "fp32",
        emulated: bool = False,
    ) -> None:
        super().__init__(precision, emulated)
        self.shape = manifest.shape
        self.units = len(manifest.units)
        self.modalities = manifest.modalities
        self.n_outputs = sum(modality.n_outputs for modality in manifest.modalities)
        self.weights = weights
        self.head_dim = self.shape.hidden // self.shape.heads

    def build(self) -> bytes:
        """Return the serialised model."""
        raise NotImplementedError

    def _embed(self, counts: str) -> str:
        """Embeddings (rows, H) of counts (rows, U).

        In float32 whatever the graph's precision: a count of 65535 is more than float16 holds.
        """
        w = self.weights
        e = self.op("MatMul", counts, self.constant("input.weight", w["input.weight"]))
        return self.op("Add", e, self.constant("input.bias", w["input.bias"]))

    def _tokens(self, e: str, present: str) -> str:
        """The tokens of bins whose spikes are there (`present` bool), and of lost ones."""
        there = self.op("Add", e, self.constant("input.token", self.weights["input.token"]))
        lost = self.constant("input.lost", self.weights["input.lost"])
        return self.op("Where", present, there, lost)

    def _gelu(self, x: str) -> str:
        return self.op("Gelu", x, approximate="tanh")

    def _any(self, bias: str, axis: int) -> str:
        """1 or 0, float32: whether an additive bias leaves anything unmasked along `axis`."""
        best = self.op("ReduceMax", bias, self.ints(axis), keepdims=1)
        half = self.constant("half_masked", np.full(1, MASKED / 2, np.float32))
        return self.op("Cast", self.op("Greater", best, half), to=self.float)

    def _projected(self, layer: int, x: str, rows: int) -> list[str]:
        """Queries, keys and values (h, rows, d) before rotation; queries are scaled."""
        hidden, name = self.shape.hidden, f"layers.{layer}"
        scale = np.ones(3 * hidden, np.float32)
        scale[:hidden] = 1 / np.sqrt(self.head_dim)
        w, b = self.weights[f"{name}.qkv.weight"], self.weights[f"{name}.qkv.bias"]
        y = self._norm(f"{name}.norm1", x)
        qkv = self.linear(f"{name}.qkv", y, w * scale[:, None], b * scale)
        parts = (self.slice(qkv, i * hidden, (i + 1) * hidden, axis=1) for i in range(3))
        return [self._heads(part, rows) for part in parts]

    def _finish_layer(self, layer: int, x: str, merged: str) -> str:
        """`x` after the attention's result `merged` (rows, H) and the layer's second half."""
        name = f"layers.{layer}"
        x = self.op("Add", x, self._block_linear(f"{name}.out", merged))
        inner = self._gelu(self._block_linear(f"{name}.up", self._norm(f"{name}.norm2", x)))
        return self.op("Add", x, self._block_linear(f"{name}.down", inner))

    def _rotate(self, x: str, cos: str, sin: str) -> str:
        """Rotate (h, rows, d) by phases (rows, d/2)."""
        half = self.head_dim // 2
        a, b = self.slice(x, 0, half, axis=2), self.slice(x, half, 2 * half, axis=2)
        first = self.op("Sub", self.op("Mul", a, cos), self.op("Mul", b, sin))
        second = self.op("Add", self.op("Mul", b, cos), self.op("Mul", a, sin))
        return self.op("Concat", first, second, axis=2)

    def _readouts(self, row: str) -> str:
        z = self._norm("norm", row)
        parts, begin = [], 0
        for m, modality in enumerate(self.modalities):
            parts.append(self._readout(m, modality, z, begin))
            begin += modality.n_outputs
        joined = parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)
        return self.op("Squeeze", joined, self.ints(0))

    def _readout(self, m: int, modality: ModalityOut, z: str, begin: int) -> str:
        end = begin + modality.n_outputs
        weight, bias = self.weights["head.weight"][begin:end], self.weights["head.bias"][begin:end]
        raw = self.float_linear(f"head.{m}", z, weight, bias)
        return self.op("Softmax", raw, axis=-1) if modality.kind == "categorical" else raw

    def _heads(self, x: str, rows: int) -> str:
        """(rows, H) -> (h, rows, d)."""
        heads, d = self.shape.heads, self.head_dim
        if rows == 1:
            return self.op("Reshape", x, self.ints(heads, 1, d))
        split = self.op("Reshape", x, self.ints(rows, heads, d))
        return self.op("Transpose", split, perm=[1, 0, 2])

    def _stack(self, parts: list[str]) -> str:
        parts = [self.op("Unsqueeze", part, self.ints(0)) for part in parts]
        return self.op("Concat", *parts, axis=0)

    def _norm(self, name: str, x: str) -> str:
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"])
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-5)

    def _block_linear(self, name: str, x: str) -> str:
        return self.linear(name, x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


class StepGraph(ModelGraph):
    """One bin. What the state looks like is said by the methods that subclasses replace."""

    def build(self) -> bytes:
        """Return the serialised model."""
        shape = self.shape
        self.input("counts", self.units)
        self.input("cos", self.head_dim // 2)
        self.input("sin", self.head_dim // 2)
        self.input("live", 1)
        self.input("slot_bias", shape.window)
        row = self._token()
        bias = self._bias()
        some = self._any(bias, 0)
        new = []
        for layer in range(shape.layers):
            row, key, value = self._layer(layer, row, bias, some)
            new.append((key, value))
        self._keep_rows(new)
        self.output("outputs", self._readouts(row), self.n_outputs)
        return self.serialised("neds_step")

    def _keep_rows(self, new: list[tuple[str, str]]) -> None:
        """Give out the keys and values (h, 1, d) of all layers."""
        size = (self.shape.layers, self.shape.heads, self.head_dim)
        for i, name in enumerate(("new_key", "new_value")):
            flat = [self.op("Reshape", pair[i], self.ints(*size[1:])) for pair in new]
            self.output(name, self._stack(flat), *size)

    def _past_keys(self, layer: int) -> str:
        """The ring of keys as the product with a query takes it, (h, d, W)."""
        shape = self.shape
        return self.input(f"keys.{layer}", shape.heads, self.head_dim, shape.window)

    def _past_values(self, layer: int) -> str:
        shape = self.shape
        return self.input(f"values.{layer}", shape.heads, shape.window, self.head_dim)

    def _keep_embeddings(self, e: str, taps: str) -> None:
        """Give out what the convolution needs of this bin later."""
        self.output("embedding", self.op("Squeeze", e, self.ints(0)), self.shape.hidden)

    def _token(self) -> str:
        """Return the token of the bin, (1, H): its spikes' if it is there, that of a lost one."""
        e = self._embed(self.op("Unsqueeze", "counts", self.ints(0)))
        e = self.op("Mul", e, "live")
        if self.shape.conv:
            e = self._convolve(e)
        if self.shape.recurrent:
            e = self._recall(e)
        return self._tokens(e, self.op("Cast", "live", to=self.bool))

    def _convolve(self, e: str) -> str:
        w, hidden, n_taps = self.weights, self.shape.hidden, self.shape.conv
        taps = e
        if n_taps > 1:
            self.input("embeddings", n_taps - 1, hidden)
            taps = self.op("Concat", e, "embeddings", axis=0)
        self._keep_embeddings(e, taps)
        product = self.op("Mul", taps, self.constant("conv.weight", w["conv.weight"]))
        g = self.op("ReduceSum", product, self.ints(0), keepdims=1)
        g = self.op("Add", g, self.constant("conv.bias", w["conv.bias"]))
        return self.op("Add", e, self._gelu(g))

    def _recall(self, e: str) -> str:
        """Add the GRU's memory after this bin."""
        hidden = self.shape.hidden
        self.input("memory", hidden)
        before = self.op("Unsqueeze", "memory", self.ints(0))
        w, parts = self.weights, []
        for end, x in (("ih", e), ("hh", before)):
            y = self.linear(f"gru.{end}", x, w[f"gru.weight_{end}"], w[f"gru.bias_{end}"])
            parts.append([self.slice(y, i * hidden, (i + 1) * hidden, axis=1) for i in range(3)])
        now, back = parts
        reset, update = (self.op("Sigmoid", self.op("Add", now[i], back[i])) for i in range(2))
        candidate = self.op("Tanh", self.op("Add", now[2], self.op("Mul", reset, back[2])))
        change = self.op("Mul", update, self.op("Sub", before, candidate))
        after = self.op("Add", candidate, change)
        self.output("new_memory", self.op("Squeeze", after, self.ints(0)), hidden)
        return self.op("Add", e, after)

    def _bias(self) -> str:
        """Return the additive bias of slots and new bin, (W+1,)."""
        one = self.constant("one", np.ones(1, np.float32))
        lost = self.op("Sub", one, "live")
        penalty = self.constant("masked", np.full(1, MASKED, np.float32))
        return self.op("Concat", "slot_bias", self.op("Mul", lost, penalty), axis=0)

    def _layer(self, layer: int, x: str, bias: str, some: str) -> tuple[str, str, str]:
        q, key, value = self._projected(layer, x, rows=1)
        q, key = (self.operand(self._rotate(part, "cos", "sin")) for part in (q, key))
        value = self.operand(value)
        attended = self._attend(layer, q, key, value, bias)
        shape = self.ints(1, self.shape.hidden)
        merged = self.op("Reshape", self.op("Mul", attended, some), shape)
        return self._finish_layer(layer, x, merged), key, value

    def _attend(self, layer: int, q: str, key: str, value: str, bias: str) -> str:
        window = self.shape.window
        own = self.matmul(q, self.op("Transpose", key, perm=[0, 2, 1]))
        scores = self.op("Concat", self.matmul(q, self._past_keys(layer)), own, axis=2)
        p = self.op("Softmax", self.op("Add", scores, bias), axis=-1)
        past = self.operand(self.slice(p, 0, window, axis=2))
        new = self.slice(p, window, window + 1, axis=2)
        old = self.matmul(past, self._past_values(layer))
        # One number times a row: in float32, the row as the ring will hold it.
        row = value if self.ring == self.float else self.op("Cast", value, to=self.float)
        return self.op("Add", old, self.op("Mul", new, row))
