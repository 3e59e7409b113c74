"""What is scored of a session: trials, spikes from spikes, regions, and nothing fitted on the part.
"""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from neds.data.session import Behaviour, Units
from neds.dataset import describe, match, to_recording
from neds.evaluate import encode_part
from neds.metrics import bits_per_spike
from neds.plots.session import draw_session
from neds.report import SessionReport, assemble, check_kinds, notes, unknown_bins
from neds.report_output import read_report, write_json
from neds.scoring import Settings, context, predict, score_all, units_by_region
from neds.spike_tasks import co_smooth_part, forecast_part, held_units
from neds.train import build_model
from neds.trials import constant_in_trials, trial_votes, trials_within
from neds_rt.errors import BadInput
from tests.neds.conftest import BIN_S, make_session
from tests.neds.test_odd_sessions import CONFIG
from tests.neds.test_odd_sessions import trials as aligned_trials

QUICK = Settings(replicates=40)
TRIAL_S, PAUSE_S = 1.0, 0.5


def with_trials(session, seed=0):
    """A trial of 20 bins every 30; a side that holds in each, unknown between trials."""
    rng = np.random.default_rng(seed)
    n = int(len(session.spikes.bin) * BIN_S / (TRIAL_S + PAUSE_S))
    start = np.arange(n) * (TRIAL_S + PAUSE_S)
    side = rng.integers(0, 2, n).astype(float)
    values = np.stack([side, np.full(n, np.nan)], 1).ravel()
    stamps = np.stack([start, start + TRIAL_S + 1e-3], 1).ravel()
    behaviour = Behaviour(kind="categorical", timestamps=stamps, values=values, gaps=True,
                          classes=("left", "right"))
    trials = {"start": start, "end": start + TRIAL_S, "choice": side,
              "reward": rng.choice([0.0, 1.0, np.nan], n, p=[0.4, 0.5, 0.1])}
    regions = ["CA1"] * 5 + ["DG"] * (session.n_units - 6) + [""]
    return replace(session, trials=trials, units=Units.of(session.n_units, region=regions),
                   behaviours={**session.behaviours, "side": behaviour})


@pytest.fixture(scope="module")
def tried():
    """(session, recording, model, context, predictions, scores, regions) with trials."""
    session = with_trials(make_session(bins=900))
    binned, state = describe(session, CONFIG.data, CONFIG.model.window)
    recording = to_recording(binned, state)
    model = build_model(CONFIG, [recording]).eval()
    at = context(recording, session.trials, BIN_S, QUICK)
    predictions = predict(model, recording, QUICK)
    return session, recording, model, at, predictions, *score_all(at, predictions)


def test_trials_are_those_wholly_inside_the_part(tried):
    session, recording, _, at, *_ = tried
    first, stop = recording.part("test")
    start = session.trials["start"]
    inside = (start >= first * BIN_S - 1e-9) & (start + TRIAL_S <= stop * BIN_S + 1e-9)
    assert len(at.trials) == inside.sum() == 6
    expected = np.rint(start[inside] / BIN_S).astype(int) - first
    np.testing.assert_array_equal(at.trials.extent, np.stack([expected, expected + 20], 1))
    np.testing.assert_array_equal(at.trials.aligned[2], expected[2] + np.arange(20))
    reward, choice = session.trials["reward"][inside], session.trials["choice"][inside]
    for c, r, index in zip(choice, reward, at.trials.condition, strict=True):
        assert index == -1 if np.isnan(r) else at.trials.labels[index] == (
            f"choice {c:g}, reward {r:g}")
    assert at.blocks == "trials"
    assert at.resampling.n_blocks in (6, 7)  # and the rows before the first trial


def test_stimulus_times_align_trials_as_the_reference_does(tried):
    session, recording, *_ = tried
    table = {**session.trials, "stimOn_times": session.trials["start"] + 0.2}
    trials = trials_within(table, recording, "test", BIN_S)
    assert trials.aligned.shape == (6, 40)
    assert trials.start_s == -0.5
    # The stimulus falls into bin 10, four bins after the trial's start.
    np.testing.assert_array_equal(trials.aligned[1:-1, 10], trials.extent[1:-1, 0] + 4)
    # The first trial's window begins before the part: those bins are unknown.
    taken = trials.take(np.arange(180.0)[:, None])[:, :, 0]
    before = 10 - 4 - trials.extent[0, 0]
    assert np.isnan(taken[0, :before]).all()
    np.testing.assert_array_equal(taken[0, before:], np.arange(40.0 - before))


