"""Reader `phy`: folders as Kilosort writes them and phy curates them, without either.

    spike_times.npy, spike_clusters.npy (else spike_templates.npy)     samples, cluster of a spike
    params.py                                   sample_rate, read as text: nothing is executed
    cluster_*.tsv, cluster_info.tsv             columns of the clusters, for `keep` ("group=good")
    channel_map.npy, channel_positions.npy, templates.npy, whitening_mat_inv.npy
                                                the channel on which a cluster's template is largest
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.build import DEFAULT_FS, Builder, Columns
from neds.data.checks import naming
from neds.data.reader import EventOptions, Reader, parse_options
from neds.data.session import Session
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

ARRAYS = ("spike_times", "spike_clusters", "spike_templates", "channel_map", "channel_positions",
          "templates", "whitening_mat_inv")
MAX_TABLE_BYTES = 64 << 20  # of a table of clusters
SAMPLE_RATE = re.compile(r"^\s*sample_rate\s*=\s*([0-9.eE+]+)", re.MULTILINE)


class PhyOptions(EventOptions, frozen=True, kw_only=True):
    """probe: the name of the probe. seconds: length of the recording (0: up to the last spike)."""

    probe: str = "probe00"
    seconds: float = 0.0


def phy_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Make the reader; see `neds.data.reader`. Raises `BadInput` for options it does not have."""
    if preset:
        raise BadInput("phy reader", "--preset", preset, "none")
    options = parse_options(words, PhyOptions, "phy reader")
    return Reader(read=lambda source: read_phy(source, options), files=_files)


def _files(source: str) -> list[Path]:
    folder = Path(source)
    names = [*(f"{name}.npy" for name in ARRAYS), "params.py"]
    return [p for p in (folder / name for name in names) if p.is_file()] + [
        *folder.glob("cluster_*.tsv")]


def read_phy(folder: str | Path, options: PhyOptions | None = None) -> Session:
    """Read one folder; the session has its name. Raises `BadInput` where spikes are missing."""
    path, options = Path(folder), options or PhyOptions()
    if not path.is_dir():
        raise BadInput(path, "folder", "nothing there", "a folder written by Kilosort or phy")
    with naming(path):
        build = Builder(path.resolve().name, "", options)
        sample = _needed(path, "spike_times").reshape(-1)
        clusters = _array(path, "spike_clusters")
        if clusters is None:
            clusters = _needed(path, "spike_templates")
        clusters = clusters.reshape(-1)
        if len(clusters) != len(sample) or sample.dtype.kind not in "iu":
            raise BadInput(path, "spike_times.npy",
                           f"{len(sample)} of {sample.dtype}, {len(clusters)} clusters",
                           "as many samples, whole numbers")
        tables = _tables(path, build)
        ids = np.unique(np.r_[clusters.astype(np.int64), np.array(sorted(tables), np.int64)])
        more = _columns(ids, tables)
        fs = options.fs or _sample_rate(path, build)
        columns: Columns = {"cluster": ids, "probe": np.full(len(ids), options.probe)}
        columns |= _from_info(more) or _peaks(path, ids, clusters, build)
        domain = np.array([[0.0, options.seconds]]) if options.seconds > 0 else None
        return build.finish(sample / fs, np.searchsorted(ids, clusters), columns, more, fs=fs,
                            domain=domain)


def _array(path: Path, name: str) -> Any:
    """An array of the folder, None where there is no such file. Raises `BadInput`."""
    file = path / f"{name}.npy"
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            return np.load(opened, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(file, "content", error, "a whole array without pickles") from error


def _needed(path: Path, name: str) -> NDArray[Any]:
    array = _array(path, name)
    if array is None:
        raise BadInput(path, f"{name}.npy", "nothing there", "a folder of Kilosort or phy")
    return np.asarray(array)


def _sample_rate(path: Path, build: Builder) -> float:
    file = path / "params.py"
    text = ""
    if file.is_file():
        text = read_small(file, "params.py", "a short text of Kilosort").decode(errors="replace")
    found = SAMPLE_RATE.search(text)
    if found:
        return float(found[1])
    build.drop("column", "sample_rate", f"not in params.py: {DEFAULT_FS:g} samples/s taken")
    return DEFAULT_FS


def _tables(path: Path, build: Builder) -> dict[int, dict[str, str]]:
    """What the tables say of each cluster; cluster_info.tsv, phy's own summary, comes last."""
    rows: dict[int, dict[str, str]] = {}
    files = sorted(path.glob("cluster_*.tsv"), key=lambda p: p.stem == "cluster_info")
    for file in files:
        try:
            text = read_small(file, "table", "a table of clusters", MAX_TABLE_BYTES).decode()
            for row in csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"):
                number = int(row.pop("cluster_id", None) or row.pop("id"))
                rows.setdefault(number, {}).update(
                    {k: v for k, v in row.items() if k and isinstance(v, str)})
        except (KeyError, ValueError, BadInput, csv.Error) as error:
            build.drop("column", file.name, f"is no table of clusters: {error}")
    return rows


def _columns(ids: NDArray[np.int64], rows: dict[int, dict[str, str]]) -> Columns:
    """The tables' columns (U,), numbers where all known values are some."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns: Columns = {}
    for name in names:
        values = [rows.get(number, {}).get(name, "") for number in ids.tolist()]
        try:
            columns[name] = np.array([float(v) if v else np.nan for v in values])
        except ValueError:
            columns[name] = np.array(values, np.str_)
    return columns


def _from_info(more: Columns) -> Columns:
    channel = more.get("ch")
    if channel is None or channel.dtype.kind != "f":
        return {}
    depth = more.get("depth", np.zeros(0))
    found: Columns = {"channel": np.where(np.isfinite(channel), channel, -1).astype(np.int64)}
    return found | ({"depth_um": depth} if depth.dtype.kind == "f" and depth.size else {})


def _peaks(
    path: Path, ids: NDArray[np.int64], clusters: NDArray[Any], build: Builder
) -> Columns:
    """Channel and depth of each cluster by the template that most of its spikes were found with."""
    templates, used = _array(path, "templates"), _array(path, "spike_templates")
    if templates is None or templates.ndim != 3:
        build.drop("column", "channel", "no templates.npy and no cluster_info.tsv: unknown")
        return {}
    inverse = _array(path, "whitening_mat_inv")
    if inverse is not None and inverse.shape == (templates.shape[2],) * 2:
        templates = templates @ inverse
    peak = np.ptp(templates, axis=1).argmax(axis=1)  # (templates,)
    used = clusters if used is None else used.reshape(-1)
    pair, count = np.unique(np.stack([clusters, used]).astype(np.int64), axis=1, return_counts=True)
    order = np.argsort(count, kind="stable")  # the last one written, the most frequent, stays
    main = dict(zip(pair[0, order].tolist(), pair[1, order].tolist(), strict=True))
    row = np.array([main.get(number, -1) for number in ids.tolist()], np.int64)
    known = (row >= 0) & (row < len(peak))
    site = np.where(known, peak[np.where(known, row, 0)], 0)
    mapped = _array(path, "channel_map")
    mapped = np.arange(templates.shape[2]) if mapped is None else mapped.reshape(-1)
    out: Columns = {"channel": np.where(known & (site < len(mapped)),
                                        mapped[np.minimum(site, len(mapped) - 1)], -1)}
    places = _array(path, "channel_positions")
    if places is not None and places.ndim == 2 and len(places) > site.max():
        out["depth_um"] = np.where(known, places[site, 1], np.nan)
    return out
