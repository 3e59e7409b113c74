"""A stand-in for a GPU that dies: the native engine, until its process gets SIGUSR1.

From then on a step of this engine raises, once; one that is built afterwards works. It is called
from Python, as GPU engines are.
"""

from __future__ import annotations

import signal
import threading

import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle
from neds_rt.engines.native import NativeEngine


class DyingEngine(NativeEngine):
    """Dies with the signal."""

    name = "dying"
    deaths = 0

    def __init__(self, bundle: Bundle, precision: str = "float32") -> None:
        super().__init__(bundle, precision)
        self._deaths = DyingEngine.deaths
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, _die)

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Advance by one bin; raises `RuntimeError` once the device is gone."""
        if DyingEngine.deaths != self._deaths:
            raise RuntimeError("the device is gone")
        return super().step(counts, present)


def _die(*_: object) -> None:
    DyingEngine.deaths += 1
