"""What a server says of itself several times a second: one MessagePack map a message.

The thread beside the hot path builds a `Status` (`neds_rt/reporting.py`) and publishes it on
`--status`; `neds-rt top`, `neds-rt dashboard` and `neds-rt metrics` read it, and so may anybody.
Readers ignore keys that they do not know, so a new key does not change the version. A status comes
from a socket: `decode_status` lets nothing pass that is too big, of another type or impossible.
"""

from __future__ import annotations

import math

import msgspec

STATUS_VERSION = 1
MAX_STATUS_BYTES = 1 << 20
MAX_ITEMS = 1024  # in any list or map
MAX_TEXT = 4096
MAX_RASTER_CELLS = 1 << 18


class Percentiles(msgspec.Struct, frozen=True):
    """Microseconds."""

    p50: float
    p99: float
    p999: float
    max: float


class Stage(msgspec.Struct, frozen=True):
    """How long one stage of the way from frame to decode took; None before any bin.

    `recent` are exact percentiles over the last `Status.recent_s`; `all` come from a histogram of
    40 buckets a decade and are at most 6 % too high (`max` is exact). `sum_us` and `count` are of
    all bins.
    """

    recent: Percentiles | None = None
    all: Percentiles | None = None
    sum_us: float = 0.0
    count: int = 0


class Histogram(msgspec.Struct, frozen=True):
    """Service times of bins. Bucket i ends at first_us * 10 ** (i / per_decade), the last never."""

    first_us: float
    per_decade: int
    recent: list[int]
    all: list[int]

    def edges_us(self) -> list[float]:
        """Return the upper end of every bucket but the last."""
        return [self.first_us * 10 ** (i / self.per_decade) for i in range(len(self.all) - 1)]


class ProbeStatus(msgspec.Struct, frozen=True):
    """One `--probe`."""

    name: str
    uri: str
    units: int
    state: str  # "live", "silent" (nothing new for `Status.silent_s`) or "waiting" (never heard)
    note: str = ""  # what its source says of the connection
    frames: int = 0  # accepted
    frame_age_s: float | None = None  # since its watermark last moved on, None before it did
    lag_s: float = 0.0  # how far its watermark is behind that of the probe that is furthest
    counters: dict[str, int] = {}  # those of its source that are not zero
    trouble: list[str] = []  # names of those that are no part of normal work


class RasterStatus(msgspec.Struct, frozen=True):
    """Counts of the last bins, a byte a cell, bin after bin: `cells[i * rows + row]`.

    A row is a unit in the model's order, or where there are more than `rows` units the sum of
    neighbours; counts stop at 255.
    """

    rows: int
    units: int
    bins: list[int]
    reasons: list[int]  # code of each bin's reason, an index into `Status.reasons`
    cells: bytes


class ModalityStatus(msgspec.Struct, frozen=True):
    """One decoded behaviour, as in the bundle's manifest."""

    name: str
    kind: str
    n_outputs: int
    unit: str = ""
    classes: list[str] = []


class DriftStatus(msgspec.Struct, frozen=True):
    """How far the input is from what the model was trained on."""

    score: float
    limit: float = 1.0  # from here on decodes are no longer valid
    detail: dict[str, float] = {}


class RecorderStatus(msgspec.Struct, frozen=True):
    """What becomes of everything that comes in and goes out."""

    path: str
    state: str
    bytes: int = 0
    backlog: int = 0
    lost: int = 0


class FailoverStatus(msgspec.Struct, frozen=True):
    """Which engine steps and which one would take over; counts are since the server's start."""

    active: str
    standby: str = ""
    failovers: int = 0
    swaps: int = 0
    note: str = ""  # why the last fail-over
    failed: bool = False  # whether it is the standby that steps


