"""What the host says to a step graph about a bin: counts, phases, whether it is there, the slots.

Shared by the engines that run such a graph (`onnx_graph`, `plan_graph`): which slot of the ring a
bin takes, and which slots hold a bin that may be attended to.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from neds_rt.engines.onnx_graph import MASKED
from neds_rt.manifest import Manifest

Floats = NDArray[np.float32]


def step_sizes(manifest: Manifest) -> dict[str, int]:
    """Return name and length of the float32 vectors that the host fills for every bin."""
    half = manifest.shape.hidden // manifest.shape.heads // 2
    return {"counts": len(manifest.units), "cos": half, "sin": half, "live": 1,
            "slot_bias": manifest.shape.window}


def check_counts(counts: NDArray[np.uint16], n_units: int) -> None:
    """Raise `ValueError` for counts of another length."""
    if counts.shape != (n_units,):
        raise ValueError(f"counts: found shape {counts.shape}, expected ({n_units},)")


class StepInputs:
    """The position in the stream, kept in vectors that a graph reads.

    `arrays` are the vectors of `step_sizes`, wherever the caller wants them; made here if not
    given. Nothing is allocated after construction.
    """

    def __init__(self, manifest: Manifest, arrays: Mapping[str, Floats] | None = None) -> None:
        if arrays is None:
            arrays = {name: np.zeros(n, np.float32) for name, n in step_sizes(manifest).items()}
        self.arrays = arrays
        self.window = manifest.shape.window
        self._counts, self._live = arrays["counts"], arrays["live"]
        self._cos, self._sin = arrays["cos"], arrays["sin"]
        self._bias = arrays["slot_bias"]
        half = len(self._cos)
        self._frequencies = manifest.shape.rope_base ** (-np.arange(half) / half)
        self._angle = np.zeros(half)
        self.reset()

    def reset(self) -> None:
        """The next bin is the first."""
        self.position = 0
        self._bias.fill(MASKED)

    def begin(self, counts: NDArray[np.uint16], present: bool) -> int:
        """Describe the next bin and return its slot, masked; raises `ValueError` for bad counts."""
        check_counts(counts, len(self._counts))
        if present:
            self._counts[:] = counts
        else:
            self._counts.fill(0.0)
        self._live[0] = present
        slot = self.position % self.window
        self._bias[slot] = MASKED
        self._set_phases()
        return slot

    def end(self, slot: int, present: bool) -> None:
        """The bin is over; one that was there can be attended to in its slot."""
        if present:
            self._bias[slot] = 0.0
        self.position += 1

    def skip(self, n_bins: int) -> None:
        """So many bins were lost; raises `ValueError` for less than none."""
        if n_bins < 0:
            raise ValueError(f"n_bins: found {n_bins}, expected at least 0")
        slots = (self.position + np.arange(min(n_bins, self.window))) % self.window
        self._bias[slots] = MASKED
        self.position += n_bins

    def rehearse(self) -> None:
        """Describe a bin that nobody will attend to."""
        self._counts.fill(1.0)
        self._live[0] = 1.0
        self._set_phases()

    def _set_phases(self) -> None:
        np.multiply(self._frequencies, self.position, out=self._angle)
        np.cos(self._angle, out=self._cos, casting="same_kind")
        np.sin(self._angle, out=self._sin, casting="same_kind")
