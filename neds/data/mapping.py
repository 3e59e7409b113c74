"""Which array of an archive is what: written in TOML, or as KEY=VALUE words on the command line.

    spike_times=ARRAY spike_units=ARRAY [n_units=ARRAY|N] [fs=N]       spike events in seconds, or
    counts=ARRAY bin_size=ARRAY|N [bin_start=ARRAY]                    counts (bins, units)
    behaviour.NAME=VALUES:TIMESTAMPS[:KIND[:UNIT]]    TIMESTAMPS "bins" means the end of each bin
    unit.COLUMN=ARRAY                                 probe, channel, cluster, region, depth_um
    trials.COLUMN=ARRAY  trials_prefix=TEXT           a column, or every array that starts so
    domain_start=ARRAY domain_end=ARRAY               where the recording exists, in seconds
    session=ARRAY subject=ARRAY                       names, default session_id and subject_id

In TOML the same keys stand at the top and in the tables [behaviour.NAME], [unit] and [trials]; a
behaviour has the further fields `columns`, `levels`, `classes` and `gaps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from neds.modalities import MODALITIES
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

UNIT_COLUMNS = ("probe", "channel", "cluster", "region", "depth_um")
BINS = "bins"
"""Time stamps of a behaviour that is given per bin: the ends of the bins."""


class BehaviourMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where one behaviour is found.

    values: array (n,), (n, width), or shaped as the bins are. columns: which columns to take.
    levels: for a categorical behaviour the values that become codes 0, 1, ...; default all that
    occur. classes: their labels. kind, unit and classes default to the row of that name in
    `neds.modalities`. gaps: NaN, and values not in `levels`, mean unknown.
    """

    values: str
    timestamps: str
    kind: str = ""
    unit: str = ""
    columns: list[int] = []
    levels: list[float] = []
    classes: list[str] = []
    gaps: bool = False


    def filled(self, name: str) -> BehaviourMap:
        """Return the mapping with what it leaves open taken from the table of modalities."""
        row = MODALITIES.get(name)
        kind = self.kind or (row.kind if row else "continuous")
        if row is None or row.kind != kind:
            return msgspec.structs.replace(self, kind=kind)
        fits = len(row.classes) == len(self.levels)
        classes = self.classes or (list(row.classes) if fits else [])
        return msgspec.structs.replace(self, kind=kind, unit=self.unit or row.unit, classes=classes)


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which array of an archive is what; see the module's text."""

    spike_times: str = ""
    spike_units: str = ""
    n_units: str | int = ""
    fs: float = 30000.0
    counts: str = ""
    bin_start: str = ""
    bin_size: str | float = ""
    behaviour: dict[str, BehaviourMap] = {}
    unit: dict[str, str] = {}
    trials: dict[str, str] = {}
    trials_prefix: str = ""
    domain_start: str = ""
    domain_end: str = ""
    session: str = ""
    subject: str = ""

    def checked(self, where: object) -> Mapping:
        """Return the mapping if it says what the spikes are and nothing else is off."""
        if bool(self.counts) == bool(self.spike_times):
            raise BadInput(where, "spikes", "both" if self.counts else "neither",
                           "spike_times and spike_units, or counts")
        if self.spike_times and not self.spike_units:
            raise BadInput(where, "spike_units", "nothing", "the array with each spike's unit")
        if self.counts and self.bin_size == "":
            raise BadInput(where, "bin_size", "nothing", "seconds, or an array that holds them")
        if bool(self.domain_start) != bool(self.domain_end):
            raise BadInput(where, "domain", "one border", "domain_start and domain_end")
        for name in self.unit:
            if name not in UNIT_COLUMNS:
                known = ", ".join(UNIT_COLUMNS)
                raise BadInput(where, "unit column", repr(name), f"one of {known}")
        return self


def parse_mapping(words: Sequence[str]) -> Mapping:
    """Read `--map`: one TOML file, or KEY=VALUE words. Raises `BadInput`."""
    if len(words) == 1 and "=" not in words[0]:
        return load_mapping(Path(words[0]))
    fields: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and key and value):
            raise BadInput("--map", "word", repr(word), "KEY=VALUE")
        group, dot, name = key.partition(".")
        if dot and group == "behaviour":
            fields.setdefault(group, {})[name] = _behaviour(key, value)
        elif dot and group in ("unit", "trials"):
            fields.setdefault(group, {})[name] = value
        else:
            fields[key] = _number(value) if key in ("fs", "bin_size", "n_units") else value
    try:
        return msgspec.convert(fields, Mapping).checked("--map")
    except msgspec.ValidationError as error:
        raise BadInput("--map", "mapping", error, "the keys that --help lists") from error


def load_mapping(path: Path) -> Mapping:
    """Read a mapping in TOML. Raises `BadInput` with the field that is wrong."""
    data = read_small(path, "mapping", "a mapping in TOML")
    try:
        return msgspec.toml.decode(data, type=Mapping).checked(path)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BadInput(path, "mapping", error, "a mapping in TOML") from error


def _behaviour(key: str, value: str) -> dict[str, str]:
    parts = value.split(":")
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise BadInput("--map", key, repr(value), "VALUES:TIMESTAMPS[:KIND[:UNIT]]")
    return dict(zip(("values", "timestamps", "kind", "unit"), parts, strict=False))


def _number(value: str) -> str | float:
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number
