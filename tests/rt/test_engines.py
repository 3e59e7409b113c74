"""Every engine, on every instruction set, equals the batch computation of the same model."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neds_rt import _core
from neds_rt.bundle import ModalityOut, Shape, make_bundle, random_bundle
from neds_rt.engines import load_engine, parse_engine
from neds_rt.engines.native import ISA_VARIABLE, NativeEngine
from neds_rt.errors import BadInput
from tests.rt.reference_step import run_reference
from tests.rt.stored_weights import is_stored, stored

NATIVE = [f"native:{precision}@{isa}" for precision in NativeEngine.precisions
          for isa in _core.supported_isas()]
ENGINES = [*NATIVE, "onnx"]
# Of the largest output of the run, to the same computation in float64 on the weights as they are
# stored. Beside bf16 and int8 weights keys and values are bf16, which random weights amplify.
TOLERANCE = {"float32": 1e-4, "bf16": 2e-2, "int8": 2e-2}

WHEEL = ModalityOut("wheel", "continuous", 2)
HEADING = ModalityOut("heading", "circular", 2)
CHOICE = ModalityOut("choice", "categorical", 3, classes=["left", "right", "none"])


def open_engine(label, bundle):
    name, _, isa = label.partition("@")
    with pytest.MonkeyPatch.context() as patch:
        if isa:
            patch.setenv(ISA_VARIABLE, isa)
        return load_engine(name, bundle)


def run(engine, counts, present):
    return np.array([engine.step(c, bool(p)).copy() for c, p in zip(counts, present, strict=True)])


def spikes(seed, n_bins, n_units, lost=0.15):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1.0, 0.5, n_units), (n_bins, n_units)).astype(np.uint16)
    counts[rng.random(counts.shape) < 0.002] = 200
    present = rng.random(n_bins) >= lost
    return counts, present


def assert_close(found, expected, tolerance=TOLERANCE["float32"]):
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def assert_equals_reference(engine, found, bundle, counts, present, **options):
    expected = run_reference(stored(bundle, engine.precision), counts, present, **options)
    assert_close(found, expected, TOLERANCE[engine.precision])
    rms = np.sqrt(((found - expected) ** 2).mean())
    assert rms <= TOLERANCE[engine.precision] / 10 * np.abs(expected).max()


@st.composite
def models(draw):
    heads = draw(st.integers(1, 4))
    shape = Shape(
        # At least 6: a layer norm of 2 values is their sign, which no tolerance bounds.
        hidden=2 * heads * draw(st.integers(-(-3 // heads), 12)),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        mlp=draw(st.integers(1, 70)),
        window=draw(st.integers(1, 40)),
        conv=draw(st.integers(0, 5)),
        recurrent=draw(st.booleans()),
        rope_base=draw(st.sampled_from([10.0, 10000.0])),
    )
    pool = st.sampled_from([WHEEL, HEADING, CHOICE])
    drawn = draw(st.lists(pool, min_size=1, max_size=8))
    modalities = [
        ModalityOut(f"{m.name}{i}", m.kind, m.n_outputs, classes=m.classes)
        for i, m in enumerate(drawn)
    ]
    return random_bundle(shape, draw(st.integers(1, 50)), modalities, draw(st.integers(0, 999)))


@pytest.mark.parametrize("label", ENGINES)
@settings(max_examples=15, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])
@given(bundle=models(), seed=st.integers(0, 999), lost=st.sampled_from([0.0, 0.1, 0.5, 0.95]))
def test_step_equals_batch(label, bundle, seed, lost):
    counts, present = spikes(seed, 90, len(bundle.manifest.units), lost)
    engine = open_engine(label, bundle)
    assert_equals_reference(engine, run(engine, counts, present), bundle, counts, present)


@pytest.mark.parametrize("label", ENGINES)
def test_step_of_full_size_equals_batch(label):
    shape = Shape(hidden=128, layers=5, heads=8, mlp=512, window=100, conv=5, recurrent=True)
    bundle = random_bundle(shape, 600, [WHEEL, HEADING, CHOICE], seed=3)
    counts, present = spikes(4, 260, 600, lost=0.05)
    engine = open_engine(label, bundle)
    assert_equals_reference(engine, run(engine, counts, present), bundle, counts, present)


# Hidden width, heads, inner width, units, window: none a multiple of a vector's width, widths from
# 64 to 512, products longer than 512 inputs, which int8 weights sum in parts.
SIZES = [(64, 4, 129, 100, 25), (90, 3, 77, 601, 33), (200, 5, 513, 1003, 50),
         (250, 5, 1100, 97, 31), (512, 8, 1024, 4000, 40)]


@pytest.mark.parametrize("label", NATIVE)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(label, size):
    hidden, heads, mlp, units, window = size
    shape = Shape(hidden, layers=1, heads=heads, mlp=mlp, window=window, conv=5, recurrent=True)
    bundle = random_bundle(shape, units, [WHEEL, CHOICE], seed=8)
    counts, present = spikes(9, window + 15, units)
    engine = open_engine(label, bundle)
    assert_equals_reference(engine, run(engine, counts, present), bundle, counts, present)


@pytest.mark.parametrize("precision", NativeEngine.precisions)
def test_instruction_sets_agree(precision):
    """What one rounds, the others round alike, so that they differ by float32's sums alone."""
    shape = Shape(hidden=90, layers=3, heads=3, mlp=77, window=33, conv=5, recurrent=True)
    bundle = random_bundle(shape, 101, [WHEEL, CHOICE], seed=11)
    counts, present = spikes(12, 120, 101)
    found = [run(open_engine(label, bundle), counts, present) for label in NATIVE
             if f":{precision}@" in label]
    for other in found[1:]:
        assert_close(other, found[0], 1e-5 if precision == "float32" else 5e-3)


