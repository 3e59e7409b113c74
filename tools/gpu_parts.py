"""The parts of the GPU suite, each a function that returns what goes into the JSON file."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from neds_rt.stats import percentiles
from tools.gpu_measure import (
    BIN_S,
    Candidate,
    cuda_candidate,
    make_model,
    n_parameters,
    native_candidate,
    paced,
    parity,
    plan_candidate,
    step_bytes,
    tight,
)
from tools.gpu_plan import (
    BUDGETS_S,
    QUICK_S,
    TIGHT_S,
    Budget,
    Wanted,
    dry_run,
    print_plan,
    wanted,
)
from tools.gpu_suite import ROOT, Report

TESTS = ["tests/rt/test_cuda.py", "tests/neds/test_gpu_engines.py"]


def run_parts(args: argparse.Namespace) -> int:
    """Run the parts in turn and print the table; returns 0, or 4 when one failed."""
    from neds_rt.machine import commit, machine_facts

    report = Report(args.out, {
        "command": "python tools/gpu_suite.py " + " ".join(sys.argv[2:]),
        "commit": args.commit or commit() or head_commit(), "machine": machine_facts(),
        "gpu": {} if args.dry_run else gpu_facts(), "quick": args.quick, "dry_run": args.dry_run,
    })
    report.write()
    report.give_up_after(args.limit_s)
    parts = {"tests": tests, "floor": floor, "spread": spread, "engines": engines, "paced": steady}
    budgets, total = QUICK_S if args.quick else BUDGETS_S, Budget(args.limit_s)
    for name, part in parts.items():
        if name in args.only:
            # Never more than what is left of the whole once the parts after it have theirs.
            after = sum(budgets[n] for n in list(parts)[list(parts).index(name) + 1 :]
                        if n in args.only)
            spare = total.left - after
            seconds = max(budgets[name], spare) if name == "engines" and not args.quick else (
                budgets[name])
            budget = Budget(min(seconds, spare))
            report.part(name, lambda rows, part=part, budget=budget: part(args, rows, budget))
    print_table(report.data)
    print(f"written: {args.out}; failed parts: {', '.join(report.failed) or 'none'}", flush=True)
    return 4 if report.failed else 0


def head_commit() -> str | None:
    """The commit of the checkout, None where git does not know."""
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True,
                          text=True)
    return done.stdout.strip() or None


def gpu_facts() -> dict[str, Any]:
    """What the driver says of the GPU, before anything ran on it."""
    from neds_rt.engines.cuda import cuda_module

    query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"
    done = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
                          capture_output=True, text=True)
    return {**cuda_module().device_facts(), "nvidia_smi": done.stdout.strip()}


def tests(args: argparse.Namespace, rows: list[Any], budget: Budget) -> None:
    """Run the GPU tests; their errors against the float64 reference are kept.

    The project's options have `-q` already: one more, and the line with the counts is gone.
    """
    chosen = TESTS[:1] if args.dry_run else TESTS
    with tempfile.TemporaryDirectory() as folder:
        parity_file = Path(folder) / "parity.jsonl"
        environment = {**os.environ, "NEDS_PARITY_FILE": str(parity_file)}
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "default",
                 "--timeout=60", "--durations=5", *chosen]
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=max(budget.left, 1.0))
        lines = parity_file.read_text().splitlines() if parity_file.exists() else []
    print(done.stdout[-5000:], flush=True)
    rows += [json.loads(line) for line in lines]
    counted = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    rows.append({k: int(n) for n, k in counted})
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-3000:]}")


def floor(args: argparse.Namespace, rows: list[Any], budget: Budget) -> None:
    """What any step has to pay: an empty launch, meetings of blocks, the bytes it reads."""
    def tell(name: str, value: object) -> None:
        rows.append({"name": name, "value": value})
        print(f"   {name}: {value}", flush=True)

    models = ["tiny"] if args.dry_run else args.models
    bundles = {model: make_model(model, units_of(args)) for model in models}
    rates = bandwidth("cpu" if args.dry_run else "cuda")
    tell("copy_bytes_per_s_memory_and_cache", rates)
    launch_us = 0.0 if args.dry_run else launches(bundles[models[0]], tell)
    for model, bundle in bundles.items():
        tell(f"weight_bytes_float32_{model}", 4 * n_parameters(bundle))
        for precision, size in (("float32", 4), ("bfloat16", 2)):
            # At the better of the two rates: no step can be faster.
            read_us = step_bytes(bundle, size) / max(rates) * 1e6
            tell(f"floor_us_{model}_{precision}", round(launch_us + read_us, 3))


def launches(bundle: Any, tell: Any) -> float:
    """Tell of empty launches and of meetings of blocks; returns the median of the faster launch."""
    from neds_rt.engines.cuda import build_cuda_step

    medians = []
    for launch in ("graph", "direct"):
        core = build_cuda_step(bundle, launch=launch)
        core.launch_floor(200)
        found = percentiles(np.array(core.launch_floor(5000)) / 1e3) or {"p50": 0.0}
        tell(f"empty_launch_us_{launch}", found)
        medians.append(found["p50"])
    for team, blocks in (("cluster", 16), ("cluster", 8), ("grid", 16), ("grid", 64),
                         ("grid", 132)):
        try:
            core = build_cuda_step(bundle, team=team, blocks=blocks)
            tell(f"meeting_cycles_{team}_{blocks}", core.meeting_cycles(1000))
        except Exception as error:  # a size that this GPU has not
            tell(f"meeting_cycles_{team}_{blocks}", str(error))
    return min(medians)


def units_of(args: argparse.Namespace) -> int:
    """Units of the models: few where nothing is to be learnt from the times."""
    return 20 if args.dry_run else 600


def bandwidth(device: str) -> tuple[float, float]:
    """Bytes read and written a second by a large copy, and by one that stays in the L2 cache."""
    import torch

    def copy_s(n_bytes: int, repeats: int) -> float:
        source = torch.rand(n_bytes // 4, device=device)
        target = torch.empty_like(source)
        for _ in range(5):
            target.copy_(source)
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            target.copy_(source)
        wait()
        return (time.perf_counter() - start) / repeats

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    large, small = (1 << 30, 8 << 20) if device == "cuda" else (1 << 22, 1 << 18)
    return 2 * large / copy_s(large, 50), 2 * small / copy_s(small, 1000)


def spread(args: argparse.Namespace, rows: list[Any], budget: Budget) -> None:
    """The kernel over clusters and grids of several sizes, input and launch in several ways."""
    if args.dry_run:
        return
    bundle = make_model("3.2M")
    variants: list[dict[str, Any]] = [
        {"team": "cluster", "blocks": blocks, "threads": threads}
        for blocks, threads in ((16, 128), (16, 256), (16, 384), (16, 416), (16, 512), (8, 512))
    ]
    variants += [{"team": "grid", "blocks": blocks, "threads": threads}
                 for blocks, threads in ((16, 256), (64, 256), (132, 256))]
    variants += [{"input": "copied"}, {"launch": "direct"}]
    for options in variants:
        for precision in ("float32", "bfloat16"):
            if budget.left < 0:
                rows.append({"precision": precision, **options, "error": "no time left"})
                continue
            rows.append(one_spread(bundle, precision, options))
            print("  ", json.dumps(rows[-1]), flush=True)


def one_spread(bundle: Any, precision: str, options: dict[str, Any]) -> dict[str, Any]:
    """Time of one variant in a tight loop, and where its time goes."""
    from neds_rt.engines.cuda import CudaEngine

    row: dict[str, Any] = {"precision": precision, **options}
    try:
        engine = CudaEngine(bundle, precision=precision, **options)
        row["step_us"] = tight(engine, bundle, 3000, 1.5)
        marked = CudaEngine(bundle, precision=precision, marks=True, **options)
        for _ in range(300):
            marked.warm()
        clocks = np.diff(np.array(marked.core.phase_clocks()))
        stem = ("memory", "input", "gru") if bundle.manifest.shape.recurrent else ("input",)
        layers = clocks[len(stem):-1].reshape(-1, 5)[1:]
        names = ("qkv", "attention", "out", "up", "down")
        row["cycles"] = {**{n: int(c) for n, c in zip(stem, clocks, strict=False)},
                         **{n: int(c) for n, c in zip(names, np.median(layers, 0), strict=True)},
                         "readout": int(clocks[-1])}
        row["facts"] = dict(marked.core.facts)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def engines(args: argparse.Namespace, rows: list[Any], budget: Budget) -> None:
    """Every engine: its parity, its steps in a tight loop, and paced as far as there is time."""
    chosen = dry_run() if args.dry_run else wanted(args.models, args.quick)
    print_plan(chosen, budget.left)
    bundles = {model: make_model(model, units_of(args)) for model in {w.model for w in chosen}}
    for w in chosen:
        bundle, candidate = bundles[w.model], w.candidate
        head = {"model": w.model, "parameters": n_parameters(bundle), "engine": candidate.name,
                "form": candidate.form, "precision": candidate.precision}
        steps = w.steps_within(budget.left)
        if steps is None:
            rows.append({**head, "error": f"no time left: {budget.left:.0f} s of "
                                          f"{w.seconds:.0f} s"})
        else:
            rows.append({**head, **measure(w, bundle, steps, args.dry_run)})
        print("  ", json.dumps(rows[-1]), flush=True)


def measure(w: Wanted, bundle: Any, paced_steps: int, dry: bool) -> dict[str, Any]:
    """Parity and times of one engine; a failure is a row too."""
    row: dict[str, Any] = {}
    candidate = w.candidate
    try:
        engine = candidate.make(bundle)
        stream = candidate.form == "step"
        window = bundle.manifest.shape.window
        fast = candidate.name.startswith(("cuda", "native", "tensorrt"))
        bins = 50 if dry else 3000 if fast else 300
        row["parity_bins"] = bins if stream else window - 1  # later a window forgets, a stream not
        row["parity"] = parity(engine, bundle, row["parity_bins"])
        row["step_us"] = tight(engine, bundle, 200 if dry else 20_000, TIGHT_S)
        if paced_steps:
            row["paced_us"] = paced(engine, bundle, paced_steps, w.period_s)
    except Exception as error:
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    engine = None
    gc.collect()
    return row


def steady(args: argparse.Namespace, rows: list[Any], budget: Budget) -> None:
    """A step every 20 ms, as bins come, with and without keep-warm ticks between them."""
    if args.dry_run:
        chosen, model, steps, period_s, warm_s = [native_candidate()], "tiny", 20, 0.001, 0.0005
    else:
        chosen = [cuda_candidate("bfloat16"), plan_candidate("step", "float16")]
        model, period_s, warm_s = args.models[0], BIN_S, 0.001
        steps = 100 if args.quick else 250
    bundle = make_model(model, units_of(args))
    for candidate in chosen:
        rows += paced_rows(candidate, model, bundle, [(steps, period_s, w) for w in (0.0, warm_s)],
                           budget)


def paced_rows(
    candidate: Candidate, model: str, bundle: Any, plans: list[tuple[int, float, float]],
    budget: Budget,
) -> list[dict[str, Any]]:
    """A row for each (steps, period, keep-warm period) of one engine, as far as there is time."""
    head = {"model": model, "engine": candidate.name, "precision": candidate.precision}
    rows = []
    try:
        engine = candidate.make(bundle)
        for steps, period_s, warm_s in plans:
            if budget.left < steps * period_s:
                raise TimeoutError(f"no time left: {budget.left:.0f} s")
            rows.append({**head, **paced(engine, bundle, steps, period_s, warm_s)})
            print("  ", json.dumps(rows[-1]), flush=True)
    except Exception as error:
        rows.append({**head, "error": f"{type(error).__name__}: {str(error)[:300]}"})
        print("  ", json.dumps(rows[-1]), flush=True)
    return rows


def print_table(data: dict[str, Any]) -> None:
    """Print one table: engines in a tight loop, then paced; microseconds."""
    print(f"\n{'model':6} {'form':7} {'engine':34} {'weights':9} {'how':18} "
          f"{'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>9} {'parity':>9}")
    rows = []
    for row in data.get("engines", []):
        rows.append((row, row.get("step_us") or {}, "tight loop"))
        if "paced_us" in row:
            rows.append((row, row["paced_us"], f"{row['paced_us']['period_s'] * 1e3:g} ms"))
    rows += [(row, row, f"{row['period_s'] * 1e3:g} ms"
              + (f", warm {row['warm_every_s'] * 1e3:g}" if row["warm_every_s"] else ""))
             for row in data.get("paced", []) if "period_s" in row]
    for row, took, how in rows:
        if "p50" not in took:
            print(row.get("model", ""), row.get("engine", ""), row.get("error", "no figure")[:90])
            continue
        figures = " ".join(f"{took[k]:8.1f}" for k in ("p50", "p99", "p999", "max"))
        parity_text = f"{row['parity']:9.1e}" if "parity" in row else ""
        print(f"{row.get('model', ''):6} {row.get('form', 'step'):7} {row['engine']:34} "
              f"{row.get('precision', ''):9} {how:18} {figures} {parity_text}")