def test_votes_are_of_the_bins_where_the_class_holds(tried):
    at, predictions = tried[3:5]
    truth, predicted = predictions.pairs[3]
    assert constant_in_trials(truth, at.trials)
    assert not constant_in_trials(predictions.pairs[1][0], at.trials)  # the trace's side, by bin
    assert not constant_in_trials(truth, None)
    codes, last, mean = trial_votes(truth, predicted, at.trials)
    a, b = at.trials.extent[1]
    known = a + np.flatnonzero(~np.isnan(truth[a:b, 0]))
    assert codes[1] == truth[known[-1], 0]
    np.testing.assert_allclose(last[1], predicted[known[-1]])
    np.testing.assert_allclose(mean[1], np.log(predicted[known]).mean(0), rtol=1e-5)


def test_every_task_is_scored(tried):
    *_, scores, regions = tried
    assert set(scores) == {
        "velocity", "choice", "heading", "side", "spikes", "spikes_from_velocity",
        "spikes_from_choice", "spikes_from_heading", "spikes_from_side", "co_smoothing",
        "forecasting"}
    assert {"r2", "correlation", "psth_r2"} == set(scores["velocity"])
    assert "trial_last_bin_accuracy" in scores["side"]
    assert "trial_last_bin_accuracy" not in scores["choice"]
    assert set(scores["spikes"]) == {"bps_neuron_mean", "bps_pooled", "bps_test_mean_null",
                                     "poisson_d2", "single_trial_r2", "psth_r2"}
    assert set(regions) == {"CA1", "DG"}  # a unit without a region belongs to none
    assert all(e.interval() for row in scores.values() for e in row.values())


def test_regions_are_scored_on_their_own_units(tried):
    _, recording, _, _, predictions, _, regions = tried
    units = units_by_region(recording)["CA1"]
    assert units.tolist() == [0, 1, 2, 3, 4]
    null = np.array(recording.state.null_rates)[units]
    expected = bits_per_spike(predictions.counts[:, units], predictions.rates[:, units], null)
    assert regions["CA1"]["bps_pooled"].value == pytest.approx(expected[1], abs=1e-6)


def test_one_behaviour_shown_hides_the_others(tried):
    _, recording, model, *_ = tried
    _, alone = encode_part(model, recording, "test", [0])
    others = [recording.encoded[0], *(torch.zeros_like(e) for e in recording.encoded[1:])]
    _, again = encode_part(model, replace(recording, encoded=others), "test", [0])
    np.testing.assert_array_equal(alone, again)
    assert not np.allclose(alone, encode_part(model, recording, "test")[1])


def test_co_smoothing_sees_neither_the_held_units_nor_the_bin(tried):
    _, recording, model, *_ = tried
    first, stop = recording.part("test")
    found = co_smooth_part(model, recording, "test", seed=3)
    held = held_units(12, 3)
    assert len(held) == 2
    np.testing.assert_array_equal(found.units, held)
    np.testing.assert_array_equal(found.counts, recording.counts[first:stop, held].numpy())
    counts = recording.counts.clone()
    counts[:, held] = 7
    again = co_smooth_part(model, replace(recording, counts=counts), "test", seed=3)
    np.testing.assert_array_equal(found.rates, again.rates)
    counts = recording.counts.clone()
    counts[first + 50] = 9
    moved = co_smooth_part(model, replace(recording, counts=counts), "test", seed=3).rates
    changed = np.flatnonzero(np.abs(moved - found.rates).max(1) > 1e-7)
    assert changed.size  # the others' spikes do matter
    assert changed.min() > 50  # later, not in the bin itself
    hidden = torch.zeros_like(recording.known)
    blind = replace(recording, encoded=[e * 0 + 5 for e in recording.encoded], known=hidden)
    np.testing.assert_array_equal(co_smooth_part(model, blind, "test", seed=3).rates, found.rates)


