"""Engines `tensorrt` and `tensorrt_rtx`: a plan on the GPU, captured once as a CUDA graph.

A bin is one launch (inputs in, plan, outputs out) and one wait; what the bin leaves behind, its
keys and values and the stem's state, is put in its place on the device while the host waits. Host
memory is pinned. A plan that cannot be captured is enqueued piece by piece instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines import SPELLINGS
from neds_rt.engines.cuda_runtime import ALIGNMENT, Device, DeviceError, aligned
from neds_rt.engines.lost_bins import LostBins
from neds_rt.engines.plan_loader import Execution, choose_plan
from neds_rt.engines.step_inputs import StepInputs, check_counts, step_sizes
from neds_rt.machine import gpu_words
from neds_rt.manifest import Manifest

ANSWER_LIMIT_S = 2.0  # a bin that takes longer has lost its GPU
SHORT = {long: short for short, long in SPELLINGS.items()}

Floats = NDArray[np.float32]


class PlanEngine:
    """What both forms have in common; subclasses say what their state is.

    Raises `StartError` when there is no plan to be had, `DeviceError` when the GPU refuses or,
    while serving, has not answered within two seconds.
    """

    name = "tensorrt"
    product = "tensorrt"
    form = ""
    precisions: tuple[str, ...] = ("float32", "float16", "bfloat16")

    def __init__(self, bundle: Bundle, precision: str = "float32") -> None:
        self.precision = precision
        manifest = bundle.manifest
        self.n_units = len(manifest.units)
        self.n_outputs = sum(modality.n_outputs for modality in manifest.modalities)
        self._outputs = np.zeros(self.n_outputs, np.float32)
        self._device = Device()
        self.device = gpu_words(self._device.target)
        plan = choose_plan(bundle, self.product, self.form, SHORT[precision], self._device.target)
        self._execution = Execution(self.product, plan, self._device.alloc)
        self._unbound = dict(self._execution.sizes)
        sizes, states = self._sizes(manifest)
        arrays, self._host_in, self._device_in = self._make_block(sizes, "inputs")
        self._open_inputs(bundle, arrays)
        results, self._host_out, self._device_out = self._make_block(
            {"outputs": self.n_outputs}, "outputs")
        self._results = results["outputs"]
        self._states, self._host_state, self._state = self._make_block(states, "state")
        self._new_state = self._device.alloc(self._host_state.nbytes, "the state")
        self._bind_block({f"new_{name}": n for name, n in states.items()}, self._new_state)
        self._make_rest(bundle)
        if self._unbound:
            raise DeviceError(f"{bundle.where}: the plan has tensors of another model: "
                              f"{', '.join(self._unbound)}")
        self._start()

    def _sizes(self, manifest: Manifest) -> tuple[dict[str, int], dict[str, int]]:
        """Name and length of the float32 inputs of a bin, and of the state between bins."""
        raise NotImplementedError

    def _open_inputs(self, bundle: Bundle, arrays: Mapping[str, Floats]) -> None:
        raise NotImplementedError

    def _make_rest(self, bundle: Bundle) -> None:
        """Make and bind what else the plan reads and writes."""

    def _begin(self, counts: NDArray[np.uint16], present: bool) -> int:
        """Describe the next bin in host memory; returns its slot."""
        raise NotImplementedError

    def _keep(self, slot: int, present: bool) -> None:
        """Enqueue what puts the bin's results where the next bin looks for them."""
        if self._host_state.nbytes:
            self._device.copy_within(self._state, self._new_state, self._host_state.nbytes)

    def _end(self, slot: int, present: bool) -> None:
        """The bin is over."""

    def _rehearse(self) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all bins: the next step is bin 0 of a new stream."""
        self._device.zero(self._state, self._host_state.nbytes)
        self._device.settle(ANSWER_LIMIT_S)
        self._outputs.fill(0.0)

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin; returns the engine's own buffer, shape (n_outputs,).

        Raises `ValueError` for counts of another length, `DeviceError` when the GPU fails.
        """
        slot = self._begin(counts, present)
        self._launch()
        self._device.mark()
        self._keep(slot, present)
        self._device.wait(ANSWER_LIMIT_S)
        self._end(slot, present)  # not before: the GPU reads the inputs when it gets to them
        np.copyto(self._outputs, self._results)
        return self._outputs

    def warm(self) -> None:
        """Run a step whose result is dropped; later outputs are as if it had not been called."""
        self._rehearse()
        self._launch()
        self._device.settle(ANSWER_LIMIT_S)

    def close(self) -> None:
        """Free the GPU's memory; the engine cannot be used after it."""
        self._execution.close()
        self._device.close()

    def _start(self) -> None:
        """Run once as it comes, so that everything lazy has happened, then capture."""
        self._launch: Callable[[], None] = self._enqueue_all
        self.warm()
        if self._execution.capturable(self._device.stream):
            self._launch = self._device.capture(self._enqueue_all)
            self.warm()
        self.reset()

    def _enqueue_all(self) -> None:
        self._device.copy_in(self._device_in, self._host_in)
        self._execution.enqueue(self._device.stream)
        self._device.copy_out(self._host_out, self._device_out)

    def _make_block(
        self, sizes: Mapping[str, int], what: str
    ) -> tuple[dict[str, Floats], Floats, int]:
        """Float32 vectors in pinned memory, all of them in one piece, and their device memory."""
        host = self._device.pinned(_total(sizes))
        device = self._device.alloc(host.nbytes, f"the {what}")
        arrays, begin = {}, 0
        for name, size in sizes.items():
            arrays[name] = host[begin : begin + size]
            begin += aligned(4 * size) // 4
        self._bind_block(sizes, device)
        return arrays, host, device

    def _bind_block(self, sizes: Mapping[str, int], device: int) -> None:
        for name, size in sizes.items():
            self._bind(name, device, 4 * size)
            device += aligned(4 * size)

    def _bind(self, name: str, pointer: int, n_bytes: int) -> None:
        found = self._unbound.pop(name, 0)
        if found != n_bytes:
            raise DeviceError(f"the plan is of another model: its {name} has {found} bytes, "
                              f"expected {n_bytes}")
        self._execution.bind(name, pointer)


