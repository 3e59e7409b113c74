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
    tight,
    torch_step_candidate,
    window_candidate,
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
    for name, part in parts.items():
        if name in args.only:
            report.part(name, lambda rows, part=part: part(args, rows))
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


def tests(args: argparse.Namespace, rows: list[Any]) -> None:
    """Run the GPU tests; their errors against the float64 reference are kept."""
    with tempfile.TemporaryDirectory() as folder:
        parity_file = Path(folder) / "parity.jsonl"
        environment = {**os.environ, "NEDS_PARITY_FILE": str(parity_file)}
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default",
                 "--timeout=100", "--durations=5", *TESTS]
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=180)
        lines = parity_file.read_text().splitlines() if parity_file.exists() else []
    print(done.stdout[-5000:], flush=True)
    rows += [json.loads(line) for line in lines]
    counted = re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    rows.append({k: int(n) for n, k in counted})
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-3000:]}")


def floor(args: argparse.Namespace, rows: list[Any]) -> None:
    """What any step has to pay: an empty launch, meetings of blocks, the weights' bytes."""
    def tell(name: str, value: object) -> None:
        rows.append({"name": name, "value": value})
        print(f"   {name}: {value}", flush=True)

    bundle = make_model("tiny" if args.dry_run else "3.2M")
    tell("weight_bytes_float32", 4 * n_parameters(bundle))
    if args.dry_run:
        return
    from neds_rt.engines.cuda import build_cuda_step

    for launch in ("graph", "direct"):
        core = build_cuda_step(bundle, launch=launch)
        core.launch_floor(200)
        tell(f"empty_launch_us_{launch}", percentiles(np.array(core.launch_floor(5000)) / 1e3))
    for team, blocks in (("cluster", 16), ("cluster", 8), ("grid", 16), ("grid", 64),
                         ("grid", 132)):
        try:
            core = build_cuda_step(bundle, team=team, blocks=blocks)
            tell(f"meeting_cycles_{team}_{blocks}", core.meeting_cycles(1000))
        except Exception as error:  # a size that this GPU has not
            tell(f"meeting_cycles_{team}_{blocks}", str(error))
    tell("copy_bytes_per_s_memory_and_cache", bandwidth())


