"""Trials, losses, schedule, training and scores of the parity configuration."""

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neds import baselines
from neds.config import DataConfig, ModelConfig, RunConfig, TrainConfig, check
from neds.data.session import Behaviour, Counts, Session, Units
from neds.data.synthetic import synthetic_session
from neds.data.windows import fit_scaling, split_trials
from neds.dataset import describe, to_recording
from neds.drops import usable
from neds.evaluate import evaluate
from neds.reference import ReferenceNeds
from neds.reference_config import PADDING, ReferenceBatch, ReferenceConfig
from neds.reference_data import align, collate, trial_set
from neds.reference_masking import draw_reference_masks
from neds.reference_train import (
    ReferenceTraining,
    draw_trials,
    evaluate_reference,
    make_optimiser,
    mean_score,
    predict,
    reference_loss,
    step_loss,
    train_reference,
)
from neds.train import train
from neds_rt.errors import BadInput
from neds_rt.synthetic import SyntheticAnimal

BINS = 10
SIZES = {"layers": 1, "hidden": 32, "mlp": 48, "heads": 4, "bins": BINS, "n_session_rows": 2,
         "dropout": 0.0, "token_dropout": 0.0}


def trial_session(name="made", trials=120, units=8, seed=0, unknown=()):
    """Trials of ten bins; every unit prefers a choice, a block, and a direction of the wheel."""
    rng = np.random.default_rng(seed)
    choice, block = rng.integers(0, 2, trials), rng.integers(0, 3, trials)
    wheel = rng.standard_normal((trials, 1)) + np.linspace(-1, 1, BINS)
    drive = np.stack([np.repeat(2.0 * choice[:, None] - 1, BINS, 1),
                      np.repeat(block[:, None] - 1.0, BINS, 1), wheel], 2)
    gain = np.random.default_rng(9).standard_normal((3, units))
    counts = rng.poisson(np.exp((0.5 + 0.7 * drive @ gain).clip(max=3))).reshape(-1, units)
    rows = (np.arange(trials)[:, None] * 25 + np.arange(BINS)).ravel()
    ends = (rows + 1) * 0.02
    labels = np.repeat(choice, BINS).astype(float)
    for k in unknown:
        labels[k * BINS : (k + 1) * BINS] = np.nan
    trace = wheel.ravel()
    behaviours = {
        "choice": Behaviour(kind="categorical", timestamps=ends, values=labels, gaps=True,
                            classes=("right", "left")),
        "block": Behaviour(kind="categorical", timestamps=ends, classes=("0.2", "0.5", "0.8"),
                           values=np.repeat(block, BINS).astype(float)),
        "wheel": Behaviour(kind="continuous", timestamps=ends, values=trace, unit="rad/s"),
        "whisker": Behaviour(kind="continuous", timestamps=ends, values=np.abs(trace)),
    }
    return Session(session=name, spikes=Counts(counts=counts, bin=rows, bin_size_s=0.02),
                   units=Units.of(units), behaviours=behaviours)


def prepared(session, **fields):
    data = DataConfig(**{"fractions": (0.7, 0.1, 0.2)} | fields)
    binned, state = describe(session, data, 10)
    return to_recording(binned, state)


@pytest.fixture(scope="module")
def sets():
    return [trial_set(prepared(trial_session()), BINS),
            trial_set(prepared(trial_session("other", units=5, seed=1)), BINS)]


def test_recordings_become_trials_with_one_class_each(sets):
    session = trial_session(unknown=(3, 4))
    recording = prepared(session)
    made = trial_set(recording, BINS)
    assert made.unknown == 2
    assert {part: len(t) for part, t in made.parts.items()} == {"train": 82, "val": 12, "test": 24}
    assert made.counts.shape == (118, BINS, 8)
    k = int(made.parts["test"][0])
    first = recording.part("test")[0]
    assert torch.equal(made.counts[k], recording.counts[first : first + BINS])
    assert made.behaviours[0][k] == recording.values["choice"][first, 0]
    assert made.behaviours[1][k] == recording.values["block"][first, 0]
    torch.testing.assert_close(made.behaviours[2][k], recording.encoded[2][first : first + BINS])


def test_batches_mix_sessions_and_pad_to_the_largest(sets):
    batch = collate(sets, torch.tensor([0, 1]), torch.tensor([2, 3]), 8)
    assert torch.equal(batch.counts[0], sets[0].counts[2].float())
    assert torch.equal(batch.counts[1, :, :5], sets[1].counts[3].float())
    assert (batch.counts[1, :, 5:] == PADDING).all()
    assert batch.behaviours[1].tolist() == [sets[0].behaviours[1][2], sets[1].behaviours[1][3]]


