"""Spikes -> counts on the absolute bin grid: the one implementation, used live and offline.

Bin `k` holds samples `[edge(k), edge(k + 1))` with `edge(k) = floor(k * fs * bin_size_s + 0.5)`.
The work is done by `rt/src/core.hpp`, which the live assembler uses as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neds_rt import _core
from neds_rt.errors import BadInput


def bin_spikes(
    samples: NDArray[Any],
    units: NDArray[Any],
    n_units: int,
    fs: float,
    bin_size_s: float,
    first_bin: int,
    n_bins: int,
) -> NDArray[np.uint16]:
    """Count spikes in bins `first_bin .. first_bin + n_bins - 1`; returns (n_bins, n_units).

    `samples` and `units` are integer arrays of equal length, in any order (sorted by sample is
    fastest). Spikes outside the bins are ignored; counts stop at 65535. Raises `BadInput` for
    arrays that are no such thing, a unit outside `0..n_units-1`, or a bin below one sample.
    """
    try:
        counts: NDArray[np.uint16] = _core.bin_spikes(
            _integers("samples", samples), _integers("units", units),
            int(n_units), float(fs), float(bin_size_s), int(first_bin), int(n_bins),
        )
    except ValueError as error:
        raise BadInput("bin_spikes", "spikes", error, "valid spikes and bins") from error
    return counts


def bin_edge(index: int, fs: float, bin_size_s: float) -> int:
    """Return the first sample of a bin."""
    return int(_core.bin_edge(int(index), float(fs), float(bin_size_s)))


def bin_edges(bins: ArrayLike, fs: float, bin_size_s: float) -> NDArray[np.int64]:
    """Return the first sample of each bin, shaped as `bins`."""
    index = np.asarray(bins, np.int64)
    return _core.bin_edges(index.ravel(), float(fs), float(bin_size_s)).reshape(index.shape)


def bin_of(sample: int, fs: float, bin_size_s: float) -> int:
    """Return the bin that holds a sample."""
    return int(_core.bin_of(int(sample), float(fs), float(bin_size_s)))


def _integers(name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        found = f"{array.dtype} of shape {array.shape}"
        raise BadInput("bin_spikes", name, found, "integers of shape (n,)")
    return np.ascontiguousarray(array, np.int64)
