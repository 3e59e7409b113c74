"""`oe://`: spikes that the plugin sends, or with `mode=` raw samples to find them in."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from neds_rt.sources.oe_raw import OpenEphysRawSource
from neds_rt.sources.openephys import OpenEphysSource
from neds_rt.sources.units import UnitMap


def open_openephys(
    name: str, uri: str, *, units: UnitMap, insecure: bool = False
) -> OpenEphysSource | OpenEphysRawSource:
    """Connect to a ZMQ Interface plugin. Raises `BadInput` as the two sources do."""
    source = OpenEphysRawSource if is_raw(uri) else OpenEphysSource
    return source(name, uri, insecure=insecure, units=units)


def is_raw(uri: str) -> bool:
    """Return whether an `oe://` URI asks for raw samples."""
    return any(key == "mode" for key, _ in parse_qsl(urlsplit(uri).query, keep_blank_values=True))
