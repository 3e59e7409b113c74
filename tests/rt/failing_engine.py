"""Engines that fail in every way an engine can: told by class, in the process of a server."""

import threading
import time

import numpy as np

from neds_rt.engines.native import NativeEngine

GOOD_STEPS = 8


class RaisingEngine(NativeEngine):
    """The native engine, until it has made `GOOD_STEPS` steps."""

    name = "raising"
    steps = 0

    def step(self, counts, present=True):
        self.steps += 1
        if self.steps > GOOD_STEPS:
            raise RuntimeError("the device\nis gone")
        return super().step(counts, present)


class RaisingWithLag(RaisingEngine):
    """The same, met with all bins at once."""


class Slowing(NativeEngine):
    """Takes 60 ms a step once it has made `GOOD_STEPS` steps."""

    name = "slowing"
    steps = 0

    def step(self, counts, present=True):
        self.steps += 1
        if self.steps > GOOD_STEPS:
            time.sleep(0.06)
        return super().step(counts, present)


class RaisingReset(NativeEngine):
    """Cannot begin a second session."""

    resets = 0

    def reset(self):
        self.resets += 1
        if self.resets > 1:
            raise RuntimeError("cannot reset")
        super().reset()


class RaisingSkip(NativeEngine):
    """Cannot skip."""

    def skip(self, n_bins):
        raise RuntimeError("cannot skip")


class RaisingWarmLater(NativeEngine):
    """Warms up, and fails to do so again while it serves."""

    steps = 0

    def step(self, counts, present=True):
        self.steps += 1
        return super().step(counts, present)

    def warm(self):
        if self.steps > 3:
            raise OSError("no such device")
        super().warm()


class RaisingWarm(NativeEngine):
    """Cannot even warm up."""

    def warm(self):
        raise OSError("no such device")


class WrongOutputs(NativeEngine):
    """Returns fewer values than it says."""

    def step(self, counts, present=True):
        return super().step(counts, present)[:-1]


class Unbuildable:
    """Needs what is not there."""

    precisions = ("float32",)

    def __init__(self, bundle, precision):
        import no_such_package_anywhere  # noqa: F401


class Shapeless:
    """Lacks all that an engine has."""

    precisions = ("float32",)

    def __init__(self, bundle, precision):
        pass


class Patient(NativeEngine):
    """Works, in Python."""

    name = "patient"


class _Loaded(NativeEngine):
    """Works the first time that it is built in a process, as the one that a server starts with."""

    built = 0

    def __init__(self, bundle, precision):
        super().__init__(bundle, precision)
        type(self).built += 1
        self.second = self.built > 1


class LoadedRaising(_Loaded):
    """Raises at once when it is loaded beside another."""

    def step(self, counts, present=True):
        if self.second:
            raise RuntimeError("the device\nis gone")
        return super().step(counts, present)


class LoadedNaN(_Loaded):
    """Says nothing that is a number."""

    def step(self, counts, present=True):
        found = super().step(counts, present)
        return np.full_like(found, np.nan) if self.second else found


class LoadedSlow(_Loaded):
    """Takes 8 ms."""

    def step(self, counts, present=True):
        if self.second:
            time.sleep(0.008)
        return super().step(counts, present)


class LoadedUnbuildable(_Loaded):
    """Cannot be built a second time."""

    def __init__(self, bundle, precision):
        super().__init__(bundle, precision)
        if self.second:
            raise MemoryError("no room")


class RaisingFirst(_Loaded):
    """Raises after `GOOD_STEPS` steps, but not when it is loaded anew."""

    name = "raising"
    steps = 0

    def step(self, counts, present=True):
        self.steps += 1
        if not self.second and self.steps > GOOD_STEPS:
            raise RuntimeError("the device is gone")
        return super().step(counts, present)


class LoadedRaisingLater(_Loaded):
    """Raises on a thread other than that which built it: once it serves."""

    def __init__(self, bundle, precision):
        super().__init__(bundle, precision)
        self.thread = threading.get_ident()
        self.steps = 0

    def step(self, counts, present=True):
        self.steps += self.second and threading.get_ident() != self.thread
        if self.steps > 4:
            raise RuntimeError("the device is gone")
        return super().step(counts, present)
