"""Decodes as UDP datagrams of a fixed layout, for microcontrollers. The layout is in README.md."""

from __future__ import annotations

import socket
import struct

import msgspec

from neds_rt.errors import BadInput
from neds_rt.sinks.outlet import WHERE
from neds_rt.sinks.values import numbers, reason_code
from neds_rt.sources.address import parse_address
from neds_rt.wire import Decode

HEADER = struct.Struct("<4sBBBBIIqd")  # magic, version, valid, reason, n, seq, age, bin, time
MAGIC, VERSION = b"NEDS", 1
MAX_VALUES = 255
MAX_AGE_US = 2**32 - 1


class UdpOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `udp://HOST:PORT`: none."""


class UdpOutlet:
    """One datagram a decode, sent and forgotten; what the system does not take is counted."""

    def __init__(self, uri: str, *, insecure: bool = False) -> None:
        address, _ = parse_address(WHERE, uri, 0, UdpOptions, insecure=insecure)
        if not address.port:
            raise BadInput(WHERE, "URI", repr(uri), "udp://HOST:PORT")
        self.counters = {"sent": 0, "dropped": 0, "too_many_values": 0}
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
        values = numbers(decode)
        if len(values) > MAX_VALUES:
            self.counters["too_many_values"] += 1
            return
        try:
            self._socket.send(datagram(decode, values))
            self.counters["sent"] += 1
        except OSError:  # a full buffer, no route, nobody there (which is told one datagram later)
            self.counters["dropped"] += 1

    def tick(self, now_s: float) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def datagram(decode: Decode, values: list[float]) -> bytes:
    """Return header and values, little-endian, as README.md lays them out."""
    age = MAX_AGE_US if decode.spike_age_us < 0 else min(int(decode.spike_age_us), MAX_AGE_US)
    return HEADER.pack(
        MAGIC, VERSION, decode.valid, reason_code(decode), len(values), decode.seq & 0xFFFFFFFF,
        age, decode.bin, decode.t_s,
    ) + struct.pack(f"<{len(values)}f", *values)