def test_spilled_recordings_are_the_same_in_files_of_their_own(tmp_path):
    for name, seed in (("animal.1", 0), ("animal.2", 1)):  # alike up to the dot
        session = trial_session(name, seed=seed, unknown=(3,))
        binned, state = describe(session, DataConfig(), 10)
        held, spilled = to_recording(binned, state), to_recording(binned, state, tmp_path)
        assert torch.equal(held.counts, spilled.counts)
        assert torch.equal(held.known, spilled.known)
        assert np.array_equal(held.bin, spilled.bin)
        for a, b in zip(held.encoded, spilled.encoded, strict=True):
            assert torch.equal(a, b)
        for b in state.behaviours:
            np.testing.assert_array_equal(held.values[b.name], spilled.values[b.name])
        if seed == 0:
            first, counts = spilled, held.counts
    assert torch.equal(first.counts, counts)  # the second session went elsewhere


def test_an_epoch_draws_every_training_trial_once(sets):
    knobs = ReferenceTraining(steps=10, batch=16)
    drawn = list(draw_trials(sets, knobs, 8, torch.Generator().manual_seed(0)))
    assert len(drawn) == 10  # 168 training trials: ten whole batches
    wheel = torch.cat([b.behaviours[2].flatten(1) for b in drawn])
    assert len(wheel.unique(dim=0)) == 160
    with pytest.raises(BadInput, match="at most 168 training trials"):
        next(draw_trials(sets, ReferenceTraining(batch=169), 8, torch.Generator()))


def test_losses_by_hand():
    torch.manual_seed(0)
    sessions = [s.spec for s in (trial_set(prepared(trial_session()), BINS),)]
    model = ReferenceNeds(ReferenceConfig(**SIZES), sessions)
    counts = torch.randint(0, 3, (4, BINS, 8)).float()
    counts[2:, :, 6:] = PADDING
    batch = ReferenceBatch(torch.zeros(4, dtype=torch.int64), counts, [
        torch.tensor([0.0, 1, 1, 0]), torch.tensor([2.0, 0, 1, 1]),
        torch.randn(4, BINS, 1), torch.randn(4, BINS, 1)])
    rates, outputs = torch.randn(4, BINS, 8), [
        torch.randn(4, 2), torch.randn(4, 3), torch.randn(4, BINS, 1), torch.randn(4, BINS, 1)]
    asked = torch.zeros(4, 5, BINS, dtype=torch.bool)
    asked[1:3, 0, :5] = True  # spikes: five bins of trials 1 and 2
    asked[0, 1] = True  # choice of trial 0
    asked[:, 3, 0] = True  # the wheel's first bin
    total, terms = reference_loss(model, batch, rates, outputs, asked)
    assert set(terms) == {"spikes", "choice", "wheel"}
    r, y = rates.double(), counts.double()
    each = [(r[k, t, n].exp() - y[k, t, n] * r[k, t, n]).item()
            for k, units in ((1, 8), (2, 6)) for t in range(5) for n in range(units)]
    assert terms["spikes"].item() == pytest.approx(np.mean(each), rel=1e-5)
    entropy = F.cross_entropy(outputs[0], batch.behaviours[0].long(), reduction="none")
    assert terms["choice"].item() == pytest.approx(entropy.sum().item() / BINS, rel=1e-5)
    wheel = ((outputs[2] - batch.behaviours[2])[:, 0] ** 2).mean()
    assert terms["wheel"].item() == pytest.approx(wheel.item(), rel=1e-5)
    assert total.item() == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-6)
    model.config = msgspec.structs.replace(model.config, static_loss="mean_ce")
    _, terms = reference_loss(model, batch, rates, outputs, asked)
    assert terms["choice"].item() == pytest.approx(entropy[0].item(), rel=1e-6)


def test_the_static_loss_is_a_bins_th_of_the_mean_when_all_is_asked(sets):
    torch.manual_seed(0)
    model = ReferenceNeds(ReferenceConfig(mode="decoding", **SIZES), [s.spec for s in sets])
    batch = next(draw_trials(sets, ReferenceTraining(), 8, torch.Generator().manual_seed(0)))
    masks = draw_reference_masks(model.config, 16, 4, torch.Generator())
    _, terms = step_loss(model, batch, masks)
    _, outputs = model(batch, masks.blank)
    mean = F.cross_entropy(outputs[0], batch.behaviours[0].long())
    assert terms["choice"].item() == pytest.approx(mean.item() / BINS, rel=1e-5)


