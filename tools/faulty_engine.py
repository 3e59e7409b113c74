"""An engine that fails on command: the native one, until the first byte of a file says otherwise.

The file is named by NEDS_FAULT and mapped, so that looking at it costs a step nothing.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.engines.native import NativeEngine

FINE, NAN, SLOW, RAISE = range(4)
SLOW_S = 0.03  # longer than a bin


class FaultyEngine(NativeEngine):
    """The native engine, or as the file has it: not a number, too slow, an exception."""

    name = "faulty"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        with open(os.environ["NEDS_FAULT"], "r+b") as file:
            self._told = mmap.mmap(file.fileno(), 8)

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Step, unless told to fail."""
        outputs = super().step(counts, present)
        what = self._told[0]
        if what == NAN:
            return np.full_like(outputs, np.nan)
        if what == SLOW:
            time.sleep(SLOW_S)
        if what == RAISE:
            raise RuntimeError("the device is gone")
        return outputs
