"""ZeroMQ endpoints: which ones are accepted, and one-line errors for those that cannot be used."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING

from neds_rt.errors import BadInput

if TYPE_CHECKING:
    import zmq

TRANSPORTS = ("tcp", "ipc")
SCHEMES = tuple(f"zmq+{name}://" for name in TRANSPORTS)


def check_endpoint(where: str, endpoint: str, *, insecure: bool = False) -> None:
    """Raise `BadInput` unless `endpoint` is `tcp://HOST:PORT` on this machine or `ipc://PATH`.

    Messages are neither authenticated nor encrypted, so other machines need `insecure`.
    """
    transport, _, address = endpoint.partition("://")
    if transport not in TRANSPORTS or not address:
        raise BadInput(where, "endpoint", repr(endpoint), "tcp://HOST:PORT or ipc://PATH")
    if transport == "ipc":
        return
    host, _, port = address.rpartition(":")
    if not host or not (port == "*" or (port.isdecimal() and int(port) < 65536)):
        raise BadInput(where, "endpoint", repr(endpoint), "tcp://HOST:PORT")
    if not insecure and not is_loopback(host):
        expected = "a loopback address such as 127.0.0.1, or --insecure"
        raise BadInput(where, "endpoint", repr(endpoint), expected)


def endpoint_of(where: str, uri: str, *, insecure: bool = False) -> str:
    """Return the ZeroMQ endpoint of a `zmq+tcp://...` or `zmq+ipc://...` URI; raises `BadInput`."""
    if not uri.startswith(SCHEMES):
        raise BadInput(where, "URI scheme", uri.partition("://")[0], f"one of {', '.join(SCHEMES)}")
    endpoint = uri.removeprefix("zmq+")
    check_endpoint(where, endpoint, insecure=insecure)
    return endpoint


def is_loopback(host: str) -> bool:
    """Return whether `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind(where: str, sock: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind a socket and return the endpoint it got (`:*` picks a port).

    Raises `BadInput` naming the endpoint when it is in use or cannot be bound.
    """
    import zmq

    if endpoint.startswith("ipc://") and _ipc_in_use(endpoint.removeprefix("ipc://")):
        raise BadInput(where, "endpoint", f"{endpoint} in use", "a free endpoint")
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadInput(where, "endpoint", f"{endpoint} in use", "a free endpoint") from error
        raise BadInput(where, "endpoint", f"{endpoint} ({error})", "one to bind") from error
    endpoint_bytes: bytes = sock.get(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    return endpoint_bytes.rstrip(b"\0").decode()


def _ipc_in_use(path: str) -> bool:
    """Return whether somebody listens there: ZeroMQ itself would take the path away from them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(f"\0{path[1:]}" if path.startswith("@") else path)
        except OSError:
            return False
        return True


def parse_listen(option: str, text: str, *, insecure: bool = False) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, port 0 for any; raises `BadInput`.

    For pages that anybody who reaches them may read, so other machines need `insecure`.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(option, "address", repr(text), "HOST:PORT")
    if not insecure and not is_loopback(host):
        expected = "a loopback address such as 127.0.0.1, or --insecure"
        raise BadInput(option, "address", repr(text), expected)
    return host.strip("[]"), int(port)