def test_emptied_bins_change_the_input_and_not_the_target(sets):
    torch.manual_seed(0)
    config = ReferenceConfig(mask="paper_apr2025", **SIZES)
    model = ReferenceNeds(config, [s.spec for s in sets])
    batch = next(draw_trials(sets, ReferenceTraining(), 8, torch.Generator().manual_seed(0)))
    masks = draw_reference_masks(config, 16, 4, torch.Generator().manual_seed(5))
    emptied = batch.counts.clone()
    emptied[masks.emptied] = 0
    rates, outputs = model(batch.with_counts(emptied), masks.blank)
    by_hand, _ = reference_loss(model, batch, rates, outputs, masks.asked)
    assert step_loss(model, batch, masks)[0].item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_the_schedule_has_the_papers_values(sets):
    model = ReferenceNeds(ReferenceConfig(**SIZES), [s.spec for s in sets])
    optimiser, schedule = make_optimiser(model, ReferenceTraining(steps=1000))
    seen = []
    for _ in range(1000):
        group = optimiser.param_groups[0]
        seen.append((group["lr"], group["betas"][0]))
        optimiser.step()
        if len(seen) < 1000:
            schedule.step()
    rates, betas = np.array(seen).T
    assert rates[0] == pytest.approx(2e-5)
    assert rates.max() == pytest.approx(2e-4)
    assert rates.argmax() == 149  # 15 % of the steps
    assert rates[-1] == pytest.approx(2e-9)
    assert [betas[0], betas[149], betas[-1]] == pytest.approx([0.95, 0.85, 0.95])
    assert len(optimiser.param_groups) == 1
    assert optimiser.param_groups[0]["weight_decay"] == 0.01
    assert optimiser.param_groups[0]["betas"][1] == 0.999


KNOBS = ReferenceTraining(steps=250, batch=16, learning_rate=5e-3, validate_every=50)


def test_training_learns_both_directions_in_two_sessions(sets):
    config = ReferenceConfig(mask="fixed", static_loss="mean_ce", **SIZES)
    model = train_reference(config, sets, KNOBS)
    for session in range(2):
        scores = evaluate_reference(model, sets, session)
        assert scores["choice"]["balanced_accuracy"] > 0.75
        assert scores["wheel"]["r2"] > 0.4
        assert scores["spikes"]["bps_neuron_mean"] > 0.1
        nulls = scores["spikes"]["bps_neuron_mean_test_null"], scores["spikes"]["bps_neuron_mean"]
        assert nulls[0] < nulls[1]  # a null that has seen the test part is harder to beat
    assert mean_score(model, sets, "val") > 0.3
    by_one, _ = predict(model, sets, 0, "test", "encoding", shown=2)
    by_all, _ = predict(model, sets, 0, "test", "encoding")
    assert not torch.allclose(by_one, by_all)


@pytest.mark.parametrize(("mode", "names"), [
    ("encoding", {"spikes"}), ("decoding", {"choice", "block", "wheel", "whisker"})])
def test_unimodal_training_moves_every_head(sets, mode, names):
    config = ReferenceConfig(mode=mode, **SIZES)
    torch.manual_seed(KNOBS.seed)
    before = ReferenceNeds(config, [s.spec for s in sets]).state_dict()
    model = train_reference(config, sets, msgspec.structs.replace(KNOBS, steps=5))
    after = model.state_dict()
    heads = [n for n in after if "_out" in n or "pool" in n]
    assert heads
    assert all(not torch.equal(before[n], after[n]) for n in heads)
    assert set(evaluate_reference(model, sets, 0)) == names


def test_training_repeats_with_its_seed(sets):
    knobs = msgspec.structs.replace(KNOBS, steps=4, validate_every=0)
    config = ReferenceConfig(**SIZES | {"dropout": 0.4})
    first, again = (train_reference(config, sets, knobs) for _ in range(2))
    other = train_reference(config, sets, msgspec.structs.replace(knobs, seed=1))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.norm.weight, other.norm.weight)


def test_continuous_sessions_are_aligned_to_the_stimulus():
    session = synthetic_session(SyntheticAnimal(3, 20), 60.0)
    aligned = align(session, 0.02)
    np.testing.assert_allclose(np.diff(aligned.intervals, axis=1), 2.0)
    recording = prepared(aligned, bin_size_s=0.02)
    made = trial_set(recording, 100)
    assert made.counts.shape[1:] == (100, 20)
    times = session.trials["stimOn_times"]
    starts = recording.bin[np.concatenate([recording.rows(p)[::100] for p in made.parts])] * 0.02
    nearest = np.abs(starts[:, None] + 0.5 - times).min(1)
    assert nearest.max() <= 0.01 + 1e-9
    row = int(recording.rows("test")[0])
    whole = session.binned(0.02)
    assert np.array_equal(recording.counts[row].numpy(),
                          whole.counts[recording.bin[row]][recording.state.unit_rows])
    with pytest.raises(BadInput, match="a column go"):
        align(session, 0.02, "go")


