"""`manifest.json` of a model bundle: its structs, what they imply, and what makes one valid."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from neds_rt.errors import BadInput

SCHEMA_VERSION = 2
PRECISIONS = ("float32",)
KINDS = ("continuous", "circular", "categorical")
MAX_RING_BYTES = 1 << 30
MAX_MANIFEST_BYTES = 16 << 20
# A shorter bin has a handful of samples, and what is due once a bin would take all of the time.
MIN_BIN_S, MAX_BIN_S = 0.0005, 10.0


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One recorded unit, in model order."""

    probe: str
    channel: int
    cluster: int
    region: str = ""
    depth_um: float | None = None


class ModalityOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One behaviour the bundle decodes; `n_outputs` consecutive engine outputs belong to it."""

    name: str
    kind: str  # "continuous" | "circular" | "categorical"
    n_outputs: int  # continuous: its width; circular: 2 (cos, sin); categorical: number of classes
    unit: str = ""  # physical unit of a continuous behaviour, e.g. "cm/s"
    classes: list[str] = []  # labels of a categorical behaviour
    sd: list[float] = []  # residual standard deviation on held-back data, one per output


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the streaming step."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    window: int  # bins a token can see, its own included
    conv: int = 0  # taps of the causal depthwise convolution before the attention, 0 for none
    recurrent: bool = False  # a GRU layer between the convolution and the attention
    rope_base: float = 10000.0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One compiled GPU engine among a bundle's files; made by `neds export-trt`."""

    file: str
    product: str  # "tensorrt" | "tensorrt-rtx"
    version: str  # of the product that built it, and the only one that loads it
    target: str  # such as "sm89": compute capability 8.9
    form: str  # "step" | "window"
    precision: str  # "fp32" | "fp16" | "bf16"
    graph: str  # the bundle's file that it was built from
    graph_sha256: str
    sha256: str
    bytes: int
    build_s: float


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the spikes of the training data were like; `file` holds the numbers of every unit.

    Limits: of the two drift scores (mean squared deviations), and of the shares of units.
    """

    file: str
    smooth_s: float  # time constant of the running means that the scores are made of
    burst_s: float  # time constant of the running mean that a unit's ceiling is of
    firing_limit: float
    likelihood_limit: float
    silent_limit: float
    saturated_limit: float
    false_alarms_per_hour: float  # that both drift limits together were set for
    fitted_s: float  # seconds of training data that the numbers are of
    held_back_s: float  # seconds after those that the limits were set on
    bits_per_spike: float  # of the predictions, on those; over the training rates


class ProbeTemplates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates of a probe's units among a bundle's files; made by `neds export --templates`."""

    probe: str
    file: str
    missing: list[int] = []  # rows of the bundle's unit table that have none


# Defaults are left out, so that a bundle without plans is what it was before there were any.
class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`manifest.json` of a bundle."""

    schema: int
    created_by: str
    session: str
    subject: str
    bin_size_s: float
    shape: Shape
    units: list[Unit]
    modalities: list[ModalityOut]
    precision: str
    hashes: dict[str, str]  # file name -> sha256 hex, every file of the bundle but the manifest
    model_hash: str  # sha256 over the manifest without this field, keys sorted
    provenance: dict[str, Any]
    parity: dict[str, Any]
    plans: list[Plan] = []
    health: Health | None = None
    templates: list[ProbeTemplates] = []


def tensor_shapes(
    shape: Shape, n_units: int, modalities: Sequence[ModalityOut]
) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that `weights.safetensors` must hold, and no other."""
    hidden, mlp = shape.hidden, shape.mlp
    n_out = sum(modality.n_outputs for modality in modalities)
    shapes: dict[str, tuple[int, ...]] = {
        "input.weight": (n_units, hidden),
        "input.bias": (hidden,),
        "input.token": (hidden,),
        "input.lost": (hidden,),
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
        "head.weight": (n_out, hidden),
        "head.bias": (n_out,),
    }
    if shape.conv:
        shapes |= {"conv.weight": (shape.conv, hidden), "conv.bias": (hidden,)}
    if shape.recurrent:  # gates in torch's order: reset, update, candidate
        for end in ("ih", "hh"):
            shapes |= {f"gru.weight_{end}": (3 * hidden, hidden), f"gru.bias_{end}": (3 * hidden,)}
    linears = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden)}
    linears |= {"up": (mlp, hidden), "down": (hidden, mlp)}
    for layer in range(shape.layers):
        for norm in ("norm1", "norm2"):
            shapes[f"layers.{layer}.{norm}.weight"] = (hidden,)
            shapes[f"layers.{layer}.{norm}.bias"] = (hidden,)
        for name, size in linears.items():
            shapes[f"layers.{layer}.{name}.weight"] = size
            shapes[f"layers.{layer}.{name}.bias"] = size[:1]
    return shapes


class _Version(msgspec.Struct):
    schema: int


