"""Poisson regression of many units on the same features at once, with an L2 penalty.

Minimises for every unit sum_t (rate - count log rate) + strength / 2 |w - w0|^2 with
log rate = x w + b, b free and w0 zero unless given, by L-BFGS. The parameters are scaled by the
curvature at constant rates, where it is the same matrix X'X for all units but for their mean count;
that leaves a few dozen iterations. Rows are made, used and dropped a block at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ITERATIONS = 60
LARGEST = 10.0  # log rates above this are cut off
BLOCK_NUMBERS = 4_000_000  # counts of a block


@dataclass(frozen=True)
class PoissonWeights:
    """log rate = features @ weights + intercept."""

    weights: Tensor  # (F, N)
    intercept: Tensor  # (N,)

    def rates(self, features: Tensor) -> Tensor:
        """Spikes per bin (n, N) for features (n, F)."""
        return (features @ self.weights + self.intercept).clamp(max=LARGEST).exp()


class PoissonProblem:
    """Counts and features of some rows; solved for one strength after another.

    features: rows (n,) to (n, F); counts (T, N) as stored; rows (n,): which of the T.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], counts: Tensor, rows: Tensor) -> None:
        self.features, self.counts, self.rows = features, counts, rows
        size = max(256, BLOCK_NUMBERS // counts.shape[1])
        self.blocks = [b for b in rows.split(size) if len(b)]

    @cached_property
    def mean(self) -> Tensor:
        """Mean counts (N,). A unit without a spike is given one: its rate may be low, not zero."""
        spikes = torch.zeros(self.counts.shape[1], dtype=torch.float64, device=self.counts.device)
        for block in self.blocks:
            spikes += self.counts[block].sum(0, dtype=torch.float64)
        return (spikes.clamp(min=1) / max(len(self.rows), 1)).float()

    @cached_property
    def curvature(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (F,) and eigenvectors (F, F) of the sum of x x'."""
        gram = torch.zeros((), dtype=torch.float64, device=self.rows.device)
        for block in self.blocks:
            x = self.features(block)
            gram = gram + x.T @ x
        values, basis = torch.linalg.eigh(gram)
        return values.clamp(min=0).float(), basis.float()

    def solve(self, strength: float, prior: Tensor | None = None) -> PoissonWeights:
        """The best weights, shrunk to `prior` (F, N) or to zero; without rows the mean rates."""
        constant = self.mean.log()
        if not self.blocks:
            width = self.features(self.rows).shape[1]
            return PoissonWeights(constant.new_zeros(width, len(constant)), constant)
        eigenvalues, basis = self.curvature
        scale = (eigenvalues[:, None] * self.mean + strength).rsqrt()  # (F, N)
        scale_b = (self.mean * len(self.rows)).rsqrt()
        z = torch.zeros(len(scale) + 1, len(constant), device=scale.device, requires_grad=True)
        optimiser = torch.optim.LBFGS([z], max_iter=ITERATIONS, history_size=10,
                                      tolerance_grad=1e-3, tolerance_change=1e-7,
                                      line_search_fn="strong_wolfe")

        def unscaled(z: Tensor) -> PoissonWeights:
            weights = basis @ (scale * z[:-1])
            return PoissonWeights(weights if prior is None else prior + weights,
                                  constant + scale_b * z[-1])

        @torch.no_grad()
        def closure() -> Tensor:
            loss, by_weights, by_intercept = self._gradient(unscaled(z))
            shrunk = scale * z[:-1]  # the basis is orthogonal: as long as weights - prior
            z.grad = torch.cat([scale * (basis.T @ by_weights + strength * shrunk),
                                (scale_b * by_intercept)[None]])
            return loss.sum() + strength / 2 * shrunk.double().square().sum()

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return unscaled(z.detach())

    def nll(self, weights: PoissonWeights) -> Tensor:
        """Sum over rows of rate - count log rate, per unit (N,), in double."""
        return self._gradient(weights)[0]

    def _gradient(self, at: PoissonWeights) -> tuple[Tensor, Tensor, Tensor]:
        loss = torch.zeros(len(at.intercept), dtype=torch.float64, device=self.rows.device)
        by_weights, by_intercept = torch.zeros_like(at.weights), torch.zeros_like(at.intercept)
        for block in self.blocks:
            x, y = self.features(block), self.counts[block].float()
            log_rates = (x @ at.weights + at.intercept).clamp(max=LARGEST)
            rates = log_rates.exp()
            loss += (rates - y * log_rates).sum(0, dtype=torch.float64)
            by_weights += x.T @ (rates - y)
            by_intercept += (rates - y).sum(0)
        return loss, by_weights, by_intercept