def bandwidth() -> tuple[float, float]:
    """Bytes read and written a second by a large copy, and by one that stays in the L2 cache."""
    import torch

    rates = []
    for n in (1 << 30, 8 << 20):
        source = torch.rand(n // 4, device="cuda")
        target = torch.empty_like(source)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for repeats in (5, 50):
            begin.record()
            for _ in range(repeats):
                target.copy_(source)
            end.record()
            end.synchronize()
            rates.append(2 * n * repeats / begin.elapsed_time(end) * 1e3)
    return rates[1], rates[3]


def spread(args: argparse.Namespace, rows: list[Any]) -> None:
    """The kernel over clusters and grids of several sizes, input and launch in several ways."""
    if args.dry_run:
        return
    bundle = make_model("3.2M")
    variants: list[dict[str, Any]] = [
        {"team": "cluster", "blocks": blocks, "threads": threads}
        for blocks, threads in ((16, 128), (16, 256), (16, 384), (16, 512), (8, 256), (8, 512))
    ]
    variants += [{"team": "grid", "blocks": blocks, "threads": threads}
                 for blocks, threads in ((16, 256), (32, 256), (64, 256), (132, 256), (64, 128))]
    variants += [{"input": "copied"}, {"launch": "direct"}]
    for options in variants:
        for precision in ("float32", "bfloat16"):
            rows.append(one_spread(bundle, precision, options))
            print("  ", json.dumps(rows[-1]), flush=True)


def one_spread(bundle: Any, precision: str, options: dict[str, Any]) -> dict[str, Any]:
    """Time of one variant in a tight loop, and where its time goes."""
    from neds_rt.engines.cuda import CudaEngine

    row: dict[str, Any] = {"precision": precision, **options}
    try:
        engine = CudaEngine(bundle, precision=precision, **options)
        row["step_us"] = tight(engine, bundle, 3000, 3.0)
        marked = CudaEngine(bundle, precision=precision, marks=True, **options)
        for _ in range(300):
            marked.warm()
        clocks = np.diff(np.array(marked.core.phase_clocks()))
        stem = 2 if bundle.manifest.shape.recurrent else 1
        layers = clocks[stem:-1].reshape(-1, 5)[1:]
        names = ("qkv", "attention", "out", "up", "down")
        row["cycles"] = {"input": int(clocks[0]), "gru": int(clocks[1:stem].sum()),
                         "readout": int(clocks[-1]),
                         **{n: int(c) for n, c in zip(names, np.median(layers, 0), strict=True)}}
        row["facts"] = dict(marked.core.facts)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def candidates(args: argparse.Namespace, model: str) -> list[Candidate]:
    """What is measured for a model, most wanted first."""
    if args.dry_run:
        return [native_candidate()]
    found = [cuda_candidate("float32"), cuda_candidate("bfloat16"), cuda_candidate("float16"),
             native_candidate(), torch_step_candidate("float32", graph=True),
             torch_step_candidate("bfloat16", graph=True), torch_step_candidate("float32", False)]
    for precision in ("float32", "bfloat16"):
        found += [window_candidate(precision, "eager", False),
                  window_candidate(precision, "graph", True),
                  window_candidate(precision, "graph", False)]
    if model != "1M" and not (args.quick and model == "12M"):
        found.append(window_candidate("bfloat16", "reduce-overhead", False))
    if not args.quick and model == "3.2M":
        found += [window_candidate("float32", "reduce-overhead", False),
                  window_candidate("bfloat16", "max-autotune", False)]
    return found


def engines(args: argparse.Namespace, rows: list[Any]) -> None:
    """Every engine on every model in a tight loop, with its parity."""
    for model in ["tiny"] if args.dry_run else args.models:
        bundle = make_model(model, 20 if args.dry_run else 600)
        for candidate in candidates(args, model):
            rows.append({"model": model, "parameters": n_parameters(bundle),
                         **measure(candidate, bundle, args)})
            print("  ", json.dumps(rows[-1]), flush=True)


def measure(candidate: Candidate, bundle: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Parity and tight-loop time of one engine; a failure is a row too."""
    row: dict[str, Any] = {"engine": candidate.name, "form": candidate.form,
                           "precision": candidate.precision}
    try:
        engine = candidate.make(bundle)
        stream = candidate.form == "step"
        window = bundle.manifest.shape.window
        quick_one = candidate.name.startswith(("cuda", "native"))
        bins = 50 if args.dry_run else 3000 if quick_one else 300
        row["parity_bins"] = bins if stream else window - 1  # later a window forgets, a stream not
        row["parity"] = parity(engine, bundle, row["parity_bins"])
        steps = 200 if args.dry_run else 20_000
        row["step_us"] = tight(engine, bundle, steps, 1.0 if args.quick else 3.0)
    except Exception as error:
        traceback.print_exc()
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    engine = None
    gc.collect()
    return row


def steady(args: argparse.Namespace, rows: list[Any]) -> None:
    """Steps as a rig paces them: every ms for the tail, every 20 ms with and without keep-warm."""
    if args.dry_run:
        bundle = make_model("tiny", 20)
        native = native_candidate().make(bundle)
        rows.append({"engine": "native (CPU)", **paced(native, bundle, 20, 0.001, 0.0005)})
        return
    tail, slow = (8000, 250) if args.quick else (20_000, 1000)
    for model in args.models[:1] if args.quick else args.models:
        bundle = make_model(model)
        chosen = [cuda_candidate("bfloat16"), cuda_candidate("float32"),
                  torch_step_candidate("bfloat16", graph=True)]
        for candidate in chosen[: 3 if model == args.models[0] else 1]:
            engine = candidate.make(bundle)
            plans = [(slow, BIN_S, 0.0), (slow, BIN_S, 0.001)]
            if candidate is not chosen[2]:
                plans.insert(0, (tail, 0.001, 0.0))
            for steps, period, warm in plans:
                rows.append({"model": model, "engine": candidate.name,
                             "precision": candidate.precision,
                             **paced(engine, bundle, steps, period, warm)})
                print("  ", json.dumps(rows[-1]), flush=True)


def print_table(data: dict[str, Any]) -> None:
    """Print one table: engines in a tight loop, then paced; microseconds."""
    print(f"\n{'model':6} {'form':7} {'engine':34} {'weights':9} {'how':18} "
          f"{'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>9} {'parity':>9}")
    rows = [(row, row.get("step_us") or {}, "tight loop") for row in data.get("engines", [])]
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

