"""Brain regions from unit embeddings: honest folds, honest chance, and what is left out."""

import json

import msgspec
import numpy as np
import pytest

from neds.checkpoint import CHECKPOINT_SCHEMA, CheckpointInfo, created_by, save_checkpoint
from neds.cli import main
from neds.config import DataConfig, MaskingConfig, ModelConfig, RunConfig, TrainConfig
from neds.data.store import write_session
from neds.data.synthetic import synthetic_session
from neds.dataset import describe, to_recording
from neds.metrics import balanced_accuracy
from neds.model import Neds
from neds.region_probe import (
    Fold,
    Task,
    choose_cost,
    p_value,
    predict_task,
    score_task,
    shuffled_scores,
    stratified,
    task_costs,
)
from neds.regions import (
    LAGS,
    UnitTable,
    across_task,
    activity_statistics,
    coarse,
    labelled,
    run_task,
    unit_embeddings,
    unit_table,
    within_task,
)
from neds.train import train
from neds_rt.errors import BadInput
from neds_rt.synthetic import REGIONS, SyntheticAnimal


def made_table(per_region=20, regions=("CA1", "DG", "PO"), animals=("a", "b", "c"), signal=2.0,
               seed=0, copies=1):
    """Units whose embedding points along their region, the same way in every animal."""
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((len(regions), 6))
    n = per_region * len(regions) * len(animals)
    code = np.tile(np.repeat(np.arange(len(regions)), per_region), len(animals))
    x = signal * axes[code] + rng.standard_normal((n, 6))
    return UnitTable(
        embedding=x, region=np.array(regions)[code],
        animal=np.repeat(np.array(animals), per_region * len(regions)),
        group=np.arange(n) // copies)


def names_of(table):
    return sorted(set(table.region.tolist()))


def test_probe_finds_regions_within_and_across_animals_and_chance_is_chance():
    table = made_table()
    names = names_of(table)
    for task in (within_task(table, names, 10, 0), across_task(table, names, 10)):
        results = run_task({"neds": table.embedding}, task, names, 9, 0)
        scores = results["neds"]["scores"]
        assert scores["balanced_accuracy"] > 0.9
        assert scores["p_value"] == pytest.approx(1 / 10)
        assert abs(results["chance"]["scores"]["balanced_accuracy"] - 1 / 3) < 0.1
        details = results["neds"]["details"]
        assert details["units"] == 180
        counts = np.array(details["confusion"]["counts"])
        assert counts.sum() == 180
        assert details["recall"]["CA1"] == counts[0, 0] / counts[0].sum()
        assert set(details["animals"]) == {"a", "b", "c"}
        assert details["left_out"] == []


def test_noise_is_not_taken_for_regions():
    table = made_table(signal=0.0, seed=5)
    names = names_of(table)
    task = within_task(table, names, 10, 0)
    scores = run_task({"neds": table.embedding}, task, names, 19, 0)["neds"]["scores"]
    assert scores["p_value"] > 0.05
    assert scores["balanced_accuracy"] < 0.5


def test_no_unit_is_predicted_by_a_probe_that_saw_it_or_its_channel():
    table = made_table(copies=4)
    names = names_of(table)
    task = within_task(table, names, 10, 0)
    tested = np.concatenate([f.test for f in task.folds])
    assert sorted(tested) == list(range(len(table.region)))
    for fold in task.folds:
        assert set(task.animal[fold.train]) == {fold.animal} == set(task.animal[fold.test])
        assert not set(task.group[fold.train]) & set(task.group[fold.test])
        inner = stratified(task.labels[fold.train], task.group[fold.train], 3, 0)
        assert all(not set(task.group[fold.train][a]) & set(task.group[fold.train][b])
                   for a, b in inner)
    for fold in across_task(table, names, 10).folds:
        assert fold.animal not in task.animal[fold.train]
        assert set(task.animal[fold.test]) == {fold.animal}


def test_a_copy_on_the_same_channel_does_not_help():
    """Units recorded twice: identical embeddings without any region in them."""
    rng = np.random.default_rng(1)
    once = rng.standard_normal((60, 100))
    codes = np.tile([0, 1], 30)
    table = UnitTable(np.repeat(once, 2, 0), np.array(["CA1", "DG"])[np.repeat(codes, 2)],
                      np.full(120, "a"), np.repeat(np.arange(60), 2))
    task = within_task(table, ["CA1", "DG"], 10, 0)
    predicted = predict_task(table.embedding, task, task.labels, [100.0] * 5)
    honest = balanced_accuracy(task.labels, predicted)
    leaky = within_task(UnitTable(table.embedding, table.region, table.animal, np.arange(120)),
                        ["CA1", "DG"], 10, 0)
    cheat = balanced_accuracy(leaky.labels, predict_task(table.embedding, leaky, leaky.labels,
                                                         [100.0] * 5))
    assert honest < 0.62 < 0.7 < cheat


def test_test_units_do_not_reach_scaling_or_choice_of_c():
    table = made_table(animals=("a", "b"))
    names = names_of(table)
    task = across_task(table, names, 10)
    before = predict_task(table.embedding, task, task.labels, task_costs(table.embedding, task, 0))
    fold = task.folds[0]
    moved = table.embedding.copy()
    moved[task.rows[fold.test[1:]]] += 1e3  # every other unit of the left-out animal
    costs = task_costs(moved, Task(task.rows, task.labels, task.group, task.animal, [fold], []), 0)
    after = predict_task(moved, Task(task.rows, task.labels, task.group, task.animal, [fold], []),
                         task.labels, costs)
    assert after[fold.test[0]] == before[fold.test[0]]
    assert costs == task_costs(table.embedding, task, 0)[:1]


def test_small_regions_and_animals_without_shared_regions_are_left_out_by_name():
    table = made_table()
    few = np.r_[np.arange(45), np.arange(60, 180)]  # animal a keeps 5 units of PO
    table = table.take(few)
    region = table.region.astype("<U8")
    region[table.animal == "c"] = np.where(region[table.animal == "c"] == "CA1", "VISp", "MOs")
    table = UnitTable(table.embedding, region, table.animal, table.group)
    names = names_of(table)
    within = within_task(table, names, 10, 0)
    assert "a: PO (5 units)" in within.left_out
    across = across_task(table, names, 10)
    assert {f.animal for f in across.folds} == {"a", "b"}
    assert "c: fewer than 2 shared regions" in across.left_out
    assert any(line.startswith("PO: 10 units in 1 of 3") for line in across.left_out)
    one = table.take(np.flatnonzero(table.animal == "a"))
    assert across_task(one, names_of(one), 10) is None
    single = one.take(np.flatnonzero(one.region == "CA1"))
    assert within_task(single, ["CA1"], 10, 0) is None


def test_shuffles_are_seeded_and_keep_each_animals_counts():
    table = made_table(per_region=10, animals=("a", "b"))
    names = names_of(table)
    task = within_task(table, names, 5, 0)
    costs = [0.1] * len(task.folds)
    first = shuffled_scores(table.embedding, task, costs, 3, 5, 7)
    again = shuffled_scores(table.embedding, task, costs, 3, 5, 7)
    assert (first[0] == again[0]).all()
    assert first[0].std() > 0


def test_p_value_counts_the_finding_itself():
    assert p_value(0.9, np.array([0.1, 0.2, 0.3])) == 0.25
    assert p_value(0.2, np.array([0.1, 0.2, 0.3])) == 0.75


def test_choice_of_c_prefers_regularisation_among_equals():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 20)
    x = y[:, None] * 100.0 + rng.standard_normal((40, 3))
    assert choose_cost(x, y, np.arange(40), 0) == 1e-3


