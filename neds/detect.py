"""The online path over a recording that is there already: spikes to train on, as decoded later.

The very matcher of `neds-rt serve` takes the raw samples in order, so that the units of the
training data have the misses and confusions that they will have live.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.templates import Raw
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small
from neds_rt.templates import Templates

CHUNK_S = 0.5
MAX_META_BYTES = 16 << 20
MAP = ("spike_times=spike_times spike_units=spike_units n_units=n_units fs={fs!r} "
       "unit.probe=probe unit.channel=channel unit.cluster=cluster "
       "domain_start=domain_start domain_end=domain_end")


def find_spikes(raw: Raw, templates: Templates) -> dict[str, NDArray[Any]]:
    """Run the matcher over a recording; returns arrays as `neds prepare --reader arrays` reads.

    Times are seconds of the recording's own samples. The domain leaves out the start, until the
    filter is at rest, and the end, whose spikes would still be held back. Raises `BadInput` for a
    recording of other channels or another rate, and one that is too short.
    """
    templates.check_stream(raw.name, len(raw.position), raw.fs)
    matcher, chunk = templates.matcher(), max(1, round(CHUNK_S * raw.fs))
    samples, units = [], []
    for begin in range(0, raw.n_samples, chunk):
        end = min(begin + chunk, raw.n_samples)
        data = np.ascontiguousarray(raw.read(begin, end), np.int16)
        found = matcher.push(data.data, begin)
        samples.append(matcher.samples[:found].copy())
        units.append(matcher.where[:found].copy())
    first, last = matcher.live_from, raw.n_samples - matcher.hold
    if not 0 <= first < last:
        raise BadInput(raw.name, "length", f"{raw.n_samples} samples", "a longer recording")
    sample, unit = np.concatenate(samples), np.concatenate(units)
    inside = (sample >= first) & (sample < last)
    sample, unit = sample[inside], unit[inside]
    order = np.argsort(sample, kind="stable")
    names = np.array(templates.names, np.int64)
    return {
        "spike_times": sample[order] / raw.fs, "spike_units": unit[order].astype(np.int64),
        "n_units": np.array(len(names)), "channel": names[:, 0], "cluster": names[:, 1],
        "probe": np.full(len(names), templates.settings.probe or "probe00"),
        "domain_start": np.array([first / raw.fs]), "domain_end": np.array([last / raw.fs]),
        "fs": np.array(raw.fs), "session_id": np.array(Path(raw.name).stem),
    }


def read_bin(path: Path, position: NDArray[np.float32]) -> Raw:
    """A binary file of SpikeGLX with its `.meta` beside it: the AP channels of one stream.

    position: of the channels, which the templates know. Raises `BadInput`.
    """
    meta = _read_meta(path.with_suffix(".meta"))
    try:
        fs, saved = float(meta["imSampRate"]), int(meta["nSavedChans"])
        ap = int(meta["snsApLfSy"].split(",")[0])
    except (KeyError, ValueError) as error:
        raise BadInput(path.with_suffix(".meta"), "field", error,
                       "imSampRate, nSavedChans and snsApLfSy of SpikeGLX") from None
    if not 0 < ap <= saved or path.stat().st_size % (2 * saved):
        raise BadInput(path, "size", f"{path.stat().st_size} bytes", f"samples of {saved} channels")
    data = np.memmap(path, np.int16, "r").reshape(-1, saved)
    return Raw(lambda begin, end: data[begin:end, :ap], len(data), fs, position[:ap], str(path))


def _read_meta(path: Path) -> dict[str, str]:
    data = read_small(path, "file", "the .meta file beside the samples", MAX_META_BYTES)
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(path, "file", error, "the .meta file beside the samples") from None
    pairs = (line.partition("=") for line in lines)
    return {name.lstrip("~"): value for name, equals, value in pairs if equals}
