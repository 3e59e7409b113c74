"""What lost bins do to the state ahead of the attention, for engines that cannot do it themselves.

A step of a lost bin moves the convolution's ring and the GRU's memory on; everything else it
computes is its outputs, which nobody asks for when bins are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from neds_rt.manifest import Shape

SETTLING_BINS = 4096
"""The GRU runs for as many lost bins at most: without spikes it has long come to rest by then."""

Floats = NDArray[np.float32]


class LostBins:
    """Runs convolution and GRU over lost bins, in float32."""

    def __init__(self, shape: Shape, weights: Mapping[str, Floats]) -> None:
        self.conv, self.recurrent = shape.conv, shape.recurrent
        self.nothing = np.zeros(shape.hidden, np.float32)
        self.weights = weights

    def advance(self, embeddings: Floats, memory: Floats, n_bins: int) -> None:
        """Move `embeddings` (K-1, H), newest first, and `memory` (H,) on by lost bins, in place."""
        gates: Floats | None = None
        for i in range(min(n_bins, SETTLING_BINS if self.recurrent else len(embeddings))):
            if self.recurrent:
                if gates is None or i < self.conv:
                    gates = self._gates(self._embedded(embeddings))
                after = self._recalled(gates, memory)
                if i >= self.conv and np.array_equal(after, memory):
                    return  # at rest, and nothing new comes in
                memory[:] = after
            if len(embeddings):
                embeddings[1:] = embeddings[:-1]
                embeddings[0] = 0.0

    def _embedded(self, embeddings: Floats) -> Floats:
        """What the convolution makes of a lost bin after these."""
        if not self.conv:
            return self.nothing
        g = self.weights["conv.bias"].copy()
        for tap, past in zip(self.weights["conv.weight"][1:], embeddings, strict=True):
            g += tap * past
        inner = np.float32(2 / np.pi) ** np.float32(0.5) * (g + np.float32(0.044715) * g * g * g)
        return np.asarray(np.float32(0.5) * g * (np.float32(1) + np.tanh(inner)), np.float32)

    def _gates(self, x: Floats) -> Floats:
        result: Floats = self.weights["gru.weight_ih"] @ x + self.weights["gru.bias_ih"]
        return result

    def _recalled(self, gates: Floats, memory: Floats) -> Floats:
        back = self.weights["gru.weight_hh"] @ memory + self.weights["gru.bias_hh"]
        now, before = gates.reshape(3, -1), back.reshape(3, -1)
        reset, update = _logistic(now[0] + before[0]), _logistic(now[1] + before[1])
        candidate = np.tanh(now[2] + reset * before[2])
        result: Floats = candidate + update * (memory - candidate)
        return result


def _logistic(x: Floats) -> Floats:
    # By tanh, which cannot overflow.
    result: Floats = np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x))
    return result
