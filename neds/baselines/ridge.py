"""Ridge regression from sums over rows: the design matrix is never held.

Minimises |y - b - X w|^2 + strength |w - w0|^2 with a free intercept b, from the sums of x, y, x x'
and x y' alone: (C + strength I)(w - w0) = X'y_c - C w0 with the centred Gram matrix C (Hoerl and
Kennard 1970; shrinking towards a prior mean instead of zero is the same solution, shifted).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neds.baselines.rows import best_of

STRENGTHS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Candidates, as multiples of the mean diagonal of the centred Gram matrix."""


@dataclass
class Sums:
    """Sums over rows of x (p,) and y (k,) in double precision, on one device."""

    rows: int
    x: Tensor
    y: Tensor
    gram: Tensor
    cross: Tensor

    @staticmethod
    def zeros(p: int, k: int, device: str = "cpu") -> Sums:
        """Nothing summed yet."""
        def new(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return Sums(0, new(p), new(k), new(p, p), new(p, k))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows x (n, p) float32 and y (n, k)."""
        self.rows += len(x)
        self.x += x.sum(0, dtype=torch.float64)
        self.y += y.sum(0, dtype=torch.float64)
        self.gram += x.T @ x  # single precision inside a block, double across blocks
        self.cross += x.T @ y

    def solve(self, columns: int, strength: float, towards: Tensor | None = None
              ) -> tuple[Tensor, Tensor]:
        """Weights (columns, k) of the first `columns` of x, and the intercept (k,), in double.

        `towards` (columns, k) is what the weights are shrunk to, zero if not given. Without rows
        that, and zero, is the answer.
        """
        prior = towards if towards is not None else self.cross.new_zeros(columns, len(self.y))
        if self.rows == 0:
            return prior, torch.zeros_like(self.y)
        mean_x, mean_y = self.x[:columns] / self.rows, self.y / self.rows
        centred = self.gram[:columns, :columns].addr(mean_x, mean_x, alpha=-self.rows)
        cross = self.cross[:columns].addr(mean_x, mean_y, alpha=-self.rows)
        if towards is not None:
            cross = cross - centred @ towards
        diagonal = centred.diagonal()
        scale = float(diagonal.mean())
        diagonal += strength * (scale if scale > 1e-9 else 1.0)
        weights = prior + torch.cholesky_solve(cross, torch.linalg.cholesky(centred))
        return weights, mean_y - mean_x @ weights


def tune(
    evaluate: Callable[[int, float], float],
    lags: Sequence[int],
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[int, float]:
    """The (lags, strength) with the best validation score; NaN scores never win.

    Every strength with the middle number of lags, then the other lags with the best strength and
    its neighbours. Without any score the middle candidates are taken.
    """
    middle = lags[len(lags) // 2]
    scores = {(middle, s): evaluate(middle, s) for s in strengths}
    best = best_of(scores, (middle, strengths[len(strengths) // 2]))
    at = strengths.index(best[1])
    near = strengths[max(at - 1, 0) : at + 2]
    for count in lags:
        if count != middle:
            scores |= {(count, s): evaluate(count, s) for s in near}
    return best_of(scores, best)

