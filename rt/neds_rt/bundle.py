"""What a model bundle is, and how one is read, verified and written, without torch.

A bundle is a directory, or the same files zipped as `NAME.neds`: `manifest.json`,
`weights.safetensors`, and optional files such as `model.onnx`, each named with its hash in the
manifest. Reading refuses whatever does not match, in one line that says which file and field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds_rt import bundle_files
from neds_rt.errors import BadInput
from neds_rt.health import read_arrays
from neds_rt.manifest import (
    SCHEMA_VERSION,
    Health,
    Manifest,
    ModalityOut,
    Plan,
    ProbeTemplates,
    Shape,
    Unit,
    check_manifest,
    compute_model_hash,
    parse_manifest,
    tensor_shapes,
)
from neds_rt.safetensors_io import decode_tensors, encode_tensors

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
STEP_GRAPH = "model.onnx"
SIGNATURE = "signature"  # over the manifest; the one file that it cannot list

__all__ = [
    "SCHEMA_VERSION", "Bundle", "Health", "Manifest", "ModalityOut", "Plan", "ProbeTemplates",
    "Shape", "Unit", "check_manifest", "check_weights", "compute_model_hash", "make_bundle",
    "random_bundle", "read_bundle", "tensor_shapes", "write_bundle",
]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory."""

    manifest: Manifest
    weights: dict[str, NDArray[np.float32]]  # names and shapes as `tensor_shapes` lists them
    files: dict[str, bytes] = field(default_factory=dict)  # all but manifest and weights
    path: Path | None = None  # where it was read, None for a bundle made in memory
    # Whether its plans, which are machine code for a GPU, may be loaded: somebody answers for them.
    plans_trusted: bool = False

    @property
    def onnx_bytes(self) -> bytes | None:
        """The ONNX graph of the streaming step, None when the bundle has none."""
        return self.files.get(STEP_GRAPH)

    @property
    def where(self) -> str:
        """What error messages call this bundle."""
        return str(self.path) if self.path else f"bundle of session {self.manifest.session!r}"


def read_bundle(
    path: str | PathLike[str], *, trust: str = "", trust_plans: bool = False
) -> Bundle:
    """Read and verify the bundle at `path`, a directory or a `.neds` file.

    With `trust`, a file of public keys, one of those must have signed it. Its plans are trusted
    then, and with `trust_plans`. Raises `BadInput` naming file, field, what was found and what was
    expected.
    """
    where = Path(path)
    files = bundle_files.read_files(where)
    if MANIFEST not in files:
        raise BadInput(where, MANIFEST, "no such file", "a model bundle")
    data, signature = files.pop(MANIFEST), files.pop(SIGNATURE, None)
    if trust:
        from neds_rt.signature import check_signature

        check_signature(data, signature, trust, where)
    manifest = parse_manifest(data, where / MANIFEST)
    check_manifest(manifest, where / MANIFEST)
    _check_hashes(manifest, files, where)
    weights = decode_tensors(files.pop(WEIGHTS), where / WEIGHTS)
    check_weights(manifest, weights, where / WEIGHTS)
    read_arrays(manifest, files, where)
    return Bundle(manifest, weights, files, where, plans_trusted=bool(trust) or trust_plans)


def write_bundle(
    path: str | PathLike[str],
    *,
    session: str,
    subject: str,
    bin_size_s: float,
    shape: Shape,
    units: Sequence[Unit],
    modalities: Sequence[ModalityOut],
    weights: Mapping[str, NDArray[np.float32]],
    files: Mapping[str, bytes] | None = None,
    precision: str = "float32",
    provenance: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    plans: Sequence[Plan] = (),
    health: Health | None = None,
    templates: Sequence[ProbeTemplates] = (),
) -> Manifest:
    """Write a bundle and return its manifest, with hashes and model hash filled in.

    A name ending in `.neds` is written as one zip file (equal content gives equal bytes), any
    other as a directory. The target appears whole or not at all; an older bundle there is
    replaced. Raises `BadInput` when the parts do not fit together.
    """
    bundle = make_bundle(
        session=session, subject=subject, bin_size_s=bin_size_s, shape=shape, units=units,
        modalities=modalities, weights=weights, files=files, precision=precision,
        provenance=provenance, parity=parity, plans=plans, health=health, templates=templates,
        where=Path(path),
    )
    contents = {
        MANIFEST: msgspec.json.format(msgspec.json.encode(bundle.manifest)) + b"\n",
        WEIGHTS: encode_tensors(bundle.weights),
        **bundle.files,
    }
    bundle_files.write_files(Path(path), contents)
    return bundle.manifest


