"""Bundles of random weights for latency benchmarks: sizes as text, the file on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle, write_bundle
from neds_rt.errors import BadInput, StartError

# What a model has where nothing else is said: the paper's layers behind convolution and GRU.
SIZES = {"hidden": 256, "layers": 5, "heads": 8, "mlp": 512, "units": 600, "rate_hz": 10.0,
         "window": 100, "conv": 5, "recurrent": 1}
# The four behaviours of the IBL task.
MODALITIES = [
    ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s"),
    ModalityOut(name="whisker", kind="continuous", n_outputs=1, unit="a.u."),
    ModalityOut(name="choice", kind="categorical", n_outputs=2, classes=["right", "left"]),
    ModalityOut(name="block", kind="categorical", n_outputs=3, classes=["0.2", "0.5", "0.8"]),
]


def parse_sizes(text: str, option: str = "--synthetic") -> dict[str, Any]:
    """Parse `hidden=256,layers=5` over `SIZES`; raises `BadInput` for anything else."""
    sizes: dict[str, Any] = dict(SIZES)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in SIZES:
            raise BadInput(option, "key", repr(name), f"one of {', '.join(SIZES)}")
        try:
            sizes[name] = type(SIZES[name])(value)
        except ValueError:
            raise BadInput(option, name, repr(value), "a number") from None
    if sizes["recurrent"] not in (0, 1):
        raise BadInput(option, "recurrent", sizes["recurrent"], "0 or 1")
    return sizes


def make_random(sizes: dict[str, Any], bin_size_s: float) -> Bundle:
    """Return a bundle of these sizes in memory, `sizes` as `parse_sizes` returns them."""
    shape = Shape(**{key: sizes[key] for key in
                     ("hidden", "layers", "heads", "mlp", "window", "conv")},
                  recurrent=bool(sizes["recurrent"]))
    return random_bundle(shape, sizes["units"], MODALITIES, bin_size_s=bin_size_s)


def write_random(
    folder: Path, sizes: dict[str, Any], bin_size_s: float, *, graph: bool
) -> Path:
    """Write such a bundle into `folder`, with the step's ONNX graph if asked; returns its path.

    Raises `StartError` when a graph is wanted and `onnx` is not installed.
    """
    bundle = make_random(sizes, bin_size_s)
    manifest = bundle.manifest
    files = {"model.onnx": _step_graph(bundle)} if graph else {}
    path = folder / "random.neds"
    write_bundle(
        path, session=manifest.session, subject=manifest.subject, bin_size_s=manifest.bin_size_s,
        shape=manifest.shape, units=manifest.units, modalities=manifest.modalities,
        weights=bundle.weights, files=files, provenance=manifest.provenance,
    )
    return path


def _step_graph(bundle: Bundle) -> bytes:
    try:
        from neds_rt.engines.onnx_graph import build_step_graph
    except ImportError as error:
        raise StartError("a random ONNX graph needs onnx: pip install 'neds[train]'") from error
    return build_step_graph(bundle.manifest, bundle.weights)
