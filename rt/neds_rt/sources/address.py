"""Addresses of foreign programs: `SCHEME://HOST[:PORT][?option=value&...]`, options as a struct."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from neds_rt.endpoints import check_endpoint
from neds_rt.errors import BadInput

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]", re.ASCII)

Options = TypeVar("Options", bound=msgspec.Struct)


class Address(NamedTuple):
    """Where a program listens."""

    host: str
    port: int

    @property
    def endpoint(self) -> str:
        """The address as ZeroMQ writes it."""
        return f"tcp://{self.host}:{self.port}"


def check_host(where: str, host: str) -> None:
    """Raise `BadInput` for what can be neither a name nor an address (IPv6 in brackets).

    Whatever passes may be dialled: ZeroMQ and Python's sockets refuse none of it where a thread
    of a source would end by that. Whether somebody has the name is another question.
    """
    labels = host.rstrip(".").split(".")
    if not _HOST.fullmatch(host) or (host[0] != "[" and not all(0 < len(x) < 64 for x in labels)):
        raise BadInput(where, "host", repr(host), "a name or an address")


def parse_address(
    where: str, uri: str, default_port: int, options: type[Options], *, insecure: bool = False
) -> tuple[Address, Options]:
    """Return address and options of a URI; values are text that is converted to the field's type.

    Raises `BadInput` for anything malformed, an option that `options` has no field for, and an
    address on another machine without `insecure`.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise BadInput(where, "URI", f"{uri} ({error})", "SCHEME://HOST:PORT?...") from None
    if not host or parts.path not in ("", "/") or parts.fragment or port == 0:
        raise BadInput(where, "URI", repr(uri), f"{parts.scheme}://HOST:PORT")
    address = Address(f"[{host}]" if ":" in host else host, default_port if port is None else port)
    check_host(where, address.host)
    check_endpoint(where, address.endpoint, insecure=insecure)
    return address, _converted(where, parts.scheme, pairs, options)


def parse_options(where: str, scheme: str, query: str, options: type[Options]) -> Options:
    """Return the options after the question mark of a URI without a host. Raises `BadInput`."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise BadInput(where, "URI", f"?{query} ({error})", f"{scheme}:...?option=value") from None
    return _converted(where, scheme, pairs, options)


def _converted(
    where: str, scheme: str, pairs: list[tuple[str, str]], options: type[Options]
) -> Options:
    given = dict(pairs)
    known = [field.encode_name for field in msgspec.structs.fields(options)]
    for name in given:
        if name not in known or len(given) < len(pairs):
            raise BadInput(where, "URI option", repr(name), f"each once, of {', '.join(known)}")
    try:
        return msgspec.convert(given, options, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(where, "URI option", error, f"a valid {scheme} option") from None
