"""Sinks: where decodes go. One file each, one line each in `SINKS`."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from neds_rt.curve import LOCAL, Access
from neds_rt.endpoints import check_binding

SINKS = {
    "tcp": "neds_rt.sinks.zmq:ZmqSink",
    "ipc": "neds_rt.sinks.zmq:ZmqSink",
}


class Sink(Protocol):
    """Where encoded decode messages go. Sending never blocks: what nobody can take is dropped."""

    endpoint: str

    def send(self, message: memoryview) -> None:
        """Hand over one message; its bytes are copied before this returns."""

    def close(self) -> None:
        """Deliver what is under way for a moment, then close."""


def open_sink(endpoint: str, access: Access = LOCAL) -> Sink:
    """Open a sink by endpoint. Raises `BadInput` for one that is malformed or in use.

    So it does for one on an address that other machines reach, unless `access` has the keys.
    """
    check_binding("--out", endpoint, access)
    module, _, attribute = SINKS[endpoint.partition("://")[0]].partition(":")
    factory: Any = getattr(importlib.import_module(module), attribute)
    return cast(Sink, factory(endpoint, access))
