"""The GPU step's source, compiled for the CPU, equals the batch computation of the same model."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from neds_rt.bundle import ModalityOut, Shape, random_bundle
from tests.rt.reference_step import run_reference

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "tests/rt/gpu_emulation.cpp", ROOT / "rt/src/cuda/layout.cpp"]
PRECISIONS = {"float32": 0, "bfloat16": 1, "float16": 2}
MODALITIES = [
    ModalityOut("wheel", "continuous", 2),
    ModalityOut("heading", "circular", 2),
    ModalityOut("choice", "categorical", 3, classes=["left", "right", "none"]),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    path = tmp_path_factory.mktemp("gpu") / "emulation.so"
    words = [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
             "-pthread", "-I", str(ROOT / "rt/src"), *map(str, SOURCES), "-o", str(path)]
    subprocess.run(words, check=True, timeout=200)
    return ctypes.CDLL(str(path))


def emulate(library, bundle, counts, present, *, precision="float32", blocks=3, threads=2,
            shared=1 << 20, cluster=True, dry=False, skip=False):
    """Outputs (T, n_outputs) and the number of chunks staged ahead."""
    manifest, shape = bundle.manifest, bundle.manifest.shape
    ints = np.array([len(manifest.units), shape.hidden, shape.layers, shape.heads, shape.mlp,
                     shape.window, shape.conv, shape.recurrent], np.int32)
    kinds = [(m.n_outputs, m.kind == "categorical") for m in manifest.modalities]
    parts = np.array(kinds, np.int32)
    tensors = [np.ascontiguousarray(w) for w in bundle.weights.values()]
    dims = np.array([(*w.shape, 0)[:2] for w in tensors], np.int32)
    names = (ctypes.c_char_p * len(tensors))(*(name.encode() for name in bundle.weights))
    data = (ctypes.c_void_p * len(tensors))(*(w.ctypes.data for w in tensors))
    how = np.array([PRECISIONS[precision], blocks, threads, shared, cluster, dry, skip], np.int32)
    outputs = np.full((len(counts), int(parts[:, 0].sum())), np.nan, np.float32)
    present = np.ascontiguousarray(present, np.uint8)
    pointer = ctypes.c_void_p
    staged = library.emulate(
        pointer(ints.ctypes.data), ctypes.c_double(shape.rope_base), len(parts),
        pointer(parts.ctypes.data), len(tensors), names, data, pointer(dims.ctypes.data),
        pointer(how.ctypes.data), len(counts), pointer(counts.ctypes.data),
        pointer(present.ctypes.data), pointer(outputs.ctypes.data))
    return outputs, staged


def make(seed=0, modalities=MODALITIES, units=19, **sizes):
    shape = Shape(**{"hidden": 24, "layers": 2, "heads": 2, "mlp": 30, "window": 7, "conv": 3,
                     "recurrent": True, **sizes})
    return random_bundle(shape, units, modalities, seed)


def spikes(bundle, n_bins, lost=0.2, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.6, (n_bins, len(bundle.manifest.units))).astype(np.uint16)
    present = rng.random(n_bins) >= lost
    return counts, present


def rounded(bundle, precision):
    """The bundle as the GPU sees it: matrices in their stored precision, all else in float32."""
    def stored(name, w):
        matrix = name == "input.weight" or (name.startswith(("layers", "gru")) and w.ndim == 2)
        if not matrix or precision == "float32":
            return w
        if precision == "float16":
            return w.astype(np.float16).astype(np.float32)
        bits = w.view(np.uint32)
        even = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        return even.view(np.float32)

    weights = {name: stored(name, w) for name, w in bundle.weights.items()}
    return type(bundle)(bundle.manifest, weights)


def assert_close(found, expected, tolerance=1e-5):
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cluster", [True, False], ids=["cluster", "grid"])
def test_equals_batch(library, precision, cluster):
    bundle = make()
    counts, present = spikes(bundle, 40)
    found, staged = emulate(library, bundle, counts, present, precision=precision, cluster=cluster)
    assert staged > 0
    assert_close(found, run_reference(rounded(bundle, precision), counts, present))


@pytest.mark.parametrize(
    ("sizes", "how"),
    [
        ({"hidden": 6, "heads": 3, "mlp": 1, "window": 1, "conv": 0, "layers": 1}, {"blocks": 1}),
        ({"hidden": 60, "heads": 3, "mlp": 70, "window": 40, "conv": 5}, {"blocks": 7}),
        ({"hidden": 32, "heads": 1, "window": 33, "conv": 1}, {"blocks": 5, "threads": 3}),
        ({"units": 1, "layers": 3, "conv": 0}, {}),
        ({"hidden": 32, "mlp": 32, "heads": 2}, {"blocks": 4}),  # no row is padded
        ({"recurrent": False}, {"blocks": 9}),
        ({"recurrent": False, "conv": 0, "modalities": MODALITIES[2:]}, {}),
    ],
)
def test_sizes(library, sizes, how):
    bundle = make(**sizes)
    counts, present = spikes(bundle, 50, lost=0.4)
    expected = run_reference(bundle, counts, present)
    for cluster in (True, False):
        found, _ = emulate(library, bundle, counts, present, cluster=cluster, **how)
        assert_close(found, expected)


@pytest.mark.parametrize("spare", [0, 700, 1500, 2500, 4000])
def test_little_shared_memory(library, spare):
    """Whatever fits is staged, the rest is read where it lies: the result is the same."""
    bundle = make()
    counts, present = spikes(bundle, 12)
    expected, all_staged = emulate(library, bundle, counts, present)
    fixed = smallest_shared(library, bundle)
    found, staged = emulate(library, bundle, counts, present, shared=fixed + spare)
    assert np.array_equal(found, expected)
    assert staged <= all_staged
    assert emulate(library, bundle, counts, present, shared=fixed - 1)[1] == -1


@pytest.mark.parametrize(("sizes", "units"), [
    ({"hidden": 512, "heads": 2, "mlp": 640, "window": 130, "layers": 2}, 1500),
    ({"hidden": 512, "heads": 8, "mlp": 1024, "window": 400, "layers": 6, "conv": 5}, 4000),
])
def test_wide_models_are_taken_by_every_gpu(library, sizes, units):
    """Activations fit the 99 KiB that a block has on the smallest GPUs; -1 would be a refusal."""
    bundle = make(units=units, **sizes)
    counts, present = spikes(bundle, 0)
    for blocks in (8, 24):
        _, staged = emulate(library, bundle, counts, present, blocks=blocks, threads=8,
                            shared=99 << 10)
        assert staged >= 0


def smallest_shared(library, bundle):
    counts, present = spikes(bundle, 0)
    low, high = 0, 1 << 20
    while low + 1 < high:
        middle = (low + high) // 2
        fits = emulate(library, bundle, counts, present, shared=middle)[1] >= 0
        low, high = (low, middle) if fits else (middle, high)
    return high


def test_dry_steps_change_nothing(library):
    bundle = make()
    counts, present = spikes(bundle, 30)
    expected, _ = emulate(library, bundle, counts, present)
    found, _ = emulate(library, bundle, counts, present, dry=True)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("recurrent", [True, False])
def test_skipped_bins_move_the_states_on(library, recurrent):
    bundle = make(recurrent=recurrent)
    counts, present = spikes(bundle, 50, lost=0.4)
    expected = run_reference(bundle, counts, present)
    for cluster in (True, False):
        found, _ = emulate(library, bundle, counts, present, cluster=cluster, skip=True)
        assert_close(found[present], expected[present])


def test_all_lost(library):
    bundle = make()
    counts, _ = spikes(bundle, 9)
    lost = np.zeros(9, bool)
    found, _ = emulate(library, bundle, counts, lost)
    assert_close(found, run_reference(bundle, counts, lost))