def parse_manifest(data: bytes, where: object) -> Manifest:
    """Return the manifest that the JSON `data` holds; raises `BadInput` naming `where`."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadInput(where, "size", f"{len(data)} bytes", f"at most {MAX_MANIFEST_BYTES}")
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema != SCHEMA_VERSION:
            expected = f"{SCHEMA_VERSION}: make the bundle anew with neds train and neds export"
            raise BadInput(where, "schema", schema, expected)
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(where, "JSON", error, f"a manifest of schema {SCHEMA_VERSION}") from None


def compute_model_hash(manifest: Manifest) -> str:
    """Return the sha256 (hex) over `manifest` without `model_hash`, as JSON with sorted keys."""
    fields = msgspec.to_builtins(manifest)
    del fields["model_hash"]
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()


def check_manifest(manifest: Manifest, where: object) -> None:
    """Raise `BadInput` unless sizes, modalities, precision and model hash are consistent."""
    if manifest.precision not in PRECISIONS:
        raise BadInput(where, "precision", repr(manifest.precision), f"one of {PRECISIONS}")
    if not MIN_BIN_S <= manifest.bin_size_s <= MAX_BIN_S:  # which NaN is not
        expected = f"{MIN_BIN_S:g} to {MAX_BIN_S:g} s"
        raise BadInput(where, "bin_size_s", manifest.bin_size_s, expected)
    _check_shape(manifest.shape, where)
    if not 1 <= len(manifest.units) <= 1_000_000:
        raise BadInput(where, "units", f"{len(manifest.units)} units", "1 to 1000000")
    names = [modality.name for modality in manifest.modalities]
    if not 1 <= len(names) <= 256 or len(set(names)) != len(names):
        raise BadInput(where, "modalities", names, "1 to 256 of distinct names")
    for modality in manifest.modalities:
        _check_modality(modality, where)
    for plan in manifest.plans:
        _check_plan(plan, manifest.hashes, where)
    if manifest.health is not None:
        _check_health(manifest.health, where)
    _check_templates(manifest, where)
    found = compute_model_hash(manifest)
    if manifest.model_hash != found:
        raise BadInput(where, "model_hash", f"{found[:12]}…", f"{manifest.model_hash[:12]}…")


def _check_shape(shape: Shape, where: object) -> None:
    limits = {"hidden": 65536, "layers": 1024, "heads": 1024, "mlp": 1 << 20, "window": 1 << 20}
    for name, limit in limits.items():
        if not 1 <= getattr(shape, name) <= limit:
            raise BadInput(where, f"shape.{name}", getattr(shape, name), f"1 to {limit}")
    if shape.hidden % (2 * shape.heads):
        expected = f"a multiple of 2 x {shape.heads} heads"
        raise BadInput(where, "shape.hidden", shape.hidden, expected)
    if not 0 <= shape.conv <= 1024:
        raise BadInput(where, "shape.conv", shape.conv, "0 to 1024 taps")
    if not (math.isfinite(shape.rope_base) and shape.rope_base >= 1):
        raise BadInput(where, "shape.rope_base", shape.rope_base, "a finite number, at least 1")
    ring = 8 * shape.layers * shape.window * shape.hidden
    if ring > MAX_RING_BYTES:
        found = f"{shape.window} (keys and values of {ring} bytes)"
        raise BadInput(where, "shape.window", found, f"at most {MAX_RING_BYTES} bytes")


def _check_modality(modality: ModalityOut, where: object) -> None:
    label = f"modality {modality.name!r}"
    if modality.kind not in KINDS:
        raise BadInput(where, f"{label} kind", repr(modality.kind), f"one of {', '.join(KINDS)}")
    n = modality.n_outputs
    if not 1 <= n <= 65536 or (modality.kind == "circular" and n != 2):
        expected = "2" if modality.kind == "circular" else "1 to 65536"
        raise BadInput(where, f"{label} n_outputs", n, expected)
    n_classes = n if modality.kind == "categorical" else 0
    if len(modality.classes) != n_classes or len(set(modality.classes)) != n_classes:
        raise BadInput(where, f"{label} classes", modality.classes, f"{n_classes} distinct labels")
    if modality.sd and (len(modality.sd) != n or not all(0 <= sd < math.inf for sd in modality.sd)):
        raise BadInput(where, f"{label} sd", modality.sd, f"{n} finite numbers, or none")


def _check_templates(manifest: Manifest, where: object) -> None:
    probes = [entry.probe for entry in manifest.templates]
    known = {unit.probe for unit in manifest.units}
    for entry in manifest.templates:
        if entry.probe not in known or probes.count(entry.probe) > 1:
            raise BadInput(where, "templates", f"probe {entry.probe!r}",
                           f"each once, of {', '.join(sorted(known))}")
        if entry.file not in manifest.hashes:
            raise BadInput(where, f"templates of {entry.probe!r}", entry.file, "a file of hashes")
        if any(not 0 <= row < len(manifest.units) for row in entry.missing):
            raise BadInput(where, f"templates of {entry.probe!r}", entry.missing, "rows of units")


def _check_plan(plan: Plan, hashes: dict[str, str], where: object) -> None:
    for name, expected in ((plan.file, plan.sha256), (plan.graph, plan.graph_sha256)):
        found = hashes.get(name, "")
        if found != expected:
            raise BadInput(where, f"plan {plan.file!r}", f"{name} of hash {found[:12]}…",
                           f"{expected[:12]}…")


def _check_health(health: Health, where: object) -> None:
    for name in ("smooth_s", "burst_s", "firing_limit", "likelihood_limit", "silent_limit",
                 "saturated_limit"):
        value = getattr(health, name)
        if not 0 < value < math.inf:
            raise BadInput(where, f"health.{name}", value, "a finite number above 0")
