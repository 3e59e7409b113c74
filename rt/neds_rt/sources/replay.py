"""A prepared session as blocks of spikes, the form a live probe sends them in.

Reads the session store directly with h5py, so that a rig needs the file and not the training
package. A session of spike events is cut into blocks as it is. A session of binned counts has no
spike times: each bin's spikes are spread evenly over the bin, always in the same way, so binning
the replayed stream gives the same counts back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neds_rt.binning import bin_edges
from neds_rt.errors import BadInput, StartError
from neds_rt.hdf5_limits import check_links, checked
from neds_rt.player import Block, empty_spikes
from neds_rt.sources.unprepared import check_prepared
from neds_rt.wire import MAX_SAMPLE

SCHEMA = "neds-session-1"
COUNTS_FS = 30_000.0  # sample clock given to sessions that have none of their own
BLOCKS_AT_ONCE = 256
MAX_BINS = 50_000_000  # of a recording: eleven days of 20 ms


@dataclass(frozen=True)
class Units:
    """Which session units are played and the number each has in the stream."""

    probe: str
    index: NDArray[np.int64]  # (units of the session,): number in the stream, -1 = not played
    n_units: int
    places: list[tuple[int, int]]  # channel and cluster of each unit in the stream


class UnitTable(NamedTuple):
    """Columns (units,) of a file's table; `probe` holds bytes or text."""

    probe: NDArray[Any]
    channel: NDArray[Any]
    cluster: NDArray[Any]


Order = list[tuple[str, int, int]]  # probe, channel, cluster of the units a model knows


class EventRecording:
    """Spike events of one probe: `sample` (n,) ascending, `unit` (n,) a row of the session's table.

    `spans` (n, 2) are the sample intervals that hold data, ascending.
    """

    bin_size_s: float | None = None  # only a session of counts has one

    def __init__(
        self,
        session: str,
        fs: float,
        units: Units,
        spans: NDArray[np.int64],
        sample: NDArray[np.int64],
        unit: NDArray[np.int64],
    ) -> None:
        self.session, self.fs, self.units, self.spans = session, fs, units, spans
        number = units.index[unit]
        kept = number >= 0
        self._spikes = empty_spikes(int(kept.sum()))
        self._spikes["sample"] = sample[kept]
        self._spikes["unit"] = number[kept]

    def spikes(self, t0: int, t1: int) -> NDArray[np.void]:
        """Return the spikes with `t0 <= sample < t1`."""
        first, last = np.searchsorted(self._spikes["sample"], (t0, t1))
        return self._spikes[first:last]


class CountRecording:
    """Counts (T, units) of the bins `bins` (T,) on the absolute grid, given as spikes."""

    bin_size_s: float | None

    def __init__(
        self,
        session: str,
        units: Units,
        bin_size_s: float,
        bins: NDArray[np.int64],
        counts: NDArray[np.integer[Any]],
    ) -> None:
        self.session, self.fs, self.units, self.bin_size_s = session, COUNTS_FS, units, bin_size_s
        self._counts = np.zeros((len(bins), units.n_units), np.uint16)
        played = np.flatnonzero(units.index >= 0)
        self._counts[:, units.index[played]] = counts[:, played]
        self._start = bin_edges(bins, self.fs, bin_size_s)
        self._end = bin_edges(bins + 1, self.fs, bin_size_s)
        breaks = np.flatnonzero(np.diff(bins) != 1) + 1
        self.spans = np.stack(
            [self._start[np.r_[0, breaks]], self._end[np.r_[breaks, len(bins)] - 1]], axis=1
        )

    def spikes(self, t0: int, t1: int) -> NDArray[np.void]:
        """Return the spikes with `t0 <= sample < t1`."""
        first = int(np.searchsorted(self._end, t0, side="right"))
        last = int(np.searchsorted(self._start, t1, side="left"))
        rows = slice(first, last)
        spikes = spread_counts(self._counts[rows], self._start[rows], self._end[rows])
        inside = slice(*np.searchsorted(spikes["sample"], (t0, t1)))
        return spikes[inside]


Recording = EventRecording | CountRecording


