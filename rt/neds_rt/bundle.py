"""What a model bundle is: structs of `manifest.json`, and (below) reading and verifying one."""

from __future__ import annotations

from typing import Any

import msgspec

SCHEMA_VERSION = 1


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
    rope_base: float = 10000.0


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