@pytest.mark.parametrize("form", ["stream", "window"])
def test_forecasts_come_from_the_past_alone(tried, form):
    _, recording, *_ = tried
    knobs = msgspec.structs.replace(CONFIG.model, form=form)
    model = build_model(msgspec.structs.replace(CONFIG, model=knobs), [recording]).eval()
    found = forecast_part(model, recording, "test", ahead=3)
    first, stop = recording.part("test")
    starts = list(range(0, stop - first - 10 + 1, 5))  # windows of 10, half a window apart
    np.testing.assert_array_equal(found.rows, [s + 7 + i for s in starts for i in range(3)])
    np.testing.assert_array_equal(found.counts, recording.counts[found.rows + first].numpy())
    counts = recording.counts.clone()
    counts[first + 7 :] = 9  # from the first forecast on
    future = forecast_part(model, replace(recording, counts=counts), "test", ahead=3)
    np.testing.assert_allclose(future.rates[:3], found.rates[:3], atol=1e-6)
    assert not np.allclose(future.rates[3:6], found.rates[3:6])


def test_forecasts_of_short_runs_and_of_none(tried):
    session = aligned_trials()  # runs of 8 bins
    binned, state = describe(session, CONFIG.data, CONFIG.model.window)
    recording = to_recording(binned, state)
    for form in ("stream", "window"):
        knobs = msgspec.structs.replace(CONFIG.model, form=form, window=20)
        model = build_model(msgspec.structs.replace(CONFIG, model=knobs), [recording]).eval()
        found = forecast_part(model, recording, "test", ahead=2)
        runs = len(recording.runs_within("test"))
        np.testing.assert_array_equal(
            found.rows, (np.arange(runs)[:, None] * 8 + [6, 7]).ravel())
        assert forecast_part(model, recording, "test", ahead=8) is None


def test_nothing_fitted_depends_on_the_scored_part(tried):
    session, recording, *_ = tried
    counts = session.spikes.counts.copy()
    first = recording.part("test")[0]
    counts[first:] = counts[first:][::-1] * 3
    behaviours = {}
    for name, b in session.behaviours.items():
        values = b.values.copy()
        late = b.timestamps > (first + 1) * BIN_S
        values[late] = values[late][::-1]
        behaviours[name] = replace(b, values=values)
    other = replace(session, spikes=replace(session.spikes, counts=counts), behaviours=behaviours)
    binned, state = describe(other, CONFIG.data, CONFIG.model.window)
    assert state == recording.state  # scalers, units, null rates, split
    at = context(to_recording(binned, state), other.trials, BIN_S, QUICK)
    np.testing.assert_array_equal(at.fast, tried[3].fast)  # units that R2 is over


def test_sessions_without_trials_have_no_psth_and_blocks_of_seconds(trained):
    _, session, recording, result = trained
    settings = Settings(replicates=20, block_s=2.0)
    at = context(recording, session.trials, BIN_S, settings)
    assert at.trials is None
    assert at.blocks == "seconds"
    assert at.resampling.n_blocks == np.ceil(300 * BIN_S / 2)
    scores, regions = score_all(at, predict(result.model, recording, settings))
    assert "psth_r2" not in scores["velocity"]
    assert "psth_r2" not in scores["spikes"]
    assert regions == {}
    assert any("PSTH" in note for note in notes(at))
    assert scores["spikes"]["bps_pooled"].value > 0.05
    assert scores["velocity"]["r2"].value > 0.3


def test_a_part_shorter_than_its_blocks_has_scores_without_intervals(trained):
    _, session, recording, result = trained
    settings = Settings(replicates=20, block_s=1000.0, tasks=("decoding",))
    at = context(recording, session.trials, BIN_S, settings)
    scores, _ = score_all(at, predict(result.model, recording, settings))
    assert all(np.isfinite(e.value) for row in scores.values() for e in row.values())
    assert all(e.interval() is None for row in scores.values() for e in row.values())
    assert "1 blocks: too few for intervals" in notes(at)


def test_conditions_can_be_named_and_an_unknown_column_is_refused(tried):
    session, recording, *_ = tried
    by_choice = trials_within(session.trials, recording, "test", BIN_S, ["choice"])
    assert set(by_choice.labels) == {"choice 0", "choice 1"}
    with pytest.raises(BadInput, match="--conditions: found 'contrast', expected start, end"):
        trials_within(session.trials, recording, "test", BIN_S, ["contrast"])


