"""Engine `native`: the streaming step in C++, for the best instruction set of this CPU."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from neds_rt import _core
from neds_rt.bundle import Bundle
from neds_rt.errors import BadInput

ISA_VARIABLE = "NEDS_ISA"


def build_step_engine(
    bundle: Bundle, precision: str = "float32", isa: str = ""
) -> _core.StepEngine:
    """Return the C++ engine of `bundle`; `isa` is one of `_core.supported_isas()` or the best.

    Raises `ValueError` when the bundle's sizes, its tensors, `precision` or `isa` do not fit.
    """
    shape = bundle.manifest.shape
    return _core.StepEngine(
        units=len(bundle.manifest.units),
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        mlp=shape.mlp,
        window=shape.window,
        conv=shape.conv,
        recurrent=shape.recurrent,
        rope_base=shape.rope_base,
        modalities=[(m.n_outputs, m.kind == "categorical") for m in bundle.manifest.modalities],
        weights=bundle.weights,
        precision=precision,
        isa=isa,
    )


class NativeEngine:
    """The C++ engine behind the `Engine` protocol.

    Its memory traffic is its cost, so bf16 and int8 weights are faster; README.md says what is
    stored how. The instruction set is the best that the CPU has; the environment variable
    `NEDS_ISA` names another one (`baseline`, `avx2`, `avx512`, `avx512vnni`). Raises `BadInput` for
    one that is not there.
    """

    name = "native"
    precisions = ("float32", "bf16", "int8")

    def __init__(self, bundle: Bundle, precision: str = "float32") -> None:
        self.precision = precision
        isa = os.environ.get(ISA_VARIABLE, "")
        supported = _core.supported_isas()
        if isa and isa not in supported:
            raise BadInput("environment", ISA_VARIABLE, repr(isa), f"one of {', '.join(supported)}")
        try:
            self.core = build_step_engine(bundle, precision, isa)
        except ValueError as error:
            raise BadInput(bundle.where, "model", error, "sizes and tensors that fit") from None
        self.isa = self.core.isa
        self.device = f"CPU, {self.isa}"
        self.n_units = self.core.n_units
        self.n_outputs = self.core.n_outputs
        self._outputs = self.core.outputs
        self._step = self.core.step

    def reset(self) -> None:
        """Forget all bins: the next step is bin 0 of a new stream."""
        self.core.reset()

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin; returns the engine's read-only buffer, shape (n_outputs,).

        Raises `ValueError` for counts of another length, `TypeError` for another dtype.
        """
        self._step(counts, present)
        return self._outputs

    def skip(self, n_bins: int) -> None:
        """Advance by `n_bins` lost bins without computing outputs."""
        self.core.skip(n_bins)

    def warm(self) -> None:
        """Run a step whose result is dropped; later outputs are as if it had not been called."""
        self.core.warm()