@pytest.mark.parametrize("label", NATIVE)
def test_numbers_that_overflow_are_told(label, bundle):
    """A decode must not look sound after infinities: integers have no word for them."""
    weights = bundle.weights | {"input.weight": np.full_like(bundle.weights["input.weight"], 1e36)}
    engine = open_engine(label, type(bundle)(bundle.manifest, weights))
    counts = np.full(20, 60000, np.uint16)
    assert np.isfinite(engine.step(counts * 0)).all()
    assert not np.isfinite(engine.step(counts)).any()


def test_rows_of_zeros_and_tiny_rows_are_stored(bundle):
    tiny = np.float32(1e-42)
    weights = {n: w * tiny if is_stored(n, w) else w for n, w in bundle.weights.items()}
    weights["input.weight"] = np.zeros_like(weights["input.weight"])
    engine = load_engine("native:int8", type(bundle)(bundle.manifest, weights))
    assert np.isfinite(run(engine, *spikes(0, 12, 20))).all()


@functools.cache
def ten_thousand_bins(precision):
    """A bundle, its input, and the outputs of the reference on the weights as they are stored."""
    shape = Shape(hidden=24, layers=2, heads=3, mlp=40, window=17, conv=5, recurrent=True)
    bundle = random_bundle(shape, 30, [WHEEL, CHOICE], seed=5)
    counts, present = spikes(6, 10_400, 30, lost=0.02)
    present[3000:3010] = False
    present[7000:7200] = False  # longer than the receptive field
    expected = run_reference(stored(bundle, precision), counts, present, chunk=200)
    return bundle, counts, present, expected


@pytest.mark.parametrize("label", ENGINES)
def test_ten_thousand_consecutive_bins(label):
    precision = label.partition(":")[2].partition("@")[0] or "float32"
    bundle, counts, present, expected = ten_thousand_bins(precision)
    assert_close(run(open_engine(label, bundle), counts, present), expected, TOLERANCE[precision])


@pytest.fixture(scope="module", params=[True, False], ids=["gru", "no-gru"])
def bundle(request):
    shape = Shape(hidden=32, layers=2, heads=2, mlp=48, window=9, conv=3, recurrent=request.param)
    return random_bundle(shape, 20, [WHEEL, CHOICE], seed=1)


@pytest.fixture(params=ENGINES)
def engine(request, bundle):
    return open_engine(request.param, bundle)


def test_attributes(engine, bundle):
    assert (engine.n_units, engine.n_outputs) == (20, 5)
    assert engine.precision in type(engine).precisions
    assert engine.name in ("native", "onnx")


@pytest.mark.parametrize("n_lost", [0, 1, 2, 3, 4, 8, 9, 10, 50, 300])
def test_skip_equals_lost_steps(engine, n_lost):
    counts, _ = spikes(0, 40, 20)
    everything = np.ones(len(counts), bool)
    run(engine, counts[:15], everything[:15])
    for _ in range(n_lost):
        engine.step(counts[0], False)
    expected = run(engine, counts[15:], everything[15:])
    engine.reset()
    run(engine, counts[:15], everything[:15])
    engine.skip(n_lost)
    found = run(engine, counts[15:], everything[15:])
    if engine.name == "native":
        assert np.array_equal(found, expected)
    else:  # skips by other code than it steps
        assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("conv", [0, 1, 2, 5])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("label", ENGINES)
