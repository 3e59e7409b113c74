"""Do a model's unit embeddings know the brain region of a unit?

The embedding of a unit is what its session's stitchers learned for it: its column of the map from
counts to tokens and its row of the map from tokens to log rates. The region was never an input.
A linear probe (`neds.region_probe`) reads regions from embeddings of units it was not fitted on,
within animals (folds over units) and across animals (each animal left out in turn). The same probe
on plain activity statistics says what the embedding adds to a unit's mean rate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neds.checkpoint import SessionState
from neds.dataset import Recording
from neds.model import Neds
from neds.region_probe import (
    Features,
    Fold,
    ProbeScore,
    Task,
    p_value,
    predict_task,
    score_task,
    shuffled_scores,
    stratified,
    task_costs,
)
from neds_rt.errors import BadInput

FOLDS = 5
UNLABELLED = ("", "root", "void", "unknown", "nan", "none")

# Coarse groups, by prefixes of Allen acronyms and of Steinmetz et al. (2019) area names; the
# longest prefix that fits decides. After the grouping in the supplement of that paper.
GROUPS: dict[str, tuple[str, ...]] = {
    "visual cortex": ("VIS",),
    "other cortex": ("ACA", "AI", "AUD", "COA", "DP", "ECT", "FRP", "GU", "ILA", "MO", "OLF",
                     "ORB", "PERI", "PIR", "PL", "RSP", "SSp", "SSs", "TEa", "TT", "VISC"),
    "hippocampus": ("CA", "DG", "SUB", "POST", "PRE", "PAR", "ProS", "HPF", "ENT"),
    "thalamus": ("AD", "AM", "AV", "CL", "CM", "IAD", "IMD", "LD", "LG", "LH", "LP", "MD", "MG",
                 "MH", "PCN", "PF", "PO", "POL", "PT", "PVT", "RE", "RT", "SPF", "TH", "VAL", "VM",
                 "VPL", "VPM", "Eth", "SGN", "IGL"),
    "midbrain": ("APN", "IC", "MB", "MRN", "NB", "NOT", "NPC", "PAG", "RN", "SC", "SNr", "PPN",
                 "VTA", "CUN", "ZI"),
    "basal ganglia": ("ACB", "CP", "GP", "LS", "MS", "OT", "SI", "STR", "SH"),
    "cortical subplate": ("BLA", "BMA", "CLA", "EP", "MEA", "LA", "PA", "CTXsp"),
}


@dataclass(frozen=True, eq=False)
class UnitTable:
    """U units of all sessions: embedding (U, D), region (U,), animal (U,), group (U,) int.

    Units of one animal with the same `group` share a probe's channel.
    """

    embedding: Features
    region: NDArray[np.str_]
    animal: NDArray[np.str_]
    group: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> UnitTable:
        """The table of some of its rows."""
        return UnitTable(self.embedding[rows], self.region[rows], self.animal[rows],
                         self.group[rows])


def unit_embeddings(model: Neds, state: SessionState) -> NDArray[np.float32]:
    """Embedding of each unit of a session, (N, 2 H): its input column, then its output row.

    The output's bias is left out: it is little but the unit's mean rate. What a unit's maps share
    with other units of its channel is part of them where the channel is known. Raises `BadInput`
    for a model that was told the regions, and for stitchers without weights of one unit's own.
    """
    if model.config.shared == "regions":
        raise BadInput("checkpoint", "model.shared", "'regions', so that the model was told them",
                       "a model that has to find the regions itself")
    stitch = model.stitcher(state.session)
    into, out = stitch.spikes_in, stitch.spikes_out
    if not (isinstance(into, nn.Linear) and isinstance(out, nn.Linear)):
        raise BadInput(state.session, "stitchers", type(into).__name__,
                       "linear ones, in which each unit has its own weights")
    with torch.no_grad():
        columns, rows = into.weight.T, out.weight
        if len(stitch.places):
            known = torch.tensor([[unit.channel >= 0] for unit in state.units])
            columns = columns + model.place_in[stitch.places] * known
            rows = rows + model.place_out[stitch.places] * known
        both = torch.cat((columns, rows), 1)
    return np.asarray(both.float().cpu().numpy(), np.float32)


def unit_table(model: Neds, states: Sequence[SessionState]) -> UnitTable:
    """The units of these sessions with their embeddings, regions and animals.

    A session without a subject is an animal of its own.
    """
    channels: dict[tuple[str, ...], int] = {}
    region, animal, group = [], [], []
    for state in states:
        who = state.subject or state.session
        for i, unit in enumerate(state.units):
            known = unit.channel >= 0
            key = ((who, unit.probe, str(unit.channel)) if known
                   else (who, state.session, "unit", str(i)))
            region.append(unit.region)
            animal.append(who)
            group.append(channels.setdefault(key, len(channels)))
    parts = [unit_embeddings(model, state) for state in states]
    return UnitTable(np.concatenate(parts), np.array(region, np.str_),
                     np.array(animal, np.str_), np.array(group, np.int64))


def coarse(region: str) -> str:
    """The coarse group of a region, or the region without its layer where no group is known."""
    fits = [(len(prefix), name) for name, prefixes in GROUPS.items() for prefix in prefixes
            if region.startswith(prefix)]
    if fits:
        return max(fits)[1]
    return re.sub(r"[1-6](/[1-6])?[ab]?$", "", region) or region


def labelled(table: UnitTable, level: str, regions: Sequence[str]) -> tuple[UnitTable,
                                                                             NDArray[np.int64]]:
    """The units with a region, at `level` "given" or "coarse", of `regions` if any; and their rows.

    Raises `BadInput` for a region that no unit has, and when no unit has a region.
    """
    names = [coarse(str(r)) if level == "coarse" and r.lower() not in UNLABELLED else str(r)
             for r in table.region]
    column = np.array(names, np.str_)
    there = sorted({r for r in names if r.lower() not in UNLABELLED})
    if not there:
        raise BadInput("units", "region", "none in these sessions", "units with a brain region")
    for wanted in regions:
        if wanted not in there:
            raise BadInput("--regions", "region", repr(wanted), f"some of {', '.join(there)}")
    rows = np.flatnonzero(np.isin(column, regions or there))
    return replace(table.take(rows), region=column[rows]), rows


def within_task(table: UnitTable, names: Sequence[str], min_units: int, seed: int) -> Task | None:
    """Folds over the units of each animal, regions with `min_units` units in it; None if none."""
    codes = _codes(table, names)
    rows: list[NDArray[np.int64]] = []
    folds: list[Fold] = []
    left_out, at = [], 0
    for animal in np.unique(table.animal):
        own = np.flatnonzero(table.animal == animal)
        counts = np.bincount(codes[own], minlength=len(names))
        keep = own[counts[codes[own]] >= min_units]
        left_out += [f"{animal}: {names[c]} ({n} units)" for c, n in enumerate(counts)
                     if 0 < n < min_units]
        if len(np.unique(codes[keep])) < 2:
            left_out.append(f"{animal}: fewer than 2 regions of {min_units} units")
            continue
        folds += [Fold(a + at, b + at, str(animal))
                  for a, b in stratified(codes[keep], table.group[keep], FOLDS, seed)]
        rows.append(keep)
        at += len(keep)
    return _task(table, codes, np.concatenate(rows), folds, left_out) if rows else None


def across_task(table: UnitTable, names: Sequence[str], min_units: int) -> Task | None:
    """Each animal left out in turn, on regions that at least two animals have; None if none."""
    codes = _codes(table, names)
    animals = np.unique(table.animal)
    counts = np.stack([np.bincount(codes[table.animal == a], minlength=len(names))
                       for a in animals])
    enough = counts >= min_units
    shared = enough.sum(0) >= 2
    left_out = [f"{names[c]}: {min_units} units in {n} of {len(animals)} animals"
                for c, n in enumerate(enough.sum(0)) if not shared[c]]
    usable = enough & shared
    row = np.searchsorted(animals, table.animal)
    keep = np.flatnonzero(usable[row, codes])
    folds = []
    for i, animal in enumerate(animals):
        here = table.animal[keep] == animal
        others = np.unique(codes[keep][~here])
        test = np.flatnonzero(here & np.isin(codes[keep], others))
        if usable[i].sum() < 2 or len(others) < 2 or not len(test):
            left_out.append(f"{animal}: fewer than 2 shared regions")
            continue
        folds.append(Fold(np.flatnonzero(~here), test, str(animal)))
    return _task(table, codes, keep, folds, left_out) if folds else None


def _codes(table: UnitTable, names: Sequence[str]) -> NDArray[np.int64]:
    return np.searchsorted(np.array(names, np.str_), table.region).astype(np.int64)


def _task(table: UnitTable, codes: NDArray[np.int64], rows: NDArray[np.int64],
          folds: list[Fold], left_out: list[str]) -> Task:
    return Task(rows, codes[rows], table.group[rows], table.animal[rows], folds, left_out)


def run_task(
    features: Mapping[str, Features], task: Task, names: Sequence[str], shuffles: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Scores of each feature set (name -> (U, D) rows of the table) on one task.

    The first feature set is the one that chance is given for as well, under "chance". Each entry
    has `scores` {metric: number} and `details` (recall, confusion, by_animal).
    """
    results: dict[str, dict[str, Any]] = {}
    for i, (name, x) in enumerate(features.items()):
        costs = task_costs(x, task, seed)
        found = score_task(task, task.labels, predict_task(x, task, task.labels, costs),
                           len(names))
        balanced, plain = shuffled_scores(x, task, costs, len(names), shuffles, seed)
        results[name] = {
            "scores": {"balanced_accuracy": found.balanced_accuracy, "accuracy": found.accuracy,
                       "p_value": p_value(found.balanced_accuracy, balanced)},
            "details": _details(found, names, task),
        }
        if i == 0:
            results["chance"] = {"scores": {
                "balanced_accuracy": float(balanced.mean()), "accuracy": float(plain.mean()),
                "balanced_accuracy_p95": float(np.quantile(balanced, 0.95)),
            }}
    return results


