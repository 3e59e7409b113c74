"""The GPU step equals the batch computation; needs `neds_rt._cuda` and a GPU, says so otherwise."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from neds_rt.bundle import ModalityOut, Shape, random_bundle
from neds_rt.engines import load_engine
from neds_rt.engines.cuda import CudaEngine, cuda_module
from neds_rt.errors import BadInput, StartError
from tests.rt.reference_step import run_reference
from tests.rt.test_gpu_emulation import rounded

try:
    MODULE = cuda_module()
    MISSING = ""
except StartError as error:
    MODULE, MISSING = None, str(error)
needs_gpu = pytest.mark.skipif(bool(MISSING), reason=MISSING or "there is one")

WHEEL = ModalityOut("wheel", "continuous", 2)
HEADING = ModalityOut("heading", "circular", 2)
CHOICE = ModalityOut("choice", "categorical", 3, classes=["left", "right", "none"])
BLOCK = ModalityOut("block", "categorical", 2, classes=["a", "b"])
PAPER = {"hidden": 256, "layers": 5, "heads": 8, "mlp": 512, "window": 100}
CLUSTERS = not MISSING and float(MODULE.device_facts()["capability"]) >= 9.0
TEAMS = [
    pytest.param({"team": "cluster"}, id="cluster",
                 marks=pytest.mark.skipif(not CLUSTERS, reason="no clusters before 9.0")),
    pytest.param({"team": "grid", "blocks": 24}, id="grid"),
]


def spikes(seed, n_bins, n_units, lost=0.1):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1.0, 0.3, n_units), (n_bins, n_units)).astype(np.uint16)
    counts[rng.random(counts.shape) < 0.001] = 200
    return counts, rng.random(n_bins) >= lost


def run(engine, counts, present):
    return np.array([engine.step(c, bool(p)).copy() for c, p in zip(counts, present, strict=True)])


def note(name, found, expected):
    """Largest error relative to the largest output; kept in the file that the suite names."""
    assert np.isfinite(found).all()
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if path := os.environ.get("NEDS_PARITY_FILE"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"check": name, "bins": len(found), "error": error}) + "\n")
    return error


@needs_gpu
@pytest.mark.parametrize("how", TEAMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_paper_size(how, precision):
    shape = Shape(**PAPER, conv=5, recurrent=True)
    bundle = random_bundle(shape, 600, [WHEEL, HEADING, CHOICE, BLOCK], seed=3)
    counts, present = spikes(4, 400, 600)
    engine = CudaEngine(bundle, precision=precision, **how)
    found = run(engine, counts, present)
    expected = run_reference(rounded(bundle, precision), counts, present)
    assert note(f"paper {precision} {how['team']}", found, expected) < 1e-5


@needs_gpu
@pytest.mark.parametrize("how", TEAMS)
def test_thousands_of_bins(how):
    shape = Shape(hidden=64, layers=2, heads=4, mlp=96, window=40, conv=4, recurrent=True)
    bundle = random_bundle(shape, 100, [WHEEL, CHOICE], seed=5)
    counts, present = spikes(6, 6000, 100, lost=0.02)
    present[3000:3010] = False
    present[4000:4200] = False  # longer than the receptive field
    found = run(CudaEngine(bundle, **how), counts, present)
    expected = run_reference(bundle, counts, present, chunk=300)
    assert note(f"6000 bins {how['team']}", found, expected) < 1e-5


@needs_gpu
@pytest.mark.parametrize("how", TEAMS)
@pytest.mark.parametrize(
    ("sizes", "units", "modalities"),
    [
        ({"hidden": 6, "heads": 3, "mlp": 1, "window": 1, "layers": 1}, 1, [WHEEL]),
        ({"hidden": 60, "heads": 3, "mlp": 70, "window": 45, "conv": 5, "layers": 3,
          "recurrent": True}, 33, [CHOICE]),
        ({"hidden": 144, "heads": 2, "mlp": 100, "window": 33, "conv": 1, "layers": 2}, 50,
         [WHEEL, CHOICE, BLOCK]),
        ({"hidden": 512, "heads": 2, "mlp": 640, "window": 130, "layers": 2}, 1500,
         [ModalityOut(f"w{i}", "continuous", 1) for i in range(11)]),
        ({"hidden": 512, "heads": 8, "mlp": 1024, "window": 400, "layers": 6, "conv": 5,
          "recurrent": True}, 4000,
         [WHEEL, CHOICE]),
    ],
)
def test_sizes(how, sizes, units, modalities):
    bundle = random_bundle(Shape(**sizes), units, modalities, seed=7)
    counts, present = spikes(8, 150, units, lost=0.3)
    found = run(CudaEngine(bundle, **how), counts, present)
    expected = run_reference(bundle, counts, present)
    assert note(f"{sizes} {how['team']}", found, expected) < 1e-5


@pytest.fixture(scope="module", params=[True, False], ids=["gru", "no-gru"])
def bundle(request):
    shape = Shape(hidden=32, layers=2, heads=2, mlp=48, window=9, conv=3, recurrent=request.param)
    return random_bundle(shape, 20, [WHEEL, CHOICE], seed=1)


@needs_gpu
@pytest.mark.parametrize("how", [*TEAMS, pytest.param({"input": "copied"}, id="copied"),
                                 pytest.param({"launch": "direct"}, id="direct"),
                                 pytest.param({"threads": 64}, id="64")])
def test_reset_skip_and_warm(bundle, how):
    engine = CudaEngine(bundle, **how)
    counts, present = spikes(0, 60, 20)
    run(engine, counts[:15], present[:15])
    for _ in range(5):
        engine.step(counts[0], False)
    expected = run(engine, counts[15:], present[15:])
    engine.reset()
    run(engine, counts[:15], present[:15])
    engine.warm()
    engine.skip(5)
    found = []
    for c, p in zip(counts[15:], present[15:], strict=True):
        found.append(engine.step(c, bool(p)).copy())
        engine.warm()
        assert np.array_equal(engine.core.outputs, found[-1])
    assert np.array_equal(found, expected)
    engine.reset()
    whole = run(engine, counts, present)
    assert note(f"options {how}", whole, run_reference(bundle, counts, present)) < 1e-5


@needs_gpu
def test_nothing_moves_between_runs(bundle):
    """Equal inputs give equal bits, run after run: nothing is read before it is written."""
    counts, present = spikes(2, 300, 20)
    engine = CudaEngine(bundle)
    expected = run(engine, counts, present)
    for _ in range(20):
        engine.reset()
        assert np.array_equal(run(engine, counts, present), expected)


@needs_gpu
def test_refuses_what_does_not_fit(bundle):
    for options in ({"precision": "int8"}, {"team": "crowd"}, {"threads": 33}, {"blocks": -1}):
        with pytest.raises(BadInput):
            CudaEngine(bundle, **options)
    engine = load_engine("cuda", bundle)
    with pytest.raises(ValueError, match="counts"):
        engine.step(np.zeros(19, np.uint16))
    with pytest.raises(ValueError, match="n_bins"):
        engine.skip(-1)
    many = random_bundle(Shape(hidden=16, layers=1, heads=2, mlp=8, window=4), 60_000, [WHEEL])
    with pytest.raises(BadInput, match="a block holds"):
        CudaEngine(many)


@pytest.mark.skipif(not MISSING, reason="a GPU and the extension are here")
def test_without_a_gpu_it_is_one_line(bundle):
    with pytest.raises(StartError, match="engine cuda: ") as caught:
        load_engine("cuda", bundle)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_precision_is_checked_before_the_gpu_is_looked_for(bundle):
    with pytest.raises(BadInput, match="found 'int4', expected one of float32, bfloat16, float16"):
        load_engine("cuda:int4", bundle)
