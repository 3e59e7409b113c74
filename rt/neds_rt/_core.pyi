"""Types of the C++ extension, part by part: of `bind_*.cpp`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from typing_extensions import Buffer

COUNTERS: tuple[str, ...]
REASONS: tuple[str, ...]

def bin_spikes(
    samples: NDArray[np.int64],
    units: NDArray[np.int64],
    n_units: int,
    fs: float,
    bin_size_s: float,
    first_bin: int,
    n_bins: int,
) -> NDArray[np.uint16]: ...
def bin_edge(bin: int, fs: float, bin_size_s: float) -> int: ...
def bin_edges(bins: NDArray[np.int64], fs: float, bin_size_s: float) -> NDArray[np.int64]: ...
def bin_of(sample: int, fs: float, bin_size_s: float) -> int: ...
def parse_header(data: Buffer) -> tuple[Any, ...] | str: ...
def monotonic_ns() -> int: ...

class Assembler:
    """Frames of several streams -> closed bins, by watermark."""

    def __init__(
        self,
        bin_size_s: float,
        streams: Sequence[tuple[str, Sequence[int]]],
        n_units: int,
        open_bins: int,
    ) -> None: ...
    def push(self, header: Buffer, payload: Buffer) -> int: ...
    def refuse(self, kind: int) -> None: ...
    def pop(self) -> int: ...
    def end_s(self, bin: int) -> float: ...
    @property
    def available(self) -> int: ...
    @property
    def bin(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def session(self) -> str: ...
    @property
    def spike_lag_s(self) -> float: ...
    @property
    def counts(self) -> NDArray[np.uint16]: ...
    @property
    def counters(self) -> NDArray[np.int64]: ...

class Modality:
    """One decoded behaviour, as the encoder needs it."""

    def __new__(
        cls,
        name: str,
        kind: str,
        n_outputs: int,
        classes: Sequence[str] = ...,
        sd: Sequence[float] = ...,
    ) -> Modality: ...

class DecodeEncoder:
    """Writes decode messages into one buffer."""

    def __init__(
        self, modalities: Sequence[Modality], model: str, max_session_bytes: int
    ) -> None: ...
    def set_session(self, name: str) -> None: ...
    def encode(
        self,
        seq: int,
        bin: int,
        t_s: float,
        spike_lag_s: float,
        recv_ns: int,
        reason: int,
        outputs: NDArray[np.float32] | None,
    ) -> int: ...
    @property
    def n_outputs(self) -> int: ...
    @property
    def pub_ns(self) -> int: ...
    @property
    def reason(self) -> int: ...
    @property
    def buffer(self) -> NDArray[np.uint8]: ...

def supported_isas() -> list[str]: ...

class StepEngine:
    """The streaming step of one stream."""

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
        recurrent: bool,
        rope_base: float,
        modalities: Sequence[tuple[int, bool]],
        weights: Mapping[str, NDArray[np.float32]],
        precision: str = "float32",
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
    def precision(self) -> str: ...
    @property
    def isa(self) -> str: ...

class Validity:
    """Says why a decode is or is not valid, from the bins that a window of the model can see."""

    def __init__(self, window: int) -> None: ...
    def reset(self) -> None: ...
    def advance(self, present: bool, n_bins: int = 1) -> int: ...

class LatencyRing:
    """Stamps of the last bins, in memory taken once."""

    def __init__(self, capacity: int) -> None: ...
    def add(
        self, received: int, assembled: int, stepped: int, encoded: int, sent: int
    ) -> None: ...
    @property
    def recorded(self) -> int: ...
    @property
    def rows(self) -> NDArray[np.int64]: ...

class Stepper:
    """What a pipeline asks of an engine."""

class NativeStepper(Stepper):
    """The C++ engine in a pipeline."""

    def __init__(self, engine: StepEngine, dry: bool = False) -> None: ...

class PythonStepper(Stepper):
    """Any other engine in a pipeline."""

    def __init__(
        self, engine: Any, counts: NDArray[np.uint16], n_outputs: int, dry: bool = False
    ) -> None: ...

class Pipeline:
    """Frames in, decode messages out; the GIL is released."""

    def __init__(
        self,
        assembler: Assembler,
        encoder: DecodeEncoder,
        stepper: Stepper,
        latency: LatencyRing,
        window: int,
    ) -> None: ...
    def feed(
        self, header: Buffer | zmq.Frame, payload: Buffer | zmq.Frame, recv_ns: int
    ) -> int: ...
    def next(self) -> int: ...
    def sent(self) -> None: ...
    def nothing(self, reason: int, now_ns: int) -> int: ...
    @property
    def service_ns(self) -> int: ...
    @property
    def reasons(self) -> NDArray[np.int64]: ...

class ThresholdDetector:
    """Raw AP band -> crossings by channel."""

    def __init__(
        self,
        channels: int,
        fs: float,
        *,
        highpass_hz: float = 300.0,
        threshold: float = 5.0,
        refractory_s: float = 0.001,
        reference: bool = True,
    ) -> None: ...
    def push(self, data: Buffer, first: int) -> int: ...
    def reset(self) -> None: ...
    @property
    def live_from(self) -> int: ...
    @property
    def overflow(self) -> int: ...
    @property
    def noise(self) -> NDArray[np.float32]: ...
    @property
    def samples(self) -> NDArray[np.int64]: ...
    @property
    def where(self) -> NDArray[np.int32]: ...

class FrontEnd:
    """Raw AP band -> high-passed and referenced rows."""

    def __init__(self, channels: int, fs: float, highpass_hz: float, reference: bool) -> None: ...
    def process(self, data: Buffer, into: NDArray[np.float32]) -> None: ...
    def reset(self) -> None: ...

class TemplateMatcher:
    """Raw AP band -> spikes of known units."""

    def __init__(
        self,
        channels: int,
        fs: float,
        model: dict[str, Any],
        *,
        highpass_hz: float,
        reference: bool,
        threshold: float,
        least_share: float,
        shifts: int,
        guard: int,
        reach: int,
        refractory: int,
        rescans: int,
        drift_gain: float,
        adapt_gain: float,
    ) -> None: ...
    def push(self, data: Buffer, first: int) -> int: ...
    def reset(self) -> None: ...
    @property
    def live_from(self) -> int: ...
    @property
    def hold(self) -> int: ...
    @property
    def overflow(self) -> int: ...
    @property
    def peaks(self) -> int: ...
    @property
    def unmatched(self) -> int: ...
    @property
    def drift(self) -> NDArray[np.float32]: ...
    @property
    def samples(self) -> NDArray[np.int64]: ...
    @property
    def where(self) -> NDArray[np.int32]: ...
    @property
    def amplitude(self) -> NDArray[np.float32]: ...

AS_IT_IS: int
HELD: int
REWRITTEN: int

class ClockMap:
    """Frames of many probes, in the first one's sample clock."""

    def __init__(self, streams: Sequence[str]) -> None: ...
    def take(
        self, header: Buffer | zmq.Frame, payload: Buffer | zmq.Frame, recv_ns: int
    ) -> int: ...
    def header(self) -> memoryview: ...
    def payload(self) -> memoryview: ...
    def know(
        self, stream: int, session: int, reference: int, from_sample: int, to_sample: float,
        rate: float,
    ) -> None: ...
    def fs(self, stream: int) -> float: ...
    @property
    def held(self) -> int: ...
    def next(self) -> tuple[int, int, int, int] | None: ...
