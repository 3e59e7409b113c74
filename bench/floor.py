"""How far a step of the CPU engine is from what the machine's memory allows.

    python bench/floor.py
    python bench/floor.py --sizes hidden=128,layers=5,mlp=512,heads=8 --rounds 100 --json

A step reads every weight once, so no step is faster than reading its bytes. In turns, precision by
precision: reading as many bytes as the step does, in a loop (C library's memchr, which does nothing
else), and the step itself; both again after idling for `--period`, when caches are cold; and the
step after a rehearsal `--lead` before it, as the server's keep-warm does. Medians, and the least,
in microseconds; `of floor` is the step's median over that of reading.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle
from neds_rt.engines import Engine, load_engine
from neds_rt.engines.native import NativeEngine
from neds_rt.machine import commit, machine_facts

SIZES = {"hidden": 256, "layers": 5, "heads": 8, "mlp": 512, "window": 100, "units": 600}
RATE_HZ, BIN_S = 10.0, 0.02
STORED = {"float32": 4, "bf16": 2, "int8": 1}  # bytes a weight
RING = {"float32": 4, "bf16": 2, "int8": 2}  # bytes a number of a key or value
LOOP = 30  # steps or reads in a row; the first third is not counted
LIBC = ctypes.CDLL(None)
LIBC.memchr.restype = ctypes.c_void_p
LIBC.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


def bytes_of_step(bundle: Bundle, precision: str, active: float) -> int:
    """What one step has to read: all tensors, the rings, the rows of the units that fired."""
    shape = bundle.manifest.shape
    total = 2 * shape.layers * shape.window * shape.hidden * RING[precision]
    for name, w in bundle.weights.items():
        if name == "input.weight":
            total += round(active * shape.hidden * STORED[precision])
        elif name.startswith(("layers.", "gru.")) and w.ndim == 2:
            total += w.size * STORED[precision] + (4 * len(w) if precision == "int8" else 0)
        else:
            total += 4 * w.size
    return total


class Reader:
    """Reads a buffer from begin to end, looking for a byte that is not there."""

    def __init__(self, size: int) -> None:
        self._buffer = np.ones(size, np.uint8)
        self._where = ctypes.c_void_p(self._buffer.ctypes.data)
        self._size = ctypes.c_size_t(size)

    def __call__(self) -> None:
        """Read all of it once."""
        LIBC.memchr(self._where, 0, self._size)


def timed_us(call: Callable[[], object]) -> float:
    """Microseconds of one call."""
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e3


def stepper(engine: Engine, rows: list[NDArray[np.uint16]]) -> Callable[[], object]:
    """A call that steps with the next row of counts."""
    state = [0]

    def step() -> object:
        state[0] = (state[0] + 1) % len(rows)
        return engine.step(rows[state[0]])

    return step


class Case:
    """One precision: what it reads, its engine, and times (us) by what was timed."""

    def __init__(self, bundle: Bundle, precision: str, rows: list[NDArray[np.uint16]]) -> None:
        self.precision = precision
        self.bytes = bytes_of_step(bundle, precision, float(np.mean([np.sum(r > 0) for r in rows])))
        self.read = Reader(self.bytes)
        self.engine = load_engine(f"native:{precision}", bundle)
        self.step = stepper(self.engine, rows)
        for _ in range(bundle.manifest.shape.window):
            self.step()
        self.times: dict[str, list[float]] = {
            key: [] for key in ("read", "step", "read_cold", "step_cold", "step_warmed")}

    def in_a_loop(self) -> None:
        """Reads, then steps, with warm caches."""
        for key, call in (("read", self.read), ("step", self.step)):
            took = [timed_us(call) for _ in range(LOOP)]
            self.times[key] += took[LOOP // 3 :]

    def after_idling(self, period_s: float, lead_s: float) -> None:
        """One read and one step after `period_s` of sleep, and one step `lead_s` after a warm."""
        for key, call in (("read_cold", self.read), ("step_cold", self.step)):
            time.sleep(period_s)
            self.times[key].append(timed_us(call))
        time.sleep(period_s - lead_s)
        self.engine.warm()
        time.sleep(lead_s)
        self.times["step_warmed"].append(timed_us(self.step))

    def report(self) -> dict[str, Any]:
        """Least, median and tail of every time, and what they say of the floor."""
        spans = {
            key: {"min": round(min(took), 1), "p50": round(float(np.median(took)), 1),
                  "p99": round(float(np.percentile(took, 99)), 1)}
            for key, took in self.times.items() if took
        }
        gb_s = {key: round(self.bytes / span["p50"] / 1e3, 1) for key, span in spans.items()}
        ratios = {"of_floor": round(spans["step"]["p50"] / spans["read"]["p50"], 2),
                  "of_floor_min": round(spans["step"]["min"] / spans["read"]["min"], 2)}
        return {"precision": self.precision, "bytes": self.bytes, "us": spans, "gb_s": gb_s,
                **ratios}


def parse_sizes(text: str) -> dict[str, int]:
    """`hidden=128,layers=4` over the defaults."""
    sizes = dict(SIZES)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in sizes or not value.isdecimal():
            raise SystemExit(f"--sizes: found {part!r}, expected NAME=N of {', '.join(sizes)}")
        sizes[name] = int(value)
    return sizes


def main(arguments: list[str] | None = None) -> int:
    """Measure all precisions in turns and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="", metavar="K=N,...", help=f"over {SIZES}")
    parser.add_argument("--rounds", type=int, default=50, help="of loops (50)")
    parser.add_argument("--paced", type=int, default=300, help="steps after idling (300)")
    parser.add_argument("--period", type=float, default=BIN_S, help="idle seconds (0.02)")
    parser.add_argument("--lead", type=float, default=0.0015,
                        help="seconds from rehearsal to step (0.0015)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(arguments)
    sizes = parse_sizes(args.sizes)
    units = sizes.pop("units")
    shape = Shape(**sizes, conv=5, recurrent=True)
    bundle = random_bundle(shape, units, [ModalityOut("wheel", "continuous", 2)])
    rng = np.random.default_rng(0)
    rows = list(rng.poisson(RATE_HZ * BIN_S, (64, units)).astype(np.uint16))
    cases = [Case(bundle, precision, rows) for precision in NativeEngine.precisions]
    for _ in range(args.rounds):
        for case in cases:
            case.in_a_loop()
    for _ in range(args.paced):
        for case in cases:
            case.after_idling(args.period, args.lead)
    report = [case.report() for case in cases]
    for row in report:
        print(describe(row))
    if args.json:
        print(json.dumps({"command": " ".join(["python", *sys.argv]), "commit": commit(),
                          "machine": machine_facts(), "sizes": sizes | {"units": units},
                          "precisions": report}))
    return 0


def describe(row: dict[str, Any]) -> str:
    """One precision as text."""
    parts = [f"{key.replace('_', ' ')} {span['min']:.0f} / {span['p50']:.0f} / "
             f"{span['p99']:.0f} us ({row['gb_s'][key]:.0f} GB/s)"
             for key, span in row["us"].items()]
    return (f"{row['precision']:8} {row['bytes'] / 1e6:.2f} MB, {row['of_floor']:.2f} of floor "
            f"({row['of_floor_min']:.2f} at best); min / p50 / p99: " + ", ".join(parts))


if __name__ == "__main__":
    raise SystemExit(main())
