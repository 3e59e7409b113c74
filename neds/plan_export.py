"""A bundle with plans for GPUs: typed graphs, their parity with torch, what is compiled of them.

A graph that fails parity is not shipped, nor any plan of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neds.checkpoint import CheckpointInfo
from neds.dataset import Recording
from neds.export import (
    PARITY_LIMIT,
    BatchDecoder,
    bundle_parts,
    held_back_runs,
    torch_outputs,
)
from neds.model import Neds
from neds.plan_cpu import PlanOnCpu
from neds.precisions import Floats, compared, decode_with
from neds_rt.bundle import Bundle, Manifest, Plan, make_bundle, write_bundle
from neds_rt.engine_parity import SCORE_LIMIT
from neds_rt.engines.plan_graph import build_plan_graph, graph_hash, graph_name
from neds_rt.errors import CheckFailed
from neds_rt.plans import NO_BFLOAT16, PlanKey, describe, get_plan, product_version

WINDOW_PARITY_BINS = 300  # each computes a whole window


@dataclass(frozen=True)
class Wanted:
    """What to build: every combination of these."""

    forms: list[str]
    precisions: list[str]
    targets: dict[str, list[str]] = field(default_factory=dict)  # product -> "sm86", ...


def export_plans(
    model: Neds,
    info: CheckpointInfo,
    recording: Recording,
    out: Path,
    *,
    behaviours: list[str],
    wanted: Wanted,
    say: Callable[[str], None],
) -> Manifest:
    """Write the bundle of `neds.export.export` with graphs and plans; returns its manifest.

    `say` gets a line for every graph or target that is left out. Raises what `export` raises,
    `StartError` when a product refuses to build, `CheckFailed` when no graph passes parity.
    """
    parts = bundle_parts(model, info, recording, behaviours=behaviours, graphs=["step", "window"])
    bundle = make_bundle(**parts)
    runs = held_back_runs(recording)
    expected = torch_outputs(model, recording, bundle, runs)
    shipped: list[dict[str, Any]] = []
    files, parity, plans = dict(parts.pop("files")), dict(parts.pop("parity")), list[Plan]()
    for form in wanted.forms:
        for precision in wanted.precisions:
            graph = build_plan_graph(bundle, form, precision)
            found = plan_parity(recording, bundle, form, precision, graph, runs, expected)
            if reason := failed(found, precision):
                say(f"{form} {precision} is not shipped: {reason}")
                continue
            shipped.append(found)
            name = graph_name(form, precision)
            files[name] = graph
            for key in _keys(wanted, form, precision, graph_hash(graph), say):
                plan = get_plan(graph, key)
                files[key.file] = plan.data
                plans.append(describe(key, plan, name))
    if not plans:
        raise CheckFailed("no plan is left to be shipped")
    parity["plans"] = shipped
    return write_bundle(out, **parts, files=files, parity=parity, plans=plans)


def plan_parity(
    recording: Recording, bundle: Bundle, form: str, precision: str, graph: bytes,
    runs: list[tuple[int, int]], expected: Floats,
) -> dict[str, Any]:
    """How far one graph is from float32 torch, as an entry of `parity["plans"]`.

    `runs` are held-back rows [first, stop), `expected` (T, n_outputs) what torch predicts over
    them; a window is held against torch on the same window, over the first run's first bins.
    """
    runner = PlanOnCpu(bundle, form, precision, graph)
    if form == "window":
        runs = [(runs[0][0], min(runs[0][1], runs[0][0] + WINDOW_PARITY_BINS))]
    counts = [recording.counts[first:stop].numpy().astype(np.uint16) for first, stop in runs]
    if form == "window":
        expected = window_outputs(bundle, counts[0])
    rows = np.concatenate([np.arange(first, stop) for first, stop in runs])
    found = compared(recording, bundle, rows, decode_with(runner, counts), expected)
    return {"form": form, "precision": precision, "how": runner.how, "bins": len(rows), **found}


def failed(found: dict[str, Any], precision: str) -> str:
    """Why a graph of this parity is not shipped, "" when it is."""
    if precision == "fp32" and not found["max"] <= PARITY_LIMIT:
        return f"off by {found['max']:.1e} of the largest output, at most {PARITY_LIMIT:.0e}"
    for name, change in found["score_change"].items():
        if change is None and precision == "fp32":
            continue  # its outputs were held against torch's
        if change is None:
            return f"{name} has no score on held-back data that could be compared"
        if not abs(change) <= SCORE_LIMIT:
            return f"the score of {name} changes by {change:+.4f}, at most {SCORE_LIMIT}"
    return ""


def window_outputs(bundle: Bundle, counts: np.ndarray[Any, np.dtype[np.uint16]]) -> Floats:
    """What torch makes of every bin (T, n_outputs) from the last `window` bins alone."""
    decoder = BatchDecoder(bundle).eval()
    window, rows = bundle.manifest.shape.window, torch.from_numpy(counts.astype(np.float32))
    with torch.inference_mode():
        start = rows[None, :window]
        parts = [decoder(start, torch.zeros(start.shape[:2], dtype=torch.bool))[0]]
        full = rows.unfold(0, window, 1)[1:].transpose(1, 2) if len(rows) > window else rows[:0]
        for windows in full.split(50) if len(full) else ():
            lost = torch.zeros(windows.shape[:2], dtype=torch.bool)
            parts.append(decoder(windows, lost)[:, -1])
    return torch.cat(parts).numpy()


def _keys(
    wanted: Wanted, form: str, precision: str, graph_sha256: str, say: Callable[[str], None]
) -> list[PlanKey]:
    keys = []
    for product, targets in wanted.targets.items():
        version = product_version(product)
        for target in targets:
            if precision == "bf16" and target in NO_BFLOAT16:
                say(f"{form} bf16 is not built for {target}, which has no bfloat16")
            else:
                keys.append(PlanKey(product, version, target, form, precision, graph_sha256))
    return keys