def test_a_random_split_deals_whole_trials_and_repeats():
    session = trial_session()
    recording = prepared(session, split="random")
    parts = {name: recording.rows(name) for name in ("train", "val", "test")}
    assert [len(p) for p in parts.values()] == [840, 120, 240]
    assert len(np.unique(np.concatenate(list(parts.values())))) == 1200
    for rows in parts.values():
        assert (rows.reshape(-1, BINS)[:, 0] % BINS == 0).all()
    assert (np.diff(parts["test"].reshape(-1, BINS)[:, 0]) > BINS).any()  # not one block
    assert recording.state.trials == prepared(session, split="random").state.trials
    assert recording.state.trials != prepared(session, split="random", split_seed=1).state.trials
    other = prepared(trial_session("other"), split="random")
    assert recording.state.trials != other.state.trials
    with pytest.raises(BadInput, match="trials split at random"):
        recording.part("test")


def test_the_releases_split_goes_on_from_session_to_session():
    trials = {"a": 120, "b": 90, "c": 33}
    made = [trial_session(name, trials=n) for name, n in trials.items()]
    one_for_all = np.random.RandomState(42)
    expected = []
    for n in trials.values():  # 0.7 * 90 is below 63
        order = one_for_all.choice(np.arange(n), n, replace=False)
        expected.append({"train": sorted(order[:int(0.7 * n)]),
                         "val": sorted(order[int(0.7 * n):int(0.8 * n)]),
                         "test": sorted(order[int(0.8 * n):])})
    assert len(expected[1]["train"]) == 62
    data = DataConfig(split="release", fractions=(0.7, 0.1, 0.2))
    alone = [prepared(session, split="release").state.trials for session in made]
    assert alone[0] == expected[0]
    assert alone[1] != expected[1]
    assert prepared(made[2], split="release", split_before=[120, 90]).state.trials == expected[2]
    config = RunConfig(data=data, model=ModelConfig(window=BINS))
    recordings, _ = usable(made, config, gap_bins=0)
    assert [recording.state.trials for recording in recordings] == expected
    assert data.split_before == []
    assert prepared(made[0], split="random").state.trials != expected[0]


def test_with_a_random_split_all_that_is_fitted_sees_training_trials_only():
    session = trial_session()
    recording = prepared(session, split="random")
    state, train = recording.state, recording.rows("train")
    wheel = recording.values["wheel"][train]
    np.testing.assert_allclose(state.behaviours[2].mean, wheel.mean(0), atol=1e-6)
    counts = recording.counts.float().numpy()[train]
    np.testing.assert_allclose(state.null_rates, counts.mean(0), atol=1e-6)


def test_a_random_split_needs_trials():
    session = synthetic_session(SyntheticAnimal(3, 20), 30.0)
    with pytest.raises(BadInput, match="trial-aligned recording"):
        prepared(session, split="random")
    few = trial_session(trials=21).binned(0.02)
    with pytest.raises(BadInput, match="val part: found no trial left of 21"):
        split_trials(few, "few", (0.92, 0.01, 0.07))


def test_our_model_trains_and_is_scored_on_a_random_split():
    recording = prepared(trial_session(), split="random")
    config = RunConfig(model=ModelConfig(hidden=16, layers=1, heads=2, mlp=24, window=BINS, conv=0),
                       train=TrainConfig(steps=4, batch=4, bins=BINS, validate_every=2))
    scores = evaluate(train(config, [recording], progress=False).model, recording, "test")
    assert np.isfinite(scores["wheel"]["r2"])
    linear = baselines.fit("linear", [recording], seed=0, budget="quick")
    assert all(np.isfinite(p).all() for p in linear.decode_part(recording, "test"))
    assert recording.state.train_bins == len(recording.rows("train"))


def test_min_max_scaling_is_fitted_on_training_rows():
    recording = prepared(trial_session(), scaling="minmax")
    first, stop = recording.part("train")
    scaled = recording.encoded[2][first:stop]
    assert scaled.min().item() == pytest.approx(0, abs=1e-6)
    assert scaled.max().item() == pytest.approx(1, abs=1e-6)
    low, spread = fit_scaling("flat", "continuous", np.ones((5, 1), np.float32), "minmax")
    assert (low.tolist(), spread.tolist()) == ([1.0], [1.0])


@pytest.mark.parametrize("fields", [{"split": "shuffled"}, {"scaling": "none"}, {"split_seed": -1},
                                    {"split_seed": 2**32, "split": "release"},
                                    {"split_before": [0]}])
def test_data_switches_that_are_none(fields):
    with pytest.raises(BadInput, match=f"data.{next(iter(fields))}"):
        check(RunConfig(data=DataConfig(**fields)), "recipe")
