"""Export: what the engines compute from a bundle is what torch predicts."""

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from neds.checkpoint import CHECKPOINT_SCHEMA, CheckpointInfo, created_by
from neds.evaluate import decode_part
from neds.export import BatchDecoder, export, fold_weights
from neds_rt.bundle import ModalityOut, Shape, random_bundle, read_bundle
from neds_rt.engine_parity import engine_parities
from neds_rt.engines import load_engine
from neds_rt.errors import BadInput


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    config, _, recording, result = trained
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 7, {})
    path = tmp_path_factory.mktemp("bundle") / "made.neds"
    manifest = export(result.model, info, recording, path, behaviours=[],
                      graphs=["step", "window"])
    return path, manifest


@pytest.mark.parametrize("engine_name", ["native", "onnx"])
def test_engines_reproduce_the_evaluated_predictions(trained, exported, engine_name):
    _, _, recording, result = trained
    engine = load_engine(engine_name, read_bundle(exported[0]))
    first, stop = recording.part("test")
    counts = recording.counts[first:stop].numpy().astype(np.uint16)
    found = np.stack([engine.step(row).copy() for row in counts])
    expected = np.concatenate([p for _, p in decode_part(result.model, recording, "test")], 1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_bundle_says_what_it_is(trained, exported):
    _, _, recording, _ = trained
    path, manifest = exported
    assert [m.name for m in manifest.modalities] == ["velocity", "choice", "heading"]
    assert [m.n_outputs for m in manifest.modalities] == [2, 2, 2]
    assert manifest.modalities[1].classes == ["left", "right"]
    assert len(manifest.modalities[0].sd) == 2
    assert manifest.units == recording.state.units
    assert manifest.parity["native"]["max"] <= 1e-4
    assert manifest.parity["onnx"]["max"] <= 1e-4
    precisions = engine_parities(manifest, path)
    assert [(p.engine, p.precision) for p in precisions] == [
        ("native", "float32"), ("native", "bf16"), ("native", "int8")]
    assert precisions[0].max <= 1e-4 < precisions[1].max < precisions[2].max < 0.2
    assert set(precisions[2].score_change) == {"velocity", "choice", "heading"}
    assert abs(precisions[0].score_change["velocity"]) < 1e-5
    assert set(read_bundle(path).files) == {"model.onnx", "window.onnx"}


def test_the_window_graph_equals_the_batch_form(trained, exported):
    import onnxruntime

    _, _, recording, _ = trained
    bundle = read_bundle(exported[0])
    window = bundle.manifest.shape.window
    counts = recording.counts[None, :window].float()
    lost = torch.zeros(1, window, dtype=torch.bool)
    lost[0, 3:6] = True
    session = onnxruntime.InferenceSession(bundle.files["window.onnx"],
                                           providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"counts": counts.numpy(), "lost": lost.numpy()})
    with torch.inference_mode():
        expected = BatchDecoder(bundle)(counts, lost).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_behaviour_subset_is_read_from_the_same_tokens(trained, tmp_path):
    config, _, recording, result = trained
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 7, {})
    path = tmp_path / "one.neds"
    manifest = export(result.model, info, recording, path, behaviours=["heading"], graphs=["step"])
    assert [m.name for m in manifest.modalities] == ["heading"]
    weights, whole = read_bundle(path).weights, fold_weights(result.model, recording.state, [])
    assert weights["head.weight"].shape == (2, 32)
    for name in ("input.token", "input.lost", "gru.weight_hh"):
        np.testing.assert_array_equal(weights[name], whole[name])
    with pytest.raises(BadInput, match="wheel"):
        export(result.model, info, recording, path, behaviours=["wheel"], graphs=[])


@pytest.mark.parametrize(("field", "value"), [("tokens", "separate"), ("inputs", "sqrt"),
                                              ("attend", "all"), ("form", "window")])
def test_another_form_of_the_model_is_refused(trained, tmp_path, field, value):
    config, _, recording, result = trained
    config = replace(config, model=replace(config.model, **{field: value}))
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 7, {})
    with pytest.raises(BadInput, match=rf"model\.{field}: found '{value}'"):
        export(result.model, info, recording, tmp_path / "x.neds", behaviours=[], graphs=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("conv", [0, 5])
@pytest.mark.parametrize("window", [1, 7, 40])
def test_torch_batch_form_equals_native_step_with_lost_bins(window, conv, recurrent):
    """Streaming equals batch for random weights, windows and gaps."""
    modalities = [ModalityOut("velocity", "continuous", 2, sd=[1.0, 1.0]),
                  ModalityOut("choice", "categorical", 3, classes=["a", "b", "c"])]
    shape = Shape(hidden=24, layers=3, heads=3, mlp=40, window=window, conv=conv,
                  recurrent=recurrent)
    bundle = random_bundle(shape, 9, modalities, seed=window)
    rng = np.random.default_rng(window)
    counts = rng.poisson(0.7, (150, 9)).astype(np.uint16)
    lost = rng.random(150) < 0.2
    lost[60 : 60 + 2 * window] = True
    with torch.inference_mode():
        expected = BatchDecoder(bundle).eval()(
            torch.from_numpy(counts.astype(np.float32))[None], torch.from_numpy(lost)[None]
        )[0].numpy()
    for name in ("native", "onnx"):
        engine = load_engine(name, bundle)
        found = np.stack([engine.step(c, not gone).copy()
                          for c, gone in zip(counts, lost, strict=True)])
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
