"""Engine `cuda`: the streaming step as one CUDA kernel, launched as a CUDA graph.

Weights and rings live on the GPU. The counts of a bin and its outputs pass through host memory
that both sides see, so a step is one launch and one wait. On GPUs with thread block clusters
(compute capability 9.0 and above) the step runs in one cluster, elsewhere on a cooperative grid.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.errors import BadInput, StartError
from neds_rt.machine import gpu_words


def cuda_module() -> Any:
    """Return `neds_rt._cuda`; raises `StartError` where it is not built or there is no GPU."""
    try:
        module = importlib.import_module("neds_rt._cuda")
    except ImportError:
        raise StartError(
            "engine cuda: this install has no GPU step; build it where nvcc is: "
            "pip install -C cmake.define.NEDS_CUDA=ON ."
        ) from None
    if module.device_count() == 0:
        raise StartError("engine cuda: found no GPU that CUDA can use, expected one and its driver "
                         "(nvidia-smi shows both); --engine native runs on the CPU")
    return module


def build_cuda_step(bundle: Bundle, **options: Any) -> Any:
    """Return `neds_rt._cuda.CudaStep` of `bundle`.

    `options` are its keywords: precision, team, blocks, threads, input, launch, marks, timeout_s.
    Raises `StartError` without a usable GPU, `BadInput` when sizes or options do not fit.
    """
    module = cuda_module()
    manifest, shape = bundle.manifest, bundle.manifest.shape
    try:
        return module.CudaStep(
            units=len(manifest.units), hidden=shape.hidden, layers=shape.layers,
            heads=shape.heads, mlp=shape.mlp, window=shape.window, conv=shape.conv,
            recurrent=shape.recurrent, rope_base=shape.rope_base, weights=bundle.weights,
            modalities=[(m.n_outputs, m.kind == "categorical") for m in manifest.modalities],
            **options,
        )
    except ValueError as error:
        raise BadInput(bundle.where, "model", error, "sizes that fit this GPU") from None
    except RuntimeError as error:
        raise StartError(f"engine cuda: {error}") from None


class CudaEngine:
    """The GPU step behind the `Engine` protocol.

    `precision` is that of the matrices; all arithmetic is float32. A step that fails, or is not
    done within two seconds, raises `RuntimeError`, which the server treats as a failed engine.
    `options` are those of `build_cuda_step`.
    """

    name = "cuda"
    precisions = ("float32", "bfloat16", "float16")

    def __init__(self, bundle: Bundle, precision: str = "float32", **options: Any) -> None:
        self.precision = precision
        self.core = build_cuda_step(bundle, precision=precision, **options)
        self.device = gpu_words()
        self.n_units = int(self.core.n_units)
        self.n_outputs = int(self.core.n_outputs)
        self._outputs: NDArray[np.float32] = self.core.outputs
        self._step = self.core.step
        self.warm()  # the first launch loads the kernel

    def reset(self) -> None:
        """Forget all bins: the next step is bin 0 of a new stream."""
        self.core.reset()

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin; returns host memory that the GPU writes, shape (n_outputs,).

        Raises `ValueError` for counts of another length, `TypeError` for another dtype,
        `RuntimeError` when the GPU fails.
        """
        self._step(counts, present)
        return self._outputs

    def skip(self, n_bins: int) -> None:
        """Advance by `n_bins` lost bins without computing outputs."""
        self.core.skip(n_bins)

    def warm(self) -> None:
        """Run a step whose result is dropped; later outputs are as if it had not been called."""
        self.core.warm()
