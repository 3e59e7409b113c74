"""Raw samples of a probe to spikes on the wire: what all sources of an AP band share.

Two modes. `threshold`: a unit is a channel, `rt/src/detector.hpp`. `templates`: units are those of
a sorting, matched by `rt/src/matcher.hpp` with the templates of the bundle or of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.sources.bridge import Bridge
from neds_rt.sources.units import UNKNOWN, UnitMap
from neds_rt.templates import MatchOptions, Templates, read_templates

if TYPE_CHECKING:
    from neds_rt.sources.frame import Frame

UNASKED = UNKNOWN - 1  # in a table of units: this one has not fired yet
MESSAGES = {
    "wrong_stream": "the stream is not one that the templates were made for",
    "overflow": "more spikes in a block than a frame may hold were dropped",
}
COUNTERS = ("samples", "spikes", "unknown_spikes", *MESSAGES)


class RawOptions(msgspec.Struct, frozen=True):
    """What the URI of a source of raw samples may say; None: the mode's own."""

    mode: Literal["threshold", "templates"] = "threshold"
    templates: str = ""  # a file of neds templates; empty: those of the bundle
    threshold: float | None = None  # in standard deviations of a channel's noise, downwards
    refractory_ms: float | None = None
    highpass: float | None = None  # Hz
    reference: Literal["median", "none"] | None = None  # taken away from all channels


DEFAULTS = {"threshold": 5.0, "refractory_ms": 1.0, "highpass": 300.0, "reference": "median"}
LIMITS = {"threshold": (1.0, 100.0), "refractory_ms": (0.0, 100.0), "highpass": (1.0, 10_000.0)}


