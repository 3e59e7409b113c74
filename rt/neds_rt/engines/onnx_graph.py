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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import StartError
from neds_rt.manifest import Manifest, ModalityOut

OPSET = 20  # the first with Gelu
IR_VERSION = 9
MASKED = -1e30  # finite: a row in which everything is masked must not become NaN


def build_step_graph(manifest: Manifest, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the serialised ONNX model of one step.

    Raises `StartError` when the package `onnx` is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise StartError(
            "building an ONNX graph needs the package 'onnx': pip install 'neds[train]'"
        ) from None
    graph = _Graph(onnx.helper, manifest, weights)
    return bytes(graph.model().SerializeToString())


class _Graph:
    """Nodes in the order of the step; every method returns the name of its result."""

    def __init__(
        self, helper: Any, manifest: Manifest, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self.helper = helper
        self.float = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        self.bool = helper.np_dtype_to_tensor_dtype(np.dtype(np.bool_))
        self.shape = manifest.shape
        self.units = len(manifest.units)
        self.modalities = manifest.modalities
        self.weights = weights
        self.head_dim = self.shape.hidden // self.shape.heads
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.names: set[str] = set()

    def model(self) -> Any:
        shape, helper = self.shape, self.helper
        self._input("counts", self.units)
        self._input("cos", self.head_dim // 2)
        self._input("sin", self.head_dim // 2)
        self._input("live", 1)
        self._input("slot_bias", shape.window)
        row = self._token()
        bias, some = self._masks()
        new_keys, new_values = [], []
        for layer in range(shape.layers):
            row, key, value = self._layer(layer, row, bias, some)
            new_keys.append(key)
            new_values.append(value)
        self._output("new_key", self._stack(new_keys), shape.layers, shape.heads, self.head_dim)
        self._output("new_value", self._stack(new_values), shape.layers, shape.heads, self.head_dim)
        n_outputs = sum(modality.n_outputs for modality in self.modalities)
        self._output("outputs", self._readouts(row), n_outputs)
        graph = helper.make_graph(
            self.nodes, "neds_step", self.inputs, self.outputs, self.constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name = "neds"
        return model

    def _token(self) -> str:
        """Return the token of the bin, (1, H): its spikes' if it is there, that of a lost one."""
        w = self.weights
        counts = self._op("Unsqueeze", "counts", self._axes(0))
        e = self._op("MatMul", counts, self._constant("input.weight", w["input.weight"]))
        e = self._op("Add", e, self._constant("input.bias", w["input.bias"]))
        e = self._op("Mul", e, "live")
        if self.shape.conv:
            e = self._convolve(e)
        if self.shape.recurrent:
            e = self._recall(e)
        there = self._op("Add", e, self._constant("input.token", w["input.token"]))
        lost = self._constant("input.lost", w["input.lost"])
        return self._op("Where", self._op("Cast", "live", to=self.bool), there, lost)

    def _convolve(self, e: str) -> str:
        w, hidden, taps = self.weights, self.shape.hidden, self.shape.conv
        self._output("embedding", self._op("Squeeze", e, self._axes(0)), hidden)
        past = e
        if taps > 1:
            self._input("embeddings", taps - 1, hidden)
            past = self._op("Concat", e, "embeddings", axis=0)
        product = self._op("Mul", past, self._constant("conv.weight", w["conv.weight"]))
        g = self._op("ReduceSum", product, self._axes(0), keepdims=1)
        g = self._op("Add", g, self._constant("conv.bias", w["conv.bias"]))
        return self._op("Add", e, self._op("Gelu", g, approximate="tanh"))

    def _recall(self, e: str) -> str:
        """Add the GRU's memory after this bin."""
        hidden = self.shape.hidden
        self._input("memory", hidden)
        before = self._op("Unsqueeze", "memory", self._axes(0))
        w, parts = self.weights, []
        for end, x in (("ih", e), ("hh", before)):
            y = self._linear(f"gru.{end}", x, w[f"gru.weight_{end}"], w[f"gru.bias_{end}"])
            parts.append([self._op("Slice", y, *self._slice(i * hidden, (i + 1) * hidden, axis=1))
                          for i in range(3)])
        now, back = parts
        reset, update = (self._op("Sigmoid", self._op("Add", now[i], back[i])) for i in range(2))
        candidate = self._op("Tanh", self._op("Add", now[2], self._op("Mul", reset, back[2])))
        change = self._op("Mul", update, self._op("Sub", before, candidate))
        after = self._op("Add", candidate, change)
        self._output("new_memory", self._op("Squeeze", after, self._axes(0)), hidden)
        return self._op("Add", e, after)

    def _masks(self) -> tuple[str, str]:
        """Return the additive bias of slots and new bin, (W+1,), and 1 or 0: any to attend to."""
        one = self._constant("one", np.ones(1, np.float32))
        lost = self._op("Sub", one, "live")
        penalty = self._constant("masked", np.full(1, MASKED, np.float32))
        bias = self._op("Concat", "slot_bias", self._op("Mul", lost, penalty), axis=0)
        best = self._op("ReduceMax", bias, self._axes(0), keepdims=1)
        half = self._constant("half_masked", np.full(1, MASKED / 2, np.float32))
        some = self._op("Cast", self._op("Greater", best, half), to=self.float)
        return bias, some

    def _layer(self, layer: int, x: str, bias: str, some: str) -> tuple[str, str, str]:
        hidden, heads, d = self.shape.hidden, self.shape.heads, self.head_dim
        name = f"layers.{layer}"
        scale = np.ones(3 * hidden, np.float32)
        scale[:hidden] = 1 / np.sqrt(d)
        w, b = self.weights[f"{name}.qkv.weight"], self.weights[f"{name}.qkv.bias"]
        y = self._norm(f"{name}.norm1", x)
        qkv = self._linear(f"{name}.qkv", y, w * scale[:, None], b * scale)
        q, key, value = (
            self._heads(self._op("Slice", qkv, *self._slice(i * hidden, (i + 1) * hidden, axis=1)))
            for i in range(3)
        )
        q, key = self._rotate(q), self._rotate(key)
        attended = self._attend(layer, q, key, value, bias)
        merged = self._op("Reshape", self._op("Mul", attended, some), self._ints(1, hidden))
        x = self._op("Add", x, self._block_linear(f"{name}.out", merged))
        y = self._norm(f"{name}.norm2", x)
        inner = self._op("Gelu", self._block_linear(f"{name}.up", y), approximate="tanh")
        x = self._op("Add", x, self._block_linear(f"{name}.down", inner))
        flat = self._ints(heads, d)
        return x, self._op("Reshape", key, flat), self._op("Reshape", value, flat)

    def _attend(self, layer: int, q: str, key: str, value: str, bias: str) -> str:
        heads, d, window = self.shape.heads, self.head_dim, self.shape.window
        self._input(f"keys.{layer}", heads, d, window)
        self._input(f"values.{layer}", heads, window, d)
        own = self._op("MatMul", q, self._op("Transpose", key, perm=[0, 2, 1]))
        scores = self._op("Concat", self._op("MatMul", q, f"keys.{layer}"), own, axis=2)
        p = self._op("Softmax", self._op("Add", scores, bias), axis=-1)
        past = self._op("Slice", p, *self._slice(0, window, axis=2))
        new = self._op("Slice", p, *self._slice(window, window + 1, axis=2))
        old = self._op("MatMul", past, f"values.{layer}")
        return self._op("Add", old, self._op("Mul", new, value))

    def _rotate(self, x: str) -> str:
        """Rotate (h, 1, d) by the bin's position."""
        half = self.head_dim // 2
        a = self._op("Slice", x, *self._slice(0, half, axis=2))
        b = self._op("Slice", x, *self._slice(half, 2 * half, axis=2))
        first = self._op("Sub", self._op("Mul", a, "cos"), self._op("Mul", b, "sin"))
        second = self._op("Add", self._op("Mul", b, "cos"), self._op("Mul", a, "sin"))
        return self._op("Concat", first, second, axis=2)

    def _readouts(self, row: str) -> str:
        z = self._norm("norm", row)
        parts, begin = [], 0
        for m, modality in enumerate(self.modalities):
            parts.append(self._readout(m, modality, z, begin))
            begin += modality.n_outputs
        joined = parts[0] if len(parts) == 1 else self._op("Concat", *parts, axis=1)
        return self._op("Squeeze", joined, self._axes(0))

    def _readout(self, m: int, modality: ModalityOut, z: str, begin: int) -> str:
        end = begin + modality.n_outputs
        weight = self.weights["head.weight"][begin:end]
        raw = self._linear(f"head.{m}", z, weight, self.weights["head.bias"][begin:end])
        return self._op("Softmax", raw, axis=-1) if modality.kind == "categorical" else raw

    def _heads(self, x: str) -> str:
        """(1, H) -> (h, 1, d)."""
        return self._op("Reshape", x, self._ints(self.shape.heads, 1, self.head_dim))

    def _stack(self, parts: list[str]) -> str:
        parts = [self._op("Unsqueeze", part, self._axes(0)) for part in parts]
        return self._op("Concat", *parts, axis=0)

    def _norm(self, name: str, x: str) -> str:
        weight = self._constant(f"{name}.weight", self.weights[f"{name}.weight"])
        bias = self._constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self._op("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-5)

    def _block_linear(self, name: str, x: str) -> str:
        return self._linear(name, x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _linear(
        self, name: str, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> str:
        # Stored transposed: ONNX Runtime then packs it once for its matrix product.
        matrix = self._constant(f"{name}.weight", weight.T)
        return self._op("Gemm", x, matrix, self._constant(f"{name}.bias", bias))

    def _op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        if name not in self.names:
            self.names.add(name)
            data_type = self.helper.np_dtype_to_tensor_dtype(values.dtype)
            raw = np.ascontiguousarray(values).tobytes()
            self.constants.append(
                self.helper.make_tensor(name, data_type, values.shape, raw, raw=True)
            )
        return name

    def _ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values))
        return self._constant(name, np.array(values, np.int64))

    def _axes(self, *axes: int) -> str:
        return self._ints(*axes)

    def _slice(self, begin: int, end: int, axis: int) -> tuple[str, str, str]:
        return self._ints(begin), self._ints(end), self._ints(axis)

    def _input(self, name: str, *shape: int) -> None:
        self.inputs.append(self._value(name, shape))

    def _output(self, name: str, result: str, *shape: int) -> None:
        self.nodes.append(self.helper.make_node("Identity", [result], [name], f"to_{name}"))
        self.outputs.append(self._value(name, shape))

    def _value(self, name: str, shape: tuple[int, ...]) -> Any:
        return self.helper.make_tensor_value_info(name, self.float, shape)
