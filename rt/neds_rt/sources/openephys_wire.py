"""Messages of the Open Ephys plugin ZMQ Interface, read from untrusted bytes.

A message is three ZeroMQ parts, `[envelope][header][numbers]`, the last one missing where there are
none. The header is JSON. Versions 0.3 to 1.x of the plugin agree on what is read here; 0.2 uses
other names for the same fields, which are taken as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from neds_rt.wire import MAX_SAMPLE

ENVELOPES = (b"DATA\0", b"EVENT\0", b"PARAM\0")  # PARAM: 0.2 only
MAX_HEADER_BYTES = 65_536
TTL_BYTES = 10  # of an event: u1 line, u1 state, u8 word of all lines
MAX_BLOCK = 1 << 20  # samples
MAX_MESSAGE_NUM = 2**31 - 1  # the plugin counts in an int32


class Spike(msgspec.Struct, gc=False):
    """The body of a spike; `sample_num` is its peak, `sorted_id` 0 where it is unsorted."""

    stream: str = ""
    electrode: str = ""
    sample_num: int | None = None
    sorted_id: int = 0
    num_channels: int = 0
    num_samples: int = 0
    # 0.2
    timestamp: int | None = None
    electrode_id: int | None = None
    n_channels: int = 0
    n_samples: int = 0

    @property
    def sample(self) -> int | None:
        """The peak's sample, None where the message does not say or it is out of range."""
        sample = self.timestamp if self.sample_num is None else self.sample_num
        return sample if sample is not None and -MAX_SAMPLE <= sample <= MAX_SAMPLE else None

    @property
    def name(self) -> str:
        """The electrode's name, or its number in 0.2."""
        return self.electrode if self.electrode_id is None else str(self.electrode_id)

    @property
    def waveform_bytes(self) -> int:
        """How long the waveform is; 0.2 cuts it to a quarter."""
        if self.n_channels:
            return self.n_channels * self.n_samples
        return 4 * self.num_channels * self.num_samples


class Block(msgspec.Struct, gc=False):
    """The body of a block of one continuous channel (of all channels in 0.2)."""

    stream: str = ""
    sample_num: int | None = None  # first sample of the block
    num_samples: int | None = None
    sample_rate: float = 0.0
    channel_num: int = 0
    # 0.2
    timestamp: int | None = None
    n_channels: int = 0
    n_samples: int = 0
    n_real_samples: int | None = None

    @property
    def span(self) -> tuple[int, int] | None:
        """First sample and one past the last; None where they are missing or out of range."""
        begin = self.timestamp if self.sample_num is None else self.sample_num
        n = self.n_real_samples if self.num_samples is None else self.num_samples
        if begin is None or n is None or not 0 < n <= MAX_BLOCK or abs(begin) > MAX_SAMPLE - n:
            return None
        return begin, begin + n

    @property
    def data_bytes(self) -> int:
        """How long the numbers are."""
        if self.num_samples is None:
            return 4 * self.n_channels * self.n_samples
        return 4 * self.num_samples


class Ttl(msgspec.Struct, gc=False):
    """The body of a TTL event."""

    stream: str = ""
    sample_num: int | None = None


class _Header(msgspec.Struct, gc=False):
    message_num: int | None = None
    message_no: int | None = None  # 0.2

    @property
    def number(self) -> int | None:
        """The message number, None where there is none or it is no int32."""
        number = self.message_no if self.message_num is None else self.message_num
        return number if number is not None and 0 <= number <= MAX_MESSAGE_NUM else None


class SpikeMessage(_Header, gc=False, tag="spike"):
    """Header of a spike."""

    spike: Spike = msgspec.field(default_factory=Spike)


class DataMessage(_Header, gc=False, tag="data"):
    """Header of a block of continuous data."""

    content: Block = msgspec.field(default_factory=Block)


class EventMessage(_Header, gc=False, tag="event"):
    """Header of a TTL event; `data_size` bytes follow."""

    content: Ttl = msgspec.field(default_factory=Ttl)
    data_size: int = 0


class OddMessage(_Header, gc=False):
    """What is left of a header that could be read but not understood."""

    type: Any = None


Message = SpikeMessage | DataMessage | EventMessage | OddMessage
_decode: Callable[[bytes], Message] = msgspec.json.Decoder(
    SpikeMessage | DataMessage | EventMessage
).decode
_decode_odd = msgspec.json.Decoder(OddMessage).decode


def read_header(data: bytes) -> tuple[Message | None, bool]:
    """Return a header, None where it cannot be read at all, and whether it had been cut off.

    GUI 1.0 counts the header's characters where it should count bytes, so every character of a
    name that is not ASCII costs the header bytes at its end. There stand the closing brace and
    before it the time of sending, which nothing here depends on; so the brace is put back.
    """
    try:
        return _decode(data), False
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_cut(data), True
    try:
        return _decode_odd(data), False
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, False


def _read_cut(data: bytes) -> Message | None:
    try:
        return _decode(data.rstrip(b" \r\n\t,:\"") + b"}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
