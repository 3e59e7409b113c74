"""Engine `onnx`: ONNX Runtime on one CPU thread over the exported step, bound to fixed memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines.lost_bins import LostBins
from neds_rt.engines.onnx_graph import build_step_graph
from neds_rt.engines.step_inputs import StepInputs
from neds_rt.errors import BadInput


class OnnxEngine:
    """`model.onnx` of the bundle, or the same graph built in memory when the bundle has none.

    Inputs and outputs of the graph (see `onnx_graph`) are views of arrays made here once; a step
    writes the new key, value and states into them by itself, and `skip` runs no graph. Raises
    `BadInput` when ONNX Runtime refuses the graph, `StartError` when one has to be built and `onnx`
    is not installed.
    """

    name = "onnx"
    precisions = ("float32",)
    device = "CPU"

    def __init__(self, bundle: Bundle, precision: str = "float32") -> None:
        self.precision = precision
        manifest, shape = bundle.manifest, bundle.manifest.shape
        self.n_units = len(manifest.units)
        self.n_outputs = sum(modality.n_outputs for modality in manifest.modalities)
        heads, d = shape.heads, shape.hidden // shape.heads
        self._inputs = StepInputs(manifest)
        self._keys = np.zeros((shape.layers, heads, d, shape.window), np.float32)
        self._values = np.zeros((shape.layers, heads, shape.window, d), np.float32)
        self._embeddings = np.zeros((max(shape.conv - 1, 0), shape.hidden), np.float32)
        self._memory = np.zeros(shape.hidden if shape.recurrent else 0, np.float32)
        self._new_memory = np.zeros_like(self._memory)
        self._new_key = np.zeros((shape.layers, heads, d), np.float32)
        self._new_value = np.zeros((shape.layers, heads, d), np.float32)
        self._embedding = np.zeros(shape.hidden, np.float32)
        self._outputs = np.zeros(self.n_outputs, np.float32)
        self._discarded = np.zeros(self.n_outputs, np.float32)
        self._lost_bins = LostBins(shape, bundle.weights)
        model = bundle.onnx_bytes or build_step_graph(manifest, bundle.weights)
        session, options = _open_session(model, bundle.where)
        self._session = session
        self._options = options
        inputs = self._input_arrays(shape.layers)
        self._binding = self._bind(inputs, self._outputs, bundle.where)
        self._dry_binding = self._bind(inputs, self._discarded, bundle.where)

    def reset(self) -> None:
        """Forget all bins: the next step is bin 0 of a new stream."""
        self._inputs.reset()
        self._embeddings.fill(0.0)
        self._memory.fill(0.0)
        self._outputs.fill(0.0)

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin; returns the engine's own buffer, shape (n_outputs,).

        Raises `ValueError` for counts of another length.
        """
        slot = self._inputs.begin(counts, present)
        self._session.run_with_iobinding(self._binding, self._options)
        if present:
            self._keys[:, :, :, slot] = self._new_key
            self._values[:, :, slot, :] = self._new_value
        self._take_over()
        self._inputs.end(slot, present)
        return self._outputs

    def skip(self, n_bins: int) -> None:
        """Advance by `n_bins` lost bins without computing outputs."""
        self._inputs.skip(n_bins)
        self._lost_bins.advance(self._embeddings, self._memory, n_bins)

    def warm(self) -> None:
        """Run a step whose result is dropped; later outputs are as if it had not been called."""
        self._inputs.rehearse()
        self._session.run_with_iobinding(self._dry_binding, self._options)

    def _take_over(self) -> None:
        """Make what the stem computed for this bin its state for the next."""
        if len(self._embeddings):
            self._embeddings[1:] = self._embeddings[:-1]
            self._embeddings[0] = self._embedding
        self._memory[:] = self._new_memory

    def _input_arrays(self, n_layers: int) -> dict[str, NDArray[np.float32]]:
        arrays = dict(self._inputs.arrays)
        if len(self._embeddings):
            arrays["embeddings"] = self._embeddings
        if len(self._memory):
            arrays["memory"] = self._memory
        arrays |= {f"keys.{layer}": self._keys[layer] for layer in range(n_layers)}
        return arrays | {f"values.{layer}": self._values[layer] for layer in range(n_layers)}

    def _bind(
        self, inputs: dict[str, NDArray[np.float32]], outputs: NDArray[np.float32], where: str
    ) -> Any:
        results = {
            "outputs": outputs, "new_key": self._new_key, "new_value": self._new_value,
            "embedding": self._embedding, "new_memory": self._new_memory,
        }
        binding = self._session.io_binding()
        try:
            for value in self._session.get_inputs():
                array = _same_shape(where, value, inputs)
                place = (np.float32, array.shape, array.ctypes.data)
                binding.bind_input(value.name, "cpu", 0, *place)
            for value in self._session.get_outputs():
                array = _same_shape(where, value, results)
                place = (np.float32, array.shape, array.ctypes.data)
                binding.bind_output(value.name, "cpu", 0, *place)
        except RuntimeError as error:
            raise BadInput(where, "model.onnx", error, "the graph of one streaming step") from None
        return binding


def _open_session(model: bytes, where: str) -> tuple[Any, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class of their own
        raise BadInput(where, "model.onnx", error, "a graph that ONNX Runtime accepts") from None
    return session, onnxruntime.RunOptions()


def _same_shape(
    where: str, value: Any, arrays: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the array of a graph's input or output; raises `BadInput` when they differ."""
    found = (value.name, value.type, list(value.shape))
    if value.name not in arrays:
        raise BadInput(where, "model.onnx", found, f"only {', '.join(arrays)}")
    array = arrays[value.name]
    if value.type != "tensor(float)" or tuple(value.shape) != array.shape:
        expected = f"float32 of shape {list(array.shape)}"
        raise BadInput(where, f"model.onnx {value.name}", found[1:], expected)
    return array
