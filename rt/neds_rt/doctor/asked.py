"""What a `--probe NAME=URI` says of a rig: its options decide what is right and what is wrong."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from neds_rt.doctor import Check
from neds_rt.endpoints import endpoint_of
from neds_rt.errors import BadInput
from neds_rt.sources import NATIVE, oe_raw, oebroadcast, openephys, scheme_of, spikeglx, trodes
from neds_rt.sources.address import parse_address
from neds_rt.sources.oe import is_raw
from neds_rt.sources.raw import RawOptions
from neds_rt.sources.units import UnitMap
from neds_rt.templates import Templates, read_templates

Options = (openephys.Options | oe_raw.Options | oebroadcast.Options | spikeglx.Options
           | trodes.Options)
FOREIGN: dict[str, tuple[int, type[Options]]] = {
    "oe": (openephys.DEFAULT_PORT, openephys.Options),
    "oe-events": (oebroadcast.DEFAULT_PORT, oebroadcast.Options),
    "spikeglx": (spikeglx.DEFAULT_PORT, spikeglx.Options),
    "trodes": (trodes.DEFAULT_PORT, trodes.Options),
}
NATIVE_PLUGIN, TRODES, SPIKEGLX = "neds-rt frames", "Trodes", "SpikeGLX"
ZMQ_INTERFACE, EVENT_BROADCASTER = "ZMQ Interface", "Event Broadcaster"
PLUGINS = {"oe": ZMQ_INTERFACE, "oe-events": EVENT_BROADCASTER, "trodes": TRODES,
           "spikeglx": SPIKEGLX, **dict.fromkeys(NATIVE, NATIVE_PLUGIN)}


class Asked(NamedTuple):
    """One probe as `serve` would be given it; `units` are the bundle's, where there is one."""

    name: str
    scheme: str
    port: int
    options: Options | None = None  # None for native frames, which have none
    units: UnitMap | None = None
    templates: Templates | None = None

    @property
    def raw(self) -> bool:
        """Whether spikes are to be found in the channels of a ZMQ Interface."""
        return isinstance(self.options, oe_raw.Options)

    @property
    def stream(self) -> str:
        """The stream asked for, "" for any."""
        return getattr(self.options, "stream", "")

    @property
    def channels(self) -> int:
        """How many a block of raw samples has to have, 0 where that is not known."""
        asked = self.options.channels if isinstance(self.options, oe_raw.Options) else 0
        return asked or (0 if self.templates is None else self.templates.n_channels)

    def names(self, heard: Counter[tuple[str, str, int]]) -> Counter[tuple[str, str, int]]:
        """Return the units heard that the source would take: none where it finds its own."""
        if isinstance(self.options, RawOptions):
            return Counter()
        return Counter({name: n for name, n in heard.items() if self.stream in ("", name[0])})


def parse_asked(
    name: str, uri: str, host: str, units: UnitMap | None = None, *, insecure: bool = False
) -> Asked:
    """Return what a probe's URI asks for. Raises `BadInput` as its source would.

    Its host has to be the one that is examined.
    """
    where = f"--probe {name}"
    scheme = scheme_of(name, uri)
    if scheme in NATIVE:
        endpoint = endpoint_of(where, uri)
        if not endpoint.startswith("tcp://"):
            raise BadInput(where, "URI", uri, "one with a port")
        found, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        asked = Asked(name, scheme, int(port), None, units)
    else:
        default, options_class = FOREIGN[scheme]
        if scheme == "oe" and is_raw(uri):
            options_class = oe_raw.Options
        address, options = parse_address(where, uri, default, options_class, insecure=insecure)
        found = address.host
        templates = None if units is None else units.templates
        if isinstance(options, RawOptions):
            if options.templates:
                templates = read_templates(options.templates)
            elif options.mode != "templates":
                templates = None
        asked = Asked(name, scheme, address.port, options, units, templates)
    if found.strip("[]") != host.strip("[]") and {found, host} != {"localhost", "127.0.0.1"}:
        raise BadInput(where, "host", found, f"that of --host, {host}")
    return asked


def plugin_check(asked: Asked, plugin: str) -> list[Check]:
    """Compare what the URI is for with what is there, "" for nothing that is known."""
    wanted = PLUGINS[asked.scheme]
    if plugin == wanted:
        return []
    scheme = next((s for s, p in PLUGINS.items() if p == plugin), "")
    return [Check(f"port {asked.port} probe", "fail",
                  f"{plugin or 'nothing that is known'}, and --probe {asked.name} is for {wanted}",
                  f"{scheme}:// in the URI" if scheme else f"name the port of {wanted}")]


def stream_check(where: str, asked: Asked | None, streams: set[str]) -> list[Check]:
    """Compare the stream asked for with those that there are."""
    if asked is None or asked.stream in ("", *streams) or not streams:
        return []
    named = ", ".join(map(repr, sorted(streams)))
    return [Check(f"{where} stream", "fail", f"no {asked.stream!r} among {named}",
                  f"?stream= with one of {named}")]


def templates_check(where: str, asked: Asked, channels: int, fs: float) -> list[Check]:
    """Compare a stream with the templates that it is to be matched with."""
    if asked.templates is None:
        return []
    try:
        asked.templates.check_stream(where, channels, fs)
    except BadInput as error:
        return [Check(f"{where} templates", "fail", str(error).partition("stream: ")[2],
                      "templates that were measured on this probe, at this rate")]
    return []
