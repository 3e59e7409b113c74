"""Engines: what computes one streaming step. One file each, one line each in `ENGINES`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput, NedsError, StartError

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle

ENGINES = {
    "native": "neds_rt.engines.native:NativeEngine",
    "onnx": "neds_rt.engines.onnx:OnnxEngine",
    "cuda": "neds_rt.engines.cuda:CudaEngine",
}


ENGINE_PARTS = ("name", "precision", "n_units", "n_outputs", "reset", "step", "skip", "warm")


class Engine(Protocol):
    """One streaming step: counts of one bin in, model outputs out, state kept inside.

    Constructed as `EngineClass(bundle)`. Nothing is allocated in `step` after construction where
    the implementation allows it. Outputs are laid out as `Manifest.modalities` lists them:
    continuous in behaviour units, circular as (cos, sin), categorical as probabilities.
    """

    name: str
    precision: str
    n_units: int
    n_outputs: int

    def reset(self) -> None:
        """Forget all bins: the next step is bin 0 of a new stream."""

    def step(
        self, counts: NDArray[np.uint16], present: bool = True
    ) -> NDArray[np.float32]:
        """Advance by one bin and return its outputs, shape (n_outputs,).

        `counts` has shape (n_units,). With `present=False` the bin was lost: it is never attended
        to, and the outputs are what the bins before it say. The returned array is the engine's own
        buffer, overwritten by the next call.
        """
        ...

    def skip(self, n_bins: int) -> None:
        """Advance by `n_bins` lost bins without computing outputs."""

    def warm(self) -> None:
        """Run a step on scratch state, leaving the stream's state as it is."""


def load_engine(name: str, bundle: Bundle) -> Engine:
    """Build the engine `name`, a key of `ENGINES` or `"package.module:Class"`.

    Raises `BadInput` for a name that is neither and `StartError` when the engine cannot be built,
    for example because a package it needs is not installed.
    """
    target = ENGINES.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute:
        expected = f"one of {', '.join(ENGINES)} or module:Class"
        raise BadInput("--engine", "name", repr(name), expected)
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing a module may raise anything
        raise BadInput("--engine", "name", repr(name), f"an importable engine ({error})") from error
    try:
        engine = factory(bundle)
    except NedsError:
        raise
    except Exception as error:
        text = f"engine {name} cannot be built: {type(error).__name__}: {error}"
        raise StartError(" ".join(text.split())) from error
    missing = [part for part in ENGINE_PARTS if not hasattr(engine, part)]
    if missing:
        expected = f"the attributes {', '.join(ENGINE_PARTS)}"
        raise BadInput("--engine", target, f"no {', '.join(missing)}", expected)
    return cast(Engine, engine)
