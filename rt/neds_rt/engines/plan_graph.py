"""The graphs that GPU plans are built from: all state stays on the device.

Form "step": one bin against the ring, as in `onnx_graph`, but for the layout of the state. The ring
has a row (h, d) of every layer's key and value for each slot, so that one strided copy of `rows`
(2L, h, d), key and value of layer 0 first, puts a bin into its slot: `keys.i` and `values.i` are
(h, W, d), in the graph's precision as are `rows`. Stem: `embeddings` (K-1, H) and `memory` (H,)
become `new_embeddings` and `new_memory`.

Form "window": the newest bin of the last W, recomputed from their counts. Inputs `counts` (U,),
`live` (1,) and `spikes` (W, U+2) of the W bins before: counts, whether they are there, and whether
the stream had begun; output `new_spikes`, moved on by one bin. A bin before the stream leaves the
GRU's memory at zero, one that was lost does not.

All inputs and outputs but the ring are float32.
"""

from __future__ import annotations

import hashlib

import numpy as np

from neds_rt.bundle import Bundle
from neds_rt.engines.onnx_graph import MASKED, ModelGraph, StepGraph

FORMS = ("step", "window")
HOLD = 1e4  # far beyond where a gate saturates


def build_plan_graph(
    bundle: Bundle, form: str, precision: str = "fp32", emulated: bool = False
) -> bytes:
    """Return the serialised ONNX model of `form` in `precision`; see `Nodes` for `emulated`."""
    kinds: dict[str, type[ModelGraph]] = {"step": PlanStep, "window": PlanWindow}
    return kinds[form](bundle.manifest, bundle.weights, precision, emulated).build()


def graph_name(form: str, precision: str) -> str:
    """The name of the graph among a bundle's files."""
    return f"plans/{form}-{precision}.onnx"


def graph_hash(graph: bytes) -> str:
    """Return the sha256 (hex) that plans name their graph by."""
    return hashlib.sha256(graph).hexdigest()


class PlanStep(StepGraph):
    """The step with its state laid out for a GPU."""

    def _keep_rows(self, new: list[tuple[str, str]]) -> None:
        size = (self.shape.heads, self.head_dim)
        flat = [self.op("Reshape", row, self.ints(*size)) for pair in new for row in pair]
        self.output("rows", self._stack(flat), 2 * self.shape.layers, *size, data_type=self.ring)

    def _past_keys(self, layer: int) -> str:
        return self.op("Transpose", self._ring(f"keys.{layer}"), perm=[0, 2, 1])

    def _past_values(self, layer: int) -> str:
        return self._ring(f"values.{layer}")

    def _ring(self, name: str) -> str:
        shape = self.shape
        return self.input(name, shape.heads, shape.window, self.head_dim, data_type=self.ring)

    def _keep_embeddings(self, e: str, taps: str) -> None:
        kept = self.shape.conv - 1
        if kept:
            newest = self.slice(taps, 0, kept, axis=0)
            self.output("new_embeddings", newest, kept, self.shape.hidden)