def test_skip_in_parts_equals_the_reference(label, recurrent, conv):
    shape = Shape(hidden=12, layers=1, heads=2, mlp=9, window=6, conv=conv, recurrent=recurrent)
    bundle = random_bundle(shape, 7, [WHEEL], seed=conv)
    counts, _ = spikes(3, 60, 7)
    present = np.ones(60, bool)
    present[20:21] = present[24:26] = present[28:35] = present[36:50] = False
    engine, found = open_engine(label, bundle), np.zeros((60, 2))
    for t in range(60):
        if present[t]:
            found[t] = engine.step(counts[t])
        else:
            engine.skip(1)
    expected = run_reference(stored(bundle, engine.precision), counts, present)[present]
    assert_close(found[present], expected, TOLERANCE[engine.precision])


def test_lost_counts_are_never_read(engine):
    counts, present = spikes(0, 40, 20, lost=0.4)
    expected = run(engine, counts, present)
    engine.reset()
    counts[~present] = 777
    assert np.array_equal(run(engine, counts, present), expected)


def test_warm_changes_nothing(engine):
    counts, present = spikes(1, 60, 20, lost=0.3)
    expected = run(engine, counts, present)
    engine.reset()
    engine.warm()
    found = []
    for c, p in zip(counts, present, strict=True):
        outputs = engine.step(c, bool(p))
        before = outputs.copy()
        engine.warm()
        engine.warm()
        assert np.array_equal(outputs, before)
        found.append(before)
    assert np.array_equal(found, expected)


def test_warm_before_skip_changes_nothing(engine):
    counts, _ = spikes(1, 30, 20)
    everything = np.ones(30, bool)
    run(engine, counts[:10], everything[:10])
    engine.skip(4)
    expected = run(engine, counts[10:], everything[10:])
    engine.reset()
    run(engine, counts[:10], everything[:10])
    engine.warm()
    engine.skip(4)
    assert np.array_equal(run(engine, counts[10:], everything[10:]), expected)


def test_reset_forgets_everything(engine):
    counts, present = spikes(2, 30, 20)
    expected = run(engine, counts, present)
    run(engine, *spikes(3, 25, 20))
    engine.reset()
    assert np.array_equal(run(engine, counts, present), expected)


def test_far_position_keeps_its_phase(engine):
    """Rotary positions are relative, and a GRU without spikes comes to rest: hours are as days."""
    counts, present = spikes(7, 30, 20)
    engine.skip(5000)
    expected = run(engine, counts, present)
    engine.reset()
    engine.skip(50 * 3600 * 48)
    assert_close(run(engine, counts, present), expected, TOLERANCE[engine.precision])


def test_attends_to_nothing_when_all_is_lost(engine, bundle):
    counts, _ = spikes(0, 12, 20)
    lost = np.zeros(12, bool)
    found = run(engine, counts, lost)
    assert_equals_reference(engine, found, bundle, counts, lost)
    assert np.array_equal(found[0], found[-1])


def test_fullest_counts_are_finite(engine):
    counts = np.full((12, 20), 65535, np.uint16)
    assert np.isfinite(run(engine, counts, np.arange(12) % 4 > 0)).all()


@pytest.mark.parametrize("n_units", [0, 19, 21])
def test_refuses_other_unit_counts(engine, n_units):
    with pytest.raises(ValueError, match="counts"):
        engine.step(np.zeros(n_units, np.uint16))


def test_refuses_negative_skip(engine):
    with pytest.raises(ValueError, match="n_bins"):
        engine.skip(-1)


def test_native_refuses_another_dtype(bundle):
    engine = load_engine("native", bundle)
    for dtype in (np.int64, np.float32, np.int16):
        with pytest.raises(TypeError):
            engine.step(np.zeros(20, dtype))
    with pytest.raises(TypeError):
        engine.step(np.zeros(40, np.uint16)[::2])


def test_native_outputs_cannot_be_written(bundle):
    outputs = load_engine("native", bundle).step(np.zeros(20, np.uint16))
    with pytest.raises(ValueError, match="read-only"):
        outputs[0] = 1.0


def test_outputs_outlive_the_engine(bundle):
    engine = load_engine("native", bundle)
    outputs = engine.step(np.ones(20, np.uint16))
    expected = outputs.copy()
    del engine
    assert np.array_equal(outputs, expected)


