"""The TensorRT engines: their order of work on a recording device, plans and refusals for real."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from neds_rt import plans
from neds_rt.bundle import (
    ModalityOut,
    Shape,
    make_bundle,
    random_bundle,
    read_bundle,
    write_bundle,
)
from neds_rt.engines import cuda_runtime, load_engine, tensorrt
from neds_rt.engines.cuda_runtime import Device, DeviceError, explain
from neds_rt.engines.plan_graph import build_plan_graph, graph_hash, graph_name
from neds_rt.engines.plan_loader import Execution, choose_plan
from neds_rt.errors import BadInput, StartError
from neds_rt.plans import PlanKey, build_plan, describe, get_plan, product_version
from tests.rt.recording_device import GraphExecution, RecordingDevice
from tests.rt.reference_step import run_reference

RTX = "tensorrt-rtx"
MODALITIES = [ModalityOut("wheel", "continuous", 2),
              ModalityOut("choice", "categorical", 3, classes=["left", "right", "none"])]


def parts(bundle):
    m = bundle.manifest
    return {"session": "s", "subject": "a", "bin_size_s": 0.02, "shape": m.shape,
            "units": m.units, "modalities": m.modalities, "weights": bundle.weights}


def with_graphs(bundle, precisions=("fp32", "fp16"), forms=("step", "window")):
    files = {graph_name(f, p): build_plan_graph(bundle, f, p) for f in forms for p in precisions}
    return make_bundle(**parts(bundle), files=files)


@pytest.fixture(scope="module", params=[(0, False), (1, True), (3, True), (4, False)],
                ids=["bare", "gru", "stem", "conv"])
def bundle(request):
    conv, recurrent = request.param
    shape = Shape(hidden=32, layers=2, heads=2, mlp=48, window=9, conv=conv, recurrent=recurrent)
    return with_graphs(random_bundle(shape, 20, MODALITIES, seed=1))


@pytest.fixture
def open_engine(monkeypatch):
    def open_on_recorder(bundle, form="step", precision="float32", late=False, captures=True):
        device = RecordingDevice(late)
        monkeypatch.setattr(tensorrt, "Device", lambda: device)
        monkeypatch.setattr(tensorrt, "choose_plan", lambda b, product, form, precision, target:
                            b.files[graph_name(form, precision)])

        def make(product, plan, alloc):
            execution = GraphExecution(device, plan)
            execution.captures = captures
            return execution

        monkeypatch.setattr(tensorrt, "Execution", make)
        kind = {"step": tensorrt.RtxEngine, "window": tensorrt.RtxWindow}[form]
        return kind(bundle, precision), device

    return open_on_recorder


def spikes(n_bins, lost=0.2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(0.5, (n_bins, 20)).astype(np.uint16), rng.random(n_bins) >= lost


def run(engine, counts, present):
    return np.array([engine.step(c, bool(p)).copy() for c, p in zip(counts, present, strict=True)])


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
def test_step_equals_batch(open_engine, bundle, precision, tolerance, late):
    engine, _ = open_engine(bundle, precision=precision, late=late)
    counts, present = spikes(60)
    expected = run_reference(bundle, counts, present)
    found = run(engine, counts, present)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert (engine.name, engine.precision, engine.n_units) == ("tensorrt_rtx", precision, 20)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_window_equals_stream_while_it_fills(open_engine, bundle, late):
    engine, _ = open_engine(bundle, "window", late=late)
    counts, present = spikes(9)
    expected = run_reference(bundle, counts, present)
    assert np.abs(run(engine, counts, present) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("form", ["step", "window"])
@pytest.mark.parametrize("n_lost", [0, 4, 30])
def test_reset_skip_and_warm(open_engine, bundle, form, n_lost, late):
    engine, _ = open_engine(bundle, form, late=late)
    counts, present = spikes(40)
    run(engine, counts[:15], present[:15])
    for _ in range(n_lost):
        engine.step(counts[0], False)
    expected = run(engine, counts[15:], present[15:])
    engine.reset()
    run(engine, counts[:15], present[:15])
    engine.warm()
    engine.skip(n_lost)
    found = []
    for c, p in zip(counts[15:], present[15:], strict=True):
        outputs = engine.step(c, bool(p))
        before = outputs.copy()
        engine.warm()
        assert np.array_equal(outputs, before)
        found.append(before)
    # A skip of the step moves the stem on by other code than steps do.
    assert np.abs(np.array(found) - expected).max() <= 1e-6 * np.abs(expected).max()
    with pytest.raises(ValueError, match="n_bins"):
        engine.skip(-1)
    with pytest.raises(ValueError, match="counts"):
        engine.step(np.zeros(19, np.uint16))


def test_lost_counts_are_never_read(open_engine, bundle):
    counts, present = spikes(40)
    engine, _ = open_engine(bundle)
    expected = run(engine, counts, present)
    engine.reset()
    counts[~present] = 777
    assert np.array_equal(run(engine, counts, present), expected)


def test_order_of_work(open_engine):
    shape = Shape(hidden=32, layers=2, heads=2, mlp=48, window=9, conv=3, recurrent=True)
    engine, device = open_engine(with_graphs(random_bundle(shape, 20, MODALITIES, seed=1)))
    assert device.graphs == [["copy_in", "plan", "copy_out"]]
    # Everything lazy happens before the capture, and the graph is launched once before it serves.
    assert device.log == ["copy_in", "plan", "copy_out", "settle", "launch", "settle", "zero",
                          "settle"]
    device.log.clear()
    engine.step(np.ones(20, np.uint16))
    # What the bin leaves behind is enqueued behind the mark: its outputs do not wait for it.
    assert device.log == ["launch", "mark", "strided_copy", "copy_within", "wait"]
    device.log.clear()
    engine.step(np.ones(20, np.uint16), False)
    assert device.log == ["launch", "mark", "copy_within", "wait"]
    device.log.clear()
    engine.warm()
    assert device.log == ["launch", "settle"]
    device.log.clear()
    engine.close()
    assert device.log == ["close plan", "close"]


def test_what_cannot_be_captured_is_enqueued(open_engine, bundle):
    engine, device = open_engine(bundle, captures=False)
    assert device.graphs == []
    counts, present = spikes(20)
    expected = run_reference(bundle, counts, present)
    assert np.abs(run(engine, counts, present) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_plan_of_another_model_is_refused(open_engine, bundle, monkeypatch):
    shape = Shape(hidden=32, layers=2, heads=2, mlp=48, window=8)
    other = random_bundle(shape, 20, MODALITIES, seed=1)
    files = bundle.files
    with pytest.raises(DeviceError, match="the plan is of another model: its slot_bias has 36"):
        open_engine(make_bundle(**parts(other), files=files))


# The parts of a GPU that are not there


class Bindings(SimpleNamespace):
    """As much of cuda.bindings.runtime as the test in hand calls."""

    def __init__(self, **calls):
        errors = SimpleNamespace(cudaErrorNotReady=600)
        super().__init__(cudaError_t=errors, cudaGetErrorString=lambda e: (0, b"text"),
                         cudaDriverGetVersion=lambda: (0, 13000),
                         cudaRuntimeGetVersion=lambda: (0, 13000), **calls)


def bare_device(bindings):
    device = Device.__new__(Device)
    device._cuda, device._event, device._stream, device._freed = bindings, 1, 2, []
    return device


def test_watchdog():
    device = bare_device(Bindings(cudaEventQuery=lambda event: (600,)))
    with pytest.raises(DeviceError, match=r"not answered for 0\.01 s"):
        device.wait(0.01)
    answers = iter([(600,), (600,), (0,)])
    bare_device(Bindings(cudaEventQuery=lambda event: next(answers))).wait(5.0)
    lost = SimpleNamespace(name="cudaErrorIllegalAddress")
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress: text"):
        bare_device(Bindings(cudaEventQuery=lambda event: (lost,))).wait(5.0)


def test_too_little_memory_says_how_much():
    full = SimpleNamespace(name="cudaErrorMemoryAllocation")
    device = bare_device(Bindings(cudaMalloc=lambda n: (full, None),
                                  cudaMemGetInfo=lambda: (0, 5 << 20, 8 << 30)))
    with pytest.raises(DeviceError, match="the ring needs 20 MB of GPU memory, 5 are free") as why:
        device.alloc(20 << 20, "the ring")
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("error", "driver", "said"),
    [
        ("cudaErrorInsufficientDriver", 0, "no NVIDIA driver"),
        ("cudaErrorInsufficientDriver", 12020, "is for CUDA 12.2, expected one for CUDA 13.4"),
        ("cudaErrorNoDevice", 13040, "finds no GPU"),
        ("cudaErrorDevicesUnavailable", 13040, "another process has the GPU for itself"),
    ],
)
def test_refusals_say_what_to_do(error, driver, said):
    text = explain(error, "text", driver, 13040)
    assert said in text
    assert "--engine native" in text


def no_gpu():
    pytest.importorskip("cuda.bindings")
    try:
        Device().close()
    except DeviceError:
        return
    pytest.skip("there is a GPU")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "tensorrt_rtx:fp16"])
def test_serving_without_a_gpu_is_one_line_and_exit_3(tmp_path, name):
    no_gpu()
    bundle = random_bundle(Shape(hidden=8, layers=1, heads=2, mlp=8, window=4), 5, MODALITIES)
    write_bundle(tmp_path / "x.neds", **parts(bundle))
    with pytest.raises(StartError, match="--engine native runs on the CPU"):
        load_engine(name, bundle)
    done = subprocess.run(
        [sys.executable, "-m", "neds_rt", "serve", "--model", tmp_path / "x.neds", "--engine", name,
         "--probe", "probe00=zmq+tcp://127.0.0.1:5570", "--out", "tcp://127.0.0.1:0"],
        capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "NVIDIA driver" in done.stderr


def test_without_cuda_python_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(StartError, match=r"neds\[trt-rtx\]"):
        cuda_runtime.Device()


# Plans, built for real


@pytest.fixture(scope="module")
def small():
    shape = Shape(hidden=16, layers=1, heads=2, mlp=24, window=5, conv=3, recurrent=True)
    return with_graphs(random_bundle(shape, 8, MODALITIES, seed=3), ["fp16"])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(plans.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


def key_of(bundle, form="step", target="sm89"):
    graph = bundle.files[graph_name(form, "fp16")]
    key = PlanKey(RTX, product_version(RTX), target, form, "fp16", graph_hash(graph))
    return graph, key


def test_cache_keeps_plans_and_rebuilds_damaged_ones(small, cache):
    pytest.importorskip("tensorrt_rtx")
    graph, key = key_of(small)
    first = get_plan(graph, key)
    assert not first.cached
    (file,) = cache.iterdir()
    again = get_plan(graph, key)
    assert again.cached
    assert (again.data, again.build_s) == (first.data, first.build_s)
    for damaged in (b"", file.read_bytes()[:-100], b"{}\n" + first.data, b"\xff" * 5000):
        file.write_bytes(damaged)
        rebuilt = get_plan(graph, key)
        assert not rebuilt.cached
        assert len(rebuilt.data) > 1000
        assert get_plan(graph, key).cached
    assert list(cache.iterdir()) == [file]
    for other in (("target", "sm86"), ("version", "1.0"), ("graph_sha256", "0"),
                  ("precision", "fp32"), ("product", "tensorrt")):
        assert PlanKey(**{**vars(key), other[0]: other[1]}).digest != key.digest


def test_cache_that_cannot_be_written_is_one_line(small, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv(plans.CACHE_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr(plans, "build_plan", lambda *a: b"plan")
    with pytest.raises(BadInput, match=r"plan cache: .* \(\$NEDS_CACHE names another\)"):
        get_plan(*key_of(small))


def test_bundled_plans_are_taken_and_others_rebuilt(small, cache, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    graph, key = key_of(small)
    plan = get_plan(graph, key)
    listed = describe(key, plan, graph_name("step", "fp16"))
    files = small.files | {key.file: plan.data}
    bundle = make_bundle(**parts(small), files=files, plans=[listed])
    assert choose_plan(bundle, RTX, "step", "fp16", "sm89") is bundle.files[key.file]
    built = []
    monkeypatch.setattr(plans, "build_plan", lambda g, p, t: built.append((p, t)) or b"made")
    assert choose_plan(bundle, RTX, "step", "fp16", "sm86") == b"made"
    assert built == [(RTX, "sm86")]
    monkeypatch.setattr("neds_rt.engines.plan_loader.product_version", lambda product: "9.9")
    assert choose_plan(bundle, RTX, "step", "fp16", "sm89") == b"made"
    assert built == [(RTX, "sm86"), (RTX, "sm89")]


def test_a_plan_that_cannot_be_had_names_the_command(small, cache):
    pytest.importorskip("tensorrt_rtx")
    command = (r"neds export-trt CKPT --session s --out X\.neds --product tensorrt-rtx --form step "
               r"--precision bf16 --target sm89 builds it, --engine native runs on the CPU")
    with pytest.raises(StartError, match=r"no plans/step-bf16\.onnx.*" + command):
        choose_plan(small, RTX, "step", "bf16", "sm89")
    no_gpu()
    with pytest.raises(StartError, match=r"on sm90, and none can be built here.*--engine native"):
        choose_plan(small, RTX, "step", "fp16", "sm90")
    assert not cache.exists()


def test_a_graph_that_the_product_does_not_read_is_one_line(cache):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(StartError, match="builds no plan for sm89: ") as why:
        build_plan(b"no graph", RTX, "sm89")
    assert "\n" not in str(why.value)


def test_loading_a_plan_without_a_driver_is_one_line(small, cache):
    pytest.importorskip("tensorrt_rtx")
    no_gpu()
    plan = get_plan(*key_of(small))
    with pytest.raises(DeviceError, match=r"does not load the plan: .*--engine native") as why:
        Execution(RTX, plan.data, lambda n_bytes, what: 0)
    assert "\n" not in str(why.value)


# Bundles


def test_a_bundle_without_plans_says_nothing_of_them(small, tmp_path):
    write_bundle(tmp_path / "x", **parts(small))
    assert b'"plans"' not in (tmp_path / "x" / "manifest.json").read_bytes()
    assert read_bundle(tmp_path / "x").manifest.plans == []


def test_plans_are_verified(small, tmp_path):
    key = PlanKey(RTX, "1.0", "sm89", "step", "fp16",
                  graph_hash(small.files[graph_name("step", "fp16")]))
    listed = describe(key, plans.BuiltPlan(b"plan", 1.0, False), graph_name("step", "fp16"))
    files = small.files | {key.file: b"plan"}
    write_bundle(tmp_path / "x", **parts(small), files=files, plans=[listed])
    assert read_bundle(tmp_path / "x").manifest.plans == [listed]
    (tmp_path / "x" / key.file).write_bytes(b"nalp")
    with pytest.raises(BadInput, match=r"step-fp16-tensorrt-rtx-sm89\.plan: sha256"):
        read_bundle(tmp_path / "x")
    with pytest.raises(BadInput, match="plan 'plans/step-fp16"):
        make_bundle(**parts(small), files=small.files, plans=[listed])
    with pytest.raises(BadInput, match="plan 'plans/step-fp16"):
        make_bundle(**parts(small), files=files | {listed.graph: b"other"}, plans=[listed])