class PlanWindow(ModelGraph):
    """The newest bin of a window of W bins; the last layer is computed for that bin alone."""

    def build(self) -> bytes:
        """Return the serialised model."""
        window = self.shape.window
        rows = self._rows()
        present = self.slice(rows, self.units, self.units + 1, axis=1)
        x = self._tokens(self._stem(rows, present), self.op("Cast", present, to=self.bool))
        bias = self._bias(present)
        some = self._any(bias, 1)
        last_bias, last_some = (self.slice(v, window - 1, window, axis=0) for v in (bias, some))
        for layer in range(self.shape.layers - 1):
            x = self._layer(layer, x, bias, some, window)
        x = self._layer(self.shape.layers - 1, x, last_bias, last_some, 1)
        self.output("outputs", self._readouts(x), self.n_outputs)
        return self.serialised("neds_window")

    def _rows(self) -> str:
        """The window with the new bin as its last row, (W, U+2)."""
        window, width = self.shape.window, self.units + 2
        self.input("counts", self.units)
        self.input("live", 1)
        self.input("spikes", window, width)
        begun = self.constant("one", np.ones(1, np.float32))
        new = self.op("Concat", self.op("Mul", "counts", "live"), "live", begun, axis=0)
        kept = self.slice("spikes", 1, window, axis=0)
        rows = self.op("Unsqueeze", new, self.ints(0))
        if window > 1:
            rows = self.op("Concat", kept, rows, axis=0)
        self.output("new_spikes", rows, window, width)
        return rows

    def _stem(self, rows: str, present: str) -> str:
        """Embeddings (W, H) after convolution and GRU."""
        e = self._embed(self.slice(rows, 0, self.units, axis=1))
        e = self.op("Mul", e, present)
        if self.shape.conv:
            e = self._convolve(e)
        if self.shape.recurrent:
            e = self.op("Add", e, self._memories(e, rows))
        return e

    def _convolve(self, e: str) -> str:
        w, window, n_taps = self.weights, self.shape.window, self.shape.conv
        before = e
        if n_taps > 1:
            blank = self.constant("before", np.zeros((n_taps - 1, self.shape.hidden), np.float32))
            before = self.op("Concat", blank, e, axis=0)
        g = self.constant("conv.bias", w["conv.bias"])
        for tap in range(n_taps):
            begin = n_taps - 1 - tap
            past = before if n_taps == 1 else self.slice(before, begin, begin + window, axis=0)
            weight = self.constant(f"conv.weight.{tap}", w["conv.weight"][tap])
            g = self.op("Add", g, self.op("Mul", past, weight))
        return self.op("Add", e, self._gelu(g))

    def _memories(self, e: str, rows: str) -> str:
        """The GRU's memory after every bin, (W, H), in float32 whatever the graph's precision."""
        window, hidden = self.shape.window, self.shape.hidden
        one = self.constant("one", np.ones(1, np.float32))
        begun = self.slice(rows, self.units + 1, self.units + 2, axis=1)
        x = self.op("Concat", e, self.op("Sub", one, begun), axis=1)
        gates = {}
        for end in ("ih", "hh"):  # ONNX has the update gate before the reset gate
            for part in ("weight", "bias"):
                reset, update, new = np.split(self.weights[f"gru.{part}_{end}"], 3)
                gates[part, end] = np.concatenate((update, reset, new))
        hold = np.zeros((3 * hidden, 1), np.float32)
        hold[:hidden] = HOLD
        inner = np.concatenate((gates["weight", "ih"], hold), 1)
        bias = np.concatenate((gates["bias", "ih"], gates["bias", "hh"]))
        memories = self.op(
            "GRU", self.op("Unsqueeze", x, self.ints(1)),
            self.constant("gru.inner", inner[None]),
            self.constant("gru.outer", gates["weight", "hh"][None]),
            self.constant("gru.bias", bias[None]),
            hidden_size=hidden, linear_before_reset=1,
        )
        return self.op("Reshape", memories, self.ints(window, hidden))

    def _bias(self, present: str) -> str:
        """The additive bias (W, W): what every bin sees is earlier or itself, and there."""
        window = self.shape.window
        later = np.triu(np.full((window, window), MASKED, np.float32), 1)
        one = self.constant("one", np.ones(1, np.float32))
        lost = self.op("Reshape", self.op("Sub", one, present), self.ints(1, window))
        penalty = self.constant("masked", np.full(1, MASKED, np.float32))
        return self.op("Add", self.constant("later", later), self.op("Mul", lost, penalty))

    def _layer(self, layer: int, x: str, bias: str, some: str, asking: int) -> str:
        """The layer's output of the newest `asking` rows of x (W, H)."""
        window, hidden = self.shape.window, self.shape.hidden
        q, key, value = self._projected(layer, x, rows=window)
        if asking < window:
            q = self.slice(q, window - asking, window, axis=1)
            x = self.slice(x, window - asking, window, axis=0)
        q = self.operand(self._rotate(q, *self._phases(window - asking)))
        key = self.operand(self._rotate(key, *self._phases(0)))
        scores = self.op("Add", self.matmul(q, self.op("Transpose", key, perm=[0, 2, 1])), bias)
        p = self.operand(self.op("Softmax", scores, axis=-1))
        attended = self.op("Mul", self.matmul(p, self.operand(value)), some)
        merged = self.op("Transpose", attended, perm=[1, 0, 2])
        return self._finish_layer(layer, x, self.op("Reshape", merged, self.ints(asking, hidden)))

    def _phases(self, first: int) -> tuple[str, str]:
        """Rotary phases (W - first, d/2) of the window's bins from `first` on."""
        half = self.head_dim // 2
        frequencies = self.shape.rope_base ** (-np.arange(half) / half)
        angle = np.arange(first, self.shape.window)[:, None] * frequencies
        return (self.constant(f"cos.{first}", np.cos(angle).astype(np.float32)),
                self.constant(f"sin.{first}", np.sin(angle).astype(np.float32)))
