"""Decodes as UDP datagrams of a fixed layout, for microcontrollers. The layout is in README.md."""

from __future__ import annotations

import math
import socket
import struct

import msgspec
from msgspec import structs

from neds_rt.errors import BadInput
from neds_rt.sinks.guard import Guard
from neds_rt.sinks.outlet import WHERE
from neds_rt.sinks.values import numbers, reason_code
from neds_rt.sources.address import parse_address
from neds_rt.wire import Decode

HEADER = struct.Struct("<4sBBBBIIqd")  # magic, version, valid, reason, n, seq, age, bin, time
MAGIC, VERSION = b"NEDS", 1
MAX_VALUES = 255
MAX_AGE_US = 2**32 - 1
SILENT, LOCKED_OUT = 254, 253  # in place of a reason: no decode came; it came, but not for long


class UdpOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `udp://HOST:PORT`."""

    stale: float | None = None  # seconds without a decode that end validity (default: a bin, 3 ms)
    lockout: float = 0.0  # seconds that decodes have to be valid again before a datagram says so


class UdpOutlet:
    """One datagram a decode, sent and forgotten; what the system does not take is counted.

    Without decodes, datagrams that say so go on at the rate of the bins.
    """

    def __init__(self, uri: str, *, insecure: bool = False) -> None:
        address, options = parse_address(WHERE, uri, 0, UdpOptions, insecure=insecure)
        if not address.port:
            raise BadInput(WHERE, "URI", repr(uri), "udp://HOST:PORT")
        self.guard = Guard(options.stale, options.lockout)
        self.counters = {"sent": 0, "dropped": 0, "too_many_values": 0, "silent": 0}
        self._last: Decode | None = None
        self.due_s = math.inf  # when to say that there is nothing
        try:
            found = socket.getaddrinfo(address.host.strip("[]"), address.port,
                                       type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(found[0], socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.connect(found[4])  # so that a port nobody listens on is heard of
        except OSError as error:
            raise BadInput(WHERE, uri, error, "one to send datagrams to") from error

    def write(self, decode: Decode, now_s: float) -> None:
        """Send one datagram, or count why not."""
        usable = self.guard.see(decode, now_s)
        self._last, self.due_s = decode, self.guard.due_s
        reason = LOCKED_OUT if decode.valid and not usable else reason_code(decode)
        self._send(decode, reason)

    def tick(self, now_s: float) -> None:
        """Say that no decode came, where that is so, once a bin."""
        if self._last is None or now_s < self.due_s:
            return
        self.due_s = max(self.due_s, now_s - self.guard.bin_s) + self.guard.bin_s
        self.counters["silent"] += 1
        nothing = structs.replace(self._last, bin=-1, t_s=math.nan, spike_age_us=-1.0)
        self._send(nothing, SILENT)

    def _send(self, decode: Decode, reason: int) -> None:
        usable = reason == 0
        values = numbers(structs.replace(decode, valid=usable))
        if len(values) > MAX_VALUES:
            self.counters["too_many_values"] += 1
            return
        try:
            self._socket.send(datagram(decode, values, reason))
            self.counters["sent"] += 1
        except OSError:  # a full buffer, no route, nobody there (which is told one datagram later)
            self.counters["dropped"] += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def datagram(decode: Decode, values: list[float], reason: int) -> bytes:
    """Return header and values, little-endian, as README.md lays them out."""
    age = MAX_AGE_US if decode.spike_age_us < 0 else min(int(decode.spike_age_us), MAX_AGE_US)
    return HEADER.pack(
        MAGIC, VERSION, reason == 0, reason, len(values), decode.seq & 0xFFFFFFFF,
        age, decode.bin, decode.t_s,
    ) + struct.pack(f"<{len(values)}f", *values)
