"""ZeroMQ endpoints: which ones are accepted, on whose keys, and one-line errors for the others.

Every native socket is bound and connected here. Loopback and `ipc` need nothing; any other address
needs CURVE keys of both sides (`neds_rt.curve`) or an explicit `--insecure`.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING

from neds_rt.curve import LOCAL, Access, KeyPair
from neds_rt.errors import BadInput

if TYPE_CHECKING:
    import zmq

TRANSPORTS = ("tcp", "ipc")
# All that a publisher is sent are handshakes and what subscribers want to hear; whoever sends more
# is cut off, before memory is taken for it.
MAX_SUBSCRIPTION_BYTES = 1024
SCHEMES = tuple(f"zmq+{name}://" for name in TRANSPORTS)


def check_endpoint(
    where: str, endpoint: str, *, insecure: bool = False, keys: str = ""
) -> None:
    """Raise `BadInput` unless `endpoint` is `tcp://HOST:PORT` on this machine or `ipc://PATH`.

    Other machines need `insecure`; `keys` are the options that would do as well, if any: foreign
    programs speak protocols without keys.
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
        ways = f"{keys}, or --insecure" if keys else "or --insecure"
        expected = f"a loopback address such as 127.0.0.1, {ways}"
        raise BadInput(where, "endpoint", repr(endpoint), expected)


def endpoint_of(where: str, uri: str) -> str:
    """Return the ZeroMQ endpoint of a `zmq+tcp://...` or `zmq+ipc://...` URI; raises `BadInput`.

    Whether it may be used is for `bind` and `connect` to say.
    """
    if not uri.startswith(SCHEMES):
        raise BadInput(where, "URI scheme", uri.partition("://")[0], f"one of {', '.join(SCHEMES)}")
    endpoint = uri.removeprefix("zmq+")
    check_endpoint(where, endpoint, insecure=True)
    return endpoint


def is_loopback(host: str) -> bool:
    """Return whether `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bind(where: str, sock: zmq.Socket[bytes], endpoint: str, access: Access = LOCAL) -> str:
    """Bind a socket and return the endpoint it got (`:*` picks a port).

    With an allow-list in `access` only those clients get in, on any address. Raises `BadInput`
    naming the endpoint when it needs keys, is in use or cannot be bound.
    """
    import zmq

    check_binding(where, endpoint, access)
    if endpoint.startswith("ipc://") and _ipc_in_use(endpoint.removeprefix("ipc://")):
        raise BadInput(where, "endpoint", f"{endpoint} in use", "a free endpoint")
    if sock.type in (zmq.PUB, zmq.XPUB):
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_SUBSCRIPTION_BYTES)
    domain = b""
    if access.allowed is not None:
        from neds_rt.gatekeeper import gatekeeper

        domain = gatekeeper(sock.context).add(access.allowed, access.allow)
        _take_keys(sock, access.own)
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.ZAP_DOMAIN, domain)
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadInput(where, "endpoint", f"{endpoint} in use", "a free endpoint") from error
        raise BadInput(where, "endpoint", f"{endpoint} ({error})", "one to bind") from error
    endpoint_bytes: bytes = sock.get(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
    endpoint = endpoint_bytes.rstrip(b"\0").decode()
    if domain:
        gatekeeper(sock.context).bound(domain, endpoint)
    return endpoint


def connect(
    where: str, sock: zmq.Socket[bytes], endpoint: str, access: Access = LOCAL, name: str = ""
) -> None:
    """Connect a socket; ZeroMQ then waits for the other side, and for it again after a loss.

    `name` says which of the server keys in `access` the other side must prove to have. Raises
    `BadInput` naming the endpoint when it needs keys or cannot be connected to.
    """
    import zmq

    server = access.server_of(name)
    keys = "--curve-key with --curve-server"
    check_endpoint(where, endpoint, insecure=access.insecure or server is not None, keys=keys)
    if server is not None:
        _take_keys(sock, access.own)
        sock.setsockopt(zmq.CURVE_SERVERKEY, server)
    try:
        sock.connect(endpoint)
    except zmq.ZMQError as error:
        raise BadInput(where, "endpoint", f"{endpoint} ({error})", "one to connect to") from error


def check_binding(where: str, endpoint: str, access: Access = LOCAL) -> None:
    """Raise `BadInput` unless a socket may be bound there: what `bind` checks first."""
    check_endpoint(where, endpoint, insecure=access.insecure or access.allowed is not None,
                   keys="--curve-key with --curve-allow")


def _take_keys(sock: zmq.Socket[bytes], own: KeyPair | None) -> None:
    import zmq

    assert own is not None  # read_access takes no other side's keys without it
    sock.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
    sock.setsockopt(zmq.CURVE_SECRETKEY, own.secret)


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
