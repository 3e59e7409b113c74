"""Examine a rig: who listens on which port, what is mis-selected, what this machine can keep.

Connects to every port of the acquisition programs, listens for a few seconds, and says of each
thing that is wrong the one that should be changed. Changes nothing itself. Acquisition should be
running. Exit code 4 if a check failed.

    neds-rt doctor
    neds-rt doctor --ports 5556,5558 --model X.neds --units units.tsv --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neds_rt.doctor import Check
    from neds_rt.doctor.openephys import Heard
    from neds_rt.doctor.ports import Listener
    from neds_rt.doctor.trodes import TrodesHeard
    from neds_rt.sources.units import UnitMap

# Where programs listen unless told otherwise; the second plugin of a kind is two ports on.
PORTS = "3335,4142,5000-5002,5556-5562,5570,49152"
OWNERS = {3335: "Falcon Output", 4142: "SpikeGLX", 5000: "Intan RHX", 5001: "Intan RHX",
          5002: "Intan RHX", 49152: "Trodes"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt doctor`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="where the programs run (default %(default)s)")
    add("--ports", default=PORTS, metavar="LIST", help=f"ports to look at (default {PORTS})")
    add("--seconds", type=float, default=3.0, help="how long to listen (default %(default)g)")
    add("--model", metavar="BUNDLE", help="compare the units heard with those of a bundle")
    add("--probe", metavar="NAME", help="which probe of the bundle, if it has several")
    add("--units", metavar="FILE", help="unit map, as for `neds-rt serve`")
    add("--no-machine", action="store_true", help="leave out the checks of this machine")
    add("--insecure", action="store_true", help="connect to other machines")
    add("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Examine and report; returns 4 if something is wrong."""
    import json

    from neds_rt.doctor.machine import machine_checks
    from neds_rt.endpoints import check_endpoint
    from neds_rt.errors import BadInput
    from neds_rt.sources.address import check_host

    if not 0 < args.seconds <= 600:
        raise BadInput("--seconds", "value", args.seconds, "above 0, at most 600")
    ports = _ports(args.ports)
    check_host("--host", args.host)
    check_endpoint("--host", f"tcp://{args.host}:1", insecure=args.insecure)
    units = _units(args)
    checks = [] if args.no_machine else machine_checks()
    checks += examine(args.host, ports, args.seconds, units, insecure=args.insecure)
    for check in checks:
        print(f"{check.status:<5} {check.name}: {check.found}")
        if check.advice:
            print(f"      -> {check.advice}")
    if args.json:
        print(json.dumps({"checks": [check._asdict() for check in checks]}))
    return 4 if any(check.status == "fail" for check in checks) else 0


def examine(
    host: str, ports: list[int], seconds: float, units: UnitMap | None = None, *,
    insecure: bool = False,
) -> list[Check]:
    """Return the checks of all ports, each publisher listened to for `seconds`, all at once."""
    from concurrent.futures import ThreadPoolExecutor

    from neds_rt.doctor import Check
    from neds_rt.doctor.openephys import HEARTBEATS, ask_heartbeat, listen, unit_check
    from neds_rt.doctor.ports import who_listens
    from neds_rt.doctor.spikeglx import spikeglx_checks
    from neds_rt.doctor.trodes import listen_to_network, trodes_checks

    with ThreadPoolExecutor(len(ports)) as pool:
        found = {one.port: one for one in pool.map(lambda port: who_listens(host, port), ports)}
        publishers = [p for p, one in found.items() if one.socket_type in ("PUB", "XPUB")]
        answerers = [p for p, one in found.items() if one.socket_type == "REP"]
        heard = dict(zip(publishers, pool.map(
            lambda port: listen(f"tcp://{host}:{port}", seconds), publishers), strict=True))
        answers = dict(zip(answerers, pool.map(
            lambda port: ask_heartbeat(f"tcp://{host}:{port}", seconds), answerers), strict=True))
        directories = [port for port, each in heard.items() if each.plugin == "Trodes"]
        networks = dict(zip(directories, pool.map(
            lambda port: listen_to_network(f"tcp://{host}:{port}", seconds, insecure=insecure),
            directories), strict=True))
        strangers = [p for p, one in found.items() if one.kind == "other"]
        probes = dict(zip(strangers, pool.map(
            lambda port: spikeglx_checks(host, port, seconds), strangers), strict=True))
    checks: list[Check] = []
    for port, one in found.items():
        if port in networks:
            checks += trodes_checks(port, networks[port])
        elif probes.get(port):
            checks += probes[port]
        elif port in heard:
            beside = "heartbeat" if answers.get(port + 1) in HEARTBEATS else _who(found, port + 1)
            checks += _publisher(port, heard[port], beside)
        elif port in answers:
            checks.append(_answerer(port, answers[port]))
        elif one.kind != "nobody":
            owner = OWNERS.get(port, "a program that is not known here")
            what = f"a ZeroMQ {one.socket_type} socket" if one.kind == "zmq" else "not ZeroMQ"
            checks.append(Check(f"port {port}", "ok", f"{what}, probably {owner}"))
    if not checks:
        checks.append(Check("ports", "fail", f"nobody listens on {host}, ports "
                            f"{ports[0]} to {ports[-1]}", "start the acquisition program"))
    if units is not None:
        listened: list[Heard | TrodesHeard] = [*heard.values(), *networks.values()]
        checks += [unit_check(units, each.names) for each in listened if each.names]
    return checks


