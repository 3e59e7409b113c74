"""What a bundle knows of its training data's spikes, and the watch over live ones built from it.

The watch itself is `rt/src/health.hpp`; its statistics are fitted by `neds/health.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.safetensors_io import decode_tensors

if TYPE_CHECKING:
    from neds_rt.bundle import Bundle
    from neds_rt.manifest import Health, Manifest

GAUGES: tuple[str, ...] = _core.HEALTH
DriftMode = Literal["invalid", "warn", "off"]


def make_health(bundle: Bundle, drift: DriftMode = "invalid") -> _core.Health | None:
    """Return the watch over a bundle's units, None where the bundle has no statistics.

    Only with "invalid" does drift make decodes invalid; with "off" nothing is watched at all.
    Raises `BadInput` for statistics that do not fit the bundle.
    """
    manifest = bundle.manifest
    if manifest.health is None or drift == "off":
        return None
    arrays = read_arrays(manifest, bundle.files, bundle.where)
    told = numbers(manifest.health, manifest.bin_size_s)
    return _core.Health(arrays, manifest.shape.hidden, told, drift == "invalid")


def array_shapes(n_units: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every array that the statistics must hold, and no other."""
    units = ("rate", "rate.sd", "gain", "gain.sd", "quiet", "ceiling", "forecast.bias")
    return dict.fromkeys(units, (n_units,)) | {"forecast.weight": (hidden, n_units)}


def numbers(health: Health, bin_size_s: float) -> dict[str, float]:
    """Return what `_core.Health` is told besides the arrays; times in bins, at least one."""
    return {
        "smooth_bins": max(1.0, health.smooth_s / bin_size_s),
        "burst_bins": max(1.0, health.burst_s / bin_size_s),
        "firing_limit": health.firing_limit,
        "likelihood_limit": health.likelihood_limit,
        "silent_limit": health.silent_limit,
        "saturated_limit": health.saturated_limit,
    }


def read_arrays(
    manifest: Manifest, files: Mapping[str, bytes], where: object
) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of a bundle's statistics, empty where it has none; raises `BadInput`."""
    if manifest.health is None:
        return {}
    name = manifest.health.file
    if name not in files:
        raise BadInput(where, "health.file", repr(name), "a file of the bundle")
    arrays = decode_tensors(files[name], f"{where}/{name}")
    expected = array_shapes(len(manifest.units), manifest.shape.hidden)
    found = {key: array.shape for key, array in arrays.items()}
    if found != expected:
        odd = sorted({*found.items()} ^ {*expected.items()})[0]
        raise BadInput(f"{where}/{name}", "arrays", f"{odd[0]} {found.get(odd[0])}",
                       f"{expected.get(odd[0])}")
    for key, array in arrays.items():
        least = {"rate": 0.0, "rate.sd": 0.0, "gain.sd": 0.0}.get(key, -math.inf)
        if not (np.isfinite(array).all() and (array > least).all()):
            raise BadInput(f"{where}/{name}", key, "a number out of range", "finite numbers"
                           + (" above 0" if least == 0 else ""))
    return arrays


def gauges(health: _core.Health | None) -> dict[str, float | None] | None:
    """Return the gauges by name, None where nothing is watched."""
    if health is None:
        return None
    return {name: None if math.isnan(value) else round(value, 4)
            for name, value in zip(GAUGES, health.gauges.tolist(), strict=True)}