def make_bundle(
    *,
    session: str,
    subject: str,
    bin_size_s: float,
    shape: Shape,
    units: Sequence[Unit],
    modalities: Sequence[ModalityOut],
    weights: Mapping[str, NDArray[np.float32]],
    files: Mapping[str, bytes] | None = None,
    precision: str = "float32",
    provenance: Mapping[str, Any] | None = None,
    parity: Mapping[str, Any] | None = None,
    plans: Sequence[Plan] = (),
    health: Health | None = None,
    templates: Sequence[ProbeTemplates] = (),
    where: object = "bundle",
) -> Bundle:
    """Return the verified bundle that `write_bundle` would write, in memory.

    Its plans are as trusted as the caller, whose they are.
    """
    from importlib.metadata import version

    others = dict(files or {})
    tensors = {name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}
    hashed = {WEIGHTS: encode_tensors(tensors), **others}
    draft = Manifest(
        schema=SCHEMA_VERSION, created_by=f"neds {version('neds')}", session=session,
        subject=subject, bin_size_s=bin_size_s, shape=shape, units=list(units),
        modalities=list(modalities), precision=precision, model_hash="",
        hashes={name: hashlib.sha256(data).hexdigest() for name, data in sorted(hashed.items())},
        provenance=dict(provenance or {}), parity=dict(parity or {}),
        plans=list(plans), health=health, templates=list(templates),
    )
    # Through JSON and back, so that what is hashed is what a reader will see (1 as a float: 1.0).
    manifest = parse_manifest(msgspec.json.encode(draft), where)
    manifest = msgspec.structs.replace(manifest, model_hash=compute_model_hash(manifest))
    for name in others:
        bundle_files.check_name(where, name)
        if name in (MANIFEST, WEIGHTS, SIGNATURE):
            raise BadInput(where, "file name", name, "none of the reserved names")
    check_manifest(manifest, where)
    check_weights(manifest, tensors, where)
    read_arrays(manifest, others, where)
    return Bundle(manifest, tensors, others, plans_trusted=True)


def check_weights(
    manifest: Manifest, weights: Mapping[str, NDArray[np.float32]], where: object
) -> None:
    """Raise `BadInput` unless `weights` are the manifest's tensors, all finite."""
    shapes = tensor_shapes(manifest.shape, len(manifest.units), manifest.modalities)
    for name, shape in shapes.items():
        if name not in weights:
            raise BadInput(where, f"tensor {name!r}", "nothing", f"shape {shape}")
        if weights[name].shape != shape:
            raise BadInput(where, f"tensor {name!r}", f"shape {weights[name].shape}", str(shape))
        if not np.isfinite(weights[name]).all():
            raise BadInput(where, f"tensor {name!r}", "NaN or infinity", "finite values")
    extra = sorted(set(weights) - set(shapes))
    if extra:
        raise BadInput(where, f"tensor {extra[0]!r}", "a tensor", "no such tensor in this model")


def _check_hashes(manifest: Manifest, files: Mapping[str, bytes], where: Path) -> None:
    if WEIGHTS not in manifest.hashes:
        raise BadInput(where / MANIFEST, f"hashes[{WEIGHTS!r}]", "nothing", "a sha256")
    for name, expected in manifest.hashes.items():
        if name not in files:
            raise BadInput(where, name, "no such file", "the file that the manifest lists")
        found = hashlib.sha256(files[name]).hexdigest()
        if found != expected:
            raise BadInput(where / name, "sha256", f"{found[:12]}…", f"{expected[:12]}…")
    extra = sorted(set(files) - set(manifest.hashes))
    if extra:
        raise BadInput(where, extra[0], "a file", "no file that the manifest does not list")


def random_bundle(
    shape: Shape,
    n_units: int,
    modalities: Sequence[ModalityOut],
    seed: int = 0,
    *,
    bin_size_s: float = 0.02,
    probe: str = "probe00",
) -> Bundle:
    """Return a bundle of random weights in memory, for benchmarks and tests.

    Scales are such that activations stay near 1, attention is neither uniform nor one-hot, and
    every term (biases, norms, convolution, GRU) contributes.
    """
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(shape, n_units, modalities)
    return make_bundle(
        session="random", subject="random", bin_size_s=bin_size_s, shape=shape,
        units=[Unit(probe, unit, unit) for unit in range(n_units)], modalities=modalities,
        weights={name: _random_tensor(rng, name, size) for name, size in shapes.items()},
        provenance={"random_seed": seed},
    )


def _random_tensor(
    rng: np.random.Generator, name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    layer_part, _, kind = name.rpartition(".")
    values = rng.standard_normal(shape)
    if "norm" in layer_part:
        values = 0.1 * values + (kind == "weight")
    elif kind.startswith("bias"):
        values *= 0.1
    elif name == "input.weight":  # a sum over perhaps a fifth of the units
        values *= 1.0 / np.sqrt(1 + 0.2 * shape[0])
    elif name == "conv.weight":
        values *= 1.0 / np.sqrt(shape[0])
    elif len(shape) == 2:
        values *= (1.5 if layer_part.endswith("qkv") else 1.0) / np.sqrt(shape[1])
    return values.astype(np.float32)
