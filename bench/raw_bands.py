"""What the bench of sources knows of the samples that a raw twin plays: spikes found offline.

The twin plays a few seconds of a made AP band over and over; here the same samples are given, in
order and from the one that the source began with, to the same detector or matcher.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neds.templates import Raw, Sorted, measure_templates
from neds_rt import _core
from neds_rt.templates import Templates
from tools.twins.feed import Feed
from tools.twins.spikeglx import LOOP_S, make_ap_band

FS = 30_000.0
CHANNELS = 384  # unless told otherwise
BLOCK = 3000  # samples given to the detector at a time
PITCH_UM = 20.0  # between rows of two channels


def silent(n: int) -> Feed:
    """Return the units of a raw band, one a channel, that nothing has been found of yet."""
    none = np.zeros(0, np.int64)
    return Feed(none, none, FS, np.arange(n), np.zeros(n, np.int64))


class RawBand:
    """The samples (n, channels) of the twin with that seed, and templates of their units."""

    def __init__(self, channels: int, seed: int, folder: Path) -> None:
        self.data, self._samples, self._where = make_ap_band(channels, LOOP_S, seed=seed)
        made = self._measured()
        self._matcher, self._channel = made.matcher(), np.array([c for c, _ in made.names])
        self.templates = folder / "made.templates"
        self.templates.write_bytes(made.encode())

    def _measured(self) -> Templates:
        channels = np.arange(self.data.shape[1])
        position = np.zeros((len(channels), 3), np.float32)
        position[:, 0] = channels % 2 * 32.0
        position[:, 1] = channels // 2 * PITCH_UM
        raw = Raw(lambda a, b: self.data[a:b], len(self.data), FS, position, "made")
        names = np.c_[channels, np.zeros_like(channels)]
        return measure_templates(raw, Sorted(self._samples, self._where, names))[0]

    def offline(self, mode: str, first: int, end: int) -> tuple[Feed, int]:
        """Return what is found in samples [first, end), and from which on everything is."""
        core: _core.ThresholdDetector | _core.TemplateMatcher = self._matcher
        channel = self._channel
        if mode == "threshold":
            n = self.data.shape[1]
            core, channel = _core.ThresholdDetector(n, FS), np.arange(n)
        samples: list[NDArray[np.int64]] = []
        units: list[NDArray[np.int64]] = []
        at = first
        while at < end:
            block = np.ascontiguousarray(self.data[at % len(self.data) :][: min(BLOCK, end - at)])
            found = core.push(block.data, at)
            samples.append(core.samples[:found].copy())
            units.append(channel[core.where[:found]])
            at += len(block)
        known = silent(self.data.shape[1])
        sample, unit = np.concatenate(samples), np.concatenate(units)
        order = np.argsort(sample, kind="stable")
        return Feed(sample[order], unit[order], FS, known.channel, known.cluster), core.live_from
