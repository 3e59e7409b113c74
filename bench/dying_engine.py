"""Stand-ins for a GPU that fails: the native engine, until its process gets SIGUSR1.

From then on a step of `DyingEngine` raises, and one of `SlowEngine` takes `SLOW_S`; one that is
built afterwards works. They are called from Python, as GPU engines are.
"""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines.native import NativeEngine

SLOW_S = 0.012  # a step over the budget that bench/swap.py sets, and below a bin of 20 ms


class DyingEngine(NativeEngine):
    """Dies with the signal."""

    name = "dying"
    deaths = 0

    def __init__(self, bundle: Bundle, precision: str = "float32") -> None:
        super().__init__(bundle, precision)
        self._deaths = DyingEngine.deaths
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, _die)

    @property
    def struck(self) -> bool:
        """Whether the signal came since this engine was built."""
        return DyingEngine.deaths != self._deaths

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin; raises `RuntimeError` once the device is gone."""
        if self.struck:
            raise RuntimeError("the device is gone")
        return super().step(counts, present)


class SlowEngine(DyingEngine):
    """Goes on, but takes `SLOW_S` a step."""

    name = "slow"

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin."""
        outputs = NativeEngine.step(self, counts, present)
        if self.struck:
            time.sleep(SLOW_S)
        return outputs


def _die(*_: object) -> None:
    DyingEngine.deaths += 1
