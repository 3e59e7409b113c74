"""Who listens on a port: nobody, a ZeroMQ socket and of which type, or something else.

The type is read from the ZMTP 3 handshake (https://rfc.zeromq.org/spec/23/): a greeting of 64
bytes, then a READY command whose properties name the socket's type. A peer tells its own whether or
not ours, SUB, goes with it.
"""

from __future__ import annotations

import socket
from typing import Literal, NamedTuple

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
TIMEOUT_S = 1.0

Kind = Literal["nobody", "zmq", "other"]


class Listener(NamedTuple):
    """What answers on a port."""

    port: int
    kind: Kind
    socket_type: str = ""  # of a ZeroMQ socket: PUB, REP, ...


def who_listens(host: str, port: int) -> Listener:
    """Connect, shake hands and go."""
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as connection:
            connection.settimeout(TIMEOUT_S)
            return _shake_hands(connection, port)
    except OSError:
        return Listener(port, "nobody")


def _shake_hands(connection: socket.socket, port: int) -> Listener:
    try:
        connection.sendall(GREETING)
        greeting = _read(connection, len(GREETING))
        if greeting[:1] != b"\xff" or greeting[9:10] != b"\x7f":
            return Listener(port, "other")
        connection.sendall(_ready("SUB"))
        flags, size = _read(connection, 2)
        command = _read(connection, size)
        if flags != 4 or command[:6] != b"\x05READY":
            return Listener(port, "zmq")
        return Listener(port, "zmq", _properties(command[6:]).get("Socket-Type", ""))
    except OSError:
        return Listener(port, "other")


def _ready(socket_type: str) -> bytes:
    name, value = b"Socket-Type", socket_type.encode()
    body = b"\x05READY" + bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
    return bytes([4, len(body)]) + body


def _properties(data: bytes) -> dict[str, str]:
    """Return the properties of a READY command: name length, name, value length, value."""
    found: dict[str, str] = {}
    while data:
        n = data[0]
        size = int.from_bytes(data[1 + n : 5 + n], "big")
        name, value = data[1 : 1 + n], data[5 + n : 5 + n + size]
        found[name.decode("ascii", "replace")] = value.decode("ascii", "replace")
        data = data[5 + n + size :]
    return found


def _read(connection: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = connection.recv(n - len(data))
        if not part:
            raise ConnectionError("closed")
        data += part
    return data
