"""GPU plans in a bundle: typed graphs, their parity, and what tensorrt-rtx builds without a GPU."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from msgspec.structs import replace

from neds import plan_export
from neds.checkpoint import CHECKPOINT_SCHEMA, CheckpointInfo, created_by, save_checkpoint
from neds.cli import main
from neds.config import load_recipe
from neds.data.store import write_session
from neds.dataset import describe, to_recording
from neds.export import BatchDecoder
from neds.model import Neds, SessionSpec
from neds.plan_cpu import PlanOnCpu
from neds.plan_export import Wanted, export_plans, failed, window_outputs
from neds_rt.bundle import ModalityOut, Shape, random_bundle, read_bundle
from neds_rt.engines import load_engine
from neds_rt.engines.onnx_nodes import bfloat16_bits
from neds_rt.engines.plan_graph import FORMS, build_plan_graph
from neds_rt.errors import BadInput
from tests.neds.conftest import BIN_S, make_session
from tests.rt.reference_step import run_reference

MODALITIES = [
    ModalityOut("velocity", "continuous", 2, sd=[1.0, 1.0]),
    ModalityOut("choice", "categorical", 3, classes=["a", "b", "c"]),
]
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}


def spikes(bins, units, lost=0.2):
    rng = np.random.default_rng(0)
    return rng.poisson(0.5, (bins, units)).astype(np.uint16), rng.random(bins) >= lost


def run(engine, counts, present):
    return np.array([engine.step(c, bool(p)).copy() for c, p in zip(counts, present, strict=True)])


def error(found, expected):
    assert np.isfinite(found).all()
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("conv", "recurrent"), [(0, False), (1, False), (3, True), (0, True)])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
def test_graph_equals_the_batch_computation(form, precision, conv, recurrent):
    shape = Shape(hidden=32, layers=2, heads=2, mlp=48, window=9, conv=conv, recurrent=recurrent)
    bundle = random_bundle(shape, 20, MODALITIES, seed=1)
    bins = 60 if form == "step" else shape.window  # later the window forgets what it had seen
    counts, present = spikes(bins, 20)
    found = error(run(PlanOnCpu(bundle, form, precision), counts, present),
                  run_reference(bundle, counts, present))
    assert found <= TOLERANCE[precision]
    assert precision == "fp32" or found > 1e-5  # the products were taken in that precision


@pytest.mark.parametrize("window", [1, 2, 7])
def test_window_graph_of_later_bins_equals_torch_on_the_window(window):
    shape = Shape(hidden=16, layers=2, heads=2, mlp=24, window=window, conv=4, recurrent=True)
    bundle = random_bundle(shape, 8, MODALITIES, seed=2)
    counts, _ = spikes(30, 8)
    found = run(PlanOnCpu(bundle, "window", "fp32"), counts, np.ones(30, bool))
    expected = window_outputs(bundle, counts)
    assert error(found, expected) <= 1e-5
    decoder = BatchDecoder(bundle).eval()
    rows = torch.from_numpy(counts[30 - window :].astype(np.float32))[None]
    with torch.inference_mode():
        alone = decoder(rows, torch.zeros(1, window, dtype=torch.bool))[0, -1].numpy()
    assert error(found[-1], alone) <= 1e-5


def test_norms_softmax_and_stem_stay_in_float32():
    shape = Shape(hidden=16, layers=1, heads=2, mlp=24, window=4, conv=3, recurrent=True)
    bundle = random_bundle(shape, 8, MODALITIES, seed=2)
    for form in FORMS:
        model = onnx.load_from_string(build_plan_graph(bundle, form, "fp16"))
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
        types |= {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
        kinds = {kind: {types[n.output[0]] for n in model.graph.node if n.op_type == kind}
                 for kind in ("LayerNormalization", "Softmax", "MatMul", "Gelu")}
        half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        assert kinds["LayerNormalization"] == kinds["Softmax"] == kinds["Gelu"] == {single}
        assert kinds["MatMul"] == {half, single}  # in float32: the spikes' embedding alone
        products = [n for n in model.graph.node if n.op_type == "MatMul"]
        assert sum(types[n.output[0]] == single for n in products) == 1
        sizes = [d.dim_value for v in (*model.graph.input, *model.graph.output)
                 for d in v.type.tensor_type.shape.dim]
        assert all(sizes)  # static


def test_bfloat16_rounds_to_nearest_even():
    values = np.float32([1.0, 1.00390625, 1.01171875, -3.1415927, 1e-40, 3.3e38])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    assert bfloat16_bits(values).tolist() == expected.view(np.uint16).tolist()


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    config, session, recording, result = trained
    folder = tmp_path_factory.mktemp("plans")
    write_session(session, folder / "made.h5")
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 7, {})
    save_checkpoint(folder / "run", result.model, info)
    return folder, info


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NEDS_CACHE", str(tmp_path_factory.getbasetemp() / "plan-cache"))


def export_trt(checkpoint, out, *options):
    folder, _ = checkpoint
    return main(["export-trt", str(folder / "run"), "--data", str(folder / "made.h5"),
                 "--out", str(out), *options])


def test_export_lists_every_plan_with_its_hashes(checkpoint, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "made.neds"
    options = ("--product", "tensorrt-rtx", "--form", "both", "--target", "sm86,sm89")
    assert export_trt(checkpoint, out, *options, "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    bundle = read_bundle(out)
    plans = bundle.manifest.plans
    assert {(p.form, p.precision, p.target) for p in plans} == {
        (f, p, t) for f in FORMS for p in ("fp32", "fp16") for t in ("sm86", "sm89")}
    for plan in plans:
        data = bundle.files[plan.file]
        assert hashlib.sha256(data).hexdigest() == plan.sha256 == bundle.manifest.hashes[plan.file]
        assert hashlib.sha256(bundle.files[plan.graph]).hexdigest() == plan.graph_sha256
        assert (len(data), plan.product) == (plan.bytes, "tensorrt-rtx")
        assert plan.build_s > 0
    assert [p["file"] for p in said["plans"]] == [p.file for p in plans]
    parity = {(p["form"], p["precision"]): p for p in said["parity"]["plans"]}
    for form in FORMS:
        assert parity[form, "fp32"]["max"] <= 1e-4
        half = parity[form, "fp16"]
        assert set(half["score_change"]) == {"velocity", "choice", "heading"}
        assert max(map(abs, half["score_change"].values())) <= 0.005
        assert 1e-6 < half["rms"] < half["max"] < 0.02
    counts = np.ones(12, np.uint16)
    for name in ("native", "onnx"):  # the CPU goes on from the same bundle
        assert np.isfinite(load_engine(name, bundle).step(counts)).all()
    assert main(["info", str(out)]) == 0


def test_a_graph_that_fails_parity_is_not_shipped(checkpoint, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(plan_export, "SCORE_LIMIT", 0.0)
    options = ("--product", "tensorrt-rtx", "--target", "sm86")
    assert export_trt(checkpoint, tmp_path / "a.neds", *options, "--precision", "bf16") == 4
    assert "step bf16 is not shipped: the score of" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_reasons_to_fail():
    good = {"max": 1e-5, "rms": 1e-6, "score_change": {"v": 0.001, "c": None}}
    assert failed(good, "fp32") == ""
    assert "c has no score" in failed(good, "fp16")
    assert failed(good | {"score_change": {"v": -0.004}}, "fp16") == ""
    assert "changes by -0.0060" in failed(good | {"score_change": {"v": -0.006}}, "bf16")
    assert "off by 2.0e-04" in failed(good | {"max": 2e-4}, "fp32")
    assert "off by nan" in failed(good | {"max": float("nan")}, "fp32")


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--precision", "int8"), 2, "--precision"),
        (("--precision", ""), 2, "--precision"),
        (("--product", "onnx"), 2, "tensorrt, tensorrt-rtx"),
        (("--target", "sm90"), 2, "sm75, sm80, sm86, sm89, sm120, sm121"),
        (("--target", "ada"), 2, "sm86,sm89"),
        (("--product", "tensorrt"), 3, "tensorrt"),
    ],
)
def test_refusals_are_one_line(checkpoint, tmp_path, capsys, options, code, named):
    pytest.importorskip("tensorrt_rtx")
    assert export_trt(checkpoint, tmp_path / "x.neds", *options) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert named in err
    assert list(tmp_path.iterdir()) == []


def test_without_any_product_it_is_one_line_that_names_the_extra():
    code = ("import sys; sys.modules['tensorrt_rtx'] = sys.modules['tensorrt'] = None\n"
            "import importlib.util\nimportlib.util.find_spec = lambda name: None\n"
            "from neds.cli import main\n"
            "print(main(['export-trt', 'x', '--out', 'y.neds']))\n"
            "print(main(['export-trt', 'x', '--out', 'y.neds', '--product', 'tensorrt-rtx']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["3", "3"]
    assert done.stderr.count("\n") == 2
    assert done.stderr.count("neds[trt-rtx]") == 2


def test_a_window_form_checkpoint_is_refused_with_the_reason(trained, tmp_path):
    config, _, recording, result = trained
    config = replace(config, model=replace(config.model, form="window"))
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 7, {})
    with pytest.raises(BadInput, match=r"'stream', which needs no future bins"):
        export_plans(result.model, info, recording, tmp_path / "x.neds", behaviours=[],
                     wanted=Wanted(["step"], ["fp32"]), say=print)
    assert not list(tmp_path.iterdir())


def test_a_behaviour_subset_leaves_the_others_out_of_the_plan(checkpoint, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "one"
    options = ("--behaviours", "heading", "--precision", "fp32", "--target", "sm86")
    assert export_trt(checkpoint, out, *options, "--product", "tensorrt-rtx") == 0
    bundle = read_bundle(out)
    assert [p.file for p in bundle.manifest.plans] == ["plans/step-fp32-tensorrt-rtx-sm86.plan"]
    graph = onnx.load(out / "plans" / "step-fp32.onnx").graph
    (outputs,) = [v for v in graph.output if v.name == "outputs"]
    assert [d.dim_value for d in outputs.type.tensor_type.shape.dim] == [2]
    heads = [c for c in graph.initializer if c.name.startswith("head.")]
    assert {tuple(c.dims) for c in heads} == {(32, 2), (2,)}


def test_plans_of_the_default_model(tmp_path):
    """The recipe's size, 200 units: every form and precision for two GPUs, without one."""
    pytest.importorskip("tensorrt_rtx")
    changes = [f"data.bin_size_s={BIN_S}", "data.behaviours=['velocity']"]
    config = load_recipe("indy_many", changes)
    session = make_session(bins=600, units=200)
    binned, state = describe(session, config.data, config.model.window)
    recording = to_recording(binned, state)
    torch.manual_seed(0)
    specs = [SessionSpec(state.session, 200, tuple(b.spec for b in state.behaviours))]
    model = Neds(config.model, specs).eval()
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [state], 0, {})
    wanted = Wanted(list(FORMS), ["fp32", "fp16"], {"tensorrt-rtx": ["sm86", "sm89"]})
    manifest = export_plans(model, info, recording, tmp_path / "x",
                            behaviours=[], wanted=wanted, say=pytest.fail)
    assert (manifest.shape.hidden, manifest.shape.layers) == (192, 4)
    assert len({p.file for p in manifest.plans}) == len(manifest.plans) == 8
    files = read_bundle(tmp_path / "x").files  # verified: each is what the manifest lists
    for plan in manifest.plans:
        assert len(files[plan.file]) == plan.bytes
        assert plan.bytes > 0.9 * len(files[plan.graph])  # the weights are in it