def test_scores_are_means_over_animals_not_over_units():
    labels = np.array([0, 1, 0, 0, 1, 1])
    animal = np.array(["a", "a", "b", "b", "b", "b"])
    task = Task(np.arange(6), labels, np.arange(6), animal, [Fold(labels, labels, "a")], [])
    score = score_task(task, labels, np.array([0, 1, 1, 1, 0, -1]), 2)
    assert score.by_animal["b"] == {"balanced_accuracy": 0.0, "accuracy": 0.0, "units": 3}
    assert score.balanced_accuracy == 0.5
    assert score.confusion.tolist() == [[1, 2], [1, 1]]


@pytest.mark.parametrize(("region", "group"), [
    ("VISp", "visual cortex"), ("VISp2/3", "visual cortex"), ("VISC", "other cortex"),
    ("CA1", "hippocampus"), ("DG-mo", "hippocampus"), ("SUB", "hippocampus"), ("LP", "thalamus"),
    ("LSr", "basal ganglia"), ("MOs5", "other cortex"), ("SCm", "midbrain"), ("ACB",
    "basal ganglia"), ("ACA", "other cortex"), ("SNr", "midbrain"), ("POST", "hippocampus"),
    ("PO", "thalamus"), ("BLA", "cortical subplate"), ("Xyz6a", "Xyz"), ("Xyz", "Xyz"),
])
def test_coarse_groups(region, group):
    assert coarse(region) == group


