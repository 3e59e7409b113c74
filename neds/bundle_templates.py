"""Which templates go into a bundle: matched with its units by probe, channel and cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neds_rt.errors import BadInput
from neds_rt.manifest import ProbeTemplates, Unit
from neds_rt.templates import Templates, read_templates

Name = tuple[str, int, int]  # probe, channel, cluster


def probe_templates(
    values: Sequence[str], units: Sequence[Unit]
) -> tuple[list[tuple[ProbeTemplates, bytes]], list[Name]]:
    """Return manifest entry and file for each of `[PROBE=]PATH`, and the units without a template.

    A path is a file of `neds templates` or a folder of a sorting analyzer. Templates of units that
    the bundle lacks are kept: what they explain is nobody else's. Raises `BadInput` for a probe
    that has no units or comes twice, and where no name of the templates is a unit's.
    """
    probes = list(dict.fromkeys(unit.probe for unit in units))
    found: dict[str, tuple[ProbeTemplates, bytes]] = {}
    for value in values:
        name, path = _split(value, probes)
        if name in found:
            raise BadInput("--templates", "probe", f"{name} twice", "every probe once")
        templates = _read(path, name)
        known = set(templates.names)
        rows = [row for row, unit in enumerate(units) if unit.probe == name]
        missing = [row for row in rows if (units[row].channel, units[row].cluster) not in known]
        if len(missing) == len(rows):
            channel, cluster = templates.names[0]
            raise BadInput(path, f"units of {name}", f"none of the model's (channel {channel}, "
                           f"cluster {cluster}, ...)", "channels and clusters of the unit table")
        file = f"templates/{probes.index(name)}.safetensors"
        found[name] = (ProbeTemplates(name, file, missing), templates.encode())
    silent = [row for entry, _ in found.values() for row in entry.missing]
    names = [(units[row].probe, units[row].channel, units[row].cluster) for row in silent]
    return list(found.values()), names


def _split(value: str, probes: list[str]) -> tuple[str, Path]:
    name, equals, path = value.partition("=")
    if equals and name in probes:
        return name, Path(path)
    if len(probes) > 1 or (equals and not Path(value).exists()):
        raise BadInput("--templates", "probe", repr(value), f"PROBE=PATH of {', '.join(probes)}")
    return probes[0], Path(value)


def _read(path: Path, probe: str) -> Templates:
    if path.is_dir():
        from neds.templates import from_analyzer

        return from_analyzer(path, probe=probe)[0]
    return read_templates(path)