class StepPlanEngine(PlanEngine):
    """One bin against the ring of keys and values."""

    form = "step"

    def _sizes(self, manifest: Manifest) -> tuple[dict[str, int], dict[str, int]]:
        shape = manifest.shape
        states = {"embeddings": max(shape.conv - 1, 0) * shape.hidden,
                  "memory": shape.hidden if shape.recurrent else 0}
        return step_sizes(manifest), {name: size for name, size in states.items() if size}

    def _open_inputs(self, bundle: Bundle, arrays: Mapping[str, Floats]) -> None:
        self._inputs = StepInputs(bundle.manifest, arrays)
        self._lost_bins = LostBins(bundle.manifest.shape, bundle.weights)

    def _make_rest(self, bundle: Bundle) -> None:
        """The ring: of every layer the keys, then the values, each (h, W, d)."""
        shape = bundle.manifest.shape
        rows_bytes = self._unbound.get("rows", 0)
        width = rows_bytes // (2 * shape.layers * shape.heads)  # of one head's row of a bin
        pitch = width * shape.window
        # Heads are filled up until a block ends where the next may begin.
        block_rows = next(n for n in range(shape.heads, shape.heads + ALIGNMENT)
                          if n * pitch % ALIGNMENT == 0)
        block = block_rows * pitch
        ring = self._device.alloc(2 * shape.layers * block, "the ring of keys and values")
        rows = self._device.alloc(rows_bytes, "a bin's keys and values")
        self._bind("rows", rows, rows_bytes)
        for layer in range(shape.layers):
            for i, kind in enumerate(("keys", "values")):
                at = ring + (2 * layer + i) * block
                self._bind(f"{kind}.{layer}", at, shape.heads * pitch)
        self._keep_rows = [
            self._device.strided_copy(ring + slot * width, rows, width=width, rows=shape.heads,
                                      blocks=2 * shape.layers, pitch=pitch, block_rows=block_rows)
            for slot in range(shape.window)
        ]
        no_past = np.zeros((0, shape.hidden), np.float32)
        self._past = self._states.get("embeddings", no_past).reshape(-1, shape.hidden)
        self._memory = self._states.get("memory", no_past[:, 0])

    def _begin(self, counts: NDArray[np.uint16], present: bool) -> int:
        return self._inputs.begin(counts, present)

    def _keep(self, slot: int, present: bool) -> None:
        if present:
            self._keep_rows[slot]()
        super()._keep(slot, present)

    def _end(self, slot: int, present: bool) -> None:
        self._inputs.end(slot, present)

    def _rehearse(self) -> None:
        self._inputs.rehearse()

    def reset(self) -> None:
        """Forget all bins: the next step is bin 0 of a new stream."""
        self._inputs.reset()
        super().reset()

    def skip(self, n_bins: int) -> None:
        """Advance by `n_bins` lost bins without computing outputs."""
        self._inputs.skip(n_bins)
        if n_bins and self._states:
            self._device.copy_out(self._host_state, self._state)
            self._device.settle(ANSWER_LIMIT_S)
            self._lost_bins.advance(self._past, self._memory, n_bins)
            self._device.copy_in(self._state, self._host_state)
            self._device.settle(ANSWER_LIMIT_S)


class WindowPlanEngine(PlanEngine):
    """The window recomputed every bin; equal to the step for the first `window` bins."""

    form = "window"

    def _sizes(self, manifest: Manifest) -> tuple[dict[str, int], dict[str, int]]:
        units, window = len(manifest.units), manifest.shape.window
        return {"counts": units, "live": 1}, {"spikes": window * (units + 2)}

    def _open_inputs(self, bundle: Bundle, arrays: Mapping[str, Floats]) -> None:
        self._window = bundle.manifest.shape.window
        self._counts, self._live = arrays["counts"], arrays["live"]

    def _begin(self, counts: NDArray[np.uint16], present: bool) -> int:
        check_counts(counts, self.n_units)
        if present:
            self._counts[:] = counts
        else:
            self._counts.fill(0.0)
        self._live[0] = present
        return 0

    def _rehearse(self) -> None:
        self._counts.fill(1.0)
        self._live[0] = 1.0

    def skip(self, n_bins: int) -> None:
        """Advance by `n_bins` lost bins without computing outputs."""
        if n_bins < 0:
            raise ValueError(f"n_bins: found {n_bins}, expected at least 0")
        self._counts.fill(0.0)
        self._live[0] = 0.0
        for _ in range(min(n_bins, self._window)):
            self._launch()
            self._keep(0, False)
        self._device.settle(ANSWER_LIMIT_S)


class TensorRTEngine(StepPlanEngine):
    """The step by TensorRT."""


class RtxEngine(StepPlanEngine):
    """The step by TensorRT for RTX."""

    name, product = "tensorrt_rtx", "tensorrt-rtx"


class TensorRTWindow(WindowPlanEngine):
    """The recomputed window by TensorRT."""

    name = "tensorrt_window"


class RtxWindow(WindowPlanEngine):
    """The recomputed window by TensorRT for RTX."""

    name, product = "tensorrt_rtx_window", "tensorrt-rtx"


def _total(sizes: Mapping[str, int]) -> int:
    """Floats of all vectors, each filled up to the alignment."""
    return sum(aligned(4 * size) for size in sizes.values()) // 4
