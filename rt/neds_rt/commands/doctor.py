"""Examine a rig: who listens on which port, what is mis-selected, what this machine can keep.

Connects to every port of the acquisition programs, listens for a few seconds, and says of each
thing that is wrong the one that should be changed. Changes nothing itself. Acquisition should be
running. Exit code 4 if a check failed.

    neds-rt doctor
    neds-rt doctor --ports 5556,5558 --model X.neds --units units.tsv --json
    neds-rt doctor --probe 'probe00=oe://127.0.0.1:5556?mode=templates' --model X.neds
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neds_rt.doctor.asked import Asked
    from neds_rt.sources.units import UnitMap

# Where programs listen unless told otherwise; the second plugin of a kind is two ports on.
PORTS = "3335,4142,5000-5002,5556-5562,5570,49152"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt doctor`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="where the programs run (default %(default)s)")
    add("--ports", default=PORTS, metavar="LIST", help=f"ports to look at (default {PORTS})")
    add("--seconds", type=float, default=3.0, help="how long to listen (default %(default)g)")
    add("--model", metavar="BUNDLE", help="compare the units heard with those of a bundle")
    add("--probe", action="append", metavar="NAME[=URI]",
        help="a probe as `neds-rt serve` is given it: the URI's options decide what is right; once "
             "for each probe; the name alone says which probe of the bundle all is compared with")
    add("--units", metavar="FILE", help="unit map, as for `neds-rt serve`")
    add("--no-machine", action="store_true", help="leave out the checks of this machine")
    add("--insecure", action="store_true", help="connect to other machines")
    add("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Examine and report; returns 4 if something is wrong."""
    import json

    from neds_rt.doctor.examine import examine
    from neds_rt.doctor.machine import machine_checks
    from neds_rt.endpoints import check_endpoint
    from neds_rt.errors import BadInput
    from neds_rt.sources.address import check_host

    if not 0 < args.seconds <= 600:
        raise BadInput("--seconds", "value", args.seconds, "above 0, at most 600")
    ports = _ports(args.ports)
    check_host("--host", args.host)
    check_endpoint("--host", f"tcp://{args.host}:1", insecure=args.insecure)
    units, asked = _probes(args)
    ports = sorted({*ports, *(each.port for each in asked)})
    checks = [] if args.no_machine else machine_checks()
    checks += examine(args.host, ports, args.seconds, units, asked=asked, insecure=args.insecure)
    for check in checks:
        print(f"{check.status:<5} {check.name}: {check.found}")
        if check.advice:
            print(f"      -> {check.advice}")
    if args.json:
        print(json.dumps({"checks": [check._asdict() for check in checks]}))
    return 4 if any(check.status == "fail" for check in checks) else 0


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


def _probes(args: argparse.Namespace) -> tuple[UnitMap | None, list[Asked]]:
    """Return the bundle's units to compare with whatever is heard, and the probes with a URI.

    Those carry their units themselves, so the first is None as soon as there is one.
    """
    from neds_rt.doctor.asked import parse_asked
    from neds_rt.errors import BadInput

    given = [value.partition("=") for value in args.probe or []]
    names = [name for name, _, _ in given]
    if len(set(names)) < len(names) or (len(given) > 1 and any(not uri for _, _, uri in given)):
        raise BadInput("--probe", "names", ", ".join(names), "every name once, each with its URI")
    maps = _unit_maps(args)
    for name in names:
        if maps and name not in maps:
            raise BadInput("--probe", "name", name, f"one of {', '.join(maps)}")
    if not given or not given[0][2]:
        if len(maps) > 1 and not given:
            raise BadInput("--probe", "name", None, f"one of {', '.join(maps)}")
        return maps[names[0] if names else next(iter(maps))] if maps else None, []
    asked = [parse_asked(name, uri, args.host, maps.get(name), insecure=args.insecure)
             for name, _, uri in given]
    taken = [each.port for each in asked]
    if len(set(taken)) < len(taken):
        raise BadInput("--probe", "ports", ", ".join(map(str, taken)), "one of its own for each")
    return None, asked


def _unit_maps(args: argparse.Namespace) -> dict[str, UnitMap]:
    """Return the units of each of the bundle's probes, {} without a bundle."""
    from neds_rt.assemble import give_templates
    from neds_rt.bundle import read_bundle
    from neds_rt.errors import BadInput
    from neds_rt.sources.units import UnitMap, read_unit_file

    if args.model is None:
        if args.units or any("=" not in value for value in args.probe or []):
            raise BadInput("doctor", "--units, --probe NAME", "no --model",
                           "the bundle they belong to")
        return {}
    bundle = read_bundle(args.model)
    named = read_unit_file(args.units) if args.units else None
    maps = {}
    for probe in sorted({unit.probe for unit in bundle.manifest.units}):
        maps[probe] = UnitMap([u for u in bundle.manifest.units if u.probe == probe], named)
    give_templates(maps, bundle)
    return maps
