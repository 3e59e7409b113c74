"""The torch engines for GPUs, on the CPU here and on a GPU where there is one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from neds.cudagraph_engine import GraphStep, TorchStep  # noqa: E402
from neds.window_engines import WindowEngine  # noqa: E402
from neds_rt.bundle import ModalityOut, Shape, random_bundle  # noqa: E402
from neds_rt.errors import StartError  # noqa: E402
from tests.rt.reference_step import run_reference  # noqa: E402

MODALITIES = [
    ModalityOut("wheel", "continuous", 2),
    ModalityOut("choice", "categorical", 3, classes=["left", "right", "none"]),
]
GPU = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not GPU, reason="no GPU here"))]


@pytest.fixture(scope="module", params=[(0, False), (3, False), (0, True), (5, True)])
def bundle(request):
    conv, recurrent = request.param
    shape = Shape(hidden=32, layers=2, heads=2, mlp=48, window=9, conv=conv, recurrent=recurrent)
    return random_bundle(shape, 20, MODALITIES, seed=1)


def spikes(n_bins, lost=0.2):
    rng = np.random.default_rng(0)
    return rng.poisson(0.5, (n_bins, 20)).astype(np.uint16), rng.random(n_bins) >= lost


def run(engine, counts, present):
    return np.array([engine.step(c, bool(p)).copy() for c, p in zip(counts, present, strict=True)])


def steps(device):
    return [TorchStep, *([GraphStep] if device == "cuda" else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_step_equals_batch(bundle, device):
    counts, present = spikes(60)
    expected = run_reference(bundle, counts, present)
    for kind in steps(device):
        found = run(kind(bundle, device=device), counts, present)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("device", DEVICES)
def test_reset_skip_and_warm(bundle, device):
    counts, present = spikes(50)
    for kind in steps(device):
        engine = kind(bundle, device=device)
        run(engine, counts[:15], present[:15])
        for _ in range(4):
            engine.step(counts[0], False)
        expected = run(engine, counts[15:], present[15:])
        engine.reset()
        run(engine, counts[:15], present[:15])
        engine.skip(4)
        engine.warm()
        assert np.array_equal(run(engine, counts[15:], present[15:]), expected)


@pytest.mark.parametrize("last_bin_only", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_window_equals_stream_while_it_fills(bundle, device, last_bin_only):
    counts, present = spikes(9)
    expected = run_reference(bundle, counts, present)
    for how in ["eager", *(["graph"] if device == "cuda" else [])]:
        engine = WindowEngine(bundle, how=how, last_bin_only=last_bin_only, device=device)
        found = run(engine, counts, present)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.skipif(GPU, reason="a GPU is here")
def test_without_a_gpu_it_is_one_line(bundle):
    with pytest.raises(StartError, match="no GPU"):
        GraphStep(bundle)
