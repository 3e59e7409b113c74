"""All ports of a rig at once: who listens, what it sends or answers, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from neds_rt.doctor import Check
from neds_rt.doctor.asked import (
    EVENT_BROADCASTER,
    NATIVE_PLUGIN,
    SPIKEGLX,
    TRODES,
    ZMQ_INTERFACE,
    Asked,
    plugin_check,
)
from neds_rt.doctor.heard import Heard, listen
from neds_rt.doctor.native import native_checks
from neds_rt.doctor.openephys import (
    HEARTBEATS,
    ask,
    ask_heartbeat,
    broadcaster_checks,
    unit_check,
    zmq_interface_checks,
)
from neds_rt.doctor.ports import Listener, who_listens
from neds_rt.doctor.spikeglx import spikeglx_checks
from neds_rt.doctor.trodes import NAME, TrodesHeard, listen_to_network, trodes_checks
from neds_rt.sources.trodes import Options as TrodesOptions
from neds_rt.sources.units import UnitMap

OWNERS = {3335: "Falcon Output", 4142: "SpikeGLX", 5000: "Intan RHX", 5001: "Intan RHX",
          5002: "Intan RHX", 49152: "Trodes"}
NOT_HANDLED = "NotHandled"  # what Network Events says to anything that it does not know


class Found(NamedTuple):
    """What was learnt of one port."""

    listener: Listener
    heard: Heard | None = None  # of a publisher
    answer: str = ""  # of a REP socket, to a heartbeat
    acquiring: str = ""  # and of Network Events, to the question
    network: TrodesHeard | None = None
    spikeglx: Sequence[Check] = ()

    @property
    def plugin(self) -> str:
        """The program, "" for none that is known."""
        if self.spikeglx:
            return SPIKEGLX
        return "" if self.heard is None else self.heard.plugin


def examine(
    host: str, ports: list[int], seconds: float, units: UnitMap | None = None, *,
    asked: Sequence[Asked] = (), insecure: bool = False,
) -> list[Check]:
    """Return the checks of all ports, each publisher listened to for `seconds`, all at once.

    `units` are compared with whatever was heard; those of `asked` with what comes on their port.
    """
    by_port = {each.port: each for each in asked}
    with ThreadPoolExecutor(len(ports)) as pool:
        found = dict(zip(ports, pool.map(
            lambda port: _look(host, port, seconds, by_port.get(port), insecure), ports),
            strict=True))
    checks: list[Check] = []
    for port in ports:
        checks += _checks_of(port, found, by_port.get(port), units)
    if not checks:
        checks.append(Check("ports", "fail", f"nobody listens on {host}, ports "
                            f"{ports[0]} to {ports[-1]}", "start the acquisition program"))
    for each in asked:
        checks += plugin_check(each, found[each.port].plugin)
    for port, one in found.items():
        checks += _unit_checks(one, by_port.get(port), units)
    return checks


def _look(host: str, port: int, seconds: float, asked: Asked | None, insecure: bool) -> Found:
    """Find out all that is to be known of a port."""
    listener, endpoint = who_listens(host, port), f"tcp://{host}:{port}"
    if listener.kind == "other":
        return Found(listener, spikeglx=spikeglx_checks(host, port, seconds, asked))
    if listener.socket_type == "REP":
        answer = ask_heartbeat(endpoint, seconds)
        acquiring = ask(endpoint, "IsAcquiring", seconds) if answer == NOT_HANDLED else ""
        return Found(listener, answer=answer, acquiring=acquiring)
    if listener.socket_type not in ("PUB", "XPUB"):
        return Found(listener)
    heard = listen(endpoint, seconds)
    if heard.plugin != TRODES:
        return Found(listener, heard)
    options = None if asked is None else asked.options
    name = options.name if isinstance(options, TrodesOptions) else NAME
    return Found(listener, heard, network=listen_to_network(
        endpoint, seconds, name=name, insecure=insecure))


def _checks_of(
    port: int, found: dict[int, Found], asked: Asked | None, units: UnitMap | None
) -> list[Check]:
    one, beside = found[port], found.get(port + 1)
    if one.network is not None:
        return trodes_checks(port, one.network)
    if one.spikeglx:
        return list(one.spikeglx)
    if one.heard is not None:
        who = ""
        if beside is not None:
            listener = beside.listener
            who = listener.socket_type or listener.kind
            who = "heartbeat" if beside.answer in HEARTBEATS else "" if who == "nobody" else who
        return _publisher(port, one.heard, who, asked, units)
    if one.listener.socket_type == "REP":
        return [_answerer(port, one)]
    if one.listener.kind == "nobody":
        return []
    owner = OWNERS.get(port, "a program that is not known here")
    what = f"a ZeroMQ {one.listener.socket_type} socket"
    return [Check(f"port {port}", "ok", f"{what if one.listener.kind == 'zmq' else 'not ZeroMQ'}, "
                  f"probably {owner}")]


def _publisher(
    port: int, heard: Heard, beside: str, asked: Asked | None, units: UnitMap | None
) -> list[Check]:
    """Return the checks of a publisher; `beside` says who is on the next port."""
    if heard.plugin == ZMQ_INTERFACE:
        return zmq_interface_checks(port, heard, beside, asked)
    if heard.plugin == EVENT_BROADCASTER:
        return broadcaster_checks(port, heard, asked)
    if heard.plugin == NATIVE_PLUGIN:
        mine = units if asked is None else asked.units
        return native_checks(port, heard.native, heard.refused, asked, mine)
    if heard.messages:
        return [Check(f"port {port}", "warn", f"a publisher of {heard.messages} messages that are "
                      "none of those known here", "name the program's own port in --probe")]
    plugin = ZMQ_INTERFACE if beside == "heartbeat" else "a publisher"
    return [Check(f"port {port}", "warn", f"{plugin} that sends nothing", "start acquisition")]


def _answerer(port: int, one: Found) -> Check:
    where = f"port {port}"
    if one.answer in HEARTBEATS:
        return Check(where, "ok", f"heartbeat of the ZMQ Interface on port {port - 1}")
    if one.acquiring == "1":
        return Check(where, "ok", "Network Events, acquisition runs")
    if one.acquiring == "0":
        return Check(where, "warn", "Network Events, acquisition does not run",
                     "start acquisition: until then events are answered and not recorded")
    what = f"answers {one.answer!r}" if one.answer else "does not answer a heartbeat"
    return Check(where, "ok", f"a ZeroMQ REP socket that {what}")


def _unit_checks(one: Found, asked: Asked | None, units: UnitMap | None) -> list[Check]:
    """Compare the units that were heard on a port with those of the bundle."""
    listened = one.network or one.heard
    names = listened.names if listened is not None else None
    if names and asked is not None:
        names, units = asked.names(names), asked.units
    if not names or units is None:
        return []
    name = "units" if asked is None else f"port {asked.port} units"
    return [unit_check(units, names, name)]
