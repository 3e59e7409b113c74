"""An ezmsg unit that decodes: binned spike counts in, decodes out, both as `AxisArray`.

    unit = NedsUnit(NedsSettings(bundle="rec.neds"))
    ez.run(..., connections=((binner.OUTPUT, unit.INPUT), (unit.OUTPUT, ...)))

A message holds counts (time, channels) of one bin or more; units of the bundle are its channels.
Its time axis says how long a bin is and when the first one starts: bins that are missing between
two messages are lost bins to the model. The answer has the same bins, times at their ends, and a
column an output, which its second axis names. A message that is not of this kind is dropped and
counted; only a bundle that cannot be read ends the graph.

Importing this module needs `ezmsg` (extra `ezmsg`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.adapters.counts import CountDecoder
from neds_rt.errors import BadInput, StartError

try:
    import ezmsg.core as ez
    from ezmsg.util.messages.axisarray import AxisArray
    from ezmsg.util.messages.axisarray import CoordinateAxis as Labels
except ImportError as error:
    raise StartError(f'ezmsg is not usable ({error}): pip install "neds[ezmsg]"') from error

MOST_LOST = 1 << 30  # bins that can be missing in one stream


class NedsSettings(ez.Settings):  # type: ignore[misc]
    """bundle: the model; behaviours: names to give out, comma-separated, all by default."""

    bundle: str
    behaviours: str = ""
    precision: str = "float32"


class Decoding:
    """What the unit does with a message, apart from ezmsg's ways: keeps the stream's clock."""

    def __init__(self, settings: NedsSettings) -> None:
        names = [name.strip() for name in settings.behaviours.split(",") if name.strip()]
        self.decoder = CountDecoder(settings.bundle, names, settings.precision)
        self.refused = 0  # messages dropped
        self.last_refusal = ""
        self._next_s: float | None = None  # when the next bin starts, if none is lost

    def answer(self, message: Any) -> Any | None:
        """The decodes of a message as an AxisArray (time, ch); None for one that is refused."""
        try:
            counts, start_s = self._checked(message)
        except BadInput as error:
            self.refused, self.last_refusal = self.refused + 1, str(error)
            return None
        size = self.decoder.bin_size_s
        lost = 0 if self._next_s is None else round((start_s - self._next_s) / size)
        if not 0 <= lost <= MOST_LOST:  # the clock went back, or far ahead: another stream
            self.decoder.reset()
        else:
            self.decoder.skip(lost)
        self._next_s = start_s + len(counts) * size
        values = np.zeros((len(counts), self.decoder.n_outputs), np.float32)
        for i, row in enumerate(counts):
            values[i] = self.decoder.step(row)
        return AxisArray(
            values, dims=["time", "ch"], key=getattr(message, "key", ""),
            axes={"time": AxisArray.TimeAxis(fs=1 / size, offset=start_s + size),
                  "ch": Labels(data=np.array(self.decoder.labels), dims=["ch"])},
            attrs={"model": self.decoder.bundle.manifest.model_hash})

    def _checked(self, message: Any) -> tuple[NDArray[Any], float]:
        """Counts (time, channels) and the first bin's start in seconds. Raises `BadInput`."""
        where = "AxisArray"
        dims, axis = getattr(message, "dims", None), getattr(message, "axes", {}).get("time")
        gain, offset = getattr(axis, "gain", None), getattr(axis, "offset", None)
        if dims is None or len(dims) != 2 or dims[0] != "time" or gain is None:
            raise BadInput(where, "dims", dims, "time and channels, with a linear time axis")
        if abs(gain - self.decoder.bin_size_s) > 1e-6:
            raise BadInput(where, "bins", f"{gain} s", f"{self.decoder.bin_size_s} s")
        if offset is None or not np.isfinite(offset):
            raise BadInput(where, "offset", offset, "seconds")
        counts = np.asarray(message.data)
        for row in counts:  # all of them before the first is decoded
            self.decoder.checked(row)
        return counts, float(offset)


class NedsUnit(ez.Unit):  # type: ignore[misc]
    """Decodes every message of counts."""

    SETTINGS = NedsSettings
    INPUT = ez.InputStream(AxisArray)
    OUTPUT = ez.OutputStream(AxisArray)

    async def initialize(self) -> None:
        """Read the bundle before the first message."""
        self.decoding = Decoding(self.SETTINGS)  # type: ignore[arg-type]

    @ez.subscriber(INPUT)  # type: ignore[untyped-decorator]
    @ez.publisher(OUTPUT)  # type: ignore[untyped-decorator]
    async def decode(self, message: AxisArray) -> AsyncGenerator[Any, None]:
        """Answer a message of counts."""
        answer = self.decoding.answer(message)
        if answer is not None:
            yield self.OUTPUT, answer
