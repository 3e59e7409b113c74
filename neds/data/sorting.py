"""Reader `sorting`: SpikeInterface's sortings and sorting analyzers, and sessions as sortings.

Properties of the units, and an analyzer's quality metrics, are columns for `keep`:
"snr>=5, isi_violations_ratio<=0.1". An analyzer's templates say on which channel a unit is largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.build import NAMES, Builder, Columns, texts
from neds.data.checks import naming
from neds.data.parts import Spikes
from neds.data.reader import EventOptions, Reader, needed, parse_options
from neds.data.session import Session
from neds.data.store import UNIT_COLUMNS
from neds_rt.errors import BadInput

PICKLES = (".pkl", ".pickle")
LARGE = ("waveforms", "recording", "spike_amplitudes", "spike_locations", "principal_components")
"""Parts of an analyzer's folder that are not read."""


class SortingOptions(EventOptions, frozen=True, kw_only=True):
    """recording: folder of the recording that was sorted, for its length and channels. segment:
    which one of a recording in several. probe: the name of the probe."""

    recording: str = ""
    segment: int = -1
    probe: str = "probe00"


def sorting_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Make the reader; see `neds.data.reader`. Raises `BadInput` for options it does not have."""
    if preset:
        raise BadInput("sorting reader", "--preset", preset, "none")
    options = parse_options(words, SortingOptions, "sorting reader")
    return Reader(read=lambda source: read_sorting(source, options), files=_files)


def _files(source: str) -> list[Path]:
    root = Path(source)
    if root.is_file():
        return [root]
    small = [p for p in root.rglob("*")
             if not any(part.startswith(LARGE) for part in p.relative_to(root).parts)]
    return [p for p in small if p.is_file()]


def read_sorting(path: str | Path, options: SortingOptions | None = None) -> Session:
    """Read what `spikeinterface.load` reads: a sorting or a sorting analyzer. Raises `BadInput`.

    Folders with pickles are refused: to load one is to run what it says.
    """
    source, options = Path(path), options or SortingOptions()
    loaded = load_folder(source)
    recording = load_folder(Path(options.recording)) if options.recording else None
    with naming(source):
        return from_sorting(loaded, options, recording=recording, name=source.resolve().stem)


def load_folder(path: Path) -> Any:
    """What `spikeinterface.load` makes of a path. Raises `BadInput`, for pickles too."""
    if not path.exists():
        raise BadInput(path, "path", "nothing there", "a folder or file of SpikeInterface")
    pickles = [p for p in (path, *path.rglob("*")) if p.suffix in PICKLES]
    if pickles:
        raise BadInput(path, "file", pickles[0].name, "no pickles: save to a folder or zarr")
    core = needed("spikeinterface.core", "sorting", str(path))
    try:
        return core.load(path)
    except Exception as error:  # extractors raise whatever the files provoke
        raise BadInput(path, "content", f"{type(error).__name__}: {error}",
                       "what spikeinterface.load reads") from error


def from_sorting(
    source: Any, options: SortingOptions | None = None, *, recording: Any = None,
    name: str = "sorting",
) -> Session:
    """Make a session of a SpikeInterface sorting or sorting analyzer.

    Samples are the sorting's, so time 0 is sample 0 of its recording. Without a recording the
    session ends with the last spike. Raises `BadInput` for several segments where none is named.
    """
    options = options or SortingOptions()
    analyzer = source if hasattr(source, "get_extension") else None
    sorting = source if analyzer is None else analyzer.sorting
    if not hasattr(sorting, "to_spike_vector"):
        raise BadInput(name, "kind", type(source).__name__, "a sorting or a sorting analyzer")
    build = Builder(name, "", options)
    segments = sorting.get_num_segments()
    if options.segment >= segments or (segments > 1 and options.segment < 0):
        raise BadInput(name, "segment", f"{segments} segments", f"segment=0 to {segments - 1}")
    segment = max(options.segment, 0)
    fs = float(sorting.sampling_frequency)
    vector = sorting.to_spike_vector()
    vector = vector[vector["segment_index"] == segment]
    columns, more = _unit_table(sorting, analyzer, options, build)
    length = _samples(recording if analyzer is None else analyzer, sorting, segment)
    domain = np.array([[0.0, length / fs]]) if length else None
    return build.finish(vector["sample_index"] / fs, vector["unit_index"], columns, more, fs=fs,
                        domain=domain)


def _samples(recording: Any, sorting: Any, segment: int) -> int:
    """Length in samples of the recording, 0 where nobody knows it."""
    if recording is not None:
        return int(recording.get_num_samples(segment_index=segment))
    if sorting.has_recording():
        return int(sorting.get_num_samples(segment_index=segment))
    return 0


def _unit_table(
    sorting: Any, analyzer: Any, options: SortingOptions, build: Builder
) -> tuple[Columns, Columns]:
    n = len(sorting.unit_ids)
    more: Columns = {"id": np.asarray(sorting.unit_ids)}
    for key in sorting.get_property_keys():
        column = np.asarray(sorting.get_property(key))
        if column.shape == (n,) and column.dtype.kind in "fiubUSO":
            more[key] = texts(column) if column.dtype.kind in "SO" else column
    metrics = analyzer.get_extension("quality_metrics") if analyzer is not None else None
    if metrics is not None:
        frame = metrics.get_data()
        more |= {str(name): frame[name].to_numpy(np.float64) for name in frame.columns
                 if frame[name].dtype.kind in "fiu"}
    ids = more["id"]
    columns: Columns = {"cluster": ids if ids.dtype.kind in "iu" else np.arange(n),
                        "probe": np.full(n, options.probe)}
    for name, dialects in NAMES.items():
        found = next((more[d] for d in dialects if d in more), None)
        if found is not None and (name in ("probe", "region") or found.dtype.kind in "iuf"):
            columns[name] = texts(found) if name in ("probe", "region") else found
    if analyzer is not None and analyzer.has_extension("templates"):
        columns = _peak(analyzer, ids) | columns
    elif "channel" not in columns:
        build.drop("column", "channel", "no analyzer with templates: unknown")
    return columns, more


def _peak(analyzer: Any, ids: NDArray[Any]) -> Columns:
    tools = needed("spikeinterface.core.template_tools", "sorting", "sorting reader")
    templates = tools.get_dense_templates_array(analyzer)  # (units, samples, channels)
    site = np.ptp(templates, axis=1).argmax(axis=1)
    depth = np.asarray(analyzer.get_channel_locations())[:, 1]
    return {"channel": site, "depth_um": depth[site].astype(np.float64)}


def to_sorting(session: Session) -> Any:
    """A session's spikes as a SpikeInterface `NumpySorting`; unit ids are rows of the unit table,
    its columns are properties. Raises `BadInput` for a recording that comes as counts."""
    if not isinstance(session.spikes, Spikes):
        raise BadInput(session.session, "spikes", "counts", "spike events")
    core = needed("spikeinterface.core", "sorting", session.session)
    sorting = core.NumpySorting.from_samples_and_labels(
        [np.array(session.spikes.sample)], [np.array(session.spikes.unit_index)],
        session.spikes.fs, unit_ids=np.arange(session.n_units))
    for name in UNIT_COLUMNS:
        sorting.set_property(name, np.array(getattr(session.units, name)))
    return sorting
