"""What the demo knows at any moment: decodes beside the truth, latencies, counters. Draws nothing.

The truth is not sent: the client draws the same session from the same seeds as the probe does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.binning import bin_edges
from neds_rt.bundle import Manifest, ModalityOut
from neds_rt.stats import percentiles
from neds_rt.synthetic import FS, SyntheticAnimal
from neds_rt.wire import Decode, Value


class DemoState:
    """Truth, decodes and timings of one run of `seconds`, rows are bins from 0.

    `truth[name]` (T,) holds the behaviour at each bin's end: a value, or the class code.
    `decoded[name]` (T, n_outputs) holds what the server said, NaN where nothing came.
    """

    def __init__(
        self, manifest: Manifest, animal: SyntheticAnimal, session: int, seconds: float
    ) -> None:
        behaviours = animal.simulate(seconds, session).behaviours
        self.manifest = manifest
        self.modalities = [m for m in manifest.modalities if m.name in behaviours]
        self.truth = {m.name: behaviours[m.name].values[:, 0] for m in self.modalities}
        self.bins = len(next(iter(self.truth.values())))
        self.decoded = {
            m.name: np.full((self.bins, m.n_outputs), np.nan, np.float32) for m in self.modalities
        }
        self.valid = np.zeros(self.bins, bool)
        self.service_us = np.full(self.bins, np.nan)
        self.published_ns = np.zeros(self.bins, np.int64)
        self.start_ns = 0  # when sample 0 is recorded, set once the probe has said so
        self.newest = -1
        self.repeated = 0

    def add(self, message: Decode) -> None:
        """Take one decode message."""
        row = message.bin
        if not 0 <= row < self.bins:  # stale decodes belong to no bin
            return
        if self.published_ns[row]:
            self.repeated += 1
            return
        self.published_ns[row] = message.pub_ns
        self.service_us[row] = message.service_us
        self.valid[row] = message.valid
        self.newest = max(self.newest, row)
        for modality in self.modalities:
            self.decoded[modality.name][row] = outputs(modality, message.values[modality.name])

    @property
    def decodes(self) -> int:
        """Number of bins a decode came for."""
        return int(np.count_nonzero(self.published_ns))

    def due_ns(self) -> NDArray[np.int64]:
        """Monotonic time at which each bin's last spike was due to be sent, (T,)."""
        edges = bin_edges(np.arange(1, self.bins + 1), FS, self.manifest.bin_size_s)
        return np.asarray(self.start_ns + edges * (1e9 / FS), np.int64)

    def spike_to_publish_us(self) -> NDArray[np.float64]:
        """Microseconds from the end of each bin, as scheduled, to its decode; NaN where none came.

        Both ends are stamped by other processes with this machine's monotonic clock, so drawing a
        picture here does not count.
        """
        late_us = (self.published_ns - self.due_ns()) / 1e3
        return np.where(self.published_ns > 0, late_us, np.nan)

    def missed(self, expected: int) -> int:
        """Of the first `expected` bins: how many were decoded a bin late or later, or never."""
        in_time = self.spike_to_publish_us() <= self.manifest.bin_size_s * 1e6
        return int(np.count_nonzero(~in_time[:expected]))

    def r2(self, name: str) -> float | None:
        """Variance of the truth that the valid decodes explain, None before there are enough."""
        rows = self.valid & np.isfinite(self.truth[name])
        truth, decoded = self.truth[name][rows], self.decoded[name][rows, 0]
        if len(truth) < 10 or truth.std() == 0:
            return None
        error = np.square(truth - decoded, dtype=np.float64).mean()
        return round(float(1 - error / truth.var(dtype=np.float64)), 4)

    def accuracy(self, name: str) -> float | None:
        """Share of the valid decodes whose likeliest class is the true one."""
        rows = self.valid & np.isfinite(self.truth[name])
        if rows.sum() < 10:
            return None
        hits = self.decoded[name][rows].argmax(1) == self.truth[name][rows]
        return round(float(hits.mean()), 4)

    def of_kind(self, kind: str) -> list[ModalityOut]:
        """Return the shown modalities of one kind."""
        return [modality for modality in self.modalities if modality.kind == kind]

    def scores(self) -> dict[str, Any]:
        """Return r2 and accuracy by modality, latencies, counters."""
        got = self.published_ns > 0
        return {
            "r2": {m.name: self.r2(m.name) for m in self.of_kind("continuous")},
            "accuracy": {m.name: self.accuracy(m.name) for m in self.of_kind("categorical")},
            "service_us": percentiles(self.service_us[got]),
            "spike_to_publish_us": percentiles(self.spike_to_publish_us()[got]),
            "invalid": int(np.count_nonzero(got & ~self.valid)),
            "repeated": self.repeated,
        }


def outputs(modality: ModalityOut, value: Value) -> list[float]:
    """Return a decode's value of one modality as plain numbers, `n_outputs` of them."""
    if value.angle is not None:
        return [math.cos(value.angle), math.sin(value.angle)]
    numbers = value.mean if value.mean is not None else value.p
    return numbers if numbers else [math.nan] * modality.n_outputs
