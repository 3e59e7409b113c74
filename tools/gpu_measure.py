"""The measuring half of the GPU suite: models, engines, timing, parity. Run by `gpu_suite.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle
from neds_rt.engines import Engine, load_engine
from neds_rt.stats import percentiles

UNITS, RATE_HZ, BIN_S, POOL = 600, 10.0, 0.02, 256
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


def make_counts(bundle: Bundle, n_bins: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return spike counts (n_bins, units) of units that fire at 10 Hz on average."""
    rng = np.random.default_rng(seed)
    size = (n_bins, len(bundle.manifest.units))
    return rng.poisson(RATE_HZ * BIN_S, size).astype(np.uint16)


@dataclass(frozen=True)
class Candidate:
    """An engine to measure. `make` builds it; `form` is "step" or "window"."""

    name: str
    form: str
    precision: str
    make: Callable[[Bundle], Engine]
    options: dict[str, Any] = field(default_factory=dict)


def cuda_candidate(precision: str, label: str = "", **options: Any) -> Candidate:
    """Return the hand-written kernel with `options`."""
    def make(bundle: Bundle) -> Engine:
        from neds_rt.engines.cuda import CudaEngine

        return CudaEngine(bundle, precision=precision, **options)

    return Candidate(f"cuda{label}", "step", precision, make, options)


def native_candidate() -> Candidate:
    """Return the C++ engine on one core of the same machine."""
    return Candidate("native (CPU)", "step", "float32", lambda b: load_engine("native", b))


def torch_step_candidate(precision: str, graph: bool) -> Candidate:
    """Return the torch step, launched by operation or as a CUDA graph."""
    def make(bundle: Bundle) -> Engine:
        from neds.cudagraph_engine import GraphStep, TorchStep

        return (GraphStep if graph else TorchStep)(bundle, precision=precision)

    return Candidate("torch cudagraph" if graph else "torch eager", "step", precision, make)


def window_candidate(precision: str, how: str, last_bin_only: bool) -> Candidate:
    """Return the recomputed window in torch."""
    def make(bundle: Bundle) -> Engine:
        from neds.window_engines import WindowEngine

        return WindowEngine(bundle, precision, how, last_bin_only)

    kind = "last bin" if last_bin_only else "all bins"
    name = {"eager": "torch eager", "graph": "torch cudagraph"}.get(how, f"torch.compile {how}")
    return Candidate(f"{name}, {kind}", "window", precision, make)


def parity(engine: Engine, bundle: Bundle, bins: int) -> float:
    """Largest difference to the CPU engine over a stream with lost bins, of the largest output."""
    reference = load_engine("native", bundle)
    counts = make_counts(bundle, bins, seed=5)
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
    return _summary(list(_timed(engine, bundle, steps, limit_s, 0.0, 0.0)))


def paced(
    engine: Engine, bundle: Bundle, steps: int, period_s: float, warm_every_s: float = 0.0
) -> dict[str, Any]:
    """Time of a step that comes every `period_s`; between steps `warm` every `warm_every_s`."""
    limit_s = steps * period_s * 1.5 + 1.0
    found = _summary(list(_timed(engine, bundle, steps, limit_s, period_s, warm_every_s)))
    return {**found, "period_s": period_s, "warm_every_s": warm_every_s}


def _timed(
    engine: Engine, bundle: Bundle, steps: int, limit_s: float, period_s: float, warm_s: float
) -> Iterator[float]:
    rows = list(make_counts(bundle, POOL))
    for row in rows[: bundle.manifest.shape.window + 5]:
        engine.step(row)
    clock = time.perf_counter_ns
    end = clock() + int(limit_s * 1e9)
    due = clock()
    for i in range(steps):
        if period_s:
            due += int(period_s * 1e9)
            _wait_until(due, engine, int(warm_s * 1e9))
        row = rows[i % POOL]
        start = clock()
        engine.step(row)
        now = clock()
        yield (now - start) / 1e3
        if now > end:
            return


def _wait_until(due: int, engine: Engine, warm_ns: int) -> None:
    """Sleep, then spin for the last 0.3 ms; with `warm_ns` call `warm` so often, never too late."""
    clock = time.perf_counter_ns
    next_warm = clock() + warm_ns if warm_ns else due
    while (now := clock()) < due:
        if warm_ns and now >= next_warm and due - now > 300_000:
            engine.warm()
            next_warm += warm_ns
        elif min(due, next_warm) - now > 400_000:
            time.sleep((min(due, next_warm) - now - 300_000) / 1e9)


def _summary(took: list[float]) -> dict[str, Any]:
    return {"steps": len(took), **(percentiles(np.array(took)) or {})}
