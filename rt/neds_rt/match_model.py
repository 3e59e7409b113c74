"""From templates to the arrays of the matcher: order by depth, copies along the probe, filters.

Copies for drift are kriged (as Kilosort 2.5 moves its data): the field of a spike is taken as a
Gaussian process over the probe's surface, known at the sites, asked for where they would lie had
the probe not moved. The filter of a copy is the inverse of the noise's covariance over its channels
times the copy: with it a product tells log likelihood in noise that channels share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

WIDTH = 32  # channels of a copy, MatcherModel::kWidth
LOCAL = 96  # channels by depth that a copy is kriged from
STEP_UM = 5.0  # between copies
PART_UM = 800.0  # length of the probe that drifts as one
RANGE_UM = (40.0, 40.0)  # over which the field of a spike changes, across and along the probe
NUGGET = 1e-3  # of the field's variance, for the noise of the waveforms
SHRINK = 0.1  # of the noise's correlation towards none
NEAR_SHARE = 0.5  # of its trough that a unit must reach on a channel to be tried there
SYMMETRIC = 1e-3  # by which a correlation and its mirror image may differ
SPREAD = (0.05, 0.5)  # least and most standard deviation of amplitudes that is believed
BOUNDS = (0.5, 2.0)  # of any amplitude
TROUGH_ROWS = 8  # to either side of a spike's sample, in which its trough is looked for
VISIBLE = 0.5  # standard deviations that a unit must reach on a channel to be learned there


def depth_order(position: Floats) -> NDArray[np.int32]:
    """Channels (C,) in the order of shank, then y, then x."""
    return np.lexsort((position[:, 0], position[:, 1], position[:, 2])).astype(np.int32)


def matcher_model(tensors: dict[str, Floats], *, before: int, drift_um: float) -> dict[str, Any]:
    """Return what `_core.TemplateMatcher` is built from; `tensors` as in `neds_rt.templates`.

    drift_um: how far copies are moved to either side, in steps of `STEP_UM`; 0 for none.
    """
    order = depth_order(tensors["position"])
    noise = tensors["noise"][order]
    scale = np.divide(1.0, noise, out=np.zeros_like(noise), where=noise > 0)
    position = tensors["position"][order].astype(np.float64)
    correlation = tensors["correlation"][np.ix_(order, order)].astype(np.float64)
    by_depth = _by_depth(tensors, order, scale)
    steps = round(drift_um / STEP_UM)
    moves: Doubles = STEP_UM * np.arange(-steps, steps + 1.0)
    units, rows, places = by_depth.shape
    width = min(WIDTH, places)
    waveform = np.zeros((units, len(moves), rows, WIDTH), np.float32)
    whiten, mask = np.zeros((units, WIDTH, WIDTH), np.float32), np.zeros((units, WIDTH), np.float32)
    first, trough = np.zeros(units, np.int32), np.zeros(units, np.int32)
    part = np.zeros(units, np.int32)
    near: list[list[int]] = [[] for _ in range(places)]
    part_of = _parts(position)
    for u in range(units):
        early = max(0, before - TROUGH_ROWS)
        at_sample = by_depth[u][early : before + TROUGH_ROWS + 1]
        row, main = np.unravel_index(at_sample.argmin(), at_sample.shape)
        row += early
        trough[u], part[u] = row, part_of[main]
        low = int(np.clip(main - LOCAL // 2, 0, max(0, places - LOCAL)))
        local = slice(low, min(low + LOCAL, places))
        copies = _moved(by_depth[u][:, local], position[local], moves)
        copies[:, :, scale[local] == 0] = 0
        begin = _best_window(copies[len(moves) // 2], width)
        first[u] = low + begin
        there = slice(low + begin, low + begin + width)
        waveform[u, :, :, :width] = copies[:, :, begin : begin + width]
        whiten[u, :width, :width] = _inverse(correlation[there, there])
        mask[u] = np.abs(waveform[u]).max((0, 1)) > VISIBLE
        at_trough = waveform[u, :, row, :width]
        reached = at_trough < NEAR_SHARE * at_trough.min(1, keepdims=True)
        for place in np.flatnonzero(reached.any(0)):
            near[low + begin + place].append(u)
    spread = np.clip(tensors["amplitude"][:, 1], *SPREAD)
    least = np.maximum(BOUNDS[0], 1 - 4 * spread)
    most = np.minimum(BOUNDS[1], 1 + 4 * spread + 0.2)
    return {
        "units": units, "positions": len(moves), "rows": rows, "before": before,
        "parts": int(part_of.max()) + 1, "order": order, "scale": scale, "waveform": waveform,
        "whiten": whiten, "mask": mask, "first": first, "trough": trough, "part": part,
        "prior": (1 / spread**2).astype(np.float32), "least": least.astype(np.float32),
        "most": most.astype(np.float32), "near": np.array([u for n in near for u in n], np.int32),
        "near_at": np.concatenate([[0], np.cumsum([len(n) for n in near])]).astype(np.int32),
    }


def invertible(correlation: Floats) -> bool:
    """Whether every filter can be made with a noise of this correlation (C, C)."""
    mixed = (1 - SHRINK) * correlation.astype(np.float64)
    np.fill_diagonal(mixed, 1.0)
    try:  # positive definite as a whole, and so in every part of it; reads one triangle
        np.linalg.cholesky(mixed)
    except np.linalg.LinAlgError:
        return False
    return bool(np.abs(mixed - mixed.T).max() < SYMMETRIC)


def _by_depth(tensors: dict[str, Floats], order: NDArray[np.int32], scale: Floats) -> Floats:
    """Waveforms (U, R, C) by depth, in standard deviations of the noise."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    waveform, site = tensors["waveform"], tensors["site"].astype(np.int64)
    dense = np.zeros((*waveform.shape[:2], len(order)), np.float32)
    for u in range(len(dense)):
        dense[u][:, place[site[u]]] = waveform[u]
    return dense * scale


