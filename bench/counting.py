"""The native engine that also writes down the counts of every bin it is given.

Named on the command line of `neds-rt serve` as `--engine bench.counting:CountingEngine`. It writes
into the file that the environment variable `NEDS_COUNTS` names, a `.npy` of uint16, (bins, 1 +
units): whether the bin was there, then its counts. Rows beyond the file's length are left out.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines.native import NativeEngine

VARIABLE = "NEDS_COUNTS"


class CountingEngine(NativeEngine):
    """Steps as the native engine does; a row a step, in the order of the decode messages."""

    name = "native, counting"

    def __init__(self, bundle: Bundle, precision: str = "float32") -> None:
        super().__init__(bundle, precision)
        self._rows = np.lib.format.open_memmap(os.environ[VARIABLE], mode="r+")
        self._next = 0

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin and write its counts down."""
        if self._next < len(self._rows):
            row = self._rows[self._next]
            row[0] = present
            row[1:] = counts
            self._next += 1
        return super().step(counts, present)
