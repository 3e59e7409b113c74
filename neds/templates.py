"""Templates of sorted units as the online matcher sees their spikes: through its own front end.

Templates and noise levels of an analyzer were mostly made from data filtered forwards and
backwards, which no live decoder can do. So they are measured anew, for the units and on the probe
that the analyzer tells: raw samples around its spikes go through the causal front end of
`rt/src/front_end.hpp` and are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.parts import Spikes
from neds.data.sorting import SortingOptions, from_sorting, load_folder
from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.match_model import depth_order
from neds_rt.templates import VERSION, Settings, Templates, make_templates

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BEFORE_MS, AFTER_MS = 0.7, 1.3  # of a template around the sorted sample
CHUNK_S, LEAD_S = 1.0, 0.05  # read at a time, and before it until the filter is at rest
MOST_S = 300.0  # of a recording that is looked at, spread evenly over it
SITES = 48  # channels that a template is kept on, by depth
NOISE_ROWS = 40  # of each chunk
LEAST_SPIKES = 20  # of a unit that gets a template
VISIBLE = 4.0  # standard errors that a channel's mean must reach somewhere, or it is taken as 0


@dataclass(frozen=True)
class Raw:
    """A raw recording: what reads samples [begin, end) as (n, C) int16, and what it is like."""

    read: Callable[[int, int], NDArray[np.int16]]
    n_samples: int
    fs: float
    position: Floats  # (C, 3): x, y in micrometres, shank
    name: str = ""
    step_uv: float = 0.0  # microvolts of a step of the ADC; 0: not known


@dataclass(frozen=True)
class Sorted:
    """Spikes of sorted units; `sample` is sorted, `names` (U, 2) are channel and cluster."""

    sample: Ints
    unit: Ints
    names: Ints


def measure_templates(
    raw: Raw, spikes: Sorted, *, highpass_hz: float = 300.0, reference: bool = True,
    probe: str = "probe00", most_s: float = MOST_S,
) -> tuple[Templates, list[int]]:
    """Average the spikes of every unit; returns the templates, and the rows of `names` without.

    A unit needs `LEAST_SPIKES` spikes in what is looked at. Raises `BadInput` if none has.
    """
    before, after = round(BEFORE_MS * 1e-3 * raw.fs), round(AFTER_MS * 1e-3 * raw.fs)
    chunks = _Chunks(raw, spikes, highpass_hz, reference, before, after, most_s)
    noise, correlation = chunks.noise()
    mean, counts = chunks.means(len(spikes.names))
    kept = np.flatnonzero(counts >= LEAST_SPIKES)
    if not len(kept):
        raise BadInput(raw.name, "spikes", f"no unit with {LEAST_SPIKES} of them", "sorted units")
    site, waveform = _sparse(mean[kept], noise, raw.position, counts[kept])
    amplitude = chunks.amplitudes(kept, site, waveform, noise)
    settings = Settings(VERSION, raw.fs, highpass_hz, reference, before, probe, raw.step_uv,
                        raw.name)
    tensors = {
        "unit": spikes.names[kept], "waveform": waveform, "site": site, "amplitude": amplitude,
        "noise": noise, "correlation": correlation, "position": raw.position,
    }
    missing = [u for u in range(len(counts)) if counts[u] < LEAST_SPIKES]
    return make_templates(settings, tensors, raw.name), missing


class _Chunks:
    """Stretches of the recording behind the front end, with the spikes in each."""

    def __init__(
        self, raw: Raw, spikes: Sorted, highpass_hz: float, reference: bool, before: int,
        after: int, most_s: float,
    ) -> None:
        self._raw, self._spikes = raw, spikes
        self._before, self._after = before, after
        self._lead, self._size = round(LEAD_S * raw.fs), round(CHUNK_S * raw.fs)
        n = max(1, (raw.n_samples - self._lead) // self._size)
        wanted = min(n, max(1, round(most_s / CHUNK_S)))
        self._starts = np.unique(np.linspace(0, n - 1, wanted).round().astype(np.int64))
        self._front = _core.FrontEnd(len(raw.position), raw.fs, highpass_hz, reference)

    def rows(self) -> Iterator[tuple[int, Floats]]:
        """First sample and rows (n, C) of every stretch."""
        for k in self._starts.tolist():
            begin = k * self._size
            end = min(begin + self._lead + self._size, self._raw.n_samples)
            data = np.ascontiguousarray(self._raw.read(begin, end), np.int16)
            rows = np.empty(data.shape, np.float32)
            self._front.reset()
            self._front.process(data.data, rows)
            lead = min(self._lead, len(rows))
            yield begin + lead, rows[lead:]

    def snippets(self) -> Iterator[tuple[int, Floats]]:
        """Unit and rows around each of its spikes (R, C) that lie within a stretch."""
        sample, unit = self._spikes.sample, self._spikes.unit
        for first, rows in self.rows():
            low = np.searchsorted(sample, first + self._before)
            high = np.searchsorted(sample, first + len(rows) - self._after)
            for s, u in zip(sample[low:high].tolist(), unit[low:high].tolist(), strict=True):
                yield u, rows[s - first - self._before : s - first + self._after]

    def noise(self) -> tuple[Floats, Floats]:
        """Standard deviation of every channel, and the correlation of the noise."""
        kept = []
        for _, rows in self.rows():
            kept.append(rows[:: max(1, len(rows) // NOISE_ROWS)])
        rows = np.concatenate(kept)
        noise = np.median(np.abs(rows), 0) / 0.6745
        scaled = np.divide(rows, noise, out=np.zeros_like(rows), where=noise > 0)
        scaled = np.clip(scaled, -3, 3)  # spikes are not noise
        scaled -= scaled.mean(0)
        spread = np.maximum(scaled.std(0), 1e-6)
        correlation = (scaled.T @ scaled) / len(scaled) / np.outer(spread, spread)
        return noise.astype(np.float32), correlation.astype(np.float32)

    def means(self, n_units: int) -> tuple[Floats, Ints]:
        """Mean rows around the spikes of every unit (U, R, C), and how many they were."""
        shape = (n_units, self._before + self._after, len(self._raw.position))
        total, counts = np.zeros(shape, np.float32), np.zeros(n_units, np.int64)
        for u, rows in self.snippets():
            total[u] += rows
            counts[u] += 1
        total /= np.maximum(counts, 1)[:, None, None].astype(np.float32)
        return total, counts

    def amplitudes(self, kept: Ints, site: Ints, waveform: Floats, noise: Floats) -> Floats:
        """Mean and standard deviation (U, 2) of single spikes' sizes, less what noise adds."""
        row = {u: i for i, u in enumerate(kept.tolist())}
        scale = np.divide(1, noise, out=np.zeros_like(noise), where=noise > 0)
        scaled = [waveform[i] * scale[site[i]] ** 2 for i in range(len(kept))]
        energy = [float((waveform[i] * scaled[i]).sum()) for i in range(len(kept))]
        sizes: list[list[float]] = [[] for _ in kept]
        for u, rows in self.snippets():
            if (i := row.get(u)) is not None and energy[i] > 0:
                sizes[i].append(float((rows[:, site[i]] * scaled[i]).sum()) / energy[i])
        found = np.array([_robust(s, e) for s, e in zip(sizes, energy, strict=True)], np.float32)
        return found.reshape(-1, 2)