def spread_counts(
    counts: NDArray[np.uint16], start: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.void]:
    """Turn counts (T, U) into spikes inside each bin's samples `[start, end)`, ascending.

    The spikes of a bin lie evenly over it, on distinct samples as long as it has no more spikes
    than samples; the spikes of one unit are spread among those of the others.
    """
    row, unit = np.nonzero(counts)
    n = counts[row, unit].astype(np.int64)
    last = np.cumsum(n)
    total = int(last[-1]) if len(last) else 0
    rank = np.arange(total) - np.repeat(last - n, n)  # 0..n-1 within its bin and unit
    bin_row, unit = np.repeat(row, n), np.repeat(unit, n)
    order = np.lexsort((unit, (rank + 0.5) / np.repeat(n, n), bin_row))
    per_bin = np.bincount(bin_row, minlength=len(start))
    place = np.arange(total) - np.repeat(np.cumsum(per_bin) - per_bin, per_bin)
    width = (end - start)[bin_row]  # bin_row is ascending, so it fits the sorted order as well
    spikes = empty_spikes(total)
    spikes["sample"] = start[bin_row] + (2 * place + 1) * width // (2 * per_bin[bin_row])
    spikes["unit"] = unit[order]
    return spikes


def bin_axis(recording: Recording, bin_size_s: float) -> NDArray[np.int64]:
    """Return the indices of all bins that lie wholly inside the recording's spans, ascending.

    Raises `BadInput` for a bin size that the recording's samples cannot be cut into.
    """
    width = recording.fs * bin_size_s
    n_bins = float((recording.spans[:, 1] - recording.spans[:, 0]).sum()) / max(width, 1e-9)
    if not (1 <= width <= 2**31 and 0 <= n_bins <= MAX_BINS):
        found = f"{width:g} samples, {n_bins:g} of them"
        raise BadInput(recording.session, "bins", found, f"1 to 2^31, at most {MAX_BINS} bins")
    parts = []
    for start, end in recording.spans.tolist():
        bins = np.arange(int(start / width) - 1, int(end / width) + 2)
        first = bin_edges(bins, recording.fs, bin_size_s)
        after = bin_edges(bins + 1, recording.fs, bin_size_s)
        parts.append(bins[(first >= max(start, 0)) & (after <= end)])
    return np.concatenate([np.zeros(0, np.int64), *parts])


def blocks(recording: Recording, t0: int, t1: int, block_samples: int) -> Iterator[Block]:
    """Yield the recording between samples `t0` and `t1` in blocks of `block_samples`.

    Where the recording has a gap, the next block's `t0` jumps, which tells a server of the gap.
    """
    for span_start, span_end in recording.spans.tolist():
        start, end = max(span_start, t0), min(span_end, t1)
        for chunk in range(start, end, block_samples * BLOCKS_AT_ONCE):
            chunk_end = min(chunk + block_samples * BLOCKS_AT_ONCE, end)
            spikes = recording.spikes(chunk, chunk_end)
            edges = np.r_[np.arange(chunk, chunk_end, block_samples), chunk_end]
            cuts: NDArray[np.int64] = np.asarray(np.searchsorted(spikes["sample"], edges))
            for (begin, after), (first, last) in zip(pairwise(edges), pairwise(cuts), strict=True):
                yield Block(int(begin), int(after), spikes[first:last])


def read_recording(
    path: Path, probe: str | None = None, order: Order | None = None
) -> Recording:
    """Read one probe of a prepared session, or of an NWB file.

    `order` lists (probe, channel, cluster) of the units a model knows: they are then numbered as
    in that list and all others are left out. Raises `BadInput` for a file that is not a session,
    with the command that makes one of it where there is one.
    """
    check_prepared(path)
    try:
        import h5py
    except ImportError as error:
        raise StartError("reading sessions needs h5py: pip install 'neds[train]'") from error
    try:
        with h5py.File(path, "r") as file:
            check_links(file)
            if "nwb_version" in file.attrs:
                from neds_rt.sources.replay_nwb import read_nwb_units

                return read_nwb_units(file, path, probe, order)
            return _read(file, path, probe, order)
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise BadInput(path, "content", error, "a whole session file (HDF5)") from error