def test_unknown_constant_and_absent_are_noted(tried):
    session, recording, *_ = tried
    late = session.behaviours["velocity"].timestamps > recording.part("test")[0] * BIN_S
    values = session.behaviours["velocity"].values.copy()
    values[late] = 2.0
    values[-5:] = np.nan
    choice = session.behaviours["choice"].values.copy()
    choice[late] = 0
    other = replace(session, behaviours={
        **session.behaviours,
        "velocity": replace(session.behaviours["velocity"], values=values, gaps=True),
        "choice": replace(session.behaviours["choice"], values=choice),
    })
    again = match(other, recording.state, BIN_S)
    at = context(again, other.trials, BIN_S, QUICK)
    assert unknown_bins(again, "test")["velocity"] == 5
    assert "velocity: constant in the test part, no R2" in notes(at)
    assert "choice: no right in the test part" in notes(at)


def test_the_report_of_two_sessions_holds_means_and_each_session(tried):
    _, _, _, at, _, scores, regions = tried
    one = SessionReport.of(at, scores, regions)
    one.baselines["ridge"] = {"velocity": scores["velocity"]}
    single = assemble([one], QUICK, {"checkpoint": "run"})
    assert single["session"] == "made"
    assert single["bins"] == 180
    assert set(single["metrics"]) == set(single["intervals"]) == set(scores)
    assert set(single["baselines"]["ridge"]) == {"velocity"}
    for name, row in single["intervals"].items():
        for metric, ends in row.items():
            value = single["metrics"][name][metric]
            assert ends[0] <= value + 1e-9
            assert value <= ends[1] + 1e-9
    assert single["regions"]["CA1"]["units"] == 5
    two = assemble([one, one], QUICK, {})
    assert "session" not in two
    assert len(two["sessions"]) == 2
    assert two["metrics"]["velocity"] == pytest.approx(single["metrics"]["velocity"])
    assert two["regions"]["CA1"]["sessions"] == 2


def test_one_name_for_two_kinds_is_refused(trained):
    state = trained[2].state
    changed = [msgspec.structs.replace(b, kind="continuous") if b.name == "heading" else b
               for b in state.behaviours]
    other = msgspec.structs.replace(state, session="other", behaviours=changed)
    check_kinds([state, state])
    with pytest.raises(BadInput, match="other: behaviour heading: found continuous, expected "
                                       "circular as in made"):
        check_kinds([state, other])


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"sessions": []})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"sessions": [float("nan")]})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(BadInput, match=r"report\.json: report: found full"):
        write_json(path, {"sessions": [1]})
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert read_report(tmp_path) == {"sessions": []}
    path.write_text("[]")
    with pytest.raises(BadInput, match=r"report\.json of neds evaluate"):
        read_report(path)


def test_pictures_of_a_session_with_trials(tried, tmp_path):
    at, predictions = tried[3:5]
    names = draw_session(tmp_path, ".svg", at, predictions)
    assert names == ["made.traces.svg", "made.behaviour-trials.svg", "made.unit-trials.svg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    text = (tmp_path / "made.unit-trials.svg").read_text()
    assert "choice 0, reward 1</text>" in text


def test_parts_of_trials_dealt_at_random_are_scored_trial_by_trial():
    session = aligned_trials()  # 60 runs of 8 bins, 20 apart
    start = np.arange(60) * 20 * BIN_S
    session = replace(session, trials={"start": start, "end": start + 8 * BIN_S,
                                       "choice": np.arange(60) % 2})
    data = msgspec.structs.replace(CONFIG.data, split="random")
    binned, state = describe(session, data, CONFIG.model.window)
    recording = to_recording(binned, state)
    settings = replace(QUICK, forecast_bins=2)
    at = context(recording, session.trials, BIN_S, settings)
    assert len(at.trials) == 12
    np.testing.assert_array_equal(at.trials.extent[:, 0], np.arange(12) * 8)
    model = build_model(CONFIG, [recording]).eval()
    predictions = predict(model, recording, settings)
    assert len(predictions.co_smoothing.rates) == 96
    np.testing.assert_array_equal(
        predictions.forecasting.rows, (np.arange(12)[:, None] * 8 + [6, 7]).ravel())
    scores, _ = score_all(at, predictions)
    assert "trial_last_bin_accuracy" in scores["side"]
    np.testing.assert_array_equal(
        predictions.counts, recording.counts[recording.rows("test")].numpy())