class RawBand:
    """One probe's samples on their way into the assembler.

    `counters` are the source's and have the names of `COUNTERS`. Raises `BadInput` for options
    that exclude each other, and where the mode needs templates and there are none.
    """

    def __init__(
        self, where: str, probe: str, options: RawOptions, units: UnitMap, counters: dict[str, int]
    ) -> None:
        self.bridge = Bridge(probe)
        self.fs = 0.0
        self.first = -1  # sample that the core began with, or began anew with
        self._where, self._options, self._units, self._counters = where, options, units, counters
        self._core: _core.ThresholdDetector | _core.TemplateMatcher | None = None
        self._numbers = np.zeros(0, np.int64)  # unit of each channel or template, UNASKED, UNKNOWN
        self._names: list[tuple[int, int]] = []  # channel and cluster of each
        self._hold = self.channels = 0
        self._stream = ""
        _check(where, options)
        self.templates = _templates(where, options, units)
        if self.templates is not None:
            units.leave_silent(set(self.templates.names))

    @property
    def least_rate(self) -> float:
        """A stream whose rate is not above it cannot be filtered."""
        if self.templates is not None:
            return 2 * self.templates.settings.highpass_hz
        return 2 * float(self._given("highpass"))

    def set_up(self, stream: str, channels: int, fs: float) -> None:
        """Begin with a stream; its electrodes are called AP0, AP1... of `stream`.

        Raises `BadInput` for one that the templates are not for, or that cannot be filtered.
        """
        try:
            self._core = self._make(channels, fs)
        except ValueError as error:
            raise BadInput(self._where, "stream", error, "one that can be filtered") from error
        self._stream, self.channels, self.fs, self.first = stream, channels, fs, -1
        if self.templates is None:
            self._names = [(channel, 0) for channel in range(channels)]
        else:
            self._names = self.templates.names
        self._numbers = np.full(len(self._names), UNASKED)

    def _make(self, channels: int, fs: float) -> _core.ThresholdDetector | _core.TemplateMatcher:
        given = self._given
        if self.templates is not None:
            self.templates.check_stream(self._where, channels, fs)
            options = MatchOptions()
            if self._options.threshold is not None:
                options = msgspec.structs.replace(options, threshold=self._options.threshold)
            if self._options.refractory_ms is not None:
                samples = round(self._options.refractory_ms * 1e-3 * fs)
                options = msgspec.structs.replace(options, refractory=samples)
            matcher = self.templates.matcher(options)
            self._hold = matcher.hold
            return matcher
        return _core.ThresholdDetector(
            channels, fs, highpass_hz=given("highpass"), threshold=given("threshold"),
            refractory_s=given("refractory_ms") * 1e-3, reference=given("reference") == "median")

    def _given(self, name: str) -> Any:
        value = getattr(self._options, name)
        return DEFAULTS[name] if value is None else value

    def gap(self) -> None:
        """The next samples do not follow the last ones."""
        self.first = -1
        if self._core is not None:
            self._core.reset()

    def restart(self) -> None:
        """The next samples are of another session and count anew."""
        self.bridge.restart()
        self.gap()

    def push(self, data: Any, n: int, head: int, frame: Frame) -> bool:
        """Take n samples of all channels from sample `head` on; True if `frame` was filled.

        It is not while the noise is not known yet or the filter not at rest.
        """
        core, bridge, counters = self._core, self.bridge, self._counters
        assert core is not None
        if self.first < 0:
            self.first = head
        found = core.push(data, head)
        counters["samples"] += n
        counters["overflow"] = core.overflow
        if core.live_from < 0:
            return False
        begin = core.live_from
        if bridge.watermark is not None:
            begin = max(begin, bridge.watermark)
        samples, units = core.samples[:found], core.where[:found]
        if self._hold:  # what began before everything could be seen is not told
            whole = samples >= begin
            samples, units = samples[whole], units[whole]
        counters["spikes"] += len(samples)
        numbers = self._units_of(units)
        known = numbers >= 0
        if not known.all():
            counters["unknown_spikes"] += int((~known).sum())
            samples, numbers = samples[known], numbers[known]
        bridge.extend(samples, numbers)
        bridge.emit(frame, begin, head + n - self._hold, self.fs)
        return True

    def _units_of(self, found: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the unit of each spike; one is looked up when it first fires."""
        units: NDArray[np.int64] = self._numbers[found]
        for i in np.unique(found[units == UNASKED]).tolist():
            channel, cluster = self._names[i]
            self._numbers[i] = self._units.number(self._stream, f"AP{channel}", cluster)
            units = self._numbers[found]
        return units

    def report(self) -> dict[str, Any]:
        """Return rate, channels, units and, by mode, noise or templates; JSON-ready."""
        core = self._core
        report: dict[str, Any] = {
            "fs": self.fs, "channels": self.channels, "mode": self._options.mode, "noise": None,
            "first_sample": self.first, "sessions": self.bridge.n_sessions,
            "units": self._units.report(),
        }
        if isinstance(core, _core.ThresholdDetector):
            report["noise"] = float(np.median(core.noise))
        elif core is not None:
            report |= {"noise": float(np.median(self._noise())), "templates": len(self._names),
                       "held_back_samples": self._hold, "peaks": core.peaks,
                       "unmatched_peaks": core.unmatched, "drift_steps": core.drift.tolist()}
        return report

    def _noise(self) -> NDArray[np.float32]:
        assert self.templates is not None
        return self.templates.tensors["noise"]


def _templates(where: str, options: RawOptions, units: UnitMap) -> Templates | None:
    if options.mode == "threshold":
        if options.templates:
            raise BadInput(where, "URI option", "templates=", "mode=templates with it")
        return None
    for name in ("highpass", "reference"):
        if getattr(options, name) is not None:
            raise BadInput(where, "URI option", f"{name}= with mode=templates",
                           "none: the templates say it")
    if options.templates:
        return read_templates(options.templates)
    if units.templates is None:
        raise BadInput(where, "templates", "none in the bundle for this probe",
                       "neds export --templates, or templates=FILE")
    return units.templates


def _check(where: str, options: RawOptions) -> None:
    for name, (least, most) in LIMITS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise BadInput(where, "URI option", f"{name}={value}", f"{least:g} to {most:g}")
