"""What the GPU suite measures, in which order, and how it keeps to its time.

Every part has a budget of seconds, and every engine an estimate of what it takes. Engines come in
the order in which their figures are wanted; one that no longer fits is a row that says so, and the
rest of the run is as long as it was going to be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from tools.gpu_measure import (
    Candidate,
    cuda_candidate,
    native_candidate,
    plan_candidate,
    torch_step_candidate,
    window_candidate,
)

TOTAL_S = 530.0  # building included; the promise is nine minutes
# `engines` also gets what the parts before it left over; `spread` only runs when it is asked for.
BUDGETS_S = {"tests": 70.0, "floor": 15.0, "spread": 60.0, "engines": 330.0, "paced": 30.0}
QUICK_S = {**BUDGETS_S, "engines": 110.0, "paced": 12.0}
TAIL_STEPS = 20_000  # of which p99.9 is made, one every millisecond
BY_SIZE = ("tiny", "1M", "3.2M", "12M")
PARITY_S, TIGHT_S = 2.0, 1.5
LEAST_STEPS = 2000  # paced ones, below which the tail says nothing


class Budget:
    """Seconds that a part may take, counted from when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, negative once they are over."""
        return self._end - time.monotonic()


@dataclass(frozen=True)
class Wanted:
    """An engine to measure on a model, with its paced steps and what building it may take."""

    model: str
    candidate: Candidate
    steps: int  # paced, 0 for none
    period_s: float = 0.001
    build_s: float = 2.0

    @property
    def fixed_s(self) -> float:
        """Seconds before the paced steps: building, parity, the tight loop."""
        return self.build_s + PARITY_S + TIGHT_S

    @property
    def seconds(self) -> float:
        """All seconds that it is expected to take."""
        return self.fixed_s + self.steps * self.period_s

    def steps_within(self, seconds: float) -> int | None:
        """Return the paced steps that so many seconds allow; None if not even the fewest.

        An engine with fewer steps than that asks for them all.
        """
        room = int((seconds - self.fixed_s) / self.period_s)
        if seconds < self.fixed_s or room < min(LEAST_STEPS, self.steps):
            return None
        return min(self.steps, room)


def wanted(models: list[str], quick: bool) -> list[Wanted]:
    """Return what is measured, most wanted first; the first model is the one with most engines."""
    tail = TAIL_STEPS if not quick else TAIL_STEPS // 4
    chosen = [*_streaming(models, tail)]
    if quick:
        return [*chosen, *_recomputed(models[:1], LEAST_STEPS)]
    # What takes longest to build comes last, the largest model's first: it has a target.
    largest, *others = sorted(models, key=BY_SIZE.index, reverse=True)
    return [*chosen, *_recomputed(models, tail // 4), *_more(models[0]),
            *_compiled([largest], tail // 4), *_compiled(others[:1], tail // 4)]


def _streaming(models: list[str], tail: int) -> Iterator[Wanted]:
    """The step: kernel, plan, CUDA graph of torch, on every model."""
    for model in models:
        steps = tail if model == models[0] else tail // 2
        yield Wanted(model, cuda_candidate("bfloat16"), steps)
        yield Wanted(model, plan_candidate("step", "float16"), steps, build_s=5.0)
    for model in models:
        first = model == models[0]
        yield Wanted(model, torch_step_candidate("bfloat16", graph=True), tail if first else 0)
        yield Wanted(model, torch_step_candidate("float32", graph=False), 500 if first else 0,
                     0.005)
    yield Wanted(models[0], cuda_candidate("float32"), tail // 4)


def _recomputed(models: list[str], steps: int) -> Iterator[Wanted]:
    """The window: plan, CUDA graph of torch, eager."""
    for model in models:
        yield Wanted(model, plan_candidate("window", "float16"), steps, 0.002, build_s=5.0)
        yield Wanted(model, window_candidate("bfloat16", "graph", False), steps, 0.002, build_s=3.0)
        yield Wanted(model, window_candidate("float32", "eager", False), 500, 0.006)


def _more(model: str) -> Iterator[Wanted]:
    """Other precisions and ways, of one model and in a tight loop."""
    yield Wanted(model, native_candidate(), 0)
    yield Wanted(model, cuda_candidate("float16"), 0)
    yield Wanted(model, torch_step_candidate("float32", graph=True), 0)
    yield Wanted(model, window_candidate("float32", "graph", False), 0)
    yield Wanted(model, window_candidate("bfloat16", "graph", True), 0)
    yield Wanted(model, window_candidate("bfloat16", "eager", False), 0)


def _compiled(models: list[str], steps: int) -> Iterator[Wanted]:
    """The window through torch.compile."""
    for model in models:
        yield Wanted(model, window_candidate("bfloat16", "reduce-overhead", False), steps, 0.002,
                     build_s=45.0)


def dry_run() -> list[Wanted]:
    """Return what stands for all that where there is no GPU: every kind of engine that a CPU has.
    """
    return [
        Wanted("tiny", native_candidate(), 20),
        Wanted("tiny", torch_step_candidate("float32", graph=False, device="cpu"), 20),
        Wanted("tiny", torch_step_candidate("bfloat16", graph=False, device="cpu"), 20),
        Wanted("tiny", window_candidate("float32", "eager", False, device="cpu"), 20, 0.002),
        Wanted("tiny", window_candidate("float32", "eager", True, device="cpu"), 20, 0.002),
    ]


def print_plan(chosen: list[Wanted], budget_s: float) -> None:
    """Print what is going to be measured and what it is expected to take."""
    print(f"   {len(chosen)} engines, expected {sum(w.seconds for w in chosen):.0f} s of "
          f"{budget_s:.0f} s", flush=True)
    for w in chosen:
        c = w.candidate
        print(f"   {w.model:5} {c.form:7} {c.name:36} {c.precision:9} {w.steps:6} paced steps, "
              f"{w.seconds:.0f} s", flush=True)
