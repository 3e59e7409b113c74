"""Training learns, repeats with its seed, and its predictions do not depend on how they are cut."""

import io
import json

import msgspec
import numpy as np
import pytest
import torch

from neds import evaluate as evaluation
from neds.batches import draw_rows
from neds.checkpoint import (
    CHECKPOINT_SCHEMA,
    CheckpointInfo,
    created_by,
    load_checkpoint,
    save_checkpoint,
)
from neds.config import load_recipe
from neds.dataset import describe, fit_bins, match, null_rates, to_recording
from neds.train import train
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session


def test_a_short_training_decodes_and_encodes(trained):
    _, _, recording, result = trained
    scores = evaluation.evaluate(result.model, recording, "test")
    assert scores["velocity"]["r2"] > 0.3
    assert scores["choice"]["balanced_accuracy"] > 0.65
    assert scores["heading"]["circular_r2"] > 0.2
    assert scores["spikes"]["bps_neuron_mean"] > 0.05


def test_training_repeats_with_its_seed_and_logs_each_validation(small_config):
    binned, state = describe(make_session(), small_config.data, 20)
    recording = to_recording(binned, state)
    knobs = msgspec.structs.replace(small_config.train, steps=6, validate_every=3)
    config = msgspec.structs.replace(small_config, train=knobs)
    log = io.StringIO()
    first = train(config, [recording], log, progress=False)
    again = train(config, [recording], progress=False)
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]


def test_chunked_prediction_equals_one_pass(trained, monkeypatch):
    _, _, recording, result = trained
    first, stop = recording.part("test")
    whole = evaluation.decode_rows(result.model, recording, first, stop)
    monkeypatch.setattr(evaluation, "CHUNK", 37)
    for a, b in zip(whole, evaluation.decode_rows(result.model, recording, first, stop),
                    strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_scalers_and_null_rates_see_the_training_part_only(small_config):
    session = make_session()
    _, state = describe(session, small_config.data, 20)
    binned = session.binned(0.05)
    train_rows = slice(*state.split["train"])
    np.testing.assert_allclose(
        state.behaviours[0].mean, binned.values["velocity"][train_rows].mean(0), atol=1e-6)
    np.testing.assert_allclose(state.null_rates, binned.counts[train_rows].mean(0))
    gaps = [state.split["val"][0] - state.split["train"][1],
            state.split["test"][0] - state.split["val"][1]]
    assert gaps == [20, 20]
    assert state.split["test"] == [1200, 1500]


def test_sequences_never_cross_a_gap(small_config):
    session = make_session(gap=True)
    binned, state = describe(session, small_config.data, 20)
    recording = to_recording(binned, state)
    rows, there = draw_rows(recording, 64, 40, torch.Generator().manual_seed(0))
    assert there.all()
    assert rows.shape == (64, 40)
    allowed = {s for a, b in recording.runs_within("train") for s in range(a, b - 39)}
    assert set(rows[:, 0].tolist()) <= allowed
    assert torch.equal(rows - rows[:, :1], torch.arange(40).expand(64, 40))


def test_a_checkpoint_comes_back_equal(trained, tmp_path):
    config, session, recording, result = trained
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 7, {})
    save_checkpoint(tmp_path / "ckpt", result.model, info)
    save_checkpoint(tmp_path / "ckpt", result.model, info)  # replacing is fine too
    model, read = load_checkpoint(tmp_path / "ckpt")
    assert read == info
    for a, b in zip(model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert match(session, read.sessions[0], 0.05).counts.shape == recording.counts.shape
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt"]


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    config, _, recording, result = trained
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 7, {})
    save_checkpoint(tmp_path / "ckpt", result.model, info)
    weights = tmp_path / "ckpt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        load_checkpoint(tmp_path / "ckpt")
    (tmp_path / "ckpt" / "checkpoint.json").write_text("{}")
    with pytest.raises(BadInput, match=r"checkpoint\.json"):
        load_checkpoint(tmp_path / "ckpt")
    with pytest.raises(BadInput, match="neds train"):
        load_checkpoint(tmp_path / "nothing")


def test_another_session_is_refused(trained):
    _, _, recording, _ = trained
    with pytest.raises(BadInput, match="units"):
        match(make_session(units=9), recording.state, 0.05)


def test_an_unknown_behaviour_is_refused(small_config):
    data = msgspec.structs.replace(small_config.data, behaviours=["wheel"])
    with pytest.raises(BadInput, match="wheel"):
        describe(make_session(), data, 20)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.depht=3", "depht"),
        ("model.heads=3", "model.heads"),
        ("model.form='other'", "model.form"),
        ("masking.encoding=0.9", "masking"),
        ("train.steps=0", "train.steps"),
        ("nonsense", "nonsense"),
        ("data.fractions=[0.5,0.5,0.5]", "data.fractions"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(override, named):
    with pytest.raises(BadInput, match=named):
        load_recipe("smoke", [override])


def test_recipes_load(tmp_path):
    assert load_recipe("smoke", ["train.seed=5"]).train.seed == 5
    assert load_recipe("single").model.form == "stream"
    with pytest.raises(BadInput, match="recipe"):
        load_recipe("no-such-recipe")
    with pytest.raises(BadInput, match=r"x\.toml"):
        load_recipe(str(tmp_path / "x.toml"))


def test_a_unit_silent_in_training_is_given_one_spike_as_its_null():
    counts = np.zeros((100, 2), np.uint16)
    counts[::2, 0] = 1
    np.testing.assert_allclose(null_rates(counts), [0.5, 0.01])


def test_a_recipe_is_fitted_to_the_bins_of_a_binned_recording():
    session = make_session()  # bins of 50 ms
    recipe = load_recipe("single")
    fitted = fit_bins(recipe, session)
    assert fitted.data.bin_size_s == 0.05
    assert (recipe.model.window, fitted.model.window) == (75, 30)
    assert (recipe.train.bins, fitted.train.bins) == (150, 60)
    assert fit_bins(fitted, session) == fitted
    window = load_recipe("single", ["model.form=window", "model.window=150"])
    assert fit_bins(window, session).train.bins == fit_bins(window, session).model.window