def test_labels_leave_out_units_without_a_region_and_refuse_unknown_ones():
    table = made_table(per_region=4, animals=("a",))
    region = table.region.copy()
    region[:2] = ["", "roo"]
    region = np.where(region == "roo", "root", region)
    table = UnitTable(table.embedding, region, table.animal, table.group)
    kept, rows = labelled(table, "given", [])
    assert rows.tolist() == list(range(2, 12))
    assert names_of(labelled(table, "coarse", [])[0]) == ["hippocampus", "thalamus"]
    assert names_of(labelled(table, "given", ["PO", "DG"])[0]) == ["DG", "PO"]
    assert len(kept.embedding) == 10
    with pytest.raises(BadInput, match=r"'CA3'.*CA1, DG, PO"):
        labelled(table, "given", ["CA3"])
    with pytest.raises(BadInput, match="none in these sessions"):
        labelled(UnitTable(table.embedding, np.full(12, ""), table.animal, table.group),
                 "given", [])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three short synthetic animals, a model trained on them a little, and its checkpoint."""
    folder = tmp_path_factory.mktemp("regions")
    config = RunConfig(
        data=DataConfig(fractions=(0.7, 0.1, 0.2)),
        model=ModelConfig(hidden=16, layers=1, heads=2, mlp=16, window=10, conv=3, dropout=0.0,
                          token_dropout=0.0),
        masking=MaskingConfig(encoding=0.6, decoding=0.1, self_spike=0.1, self_behaviour=0.1,
                              random_token=0.1),
        train=TrainConfig(steps=60, batch=6, bins=50, validate_every=60, spike_weight=1.0))
    recordings, paths = [], []
    for seed in range(3):
        session = synthetic_session(SyntheticAnimal(seed, 60), 60.0)
        path = folder / f"{session.session}.h5"
        write_session(session, path)
        binned, state = describe(session, config.data, 10)
        recordings.append(to_recording(binned, state))
        paths.append(str(path))
    model = train(config, recordings, progress=False).model
    info = CheckpointInfo(schema=CHECKPOINT_SCHEMA, created_by=created_by(), config=config,
                          sessions=[r.state for r in recordings], step=60, provenance={})
    save_checkpoint(folder / "ckpt", model, info)
    return folder, paths, model, recordings, info


def test_embeddings_are_the_units_own_columns_and_rows(small):
    _, _, model, recordings, info = small
    state = recordings[1].state
    x = unit_embeddings(model, state)
    stitch = model.stitcher(state.session)
    assert x.shape == (len(state.units), 32)
    assert np.array_equal(x[7, :16], stitch.spikes_in.weight[:, 7].detach().numpy())
    assert np.array_equal(x[7, 16:], stitch.spikes_out.weight[7].detach().numpy())
    table = unit_table(model, info.sessions)
    assert set(table.region) <= set(REGIONS)
    assert len(set(table.animal)) == 3
    assert len(table.region) == sum(len(r.state.units) for r in recordings)


@pytest.mark.parametrize("shared", ["channels", "regions"])
def test_shared_maps_count_by_channel_and_are_refused_by_region(small, shared):
    *_, recordings, info = small
    state = recordings[0].state
    units = [msgspec.structs.replace(u, channel=-1 if i < 3 else i // 2)
             for i, u in enumerate(state.units)]
    state = msgspec.structs.replace(state, units=units)
    config = msgspec.structs.replace(info.config.model, shared=shared)
    model = Neds(config, [state.spec])
    if shared == "regions":
        with pytest.raises(BadInput, match="told them"):
            unit_embeddings(model, state)
        return
    x, stitch = unit_embeddings(model, state), model.stitcher(state.session)
    own = stitch.spikes_in.weight.detach().numpy()
    place = model.place_in[stitch.places].detach().numpy()
    assert np.array_equal(x[:3, :16], own.T[:3])
    assert np.allclose(x[3:, :16], own.T[3:] + place[3:])
    group = unit_table(model, [state]).group
    assert len(set(group[:3])) == 3
    assert group[4] == group[5]


def test_activity_statistics_are_those_of_the_training_part(small):
    recording = small[3][0]
    x = activity_statistics(recording, 0.02)
    first, stop = recording.part("train")
    counts = recording.counts[first:stop].numpy().astype(float)
    assert x.shape == (counts.shape[1], 3 + len(LAGS))
    assert np.isfinite(x).all()
    spiking = counts.sum(0) > 0
    assert np.allclose(np.exp(x[spiking, 0]), counts.mean(0)[spiking] / 0.02)
    assert np.allclose(np.exp(x[spiking, 1]), (counts.var(0) / counts.mean(0))[spiking], rtol=1e-3)
    unit = int(counts.sum(0).argmax())
    centred = counts[:, unit] - counts[:, unit].mean()
    want = (centred[1:] * centred[:-1]).mean() / counts[:, unit].var()
    assert x[unit, 3] == pytest.approx(want)
    later = recording.counts.clone()
    later[stop:] += 3
    changed = type(recording)(**{**recording.__dict__, "counts": later})
    assert (activity_statistics(changed, 0.02) == x).all()


def test_command_reports_json_and_draws(small, capsys):
    folder, paths, *_ = small
    picture = folder / "confusion.png"
    code = main(["regions", str(folder / "ckpt"), *paths, "--min-units", "5", "--shuffles", "2",
                 "--plot", str(picture), "--json"])
    assert code == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["metrics"]) == {"within", "across"}
    assert set(report["baselines"]) == {"chance", "activity", "rate"}
    for of in (report["metrics"], report["baselines"]["rate"]):
        assert 0 <= of["across"]["balanced_accuracy"] <= 1
        assert 0 < of["across"]["p_value"] <= 1
    assert report["seconds"] >= 0
    assert report["regions"] == sorted(REGIONS)
    assert set(report["details"]["across"]) == {"neds", "activity", "rate"}
    assert picture.stat().st_size > 1000


def test_command_without_sessions_prints_tables(small, capsys):
    folder = small[0]
    assert main(["regions", str(folder / "ckpt"), "--regions", "PO,LP", "--shuffles", "2",
                 "--min-units", "3", "--level", "given"]) == 0
    out = capsys.readouterr().out
    assert "within animals" in out
    assert "activity" not in out


@pytest.mark.parametrize(("options", "words"), [
    (["--regions", "XX"], "'XX'"),
    (["--min-units", "1000"], "--min-units"),
    (["--min-units", "1"], "2 or more"),
    (["--shuffles", "0"], "1 or more"),
    (["--plot", "x.bmp"], ".bmp"),
])
def test_bad_options_are_one_line(small, capsys, options, words):
    folder = small[0]
    assert main(["regions", str(folder / "ckpt"), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err
