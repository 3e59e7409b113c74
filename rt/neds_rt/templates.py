"""Templates of a probe's units: the file they are kept in, and what the matcher is built from.

A safetensors file, alone (`neds templates`) or as a member of a bundle (`neds export --templates`).
Its tensors, all float32; U units, R rows (samples), K sites a unit, C channels of the stream:

    unit (U, 2)          channel and cluster, the unit's name together with the probe
    waveform (U, R, K)   mean spike after the front end, in steps of the ADC
    site (U, K)          channel of each column of `waveform`
    amplitude (U, 2)     mean and standard deviation of single spikes' sizes, 1 the mean spike
    noise (C,)           standard deviation of each channel after the front end, 0 for a dead one
    correlation (C, C)   of the noise
    position (C, 3)      x and y in micrometres, and the shank

Its metadata entry `unit_templates` is JSON, `Settings`: how the front end has to be set, which is
what the waveforms were made with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.match_model import invertible, matcher_model
from neds_rt.safetensors_io import decode_tensors, encode_tensors, read_metadata
from neds_rt.small_files import read_small

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle

Floats = NDArray[np.float32]
KEY = "unit_templates"
VERSION = 1
MAX_UNITS, MAX_ROWS, MAX_CHANNELS = 20_000, 512, 4096
MAX_FILE_BYTES = 1 << 30
# Of the waveforms on all channels, which is what a matcher is made from: 5000 units of 384 channels
# over 80 samples have a third of it.
MAX_DENSE_BYTES = 2 << 30
# Steps of the ADC (an int16 has 65536), micrometres, and the shares that are correlations.
BOUNDS = {"waveform": 1e6, "noise": 1e6, "amplitude": 1e6, "position": 1e7, "correlation": 1.001}
LEAST_NOISE = 1e-6  # of a channel that is alive
AXES = {"unit": "U2", "waveform": "URK", "site": "UK", "amplitude": "U2", "noise": "C",
        "correlation": "CC", "position": "C3"}


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream and its front end have to be like."""

    version: int
    fs: float  # Hz
    highpass_hz: float
    reference: bool  # the median over channels is taken away
    before: int  # row that a spike's sample is at
    probe: str = ""
    step_uv: float = 0.0  # microvolts of a step of the ADC; 0: not known
    source: str = ""  # what they were made from, for people


class MatchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the matcher decides; `rt/src/matcher.hpp` says what each one means."""

    threshold: float = 3.5  # of a peak, in standard deviations
    least_share: float = 0.5  # of a template's energy that taking it away must win
    shifts: int = 3  # samples to either side
    guard: int = 10  # samples within which a peak is alone
    reach: int = 8  # channels within which a peak is alone, by depth
    refractory: int = 20  # samples
    rescans: int = 6  # spikes taken away at a peak, at most
    drift_um: float = 40.0  # templates are moved as far along the probe; 0: never
    drift_gain: float = 0.03  # of one spike on the drift of its part of the probe
    adapt_gain: float = 0.02  # at most, of one spike on its unit's template; 0: templates stay


@dataclass(frozen=True)
class Templates:
    """The templates of one probe, checked; arrays as the module says."""

    settings: Settings
    tensors: dict[str, Floats]

    @property
    def n_channels(self) -> int:
        """Channels of the stream that they are for."""
        return len(self.tensors["noise"])

    @property
    def names(self) -> list[tuple[int, int]]:
        """Channel and cluster of every unit, in order."""
        return [(int(channel), int(cluster)) for channel, cluster in self.tensors["unit"]]

    def encode(self) -> bytes:
        """The file."""
        text = msgspec.json.encode(self.settings).decode()
        return encode_tensors(self.tensors, {KEY: text})

    def matcher(self, options: MatchOptions | None = None) -> _core.TemplateMatcher:
        """A matcher at the beginning of a stream; its units are those of `names`."""
        o, s = options or MatchOptions(), self.settings
        model = matcher_model(self.tensors, before=s.before, drift_um=o.drift_um)
        rest = msgspec.structs.asdict(o)
        del rest["drift_um"]
        return _core.TemplateMatcher(
            self.n_channels, s.fs, model, highpass_hz=s.highpass_hz, reference=s.reference, **rest)

    def check_stream(self, where: str, channels: int, fs: float) -> None:
        """Raise `BadInput` unless a stream is one that these templates were made for."""
        if channels != self.n_channels:
            raise BadInput(where, "stream", f"{channels} channels",
                           f"{self.n_channels}, as the templates have")
        # Calibrated rates differ by parts in a million from one headstage to the next.
        if abs(fs / self.settings.fs - 1) > 1e-3:
            raise BadInput(where, "stream", f"{fs:g} Hz",
                           f"{self.settings.fs:g} Hz, as the templates have")


def make_templates(settings: Settings, tensors: dict[str, Any], where: object) -> Templates:
    """Return checked templates. Raises `BadInput` naming `where` and what does not fit."""
    arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in tensors.items()}
    templates = Templates(settings, arrays)
    _check(templates, where)
    return templates


def decode_templates(data: bytes, where: object) -> Templates:
    """Read a file's bytes. Raises `BadInput` for anything else than templates of this version."""
    text = read_metadata(data, where).get(KEY)
    if text is None:
        raise BadInput(where, "metadata", f"no {KEY}", "templates made by neds templates")
    try:
        settings = msgspec.json.decode(text, type=Settings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(where, f"metadata {KEY}", error, "settings of templates") from None
    templates = Templates(settings, decode_tensors(data, where))
    _check(templates, where)
    return templates


def read_templates(path: str | Path) -> Templates:
    """Read a templates file. Raises `BadInput`."""
    data = read_small(path, "templates", "a file of neds templates", MAX_FILE_BYTES)
    return decode_templates(data, path)


def bundle_templates(bundle: Bundle) -> dict[str, Templates]:
    """Return the templates that a bundle has, by probe. Raises `BadInput`."""
    return {
        entry.probe: decode_templates(bundle.files[entry.file], f"{bundle.where}/{entry.file}")
        for entry in bundle.manifest.templates
    }


def _check(templates: Templates, where: object) -> None:
    s, tensors = templates.settings, templates.tensors
    if s.version != VERSION:
        raise BadInput(where, "templates version", s.version, str(VERSION))
    if sorted(tensors) != sorted(AXES):
        raise BadInput(where, "tensors", ", ".join(sorted(tensors)), ", ".join(sorted(AXES)))
    sizes: dict[str, int] = {"2": 2, "3": 3}
    for name, axes in AXES.items():
        shape = tensors[name].shape
        fits = len(shape) == len(axes)
        if not fits or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape, strict=True)):
            raise BadInput(where, f"tensor {name!r}", f"shape {shape}", f"({', '.join(axes)})")
        if not np.isfinite(tensors[name]).all():
            raise BadInput(where, f"tensor {name!r}", "NaN or infinity", "finite values")
    for axis, what, most in (("U", "units", MAX_UNITS), ("R", "rows", MAX_ROWS),
                             ("C", "channels", MAX_CHANNELS), ("K", "sites", MAX_CHANNELS)):
        if not 1 <= sizes[axis] <= most:
            raise BadInput(where, what, sizes[axis], f"1 to {most}")
    dense = 4 * sizes["U"] * sizes["R"] * sizes["C"]
    if dense > MAX_DENSE_BYTES:
        raise BadInput(where, "waveforms", f"{dense} bytes over all channels",
                       f"at most {MAX_DENSE_BYTES}")
    rates = 0 < s.highpass_hz < 0.5 * s.fs < 1e6
    if not rates or not 0 <= s.before < sizes["R"] or not 0 <= s.step_uv < 1e3:
        raise BadInput(where, "settings", s, "rates and a row of the waveforms that can be")
    site = tensors["site"]
    if (site != np.rint(site)).any() or site.min() < 0 or site.max() >= sizes["C"]:
        raise BadInput(where, "tensor 'site'", "channels", f"0 to {sizes['C'] - 1}")
    for name in ("noise", "amplitude"):
        if tensors[name].min() < 0:
            raise BadInput(where, f"tensor {name!r}", tensors[name].min(), "0 or more")
    unit = tensors["unit"]
    if (unit != np.rint(unit)).any() or np.abs(unit).max() >= 1 << 24:  # float32 skips integers
        raise BadInput(where, "unit", unit.max(), "integers below 2^24")
    _check_values(tensors, where)
    if len(set(templates.names)) < sizes["U"]:
        raise BadInput(where, "units", "one twice", "every channel and cluster once")


def _check_values(tensors: dict[str, Floats], where: object) -> None:
    """Raise `BadInput` for numbers with which a matcher's arithmetic would leave the floats."""
    for name, most in BOUNDS.items():
        largest = float(np.abs(tensors[name]).max())
        if largest > most:
            raise BadInput(where, f"tensor {name!r}", largest, f"at most {most:g}")
    noise = tensors["noise"]
    if ((noise > 0) & (noise < LEAST_NOISE)).any():
        raise BadInput(where, "tensor 'noise'", noise[noise > 0].min(),
                       f"0 (a dead channel) or at least {LEAST_NOISE:g}")
    if not invertible(tensors["correlation"]):
        raise BadInput(where, "tensor 'correlation'", "no covariance", "one that is of noise")
