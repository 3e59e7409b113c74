"""A watermark for streams that have none: the newest spike's sample less a fixed time.

Spikes alone cannot say that a stretch is complete, only that it is older than the newest one by
more than the source is ever late. That time has to cover a block of the acquisition program and
what it sends a block late. Nothing moves while nothing comes: a silent source goes stale.
"""

from __future__ import annotations

from neds_rt.sources.bridge import Bridge
from neds_rt.sources.frame import Frame

FAR_S = 10.0  # a spike farther past the newest one is believed only in company
COMPANY = 32  # so many in a row out of place are another acquisition


class HoldBack:
    """The newest sample seen and what follows from it; `see` every spike, then `emit`."""

    def __init__(self, bridge: Bridge, hold_s: float) -> None:
        self._bridge, self._hold_s = bridge, hold_s
        self._fs = 0.0
        self._hold = self._far = 0
        self._newest: int | None = None
        self._odd = 0

    def set_rate(self, fs: float) -> None:
        """Take the stream's sampling rate in Hz."""
        self._fs = fs
        self._hold, self._far = round(self._hold_s * fs), round(FAR_S * fs)

    def restart(self) -> None:
        """Forget what was seen."""
        self._newest, self._odd = None, 0

    def see(self, sample: int) -> bool:
        """Take note of a spike; False where it is out of place and to be left out.

        Out of place is what comes later than the source ever is, twice over, or runs far ahead.
        Where it is the last of many such, the source counts from elsewhere: `lost_place`.
        """
        if self._newest is None:
            self._newest = sample
        if not -2 * self._hold <= sample - self._newest <= self._far:
            self._odd += 1
            return False
        self._odd = 0
        if sample > self._newest:
            self._newest = sample
        return True

    @property
    def lost_place(self) -> bool:
        """Whether so many spikes were out of place that the samples must count anew."""
        return self._odd >= COMPANY

    def emit(self, frame: Frame, *, lossy: bool) -> bool:
        """Fill `frame` if the watermark moves; with `lossy`, declare all up to now lost."""
        if self._newest is None:
            return False
        bridge = self._bridge
        if bridge.watermark is None or lossy:
            # Spikes that were sent before, or got lost, may be as far ahead as this.
            begin = self._newest + self._hold
            if bridge.watermark is not None:
                begin = max(begin, bridge.watermark)
            bridge.emit(frame, begin, begin, self._fs)
            return True
        if self._newest - self._hold <= bridge.watermark:
            return False
        bridge.emit(frame, bridge.watermark, self._newest - self._hold, self._fs)
        return True
