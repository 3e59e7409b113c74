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
    "tensorrt": "neds_rt.engines.tensorrt:TensorRTEngine",
    "tensorrt_rtx": "neds_rt.engines.tensorrt:RtxEngine",
}

ENGINE_PARTS = (
    "name", "precisions", "precision", "n_units", "n_outputs", "reset", "step", "skip", "warm",
)


class Engine(Protocol):
    """One streaming step: counts of one bin in, model outputs out, state kept inside.

    Constructed as `EngineClass(bundle, precision=...)`: one of the class's `precisions`, what its
    weights are stored in; the first is its default. Nothing is allocated in `step` after
    construction where the implementation allows it. Outputs are laid out as `Manifest.modalities`
    lists them: continuous in behaviour units, circular as (cos, sin), categorical as probabilities.
    What it computes on may be told to people by a further attribute, `device`.
    """

    name: str
    precision: str
    n_units: int
    n_outputs: int

    @property
    def precisions(self) -> tuple[str, ...]:
        """All that the class has: a class attribute, known before anything is built."""
        ...

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


def device_of(engine: Engine) -> str:
    """Return what an engine says it computes on, "" where it does not."""
    return str(getattr(engine, "device", ""))


# Ways to write a precision, and the one that each stands for.
SPELLINGS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def parse_engine(text: str) -> tuple[str, str]:
    """Split `NAME[:PRECISION]` or `package.module:Class[:PRECISION]` into name and precision.

    The precision is "" where the text has none. Raises `BadInput` for a name that is neither a key
    of `ENGINES` nor an import string, and for an empty precision.
    """
    name, colon, rest = text.partition(":")
    if name not in ENGINES:
        attribute, colon, rest = rest.partition(":")
        if not (name and attribute):
            expected = f"one of {', '.join(ENGINES)} or module:Class"
            raise BadInput("--engine", "name", repr(text), expected)
        name = f"{name}:{attribute}"
    if colon and not rest:
        raise BadInput("--engine", "precision", repr(text), "one after the last colon")
    return name, rest


def load_engine(text: str, bundle: Bundle) -> Engine:
    """Build the engine that `text` names, see `parse_engine`; without a precision its first one.

    Raises `BadInput` for a name that cannot be imported or a precision that the engine has not, and
    `StartError` when the engine cannot be built, for example because a package it needs is not
    installed.
    """
    name, wanted = parse_engine(text)
    target = ENGINES.get(name, name)
    module, _, attribute = target.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing a module may raise anything
        raise BadInput("--engine", "name", repr(name), f"an importable engine ({error})") from error
    _require(target, factory, ("precisions",))
    precision = _choose_precision(name, wanted, factory.precisions)
    try:
        engine = factory(bundle, precision=precision)
    except NedsError:
        raise
    except Exception as error:
        text = f"engine {name} cannot be built: {type(error).__name__}: {error}"
        raise StartError(" ".join(text.split())) from error
    _require(target, engine, ENGINE_PARTS)
    return cast(Engine, engine)


def _choose_precision(name: str, wanted: str, precisions: tuple[str, ...]) -> str:
    """The engine's own word for the wanted precision, or the first that it has."""
    if not wanted:
        return precisions[0]
    for precision in precisions:
        if SPELLINGS.get(precision, precision) == SPELLINGS.get(wanted, wanted):
            return precision
    expected = f"one of {', '.join(precisions)}"
    raise BadInput("--engine", f"{name} precision", repr(wanted), expected)


def _require(target: str, thing: object, parts: tuple[str, ...]) -> None:
    missing = [part for part in parts if not hasattr(thing, part)]
    if missing:
        expected = f"the attributes {', '.join(ENGINE_PARTS)}"
        raise BadInput("--engine", target, f"no {', '.join(missing)}", expected)
