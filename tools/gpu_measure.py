"""The measuring half of the GPU suite: models, engines, timing, parity. Run by `gpu_suite.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle
from neds_rt.engines import Engine, load_engine
from neds_rt.latency.steps import fill_window, make_rows, paced_us, summary, tight_us

UNITS, RATE_HZ, BIN_S = 600, 10.0, 0.02
MODALITIES = [
    ModalityOut(name="wheel", kind="continuous", n_outputs=1),
    ModalityOut(name="whisker", kind="continuous", n_outputs=1),
    ModalityOut(name="choice", kind="categorical", n_outputs=2, classes=["right", "left"]),
    ModalityOut(name="block", kind="categorical", n_outputs=3, classes=["0.2", "0.5", "0.8"]),
]
MODELS = {
    "1M": Shape(hidden=128, layers=6, heads=4, mlp=256, window=100, conv=5, recurrent=True),
    # The paper's layers, behind convolution and GRU.
    "3.2M": Shape(hidden=256, layers=5, heads=8, mlp=512, window=100, conv=5, recurrent=True),
    "12M": Shape(hidden=512, layers=6, heads=8, mlp=640, window=100, conv=5, recurrent=True),
    # Of the dry run.
    "tiny": Shape(hidden=16, layers=2, heads=2, mlp=24, window=10, conv=5, recurrent=True),
}


def make_model(name: str, units: int = UNITS) -> Bundle:
    """Return the bundle of random weights that `name` stands for."""
    return random_bundle(MODELS[name], units, MODALITIES, seed=11)


def n_parameters(bundle: Bundle) -> int:
    """Return the number of weights."""
    return sum(w.size for w in bundle.weights.values())


@dataclass(frozen=True)
class Candidate:
    """An engine to measure. `make` builds it; `form` is "step" or "window"."""

    name: str
    form: str
    precision: str
    make: Callable[[Bundle], Engine]


def cuda_candidate(precision: str) -> Candidate:
    """Return the hand-written kernel."""
    def make(bundle: Bundle) -> Engine:
        from neds_rt.engines.cuda import CudaEngine

        return CudaEngine(bundle, precision=precision)

    return Candidate("cuda", "step", precision, make)


def native_candidate() -> Candidate:
    """Return the C++ engine on one core of the same machine."""
    return Candidate("native (CPU)", "step", "float32", lambda b: load_engine("native", b))


def plan_candidate(form: str, precision: str) -> Candidate:
    """Return the plan of TensorRT for RTX, built here from its graph."""
    def make(bundle: Bundle) -> Engine:
        from neds_rt.engines.plan_graph import build_plan_graph, graph_name
        from neds_rt.engines.tensorrt import RtxEngine, RtxWindow

        short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[precision]
        graph = {graph_name(form, short): build_plan_graph(bundle, form, short)}
        whole = Bundle(bundle.manifest, bundle.weights, {**bundle.files, **graph})
        return (RtxEngine if form == "step" else RtxWindow)(whole, precision=precision)

    return Candidate("tensorrt_rtx", form, precision, make)


def torch_step_candidate(precision: str, graph: bool, device: str = "") -> Candidate:
    """Return the torch step, launched by operation or as a CUDA graph."""
    def make(bundle: Bundle) -> Engine:
        from neds.cudagraph_engine import GraphStep, TorchStep

        return (GraphStep if graph else TorchStep)(bundle, precision=precision, device=device)

    return Candidate("torch cudagraph" if graph else "torch eager", "step", precision, make)


def window_candidate(
    precision: str, how: str, last_bin_only: bool, device: str = ""
) -> Candidate:
    """Return the recomputed window in torch."""
    def make(bundle: Bundle) -> Engine:
        from neds.window_engines import WindowEngine

        return WindowEngine(bundle, precision, how, last_bin_only, device)

    kind = "last bin" if last_bin_only else "all bins"
    name = {"eager": "torch eager", "graph": "torch cudagraph"}.get(how, f"torch.compile {how}")
    return Candidate(f"{name}, {kind}", "window", precision, make)


def step_bytes(bundle: Bundle, weight_bytes: int) -> int:
    """Return the bytes a step has to read: weights but the input's, of which few rows, and rings.

    `weight_bytes` are those of one weight; keys and values are float32.
    """
    shape = bundle.manifest.shape
    weights = n_parameters(bundle) - bundle.weights["input.weight"].size
    return weight_bytes * weights + 8 * shape.layers * shape.window * shape.hidden


def parity(engine: Engine, bundle: Bundle, bins: int) -> float:
    """Largest difference to the CPU engine over a stream with lost bins, of the largest output."""
    reference = load_engine("native", bundle)
    counts = make_rows(bundle, RATE_HZ, bins, seed=5)
    present = np.random.default_rng(6).random(bins) >= 0.05
    present[bins // 2 : bins // 2 + bundle.manifest.shape.window // 2] = False
    engine.reset()
    largest = difference = 0.0
    for row, here in zip(counts, present, strict=True):
        expected = reference.step(row, bool(here))
        found = engine.step(row, bool(here))
        if not np.isfinite(found).all():
            return float("nan")
        largest = max(largest, float(np.abs(expected).max()))
        difference = max(difference, float(np.abs(found - expected).max()))
    return difference / largest


def tight(engine: Engine, bundle: Bundle, steps: int, limit_s: float) -> dict[str, Any]:
    """Time of a step, one after the other; microseconds."""
    rows = make_rows(bundle, RATE_HZ)
    fill_window(engine, bundle, rows)
    return summary(tight_us(engine, rows, steps, limit_s))


def paced(
    engine: Engine, bundle: Bundle, steps: int, period_s: float, warm_every_s: float = 0.0
) -> dict[str, Any]:
    """Time of a step that comes every `period_s`; between steps `warm` every `warm_every_s`."""
    rows = make_rows(bundle, RATE_HZ)
    fill_window(engine, bundle, rows)
    found = summary(paced_us(engine, rows, steps, period_s, warm_every_s))
    return {**found, "period_s": period_s, "warm_every_s": warm_every_s}
