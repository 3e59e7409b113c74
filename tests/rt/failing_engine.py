"""Engines that fail in every way an engine can: told by class, in the process of a server."""

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