def _robust(sizes: list[float], energy: float) -> tuple[float, float]:
    """Median, and the spread from the quartiles: overlapping spikes are in there too."""
    if len(sizes) < 2 or energy <= 0:
        return 1.0, 0.0
    low, middle, high = np.quantile(sizes, (0.25, 0.5, 0.75))
    return float(middle), float(np.sqrt(max(((high - low) / 1.349) ** 2 - 1 / energy, 0.0)))


def _sparse(
    mean: Floats, noise: Floats, position: Floats, counts: Ints
) -> tuple[Ints, Floats]:
    """The channels about each unit's largest one (U, K), and its waveform there (U, R, K)."""
    order = depth_order(position).astype(np.int64)
    k = min(SITES, len(order))
    site = np.zeros((len(mean), k), np.int64)
    waveform = np.zeros((len(mean), mean.shape[1], k), np.float32)
    scale = np.divide(1, noise, out=np.zeros_like(noise), where=noise > 0)
    for u, whole in enumerate(mean):
        by_depth = (whole * scale)[:, order]
        main = int(np.abs(by_depth).max(0).argmax())
        low = int(np.clip(main - k // 2, 0, len(order) - k))
        site[u] = order[low : low + k]
        visible = np.abs(by_depth[:, low : low + k]).max(0) > VISIBLE / np.sqrt(counts[u])
        waveform[u] = whole[:, site[u]] * visible
    return site, waveform


def from_analyzer(
    path: str | Path, *, recording: str | Path | None = None, probe: str = "probe00",
    highpass_hz: float = 300.0, reference: bool = True,
) -> tuple[Templates, list[tuple[int, int]]]:
    """Templates of the units of a SpikeInterface sorting analyzer, and names of those without.

    Units are named as `neds prepare --reader sorting` names them, and samples come from
    `recording`, or from what the analyzer's recording was made of. Raises `BadInput`.
    """
    options = SortingOptions(probe=probe)
    analyzer = load_folder(Path(path))
    if not hasattr(analyzer, "get_extension"):
        raise BadInput(path, "kind", type(analyzer).__name__, "a sorting analyzer")
    session = from_sorting(analyzer, options, name=Path(path).stem)
    assert isinstance(session.spikes, Spikes)
    names = np.c_[session.units.channel, session.units.cluster].astype(np.int64)
    raw = raw_of(_source(analyzer, path, recording), str(recording or path))
    there = np.asarray(analyzer.get_channel_locations())[:, :2]
    if there.shape != raw.position[:, :2].shape or np.abs(there - raw.position[:, :2]).max() > 1:
        raise BadInput(raw.name, "channels", f"{len(raw.position)} of another probe or order",
                       f"the {len(there)} of the analyzer")
    spikes = Sorted(session.spikes.sample, session.spikes.unit_index.astype(np.int64), names)
    templates, missing = measure_templates(raw, spikes, highpass_hz=highpass_hz,
                                           reference=reference, probe=probe)
    return templates, [(int(c), int(k)) for c, k in names[missing]]


def _source(analyzer: Any, path: str | Path, recording: str | Path | None) -> Any:
    """The raw recording: the one given, or the first in the chain that the analyzer's ends."""
    if recording is not None:
        return load_folder(Path(recording))
    if not analyzer.has_recording():
        raise BadInput(path, "recording", "not there any more", "--recording FOLDER")
    source = analyzer.recording
    while (parent := source.get_parent()) is not None:
        source = parent
    return source


def raw_of(recording: Any, name: str) -> Raw:
    """A SpikeInterface recording of int16 that nobody has filtered. Raises `BadInput`."""
    if recording.is_filtered() and np.dtype(recording.get_dtype()) != np.int16:
        raise BadInput(name, "recording", "filtered samples", "the raw ones: --recording FOLDER")
    if recording.get_num_segments() != 1:
        raise BadInput(name, "segments", recording.get_num_segments(), "one")
    if np.dtype(recording.get_dtype()) != np.int16:
        raise BadInput(name, "samples", recording.get_dtype(), "int16, as acquired")
    position = np.zeros((recording.get_num_channels(), 3), np.float32)
    try:
        position[:, :2] = recording.get_channel_locations()[:, :2]
    except Exception as error:
        raise BadInput(name, "probe", error, "a recording with channel locations") from error
    position[:, 2] = shanks(recording)
    gains = recording.get_channel_gains()
    step = 0.0 if gains is None or np.ptp(gains) > 0 else float(gains[0])
    return Raw(lambda a, b: recording.get_traces(start_frame=a, end_frame=b),
               recording.get_num_samples(), float(recording.sampling_frequency), position, name,
               step)


def shanks(recording: Any) -> Floats:
    """The shank of every channel (C,), numbered from 0."""
    groups = recording.get_property("group")
    if groups is None:
        return np.zeros(recording.get_num_channels(), np.float32)
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.float32)
