"""The engine that a recording is verified with, and how near its decodes have to come."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from neds_rt import _core
from neds_rt.engines import ENGINES, load_engine, parse_engine
from neds_rt.engines.native import ISA_VARIABLE
from neds_rt.errors import BadInput
from neds_rt.machine import machine_facts
from neds_rt.recording.header import engine_facts

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle
    from neds_rt.engines import Engine
    from neds_rt.recording.header import Header

TOLERANCE = {"float32": 1e-3}  # by precision, for another engine or instruction set than recorded
COARSE_TOLERANCE = 0.05  # of all that store weights or activations in fewer bits


def replay_engine(header: Header, bundle: Bundle, text: str | None) -> Engine:
    """Build the engine that `text` names, that of the recording for None.

    The native engine takes the instruction set that was recorded where this CPU has it and
    `NEDS_ISA` does not say otherwise. An engine that a recording names by an import string is not
    imported: who made the recording may be anybody.
    """
    recorded = header.engine
    if text is None:
        if parse_engine(header.config.engine)[0] not in ENGINES or recorded.name not in ENGINES:
            raise BadInput("--engine", "engine", f"{header.config.engine!r} in the recording",
                           f"--engine with it, if you trust it, or one of {', '.join(ENGINES)}")
        text = f"{recorded.name}:{recorded.precision}"
    if recorded.isa in _core.supported_isas() and parse_engine(text)[0] == "native":
        os.environ.setdefault(ISA_VARIABLE, recorded.isa)
    return load_engine(text, bundle)


def is_exact(header: Header, engine: Engine) -> bool:
    """Whether decodes have to be equal bit for bit.

    The native engine's are for equal precision and instruction set, those of onnxruntime for its
    own version on the same CPU. No other engine promises it.
    """
    if engine_facts(engine) != header.engine:
        return False
    if engine.name == "native":
        return True
    if engine.name != "onnx":
        return False
    here, there = machine_facts(), header.machine
    return all(_told(here, *keys) == _told(there, *keys) is not None
               for keys in (("cpu",), ("versions", "onnxruntime")))


def _told(facts: object, *keys: str) -> object:
    for key in keys:
        facts = facts.get(key) if isinstance(facts, dict) else None
    return facts


def tolerance_for(header: Header, engine: Engine, wanted: float | None) -> float:
    """Return what is tolerated, 0 for bit by bit; `wanted` goes before the table above."""
    if wanted is not None:
        if not (wanted >= 0 and math.isfinite(wanted)):
            raise BadInput("--tolerance", "value", wanted, "0 or more")
        return wanted
    if is_exact(header, engine):
        return 0.0
    precisions = {header.engine.precision, engine.precision}
    return max(TOLERANCE.get(name, COARSE_TOLERANCE) for name in precisions)