def _who(found: dict[int, Listener], port: int) -> str:
    one = found.get(port)
    return "" if one is None else one.socket_type or one.kind


def _publisher(port: int, heard: Heard, beside: str) -> list[Check]:
    """Return the checks of a publisher; `beside` says who is on the next port."""
    from neds_rt.doctor import Check
    from neds_rt.doctor.openephys import broadcaster_checks, zmq_interface_checks

    if heard.plugin == "ZMQ Interface":
        return zmq_interface_checks(port, heard, beside)
    if heard.plugin == "Event Broadcaster":
        return broadcaster_checks(port, heard)
    if heard.plugin:
        return [Check(f"port {port}", "ok", f"{heard.plugin}, {heard.messages} messages")]
    if heard.messages:
        return [Check(f"port {port}", "warn", f"a publisher of {heard.messages} messages that are "
                      "none of those known here", "name the program's own port in --probe")]
    plugin = "ZMQ Interface" if beside == "heartbeat" else "a publisher"
    return [Check(f"port {port}", "warn", f"{plugin} that sends nothing", "start acquisition")]


def _answerer(port: int, answer: str) -> Check:
    from neds_rt.doctor import Check
    from neds_rt.doctor.openephys import HEARTBEATS

    if answer in HEARTBEATS:
        return Check(f"port {port}", "ok", f"heartbeat of the ZMQ Interface on port {port - 1}")
    what = f"answers {answer!r}" if answer else "does not answer a heartbeat"
    return Check(f"port {port}", "ok", f"a ZeroMQ REP socket that {what}; Network Events?")


def _ports(text: str) -> list[int]:
    from neds_rt.errors import BadInput

    ports: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            low, high = int(first), int(last or first)
        except ValueError:
            low, high = 0, 0
        if not 0 < low <= high < 65536 or high - low > 100:
            raise BadInput("--ports", "value", repr(part), "ports and ranges like 5556-5562")
        ports += range(low, high + 1)
    return sorted(set(ports))


def _units(args: argparse.Namespace) -> UnitMap | None:
    from neds_rt.bundle import read_bundle
    from neds_rt.errors import BadInput
    from neds_rt.sources.units import UnitMap, read_unit_file

    if args.model is None:
        if args.units or args.probe:
            raise BadInput("doctor", "--units, --probe", "no --model", "the bundle they belong to")
        return None
    manifest = read_bundle(args.model).manifest
    probes = sorted({unit.probe for unit in manifest.units})
    probe = args.probe or probes[0]
    if probe not in probes or (len(probes) > 1 and args.probe is None):
        raise BadInput("--probe", "name", args.probe, f"one of {', '.join(probes)}")
    mine = [unit for unit in manifest.units if unit.probe == probe]
    return UnitMap(mine, read_unit_file(args.units) if args.units else None)
