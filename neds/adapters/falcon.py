"""A bundle as a decoder of the FALCON challenge, whose evaluator calls the class's four methods.

    FalconEvaluator(...).evaluate(FalconDecoder({"S0_set_1": "s0.neds"}, ["velocity"]), phase)

Nothing of `falcon_challenge` is needed here: its `BCIDecoder` is an interface of `reset`,
`predict`, `observe` and `on_done` with arrays of (batch, channels) counts a bin of 20 ms. Units of
the bundle are the channels, in order. The batch is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.adapters.counts import CountDecoder
from neds_rt.errors import BadInput

BIN_S = 0.02
Source = str | PathLike[str]


class FalconDecoder:
    """FALCON's interface over one bundle, or one a dataset.

    bundles: a bundle for everything, or {tag: bundle}, where the tag that a dataset's own starts
    with, the longest first, decides. behaviours: what to predict, in the order of the challenge's
    outputs. forget: start anew after each trial, instead of going on. All bundles are read at once.
    Raises `BadInput` for bundles that cannot be read or have other bins.
    """

    def __init__(
        self, bundles: Source | Mapping[str, Source], behaviours: Sequence[str] = (), *,
        precision: str = "float32", forget: bool = False, task_config: Any = None,
    ) -> None:
        self._task_config, self.batch_size, self.forget = task_config, 1, forget
        table = bundles if isinstance(bundles, Mapping) else {"": bundles}
        self._decoders = {tag: CountDecoder(path, behaviours, precision)
                          for tag, path in table.items()}
        if not self._decoders:
            raise BadInput("FalconDecoder", "bundles", "none", "a bundle, or one a dataset")
        for decoder in self._decoders.values():
            if abs(decoder.bin_size_s - BIN_S) > 1e-9:
                raise BadInput(decoder.bundle.where, "bin_size_s", decoder.bin_size_s,
                               f"{BIN_S}, as FALCON bins")
        self._now = next(iter(self._decoders.values()))

    def set_batch_size(self, batch_size: int) -> None:
        """Accept 1. Raises `BadInput` for another size: a stream has one state."""
        if batch_size != 1:
            raise BadInput("FalconDecoder", "batch_size", batch_size, "1")

    def reset(self, dataset_tags: Sequence[str | Path] = ("",)) -> None:
        """Start on a dataset: its bundle, from a cold start.

        Raises `BadInput` for more than one tag, and a dataset that no bundle is for.
        """
        if len(dataset_tags) != 1:
            raise BadInput("FalconDecoder", "dataset_tags", len(dataset_tags), "1, its batch size")
        tag = dataset_tags[0]
        name = tag.stem if isinstance(tag, Path) else str(tag)
        fits = [known for known in self._decoders if name.startswith(known)]
        if not fits:
            raise BadInput("FalconDecoder", "dataset", repr(name),
                           f"one that starts with {', '.join(self._decoders)}")
        self._now = self._decoders[max(fits, key=len)]
        self._now.reset()

    def predict(self, neural_observations: NDArray[Any]) -> NDArray[np.float32]:
        """Outputs (1, k) after one more bin of counts (1, channels)."""
        return self._now.step(self._row(neural_observations))[None]

    def observe(self, neural_observations: NDArray[Any]) -> None:
        """Take a bin of counts (1, channels) whose prediction nobody needs."""
        self._now.step(self._row(neural_observations))

    def on_done(self, dones: NDArray[Any]) -> None:
        """Told after each bin whether the trial ended, (1,)."""
        if self.forget and bool(np.asarray(dones).ravel()[:1].any()):
            self._now.reset()

    def _row(self, observations: NDArray[Any]) -> NDArray[Any]:
        rows = np.asarray(observations)
        if rows.ndim != 2 or len(rows) != 1:
            raise BadInput("FalconDecoder", "neural_observations", f"shape {rows.shape}",
                           f"(1, {self._now.n_units})")
        return np.asarray(rows[0])