def _details(found: ProbeScore, names: Sequence[str], task: Task) -> dict[str, Any]:
    matrix = found.confusion
    there = [c for c in range(len(names)) if matrix[c].sum() or matrix[:, c].sum()]
    recall = {names[c]: float(matrix[c, c] / matrix[c].sum()) for c in there if matrix[c].sum()}
    return {"units": int(matrix.sum()), "animals": found.by_animal, "recall": recall,
            "confusion": {"regions": [names[c] for c in there],
                          "counts": matrix[np.ix_(there, there)].tolist()},
            "left_out": task.left_out}


LAGS = (1, 2, 4, 8, 16)
LONG_S = 0.5  # span over which the slow Fano factor counts spikes


def activity_statistics(recording: Recording, bin_size_s: float) -> NDArray[np.float64]:
    """Plain statistics of each unit (N, 8) on the training part, what a probe could read anyway.

    Log mean rate; log Fano factor in bins and in half seconds; autocorrelation at LAGS bins.
    Counts are taken a block of units at a time.
    """
    runs = recording.runs_within("train")
    columns = []
    for first in range(0, recording.counts.shape[1], 64):
        pieces = [recording.counts[a:b, first : first + 64].numpy().astype(np.float64)
                  for a, b in runs]
        columns.append(_block_statistics(pieces, bin_size_s))
    return np.concatenate(columns)


def _block_statistics(
    pieces: Sequence[NDArray[np.float64]], bin_size_s: float
) -> NDArray[np.float64]:
    whole = np.concatenate(pieces)
    mean, variance = whole.mean(0), whole.var(0)
    rate = np.log(np.maximum(mean, 0.5 / len(whole)) / bin_size_s)
    span = max(2, round(LONG_S / bin_size_s))
    long = [p[: len(p) // span * span].reshape(-1, span, p.shape[1]).sum(1) for p in pieces]
    features = [rate, _log_fano(mean, variance)]
    slow = np.concatenate(long)
    features.append(_log_fano(slow.mean(0), slow.var(0)) if len(slow) > 1 else np.zeros_like(mean))
    for lag in LAGS:
        pairs = [((p[lag:] - mean) * (p[:-lag] - mean)).sum(0) for p in pieces if len(p) > lag]
        n = sum(len(p) - lag for p in pieces if len(p) > lag)
        together = np.sum(pairs, axis=0) / n if n else np.zeros_like(mean)
        features.append(together / np.maximum(variance, 1e-9))
    return np.stack(features, 1)


def _log_fano(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(variance, 1e-6) / np.maximum(mean, 1e-6))
