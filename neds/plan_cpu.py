"""The graphs of GPU plans, run on a CPU: what a plan computes, but for the order of its sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines.plan_graph import build_plan_graph
from neds_rt.engines.step_inputs import StepInputs, check_counts

Floats = NDArray[np.float32]
EMULATED = ("bf16",)  # of which ONNX Runtime has no matrix products on a CPU


class PlanOnCpu:
    """One form and precision in ONNX Runtime, on one thread; `how` says what ran.

    The graph of bf16 is the same one with every operand rounded to bfloat16 and multiplied in
    float32.
    """

    def __init__(self, bundle: Bundle, form: str, precision: str, graph: bytes = b"") -> None:
        import onnxruntime

        emulated = precision in EMULATED
        if emulated or not graph:
            graph = build_plan_graph(bundle, form, precision, emulated)
        self.how = "onnxruntime, " + ("rounded operands in float32" if emulated else "same graph")
        self._form = form
        self._manifest = bundle.manifest
        self.n_units = len(bundle.manifest.units)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"])
        self.reset()

    def reset(self) -> None:
        """Forget all bins."""
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._feeds: dict[str, NDArray[Any]] = {
            value.name: np.zeros(value.shape, types[value.type])
            for value in self._session.get_inputs()
        }
        if self._form == "step":
            self._inputs = StepInputs(self._manifest)
            self._feeds |= self._inputs.arrays

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> Floats:
        """Advance by one bin and return its outputs (n_outputs,)."""
        slot = 0
        if self._form == "step":
            slot = self._inputs.begin(counts, present)
        else:
            check_counts(counts, self.n_units)
            self._feeds["counts"][:] = counts if present else 0
            self._feeds["live"][0] = present
        names = [value.name for value in self._session.get_outputs()]
        results = dict(zip(names, self._session.run(None, self._feeds), strict=True))
        for name, values in results.items():
            if name.startswith("new_"):
                self._feeds[name.removeprefix("new_")] = values
        if self._form == "step":
            if present:
                for i, row in enumerate(results["rows"]):
                    self._feeds[f"{('keys', 'values')[i % 2]}.{i // 2}"][:, slot] = row
            self._inputs.end(slot, present)
        outputs: Floats = results["outputs"]
        return outputs
