"""The native wire format: what a spike frame and a decode message are, byte by byte in README.md.

A spike message is two ZeroMQ frames, `[header][payload]`. The header is a MessagePack array, the
payload `n_spikes` records of `SPIKE_DTYPE`. A decode message is one ZeroMQ frame, a MessagePack
map, so that any client can read it with any MessagePack library and a viewer may set ZMQ_CONFLATE.

The server itself reads headers and writes decodes in C++ (`rt/src/wire.hpp`, `rt/src/decode.hpp`);
what is here is for senders, clients and tests, and accepts exactly what the server accepts.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

WIRE_VERSION = 1

SPIKE_DTYPE = np.dtype([("sample", "<i8"), ("unit", "<u4")])  # packed, 12 bytes a spike

MAX_SPIKES_PER_FRAME = 1_000_000
MAX_HEADER_BYTES = 512
MAX_NAME_BYTES = 64
MAX_DECODE_BYTES = 1 << 20
MAX_WAITING = 100_000  # decodes that are kept for a reader: half an hour at 50 a second
MAX_SAMPLE = 2**52  # so that every sample number is an exact double


class SpikeHeader(
    msgspec.Struct, array_like=True, tag="spikes", frozen=True, forbid_unknown_fields=True
):
    """Header of a spike frame: `["spikes", version, stream, session, seq, ...]` in field order.

    The frame covers samples `[t0_sample, watermark)` even when it holds no spikes, and promises
    that no spike with `sample < watermark` will follow. Spikes inside it may be in any order and
    may run ahead of the watermark.
    """

    version: int
    stream: str  # probe name, at most 64 bytes of UTF-8
    session: str  # new for every start of the source, at most 64 bytes
    seq: int  # counts frames of this session from 0
    t0_sample: int  # first sample covered; above the last watermark it declares a gap
    watermark: int  # one past the last sample covered
    fs: float  # sampling rate in Hz
    sent_mono_ns: int  # sender's monotonic clock
    sent_real_ns: int  # sender's wall clock, ns since 1970
    n_spikes: int  # records in the payload


def encode_spikes(header: SpikeHeader, spikes: NDArray[np.void]) -> list[bytes]:
    """Return the two frames of a spike message; `spikes` has dtype `SPIKE_DTYPE`."""
    return [_encoder.encode(header), np.ascontiguousarray(spikes, SPIKE_DTYPE).tobytes()]


def decode_header(data: bytes) -> SpikeHeader:
    """Parse and validate a header; raises `msgspec.DecodeError` on anything malformed."""
    if len(data) > MAX_HEADER_BYTES:
        raise msgspec.ValidationError(f"header of {len(data)} bytes, at most {MAX_HEADER_BYTES}")
    try:
        header = _header_decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"text is not UTF-8: {error}") from error
    if header.version != WIRE_VERSION:
        raise msgspec.ValidationError(f"wire version {header.version}, expected {WIRE_VERSION}")
    bad = _bad_field(header)
    if bad is not None:
        raise msgspec.ValidationError(f"{bad} out of range: {getattr(header, bad)!r}")
    return header


def _bad_field(header: SpikeHeader) -> str | None:
    """Name the first field with a value that no source may send."""
    for name in ("stream", "session"):
        if len(getattr(header, name).encode()) > MAX_NAME_BYTES:
            return name
    for name in ("seq", "t0_sample", "watermark", "sent_mono_ns", "sent_real_ns", "n_spikes"):
        if not -(2**63) <= getattr(header, name) < 2**63:
            return name
    if header.seq < 0:
        return "seq"
    if header.t0_sample < -MAX_SAMPLE:
        return "t0_sample"
    if not header.t0_sample <= header.watermark <= MAX_SAMPLE:
        return "watermark"
    if not (header.fs > 0 and math.isfinite(header.fs)):
        return "fs"
    if not 0 <= header.n_spikes <= MAX_SPIKES_PER_FRAME:
        return "n_spikes"
    return None


class Value(msgspec.Struct, frozen=True):
    """One decoded behaviour; which fields are set depends on its kind, the others are None.

    Where a decode has nothing to say (`reason` "stale"), numbers are NaN and labels empty.
    """

    mean: list[float] | None = None  # continuous: in behaviour units, one per output
    sd: list[float] | None = None  # continuous: residual sd on held-back data, [] where unknown
    angle: float | None = None  # circular: radians, -pi..pi
    r: float | None = None  # circular: length of the decoded vector, near 1 when certain
    p: list[float] | None = None  # categorical: probability of each class
    label: str | None = None  # categorical: the most probable class

    @property
    def kind(self) -> str:
        """`continuous`, `circular` or `categorical`."""
        if self.mean is not None:
            return "continuous"
        return "circular" if self.angle is not None else "categorical"


class Decode(msgspec.Struct, frozen=True, tag_field="kind", tag="decode"):
    """One decode message."""

    v: int
    seq: int  # counts messages of this server from 0, stale ones included
    session: str  # session of the source, a new one after its restart
    bin: int  # index on the absolute grid; -1 where the message belongs to none
    t_s: float  # end of the bin in seconds of the source's clock
    spike_age_us: float  # age of the newest spike when published; -1 before the first
    service_us: float  # from receiving the frame that closed the bin to this message written
    recv_ns: int  # CLOCK_MONOTONIC when that frame was received
    pub_ns: int  # CLOCK_MONOTONIC when this message was written
    model: str  # hash of the model
    valid: bool
    reason: str  # "ok" when valid, else one of the others in README.md
    values: dict[str, Value]
    missing: list[str] = []  # streams without which the bin was closed
    drift: float = math.nan  # 1 and more is an alarm; NaN where the bundle has no statistics


def decode_message(data: bytes) -> Decode:
    """Parse a decode message; raises `msgspec.DecodeError` on anything malformed."""
    try:
        message = _decode_decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"no decode message: {error}") from error
    if message.v != WIRE_VERSION:
        raise msgspec.ValidationError(f"wire version {message.v}, expected {WIRE_VERSION}")
    return message


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(SpikeHeader)
_decode_decoder = msgspec.msgpack.Decoder(Decode)
