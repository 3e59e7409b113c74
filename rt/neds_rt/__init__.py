"""neds_rt: the runtime that serves a neds bundle beside a rig; it never imports torch or neds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds_rt.client import Client as Client
    from neds_rt.curve import read_access as read_access
    from neds_rt.wire import Decode as Decode

__all__ = ["Client", "Decode", "read_access"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for, so that importing stays light."""
    if name == "Client":
        from neds_rt.client import Client

        return Client
    if name == "Decode":
        from neds_rt.wire import Decode

        return Decode
    if name == "read_access":
        from neds_rt.curve import read_access

        return read_access
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
