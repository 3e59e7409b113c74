"""Types of the C++ extension."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

def supported_isas() -> list[str]: ...

class StepEngine:
    def __init__(
        self,
        *,
        units: int,
        hidden: int,
        layers: int,
        heads: int,
        mlp: int,
        window: int,
        conv: int,
        rope_base: float,
        modalities: Sequence[tuple[int, bool]],
        weights: Mapping[str, NDArray[np.float32]],
        isa: str = "",
    ) -> None: ...
    def step(self, counts: NDArray[np.uint16], present: bool = True) -> None: ...
    def skip(self, n_bins: int) -> None: ...
    def reset(self) -> None: ...
    def warm(self) -> None: ...
    @property
    def outputs(self) -> NDArray[np.float32]: ...
    @property
    def n_units(self) -> int: ...
    @property
    def n_outputs(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def isa(self) -> str: ...