def test_unknown_isa_and_engine(bundle, monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    with pytest.raises(BadInput, match="NEDS_ISA: found 'mmx'"):
        load_engine("native", bundle)
    with pytest.raises(BadInput, match="native, onnx"):
        load_engine("fast", bundle)
    with pytest.raises(BadInput, match="found 'int4', expected one of float32"):
        load_engine("native:int4", bundle)
    with pytest.raises(BadInput, match="precision: found 'native:'"):
        load_engine("native:", bundle)
    with pytest.raises(BadInput, match="importable"):
        load_engine("no_such_module:Engine", bundle)


def test_engine_by_import_string(bundle):
    name = "neds_rt.engines.native:NativeEngine"
    assert load_engine(name, bundle).name == "native"
    assert load_engine(f"{name}:fp32", bundle).precision == "float32"
    with pytest.raises(BadInput, match="NativeEngine precision: found 'int4'"):
        load_engine(f"{name}:int4", bundle)


def test_engine_without_precisions_is_refused(bundle):
    with pytest.raises(BadInput, match="found no precisions"):
        load_engine("collections:OrderedDict", bundle)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("native", ("native", "")), ("native:int8", ("native", "int8")), ("a.b:C", ("a.b:C", "")),
     ("a.b:C:bf16", ("a.b:C", "bf16"))],
)
def test_parse_engine(text, expected):
    assert parse_engine(text) == expected


@pytest.mark.parametrize("text", ["", "fast", ":x", "a.b:", "a.b::bf16", "native:", "a.b:C:"])
def test_parse_engine_refuses(text):
    with pytest.raises(BadInput, match="--engine"):
        parse_engine(text)


def core_arguments(bundle):
    shape, manifest = bundle.manifest.shape, bundle.manifest
    return {
        "units": len(manifest.units), "hidden": shape.hidden, "layers": shape.layers,
        "heads": shape.heads, "mlp": shape.mlp, "window": shape.window, "conv": shape.conv,
        "recurrent": shape.recurrent, "rope_base": shape.rope_base, "weights": dict(bundle.weights),
        "modalities": [(m.n_outputs, m.kind == "categorical") for m in manifest.modalities],
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("units", 0), ("units", 21), ("hidden", 31), ("hidden", -2), ("layers", 3), ("layers", 0),
     ("heads", 0), ("heads", 5), ("mlp", 0), ("mlp", 49), ("window", 0), ("window", 1 << 30),
     ("conv", -1), ("conv", 2), ("rope_base", 0.0), ("rope_base", float("nan")),
     ("modalities", []), ("modalities", [(0, False)]), ("modalities", [(4, False)]),
     ("precision", "int4"), ("isa", "mmx")],
)
def test_core_checks_sizes_by_itself(bundle, field, value):
    arguments = core_arguments(bundle) | {field: value}
    with pytest.raises(ValueError, match="expected"):
        _core.StepEngine(**arguments)


def test_core_checks_tensors_by_itself(bundle):
    arguments = core_arguments(bundle)
    for bad in (np.zeros(3, np.float32), np.zeros(32), np.zeros(64, np.float32)[::2]):
        weights = arguments["weights"] | {"norm.bias": bad}
        with pytest.raises(ValueError, match=r"norm\.bias"):
            _core.StepEngine(**(arguments | {"weights": weights}))
    del arguments["weights"]["input.lost"]
    with pytest.raises(ValueError, match=r"input\.lost: found nothing"):
        _core.StepEngine(**arguments)


def test_core_wants_the_tensors_of_its_gru(bundle):
    arguments = core_arguments(bundle)
    del arguments["weights"]["norm.bias"]
    arguments["recurrent"] = True
    missing = r"norm\.bias" if bundle.manifest.shape.recurrent else r"gru\.weight_ih"
    with pytest.raises(ValueError, match=missing + ": found nothing"):
        _core.StepEngine(**arguments)


def remade(bundle, **files):
    manifest = bundle.manifest
    return make_bundle(
        session="s", subject="a", bin_size_s=0.02, shape=manifest.shape, units=manifest.units,
        modalities=manifest.modalities, weights=bundle.weights,
        files={name.replace("_", "."): data for name, data in files.items()},
    )


def test_onnx_runs_the_bundled_graph(bundle):
    from neds_rt.engines.onnx_graph import build_step_graph

    other = random_bundle(bundle.manifest.shape, 20, bundle.manifest.modalities, seed=2)
    bundled = remade(bundle, model_onnx=build_step_graph(other.manifest, other.weights))
    counts, present = spikes(0, 12, 20)
    found = run(load_engine("onnx", bundled), counts, present)
    assert np.array_equal(found, run(load_engine("onnx", other), counts, present))


def test_onnx_refuses_a_damaged_graph(bundle):
    with pytest.raises(BadInput, match=r"model\.onnx"):
        load_engine("onnx", remade(bundle, model_onnx=b"not a graph"))


def test_onnx_refuses_the_graph_of_another_model(bundle):
    from neds_rt.engines.onnx_graph import build_step_graph

    other = random_bundle(bundle.manifest.shape, 21, bundle.manifest.modalities, seed=2)
    graph = build_step_graph(other.manifest, other.weights)
    with pytest.raises(BadInput, match=r"counts: found \('tensor\(float\)', \[21\]\)"):
        load_engine("onnx", remade(bundle, model_onnx=graph))