def _parts(position: Doubles) -> NDArray[np.int32]:
    """The part of the probe that every place (C, 3) is in, numbered from 0."""
    part = np.zeros(len(position), np.int32)
    last = 0
    for shank in np.unique(position[:, 2]):
        on = position[:, 2] == shank
        along = position[on, 1] - position[on, 1].min()
        n = max(1, round(float(along.max()) / PART_UM))
        part[on] = last + np.minimum(along / max(along.max(), 1.0) * n, n - 1).astype(np.int32)
        last += n
    return part


def _moved(waveform: Floats, position: Doubles, moves: Doubles) -> Floats:
    """The waveform (R, L) as the sites would see it, its neuron moved by each of `moves` (um)."""
    inverse = np.linalg.inv(_kernel(position, position) + NUGGET * np.eye(len(position)))
    copies = np.empty((len(moves), *waveform.shape), np.float32)
    for copy, move in zip(copies, moves, strict=True):
        if move == 0:
            copy[:] = waveform
        else:
            copy[:] = waveform @ (_kernel(position - [0, move, 0], position) @ inverse).T
    return copies


def _kernel(a: Doubles, b: Doubles) -> Doubles:
    across = (a[:, None, 0] - b[None, :, 0]) / RANGE_UM[0]
    along = (a[:, None, 1] - b[None, :, 1]) / RANGE_UM[1]
    same: Doubles = np.exp(-0.5 * (across**2 + along**2)) * (a[:, None, 2] == b[None, :, 2])
    return same


def _best_window(waveform: Floats, width: int) -> int:
    """Where the `width` neighbouring columns with most of the energy begin."""
    energy = np.concatenate([[0.0], np.cumsum((waveform.astype(np.float64) ** 2).sum(0))])
    return int((energy[width:] - energy[:-width]).argmax())


def _inverse(correlation: Doubles) -> Doubles:
    mixed = (1 - SHRINK) * correlation
    np.fill_diagonal(mixed, 1.0)
    return np.asarray(np.linalg.inv(mixed))