class Status(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="status"):
    """One message; times are of the server's machine, ages are measured when it was built."""

    v: int = STATUS_VERSION
    run: str  # a new one for every start of the server
    mono_ns: int
    uptime_s: float
    endpoint: str  # where the decodes are published
    # The model
    model: str
    engine: str
    precision: str
    bin_size_s: float
    modalities: list[ModalityStatus]
    # Decodes
    bins: int
    decodes: int
    stale_decodes: int
    valid: bool
    reason: str  # of the last message, "" before the first
    reason_s: float  # for how long it has been that
    reasons: dict[str, int]  # messages by reason, in the order of their codes
    counters: dict[str, int]
    # Time
    stale_s: float  # without a bin for so long decodes are stale
    silent_s: float  # without a frame for so long a probe is silent
    recent_s: float
    sample_age_s: float | None  # age of the newest spike that was decoded, None before any
    deadline_s: float  # of the service of a bin
    missed_deadlines: int  # bins whose service took longer
    stages: dict[str, Stage]
    service: Histogram
    # Parts
    probes: list[ProbeStatus]
    memory_mb: float | None
    memory_ready_mb: float | None
    keep_warm: bool
    keep_warm_ticks: int
    device: str = ""  # what the engine computes on, "" where it does not say
    clocks: str = ""  # what is known of those of several probes
    raster: RasterStatus | None = None
    drift: DriftStatus | None = None
    recorder: RecorderStatus | None = None
    failover: FailoverStatus | None = None


def encode_status(status: Status) -> bytes:
    """Return the message."""
    return _encoder.encode(status)


def decode_status(data: bytes) -> Status:
    """Parse a message from a socket; raises `msgspec.DecodeError` for one that is no status."""
    if len(data) > MAX_STATUS_BYTES:
        found = f"{len(data)} bytes, at most {MAX_STATUS_BYTES}"
        raise msgspec.ValidationError(f"status of {found}")
    try:
        status = _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"not a status: {error}") from error
    if status.v != STATUS_VERSION:
        raise msgspec.ValidationError(f"status version {status.v}, expected {STATUS_VERSION}")
    _check_sizes(status, "status")
    _check_service(status.service)
    if status.raster is not None:
        _check_raster(status.raster, len(status.reasons))
    for name in ("bin_size_s", "deadline_s"):
        if not 0 < getattr(status, name) <= 1000:
            raise msgspec.ValidationError(f"{name} of {getattr(status, name)}")
    return status


def _check_sizes(value: object, where: str) -> None:
    """Raise for a text, list or map too long, or a number that is none; as deep as structs go."""
    if isinstance(value, str):
        bad = len(value) > MAX_TEXT
    elif isinstance(value, float):
        bad = not math.isfinite(value)
    elif isinstance(value, int):
        bad = not -(2**63) <= value < 2**63
    elif isinstance(value, list | dict):
        bad = len(value) > MAX_ITEMS
    else:
        bad = False
    if bad:
        raise msgspec.ValidationError(f"{where}: out of range")
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check_sizes(getattr(value, name), name)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_sizes(key, where)
            _check_sizes(item, where)
    elif isinstance(value, list):
        for item in value:
            _check_sizes(item, where)


def _check_service(service: Histogram) -> None:
    if not (0 < service.first_us <= 1e9 and 0 < service.per_decade <= 1000):
        raise msgspec.ValidationError("service: impossible buckets")
    if not 0 < len(service.all) <= MAX_ITEMS or len(service.recent) != len(service.all):
        raise msgspec.ValidationError("service: buckets do not match")
    if len(service.all) / service.per_decade > 20:
        raise msgspec.ValidationError("service: impossible buckets")
    if min(service.all) < 0 or min(service.recent) < 0:
        raise msgspec.ValidationError("service: negative counts")


def _check_raster(raster: RasterStatus, n_reasons: int) -> None:
    n = len(raster.bins)
    if not 0 < raster.rows <= raster.units or n * raster.rows > MAX_RASTER_CELLS:
        raise msgspec.ValidationError("raster: impossible size")
    if len(raster.cells) != n * raster.rows or len(raster.reasons) != n:
        raise msgspec.ValidationError("raster: sizes do not match")
    if any(not 0 <= code < n_reasons for code in raster.reasons):
        raise msgspec.ValidationError("raster: unknown reason")


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Status)
