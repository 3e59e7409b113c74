"""The search space of a sweep: which fields of a recipe vary, and between what.

A TOML table `[sweep]` of `table.field = {low, high, log, step}` or a list of choices:

    [sweep.train]
    learning_rate = { low = 1e-4, high = 1e-2, log = true }
    batch = [16, 32]

What trials are compared on must be the same for all of them, so the table `[data]` and
`train.seed` cannot be searched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from neds.config import MaskingConfig, RunConfig, check
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

TABLES = ("model", "masking", "train")
SHARES = tuple(name for name in MaskingConfig.__struct_fields__ if name != "ratio")
Value = bool | int | float | str


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers from `low` to `high`, both included; whole ones if both bounds are written so."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def whole(self) -> bool:
        """Whether only integers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Space:
    """Fields by dotted name, each a `Range` or a tuple of choices."""

    fields: dict[str, Range | tuple[Value, ...]]

    def suggest(self, trial: Any) -> dict[str, Value]:
        """Ask an Optuna trial for a value of every field."""
        values: dict[str, Value] = {}
        for name, of in self.fields.items():
            if isinstance(of, tuple):
                values[name] = trial.suggest_categorical(name, list(of))
            elif of.whole:
                step = 1 if of.step is None else of.step
                values[name] = trial.suggest_int(name, of.low, of.high, step=step, log=of.log)
            else:
                values[name] = trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)
        return values

    def holds(self, name: str, value: Any) -> bool:
        """Whether a field's value lies in the space."""
        of = self.fields[name]
        if isinstance(of, tuple):
            return value in of
        return isinstance(value, int | float) and of.low <= value <= of.high and of.step is None

    def largest_window(self, config: RunConfig) -> int:
        """The longest window any trial can have, in bins."""
        of = self.fields.get("model.window", (config.model.window,))
        values = of if isinstance(of, tuple) else (of.high,)
        return max(int(value) for value in values)


def load_space(name: str) -> Space:
    """Read a space by packaged name ("default") or path; raises `BadInput` naming the field."""
    if Path(name).suffix == ".toml":
        try:
            text = read_small(name, "space", "a readable TOML file").decode()
        except UnicodeDecodeError as error:
            raise BadInput(name, "space", str(error), "a readable TOML file") from error
    else:
        packaged = resources.files("neds").joinpath("spaces", f"{name}.toml")
        if not packaged.is_file():
            raise BadInput("--space", "name", repr(name), "a packaged space or a path to a .toml")
        text = packaged.read_text()
    try:
        tree = msgspec.toml.decode(text)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BadInput(name, "space", str(error), "TOML") from error
    if list(tree) != ["sweep"] or not isinstance(tree["sweep"], dict):
        raise BadInput(name, "space", ", ".join(tree) or "nothing", "one table, [sweep]")
    return parse_space(tree["sweep"], name)


def parse_space(tree: Mapping[str, Any], where: str) -> Space:
    """Check a `[sweep]` table; raises `BadInput` for a field or a bound that no recipe can have."""
    fields: dict[str, Range | tuple[Value, ...]] = {}
    for name, value in _leaves(tree, ""):
        table = name.partition(".")[0]
        if table not in TABLES or name == "train.seed":
            raise BadInput(where, name, "in the search space",
                           f"fields of {', '.join(TABLES)}, without train.seed")
        fields[name] = _field(name, value, where)
        ends = fields[name]
        for end in ends if isinstance(ends, tuple) else (ends.low, ends.high):
            _convert(RunConfig(), {name: end}, where)
    if not fields:
        raise BadInput(where, "sweep", "no field", "one or more")
    return Space(fields)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and "low" not in value and "high" not in value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _field(name: str, value: Any, where: str) -> Range | tuple[Value, ...]:
    if isinstance(value, list):
        if not value or not all(isinstance(item, bool | int | float | str) for item in value):
            raise BadInput(where, name, value, "a list of numbers, words or true and false")
        return tuple(value)
    try:
        found = msgspec.convert(value, Range)
    except msgspec.ValidationError as error:
        raise BadInput(where, name, f"{value!r} ({error})",
                       "{low, high, log, step} or a list") from error
    low = 0.0 if found.log else -math.inf
    if not low < found.low < found.high < math.inf:
        raise BadInput(where, name, f"{found.low} to {found.high}",
                       "low below high" + (", above 0 with log" if found.log else ""))
    step = found.step
    if step is not None and (found.log or step <= 0 or (found.whole and not isinstance(step, int))):
        raise BadInput(where, name, f"step {step}", "a step above 0 of the bounds' type, no log")
    return found


def apply(config: RunConfig, values: Mapping[str, Value], where: str = "trial") -> RunConfig:
    """The recipe with these values; raises `BadInput` if they cannot work together.

    Shares of masking schemes are scaled so that the five add up to 1; in the window form the
    training sequences are as long as the window.
    """
    changed = _convert(config, values, where)
    if any(name.partition(".")[2] in SHARES for name in values):
        shares = {name: getattr(changed.masking, name) for name in SHARES}
        total = sum(shares.values())
        if total <= 0:
            raise BadInput(where, "masking", list(shares.values()), "a share above 0")
        scaled = {name: share / total for name, share in shares.items()}
        masking = msgspec.structs.replace(changed.masking, **scaled)
        changed = msgspec.structs.replace(changed, masking=masking)
    if changed.model.form == "window":
        train = msgspec.structs.replace(changed.train, bins=changed.model.window)
        changed = msgspec.structs.replace(changed, train=train)
    check(changed, where)
    return changed


def value_of(config: RunConfig, name: str) -> Any:
    """The value of a dotted field, None if the recipe does not name it."""
    tree: Any = msgspec.to_builtins(config)
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _convert(config: RunConfig, values: Mapping[str, Value], where: str) -> RunConfig:
    tree: dict[str, Any] = msgspec.to_builtins(config)
    for name, value in values.items():
        *tables, field = name.split(".")
        at: Any = tree
        for table in tables:
            at = at.get(table) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            raise BadInput(where, name, "no such field", "a field of a recipe")
        at[field] = value
    try:
        return msgspec.convert(tree, RunConfig)
    except msgspec.ValidationError as error:
        raise BadInput(where, ", ".join(values), str(error), "fields of a recipe") from error


def recipe_toml(config: RunConfig, comment: str = "") -> str:
    """A recipe as the TOML text that `neds.config.load_recipe` reads, every field written out."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for table, fields in msgspec.to_builtins(config).items():
        lines += ["", f"[{table}]"]
        lines += [f"{name} = {_toml(value)}" for name, value in fields.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        items = ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items())
        return "{" + (f" {items} " if items else "") + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # Numbers, booleans and strings of JSON are those of TOML; JSON has no infinity, a clip may be.
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return msgspec.json.encode(value).decode()
