"""A bundle as what other programs call: spike counts of one bin in, values of behaviours out."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neds_rt.bundle import Bundle, read_bundle
from neds_rt.engines.native import NativeEngine
from neds_rt.errors import BadInput

MOST = np.iinfo(np.uint16).max


class CountDecoder:
    """Decodes a stream of binned counts, a bin at a time, with the native engine.

    behaviours: names to give out, in this order; all of the bundle's by default. precision: one of
    the native engine's. Raises `BadInput` for a bundle that cannot be read, or an unknown name.
    """

    def __init__(
        self, bundle: Bundle | str | PathLike[str], behaviours: Sequence[str] = (),
        precision: str = "float32",
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
        manifest = self.bundle.manifest
        if precision not in NativeEngine.precisions:
            raise BadInput(self.bundle.where, "precision", repr(precision),
                           f"one of {', '.join(NativeEngine.precisions)}")
        self._engine = NativeEngine(self.bundle, precision)
        first, place = 0, {}
        for m in manifest.modalities:
            place[m.name] = np.arange(first, first + m.n_outputs)
            first += m.n_outputs
        self.behaviours = list(behaviours) or list(place)
        for name in self.behaviours:
            if name not in place:
                raise BadInput(self.bundle.where, "behaviour", repr(name),
                               f"some of {', '.join(place)}")
        self._columns = np.concatenate([place[name] for name in self.behaviours])
        self.widths = {name: len(place[name]) for name in self.behaviours}
        self._counts = np.zeros(len(manifest.units), np.uint16)
        self.bin_size_s = manifest.bin_size_s

    @property
    def n_units(self) -> int:
        """Units of the bundle: the length of a bin's counts."""
        return len(self._counts)

    @property
    def n_outputs(self) -> int:
        """Length of what `step` returns."""
        return len(self._columns)

    @property
    def labels(self) -> list[str]:
        """Names of the outputs: NAME.0, ... of what is continuous, NAME.cos and NAME.sin of
        angles, NAME.CLASS of probabilities."""
        names = {m.name: [f"{m.name}.{c}" for c in m.classes] if m.kind == "categorical"
                 else [f"{m.name}.cos", f"{m.name}.sin"] if m.kind == "circular"
                 else [f"{m.name}.{i}" for i in range(m.n_outputs)]
                 for m in self.bundle.manifest.modalities}
        return [label for name in self.behaviours for label in names[name]]

    def reset(self) -> None:
        """Forget all bins: the next one is the first of a new stream."""
        self._engine.reset()

    def step(self, counts: ArrayLike) -> NDArray[np.float32]:
        """Values (n_outputs,) after one more bin of counts (n_units,), the caller's to keep.

        Raises `BadInput` for counts of another length, and what is no count.
        """
        self._counts[:] = self.checked(counts)
        return np.asarray(self._engine.step(self._counts)[self._columns], np.float32)

    def skip(self, bins: int) -> None:
        """Advance by `bins` bins that were lost."""
        if bins > 0:
            self._engine.skip(bins)

    def checked(self, counts: Any) -> NDArray[Any]:
        """The counts (n_units,) if they are such. Raises `BadInput`."""
        row = np.asarray(counts)
        if row.shape != self._counts.shape or row.dtype.kind not in "uifb":
            raise BadInput(self.bundle.where, "counts", f"{row.dtype} of shape {row.shape}",
                           f"numbers of shape {self._counts.shape}")
        if row.dtype.kind == "f" and not (np.isfinite(row) & (row == np.floor(row))).all():
            raise BadInput(self.bundle.where, "counts", "NaN, infinity or fractions",
                           "whole numbers")
        if row.size and not 0 <= row.min() <= row.max() <= MOST:
            raise BadInput(self.bundle.where, "counts", f"{row.min()} to {row.max()}",
                           f"0 to {MOST} spikes")
        return row