def _read(file: Any, path: Path, probe: str | None, order: Order | None) -> Recording:
    schema = file.attrs.get("schema")
    if schema != SCHEMA:
        raise BadInput(path, "schema", repr(schema), repr(SCHEMA))
    session = str(file.attrs.get("session", path.stem))
    columns = (_get(file, path, f"units/{name}") for name in UnitTable._fields)
    units = choose_units(UnitTable(*columns), path, probe, order)
    if "counts" in file:
        bins, counts = _get(file, path, "counts/bin"), _get(file, path, "counts/counts")
        if counts.ndim != 2 or counts.shape != (len(bins), len(units.index)):
            expected = f"({len(bins)}, {len(units.index)}) from counts/bin and the unit table"
            raise BadInput(path, "counts/counts", f"shape {counts.shape}", expected)
        bin_size_s = float(file["counts"].attrs["bin_size_s"])
        if len(bins) == 0 or np.any(np.diff(bins) <= 0) or bins[0] < 0:
            raise BadInput(path, "counts/bin", "empty or unsorted bins", "ascending indices from 0")
        return CountRecording(session, units, bin_size_s, bins.astype(np.int64), counts)
    sample, unit = _get(file, path, "spikes/sample"), _get(file, path, "spikes/unit_index")
    if len(sample) != len(unit):
        raise BadInput(path, "spikes/unit_index", f"{len(unit)} rows", f"{len(sample)} as sample")
    if len(unit) and not 0 <= unit.min() <= unit.max() < len(units.index):
        found = f"{unit.min()}..{unit.max()}"
        raise BadInput(path, "spikes/unit_index", found, f"0..{len(units.index) - 1}")
    if np.any(np.diff(sample) < 0):
        raise BadInput(path, "spikes/sample", "unsorted samples", "ascending samples")
    fs = float(file["spikes"].attrs["fs"])
    domain = np.stack([_get(file, path, "domain/start"), _get(file, path, "domain/end")], axis=1)
    if not (0 < fs <= 1e9 and np.all(np.abs(domain) * fs <= MAX_SAMPLE)):
        found = f"{fs:g} Hz, {domain.size} numbers"
        raise BadInput(path, "domain", found, "finite seconds at a rate above 0")
    spans = np.rint(domain * fs).astype(np.int64)
    return EventRecording(session, fs, units, spans, sample.astype(np.int64), unit)


def _get(file: Any, path: Path, name: str) -> NDArray[Any]:
    if name not in file:
        raise BadInput(path, name, "no such dataset", f"a session of schema {SCHEMA}")
    return np.asarray(checked(file[name])[()])


def choose_units(table: UnitTable, path: Path, probe: str | None, order: Order | None) -> Units:
    """Number one probe's units of a table, as `read_recording` says. Raises `BadInput`."""
    column = table.probe.tolist()
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in column]
    probes = sorted(set(names))
    if not probes:
        raise BadInput(path, "units", "no units", "at least one unit")
    if probe is None and len(probes) > 1:
        raise BadInput(path, "--probe", "not given", f"one of {', '.join(probes)}")
    chosen = probes[0] if probe is None else probe
    if chosen not in probes:
        raise BadInput(path, "--probe", repr(chosen), f"one of {', '.join(probes)}")
    mine = [i for i, name in enumerate(names) if name == chosen]
    index = np.full(len(names), -1, np.int64)
    places = [(int(table.channel[i]), int(table.cluster[i])) for i in mine]
    if order is None:
        index[mine] = np.arange(len(mine))
        return Units(chosen, index, len(mine), places)
    known = [key for key in order if key[0] == chosen]
    wanted = {key: number for number, key in enumerate(known)}
    for i, place in zip(mine, places, strict=True):
        index[i] = wanted.pop((chosen, *place), -1)
    if wanted or len(set(known)) < len(known) or not known:
        key = next(iter(wanted), "no two alike")
        raise BadInput(path, f"units of {chosen}", f"not {key}", "every unit of the model, once")
    return Units(chosen, index, len(known), [key[1:] for key in known])
