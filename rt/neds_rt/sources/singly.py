"""From spikes that come one a message to frames: what Event Broadcaster and Trodes have in common.

Such a stream has no watermark and does not say what was lost; see `neds_rt.sources.holdback`.
"""

from __future__ import annotations

from neds_rt.sources.bridge import Bridge
from neds_rt.sources.frame import Frame
from neds_rt.sources.holdback import HoldBack
from neds_rt.sources.units import UnitMap

MESSAGES = {
    "interruptions": "the connection was lost for a while; what was sent then is a gap",
    "backwards": "spikes came later than ?hold_ms allows, or far ahead, and were dropped",
    "restarts": "acquisition was started anew",
    "overfull": "more spikes came than fit into the buffer",
}
COUNTERS = ("spikes", "unknown_spikes", "unsorted_spikes", *MESSAGES)


class SingleSpikes:
    """Puts spikes into frames; `counters` has `COUNTERS` among its keys.

    `set_rate` comes before the first spike.
    """

    def __init__(self, name: str, hold_s: float, units: UnitMap, counters: dict[str, int]) -> None:
        self.bridge = Bridge(name)
        self._hold = HoldBack(self.bridge, hold_s)
        self._units, self._counters = units, counters
        self.fs = 0.0
        self._losses = 0  # of the connection, as far as they were taken into account
        self._interrupted = False  # by one of them, and no spike has come since
        self._lossy = False

    def set_rate(self, fs: float) -> None:
        """Take the sampling rate in Hz; another one than before is another recording."""
        if fs == self.fs:
            return
        if self.fs:
            self._restart()
        self.fs = fs
        self._hold.set_rate(fs)

    def see_losses(self, losses: int) -> None:
        """Take note of how often the connection broke: until the next spike all is lost."""
        if losses != self._losses:
            self._losses, self._interrupted = losses, True

    def interrupt(self) -> None:
        """Take note that the stream comes from elsewhere."""
        self._interrupted = True

    def add(
        self, stream: str, electrode: str, sorted_id: int, sample: int, frame: Frame
    ) -> bool:
        """Take one spike; True when `frame` was filled."""
        counters, bridge, hold = self._counters, self.bridge, self._hold
        counters["spikes"] += 1
        if self._interrupted:
            self._interrupted = False
            self._lossy = bridge.watermark is not None
            counters["interruptions"] += self._lossy
        if not hold.see(sample):
            counters["backwards"] += 1
            if hold.lost_place:
                self._restart()
            return False
        unit = self._units.number(stream, electrode, sorted_id)
        if unit < 0:
            counters["unsorted_spikes" if sorted_id == 0 else "unknown_spikes"] += 1
            return False
        bridge.add(sample, unit)
        if not bridge.full:
            return False
        counters["overfull"] += 1
        return self.emit(frame) or bridge.flush(frame, self.fs)

    def emit(self, frame: Frame) -> bool:
        """Fill `frame` if the watermark moves."""
        filled = self._hold.emit(frame, lossy=self._lossy)
        self._lossy = self._lossy and not filled
        return filled

    def _restart(self) -> None:
        self._counters["restarts"] += 1
        self.bridge.restart()
        self._hold.restart()
        self._lossy = False
