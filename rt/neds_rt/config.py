"""What `neds-rt serve` can be told: one frozen struct, read from TOML and from the command line."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from neds_rt.curve import Access, read_access
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

MAX_PROBES = 256
MAX_TEXT = 4096  # characters of a path, a URI or a name
MAX_SECONDS = 1e6  # eleven days; beyond that nobody waits for anything


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `neds-rt serve`. Field names are those of the command line with `-` as `_`."""

    probe: dict[str, str] = {}  # stream name -> URI
    model: str = ""  # bundle to serve
    out: str = "tcp://127.0.0.1:5580"  # where decodes are published
    status: str = "auto"  # where the server's state is published: auto, off or an endpoint
    engine: str = "native"
    units: str = ""  # unit map of foreign sources; empty: electrode and sorted id name the unit
    align: Literal["auto", "on", "off"] = "auto"  # probes with clocks of their own
    keep_warm: Literal["auto", "on", "off"] = "auto"
    stale_after: float | None = None  # seconds without a closed bin; None: learned (patience.py)
    # Seconds for which bins wait for a stream that says nothing new while others go on. Ten blocks
    # of the slowest acquisition program known.
    close_after: float = 0.25
    clock_jump: float = 0.5  # seconds by which a stream's clock may leave this machine's
    # What a drift of the spikes away from the training data does; see README.md, "Health".
    drift: Literal["invalid", "warn", "off"] = "invalid"
    deadline_ms: float | None = None  # of a decode, from its frame on; a bin's length by default
    open_bins: int = 512  # bins kept open per probe for early spikes and slow other probes
    max_bins: int | None = None  # end after this many decoded bins
    idle_exit: float | None = None  # end this many seconds after the last bin
    control: str = ""  # path of the control socket, none unless given
    fail_over: Literal["native", "off"] = "native"  # what takes over when another engine fails
    budget_ms: float | None = None  # of a step; None: the length of a bin
    overruns: int = 5  # steps in a row over the budget with which an engine has failed
    hang_after: float = 5.0  # seconds in one step after which the process is ended
    record: str = ""  # folder of a flight recording to make, empty for none
    record_sync: float = 1.0  # seconds of it that a power cut may take
    record_reserve_mb: int = 256  # recording ends when the disk has less free
    trust: str = ""  # public keys, one of which must have signed the bundle
    trust_plans: bool = False  # load plans of a bundle that nobody in `trust` has signed
    curve_key: str = ""  # file of this side's secret key
    curve_allow: str = ""  # public keys let in at what is bound
    curve_server: str | dict[str, str] = ""  # public key of what is connected to, or by probe
    insecure: bool = False  # accept endpoints that other machines can reach, without keys

    def access(self) -> Access:
        """Read the keys that the options name. Raises `BadInput`."""
        return read_access(key=self.curve_key, allow=self.curve_allow, server=self.curve_server,
                           insecure=self.insecure)

    def check(self) -> None:
        """Raise `BadInput` naming the first option whose value cannot work."""
        if not self.probe:
            raise BadInput("serve", "--probe", "none", "at least one NAME=URI")
        if not self.model:
            raise BadInput("serve", "--model", "none", "a model bundle")
        self._check_sizes()
        if not 0 <= self.record_sync <= 3600:
            raise BadInput("serve", "--record-sync", self.record_sync, "0 to 3600 seconds")
        for name in ("stale_after", "close_after", "clock_jump", "deadline_ms", "idle_exit",
                     "hang_after", "budget_ms"):
            value = getattr(self, name)
            unit, longest = ("seconds", MAX_SECONDS)
            if name.endswith("_ms"):
                unit, longest = ("milliseconds", 1e3 * MAX_SECONDS)
            if value is not None and not 0 < value <= longest:
                expected = f"a number of {unit} above 0, at most {longest:g}"
                raise BadInput("serve", _option(name), value, expected)
        limits = (("open_bins", 4, 1 << 20), ("max_bins", 1, None), ("overruns", 1, 1 << 20),
                  ("record_reserve_mb", 0, 1 << 40))
        for name, least, most in limits:
            value = getattr(self, name)
            if value is not None and (value < least or (most is not None and value > most)):
                limit = f"at least {least}" if most is None else f"{least} to {most}"
                raise BadInput("serve", _option(name), value, limit)

    def _check_sizes(self) -> None:
        if len(self.probe) > MAX_PROBES:
            raise BadInput("serve", "--probe", f"{len(self.probe)} probes", f"at most {MAX_PROBES}")
        for name in self.__struct_fields__:
            value = getattr(self, name)
            texts = [text for pair in value.items() for text in pair] if (
                isinstance(value, dict)) else [value]
            longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
            if longest > MAX_TEXT:
                raise BadInput("serve", _option(name), f"{longest} characters",
                               f"at most {MAX_TEXT}")


def load_config(path: str | None, overrides: dict[str, Any]) -> ServeConfig:
    """Return the configuration in the TOML file `path` (if any) with `overrides` put over it.

    Raises `BadInput` for a file that cannot be read or has more than 1 MiB, an unknown field, or a
    value of another type.
    """
    config = ServeConfig()
    if path is not None:
        data = read_small(path, "file", "a readable TOML file")
        try:
            config = msgspec.toml.decode(data, type=ServeConfig)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise BadInput(path, "TOML", error, "options of neds-rt serve") from error
    try:
        return msgspec.convert(msgspec.structs.asdict(config) | overrides, ServeConfig)
    except msgspec.ValidationError as error:
        raise BadInput("serve", "options", error, "options of neds-rt serve") from error


def parse_probes(values: list[str]) -> dict[str, str]:
    """Turn `["probe00=zmq+tcp://...", ...]` into a dict. Raises `BadInput`."""
    probes: dict[str, str] = {}
    for value in values:
        name, equals, uri = value.partition("=")
        if not (name and equals and uri):
            raise BadInput("serve", "--probe", repr(value), "NAME=URI")
        if name in probes:
            raise BadInput("serve", "--probe", f"{name} twice", "every name once")
        probes[name] = uri
    return probes


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
