"""The native wire format: what a spike frame and a decode message are, byte by byte in README.md.

A spike message is two ZeroMQ frames, `[header][payload]`. The header is a MessagePack array, the
payload `n_spikes` records of `SPIKE_DTYPE`. A decode message is one ZeroMQ frame, a MessagePack map,
so that any client can read it with any MessagePack library and a viewer may set ZMQ_CONFLATE.
"""

from __future__ import annotations

import msgspec
import numpy as np

WIRE_VERSION = 1

SPIKE_DTYPE = np.dtype([("sample", "<i8"), ("unit", "<u4")])  # packed, 12 bytes a spike

MAX_SPIKES_PER_FRAME = 1_000_000
MAX_HEADER_BYTES = 512


class SpikeHeader(msgspec.Struct, array_like=True, tag="spikes", frozen=True):
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


def encode_spikes(header: SpikeHeader, spikes: np.ndarray) -> list[bytes]:
    """Return the two frames of a spike message; `spikes` has dtype `SPIKE_DTYPE`."""
    return [_encoder.encode(header), np.ascontiguousarray(spikes, SPIKE_DTYPE).tobytes()]


def decode_header(data: bytes) -> SpikeHeader:
    """Parse and validate a header; raises `msgspec.DecodeError` on anything malformed."""
    return _header_decoder.decode(data)


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(SpikeHeader)
