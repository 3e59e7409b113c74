"""Sessions that are not one long, fully known recording: trials, gaps, unknown behaviours, none."""

import warnings
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from neds.baselines import BASELINES, fit, sequence
from neds.checkpoint import CHECKPOINT_SCHEMA, CheckpointInfo, created_by
from neds.config import DataConfig, MaskingConfig, ModelConfig, RunConfig, TrainConfig
from neds.data.session import Behaviour, Counts, Session, Units
from neds.dataset import describe, match, to_recording
from neds.evaluate import decode_last_bins, decode_part, decode_rows, evaluate
from neds.export import export, parity_report
from neds.train import train
from neds_rt.bundle import read_bundle
from neds_rt.errors import BadInput
from tests.neds.conftest import BIN_S, make_session
from tests.neds.planted import TINY

CONFIG = RunConfig(
    data=DataConfig(bin_size_s=BIN_S, fractions=(0.6, 0.2, 0.2)),
    model=ModelConfig(hidden=16, layers=2, heads=2, mlp=16, window=10, conv=3),
    train=TrainConfig(steps=6, batch=4, bins=20, validate_every=3),
)


def trials(n=60, length=8, pause=12, side_known=0.7, units=5):
    """Short runs of bins; one label a trial, unknown on some; an angle known in half of each."""
    rng = np.random.default_rng(0)
    first = np.arange(n) * (length + pause)
    bins = (first[:, None] + np.arange(length)).ravel()
    side = rng.integers(0, 2, n).astype(float)
    side[rng.random(n) > side_known] = np.nan
    angle = rng.uniform(-3, 3, len(bins))
    angle[bins % (length + pause) < length // 2] = np.nan
    behaviours = {
        "side": Behaviour(kind="categorical", timestamps=first * BIN_S, values=side,
                          classes=("left", "never", "right"), gaps=True),
        "heading": Behaviour(kind="circular", timestamps=(bins + 1) * BIN_S, values=angle,
                             gaps=True),
    }
    counts = rng.poisson(1.0, (len(bins), units))
    return Session(session="trials", spikes=Counts(counts=counts, bin=bins, bin_size_s=BIN_S),
                   units=Units.of(units), behaviours=behaviours)


def unknown_from(share):
    """A session whose velocity and choice are unknown after a share of its time."""
    session = make_session(bins=600)
    cut = {}
    for name in ("velocity", "choice"):
        behaviour = session.behaviours[name]
        values = behaviour.values.copy()
        values[int(share * len(values)) :] = np.nan
        cut[name] = replace(behaviour, values=values, gaps=True)
    return replace(session, behaviours=cut)


def prepared(session, config=CONFIG):
    binned, state = describe(session, config.data, config.model.window)
    return to_recording(binned, state)


def info_of(recording, config=CONFIG):
    return CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config, [recording.state], 1, {})


@pytest.mark.parametrize("form", ["stream", "window"])
def test_trials_train_and_evaluate(form):
    model = msgspec.structs.replace(CONFIG.model, form=form, window=20)
    data = msgspec.structs.replace(CONFIG.data, fractions=(0.5, 0.25, 0.25))
    config = msgspec.structs.replace(CONFIG, model=model, data=data)
    recording = prepared(trials(), config)
    assert len(recording.runs_within("test")) == 15
    result = train(config, [recording], progress=False)
    scores = evaluate(result.model, recording, "test")
    assert set(scores) == {"side", "heading", "spikes"}
    assert all(np.isfinite(v) for row in scores.values() for v in row.values())


def test_the_last_bin_of_a_window_does_not_know_what_comes_after():
    model = msgspec.structs.replace(CONFIG.model, form="window", window=20)
    config = msgspec.structs.replace(CONFIG, model=model)
    recording = prepared(make_session(bins=600), config)
    trained = train(config, [recording], progress=False).model
    (first, stop), = recording.runs_within("test")
    at = [b.name for b in recording.state.behaviours].index("velocity")
    lasts = decode_last_bins(trained, recording, "test")[at]
    assert lasts.shape == (stop - first, 2)
    whole = decode_part(trained, recording, "test")[at][1]
    # A bin that ends one of the windows side by side is the same there; the others are not.
    np.testing.assert_allclose(lasts[19:60:20], whole[19:60:20], atol=1e-5)
    assert np.abs(lasts[20:38] - whole[20:38]).max() > 1e-3
    # The first bin has itself alone, as the first bin of a run of one.
    np.testing.assert_allclose(lasts[0], decode_rows(trained, recording, first, first + 1)[at][0],
                               atol=1e-5)
    recording.counts[first + 50 :] = 0
    np.testing.assert_array_equal(decode_last_bins(trained, recording, "test")[at][:50], lasts[:50])


def test_the_window_form_sees_a_short_run_as_it_was_trained_on():
    model = msgspec.structs.replace(CONFIG.model, form="window", window=20)
    data = msgspec.structs.replace(CONFIG.data, fractions=(0.5, 0.25, 0.25))
    config = msgspec.structs.replace(CONFIG, model=model, data=data)
    recording = prepared(trials(), config)
    net = train(config, [recording], progress=False).model
    first, stop = recording.runs_within("test")[0]
    counts = torch.zeros(1, 20, 5)
    counts[0, :8] = recording.counts[first:stop]
    hidden = torch.ones(1, 20, dtype=torch.bool)
    hidden[0, :8] = False
    with torch.inference_mode():
        blank = [torch.zeros(1, 20, e.shape[1]) for e in recording.encoded]
        absent = hidden[:, None].repeat(1, 3, 1)  # nothing sees what was never recorded
        absent[:, 1:, :8] = ~recording.known[:, first:stop]
        _, outputs = net(["trials"], counts, blank, hidden,
                         torch.ones(1, 2, 20, dtype=torch.bool), absent=absent)
    decoded = decode_rows(net, recording, first, stop)
    np.testing.assert_allclose(decoded[1], outputs[1][0, :8].numpy(), atol=1e-5)


