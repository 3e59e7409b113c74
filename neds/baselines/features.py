"""Behaviours as inputs of encoding models: values, products, lags; made for the rows asked for.

Base columns are the behaviours as NEDS sees them (z-scored, cos and sin, one-hot), zero where
unknown; `quadratic` adds products of continuous columns, z-scored on the training rows. Every
column then appears once per lag, with zeros for lags outside the row's run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from neds.baselines.layout import Output, SessionRows
from neds.baselines.rows import Run, rows_of

MOST_CROSSED = 6  # continuous columns up to which all pairs are multiplied; above, squares alone


@dataclass(frozen=True)
class Features:
    """Base columns (T, D) of a session and the lags at which they are taken."""

    base: Tensor
    first: Tensor  # (T,) first row of each row's run
    last: Tensor  # (T,) last row of it
    lags: tuple[int, ...]  # in bins; negative ones look ahead

    @property
    def width(self) -> int:
        """Columns F = lags * D."""
        return len(self.lags) * self.base.shape[1]

    def rows(self, rows: Tensor) -> Tensor:
        """The features (n, F) of the rows (n,), by lag, then by base column.

        Nothing from before `first` or after `last` is used.
        """
        lags = torch.tensor(self.lags, device=rows.device)
        at = rows[:, None] - lags
        inside = (at >= self.first[rows, None]) & (at <= self.last[rows, None])
        picked = self.base[torch.where(inside, at, rows[:, None])] * inside[..., None]
        return picked.flatten(1)

    def with_lags(self, lags: Sequence[int]) -> Features:
        """The same columns at other lags."""
        return replace(self, lags=tuple(lags))


def make_features(
    data: SessionRows, outputs: list[Output], runs: Sequence[Run], quadratic: bool
) -> Features:
    """Features without lags; rows of a run outside the given `runs` are never looked at.

    `runs` are cut to parts, so that neither past nor future crosses from one part into another.
    """
    device = data.targets.device
    known = torch.cat([data.known[:, m, None].expand(-1, o.columns.stop - o.columns.start)
                       for m, o in enumerate(outputs)], 1)
    base = torch.where(known, data.targets, 0.0)
    if quadratic:
        base = torch.cat([base, products(base, known, outputs, data.fit_on)], 1)
    rows = torch.arange(len(base), device=device)
    first, last = rows.clone(), rows.clone()
    for start, stop in runs:
        first[start:stop], last[start:stop] = start, stop - 1
    return Features(base, first, last, (0,))


def products(base: Tensor, known: Tensor, outputs: list[Output], fit_on: Sequence[Run]) -> Tensor:
    """Products of continuous columns (T, P), z-scored on the rows fitted on, zero where unknown."""
    columns = [c for o in outputs if o.behaviour.kind == "continuous"
               for c in range(o.columns.start, o.columns.stop)]
    pairs = [(i, j) for i, j in combinations_with_replacement(columns, 2)
             if i == j or len(columns) <= MOST_CROSSED]
    if not pairs:
        return base[:, :0]
    rows = torch.from_numpy(rows_of(fit_on)).to(base.device)
    found = []
    for i, j in pairs:
        product, there = base[:, i] * base[:, j], known[:, i] & known[:, j]
        seen = product[rows][there[rows]]
        if len(seen) > 1 and seen.std() > 1e-6:
            mean, sd = float(seen.mean()), float(seen.std())
        else:  # nothing to fit on: as for independent normal columns
            mean, sd = (1.0, math.sqrt(2)) if i == j else (0.0, 1.0)
        found.append(torch.where(there, (product - mean) / sd, 0.0))
    return torch.stack(found, 1)


def offsets(lags: int, future: bool) -> tuple[int, ...]:
    """The bin itself and `lags` - 1 before it; with `future` as many after it."""
    return tuple(range(-(lags - 1) if future else 0, lags))


def row_tensor(runs: Sequence[Run], device: torch.device) -> Tensor:
    """Row numbers of the runs (n,) on a device."""
    return torch.from_numpy(rows_of(runs).astype(np.int64)).to(device)