def test_trials_export_with_parity_over_many_runs(tmp_path):
    recording = prepared(trials())
    result = train(CONFIG, [recording], progress=False)
    path = tmp_path / "trials.neds"
    manifest = export(result.model, info_of(recording), recording, path, behaviours=[],
                      graphs=["step"])
    assert manifest.parity["bins"] == 12 * 8  # every trial of the test part, each from a reset
    assert manifest.modalities[0].classes == ["left", "never", "right"]
    assert parity_report(result.model, recording, read_bundle(path))["native"]["max"] <= 1e-4


@pytest.fixture
def tiny(monkeypatch):
    """Baselines that train for a few steps."""
    monkeypatch.setattr(sequence, "for_budget", lambda recipe, budget: TINY)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.usefixtures("tiny")
def test_baselines_see_trials_and_unknown_labels(name):
    recording = prepared(trials())
    fitted = fit(name, [recording], seed=0, budget="quick")
    if BASELINES[name].direction == "decoding":
        assert [p.shape for p in fitted.decode_part(recording, "test")] == [(96, 3), (96, 2)]
    else:
        assert fitted.encode_part(recording, "test").shape == (96, 5)


@pytest.mark.usefixtures("tiny")
def test_a_behaviour_unknown_after_training_gives_no_score_and_no_warning():
    recording = prepared(unknown_from(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(CONFIG, [recording], progress=False)
        scores = evaluate(result.model, recording, "test")
        for name in BASELINES:
            fit(name, [recording], seed=0, budget="quick")
    assert np.isnan(scores["velocity"]["r2"])
    assert np.isnan(scores["choice"]["accuracy"])
    assert result.best_score is None
    assert result.best_step == CONFIG.train.steps  # nothing to choose by: the newest weights


def test_a_behaviour_unknown_in_training_is_named():
    session = unknown_from(0.0)
    with pytest.raises(BadInput, match=r"made: behaviour velocity: .*--behaviours"):
        prepared(session)


@pytest.mark.usefixtures("tiny")
def test_a_batch_that_asks_for_nothing_known_changes_nothing():
    # Decoding only, the behaviours known in the first bins alone: most batches have no target.
    masking = MaskingConfig(encoding=0, decoding=1, self_spike=0, self_behaviour=0, random_token=0)
    config = msgspec.structs.replace(CONFIG, masking=masking)
    recording = prepared(unknown_from(0.02), config)
    train(config, [recording], progress=False)
    for name in BASELINES:
        fit(name, [recording], seed=0, budget="quick")


def test_a_session_without_behaviours_trains_and_is_not_exported(tmp_path):
    session = replace(make_session(bins=600), behaviours={})
    recording = prepared(session)
    result = train(CONFIG, [recording], progress=False)
    assert set(evaluate(result.model, recording, "test")) == {"spikes"}
    with pytest.raises(BadInput, match="behaviours: found none"):
        export(result.model, info_of(recording), recording, tmp_path / "x.neds", behaviours=[],
               graphs=[])
    with pytest.raises(BadInput, match="behaviours: found none"):
        fit("gru", [recording], seed=0)
    assert list(tmp_path.iterdir()) == []


def test_two_sessions_train_together_and_one_twice_is_refused():
    a, b = prepared(make_session(bins=600)), prepared(trials())
    result = train(CONFIG, [a, b], progress=False)
    assert np.isfinite(evaluate(result.model, b, "test")["heading"]["circular_r2"])
    with pytest.raises(BadInput, match="made: session: found given twice"):
        train(CONFIG, [a, a], progress=False)


def test_a_loss_that_is_not_finite_ends_the_training():
    knobs = msgspec.structs.replace(CONFIG.train, learning_rate=1e30, warmup=0.0, steps=50)
    config = msgspec.structs.replace(CONFIG, train=knobs)
    with pytest.raises(BadInput, match=r"training: loss at step \d+: .*learning_rate"):
        train(config, [prepared(make_session(bins=600))], progress=False)


def test_a_session_that_is_not_the_trained_one_is_refused():
    session = make_session(bins=600)
    state = prepared(session).state
    with pytest.raises(BadInput, match="bins: found 640, expected 600"):
        match(make_session(bins=640), state, BIN_S)
    width = session.behaviours["velocity"].values[:, :1]
    narrow = replace(session.behaviours["velocity"], values=width)
    other = replace(session, behaviours={**session.behaviours, "velocity": narrow})
    with pytest.raises(BadInput, match="behaviour velocity: found continuous x 1"):
        match(other, state, BIN_S)


def test_behaviours_named_twice_are_refused():
    data = msgspec.structs.replace(CONFIG.data, behaviours=["choice", "choice"])
    with pytest.raises(BadInput, match="each name once"):
        describe(make_session(bins=600), data, 10)
