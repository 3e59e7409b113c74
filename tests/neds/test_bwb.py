"""BrainWideBench: scores on worked cases, splits, windows, files, the synthetic recordings."""

import hashlib
import math

import h5py
import numpy as np
import pytest

from neds.bwb.anatomy import pooled
from neds.bwb.files import decode_ids, encode_ids, read_tensors, write_tensors
from neds.bwb.source import read_source
from neds.bwb.splits import causal_split, chunked_split, held_out_units, intersect
from neds.bwb.synthetic import write_synthetic
from neds.bwb.tasks import COSMOS, SEEDS, TASKS, TUNING_SEED, task_of, tasks_of
from neds.bwb.windows import counts_before, spike_truth, truth_of
from neds.cli import main
from neds.metrics.benchmark import (
    label_scores,
    poisson_d2,
    pooled_bits,
    region_scores,
    trace_scores,
)
from neds_rt.errors import BadInput
from neds_rt.synthetic import SyntheticAnimal


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("bwb") / "a.h5"
    write_synthetic(SyntheticAnimal(900, 16, n_probes=2), 240, path, chunk_s=40, gap_s=5)
    return path


@pytest.fixture(scope="module")
def source(recording):
    return read_source(recording)


def test_trace_by_hand():
    found = trace_scores(np.array([0.0, 1, 2, 3]), np.array([0.0, 1, 2, 4]))
    assert found["r2"] == pytest.approx(1 - 1 / 5)
    assert found["mae"] == 0.25
    assert found["pearson"] == pytest.approx(6.5 / math.sqrt(5 * 8.75))
    assert trace_scores(np.ones(3), np.zeros(3))["r2"] == 0.0
    assert trace_scores(np.ones(3), np.ones(3))["r2"] == 1.0


def test_labels_by_hand():
    # Class 2 is said and never true: a recall of 0. Class 3 is neither and does not count.
    truth, said = np.array([0, 0, 1, 1]), [0, 2, 1, 1]
    found = label_scores(truth, 5.0 * np.eye(4)[said])
    assert found["bacc"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    # The truths of class 1 come first and third by probability.
    p = np.array([0.9, 0.7, 0.6, 0.2])
    ap = label_scores(np.array([1, 0, 1, 0]), np.stack([1 - p, p], 1))["ap"]
    of_one = (1 + 2 / 3) / 2
    of_zero = (1 + 2 / 3) / 2  # the ranks are mirrored
    assert ap == pytest.approx((of_one + of_zero) / 2)


def test_spikes_by_hand():
    counts = np.array([[0.0, 0], [1, 0]])
    rates = np.log(np.array([[0.25, 1], [0.75, 1]]))
    assert pooled_bits(counts, rates) == pytest.approx(math.log2(1.5))  # the silent unit is out
    null = 1 - (-math.log(0.5) + 1 - 1) / math.log(2)
    assert poisson_d2(counts, np.log(np.full((2, 2), 0.5))) == pytest.approx(null, abs=1e-12)
    assert poisson_d2(counts[:, :1], np.array([[-50.0], [0.0]])) == pytest.approx(1.0)
    assert math.isnan(poisson_d2(counts[:, 1:], rates[:, 1:]))
    assert math.isnan(pooled_bits(counts[:, 1:], rates[:, 1:]))


def test_regions_by_hand():
    found = region_scores(np.array([0, 0, 1]), np.array([0, 1, 1]), ("a", "b", "c"))
    assert found["a/precision"] == 1.0
    assert found["b/precision"] == 0.5
    assert found["c/f1-score"] == 0.0
    assert found["macro/f1-score"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_table_of_tasks():
    assert [t.id for t in TASKS].count("ts1-choice") == 1
    assert [sum(t.suite == s for t in TASKS) for s in ("ts1", "ts2", "ts3")] == [8, 2, 1]
    assert tasks_of("ts2,ts1-choice,forecasting") == [task_of("ts2-co_smoothing"),
                                                      task_of("ts2-forecasting"),
                                                      task_of("ts1-choice")]
    assert len(tasks_of("all")) == 11
    assert TUNING_SEED not in SEEDS
    for words in ("", "encoding"):
        with pytest.raises(BadInput, match="--tasks"):
            tasks_of(words)


def test_causal_split_by_hand():
    trials = np.stack([np.arange(0, 200, 20.0), np.arange(10, 210, 20.0)], 1)
    parts = causal_split(np.array([[0.0, 200.0]]), trials)
    assert {k: v.tolist() for k, v in parts.items()} == {
        "train": [[0.0, 70.0]], "val": [[90.0, 120.0]], "test": [[140.0, 200.0]]}
    with pytest.raises(BadInput, match="val part"):
        causal_split(np.array([[0.0, 200.0]]), trials, gap_s=60.0)


def test_chunks_divide_no_trial():
    rng = np.random.default_rng(1)
    starts = np.cumsum(rng.uniform(4, 6, 60))
    trials = np.stack([starts, starts + rng.uniform(2, 3.9, 60)], 1)
    trials = trials[trials[:, 1] < 300]
    parts = chunked_split(np.array([[0.0, 300.0]]), trials, chunk_s=30.0, gap_s=4.0)
    everything = np.concatenate(list(parts.values()))
    order = everything[np.argsort(everything[:, 0])]
    assert (order[1:, 0] - order[:-1, 1] >= 4.0).all()
    for start, stop in trials:
        inside = (everything[:, 0] <= start) & (stop <= everything[:, 1])
        outside = (everything[:, 1] <= start) | (stop <= everything[:, 0])
        assert (inside | outside).all()
    assert [len(parts[p]) for p in ("train", "val", "test")] == [4, 2, 4]
    assert parts["train"][0, 0] == 0.0


def test_held_out_units_depend_on_ids_alone():
    ids = [f"unit-{i}" for i in range(40)]
    held = held_out_units(ids, "test")
    assert held.sum() == 4
    back = held_out_units(ids[::-1], "test")[::-1]
    np.testing.assert_array_equal(held, back)
    first = min(ids, key=lambda i: hashlib.sha256(f"ts2_co_smoothing_test:{i}".encode()).digest())
    assert held[ids.index(first)]
    assert (held != held_out_units(ids, "val")).any()
    assert held_out_units(["one"], "val").tolist() == [True]


def test_intersections():
    a, b = np.array([[0.0, 5], [8, 9]]), np.array([[1.0, 2], [4, 8.5]])
    assert intersect(a, b).tolist() == [[1, 2], [4, 5], [8, 8.5]]


def test_synthetic_recording(source):
    assert source.n_units == 16
    assert source.subject == "synthetic-0900"
    assert all(not source.lacks(task) for task in TASKS)
    assert set(source.region) <= set(COSMOS)
    assert (source.trials[1:, 0] >= source.trials[:-1, 1]).all()
    for suite in ("ts1", "ts2"):
        train, test = source.part(suite, "train"), source.part(suite, "test")
        assert not len(intersect(train, test))


def test_windows_of_a_trace(source):
    task = task_of("whisker_motion_energy")
    truth = truth_of(source, task, "test")
    assert truth.values.shape == (len(truth.trial), 50)
    trace = source.traces[task.name]
    mean, sd = source.scale[task.name]
    for span, times, values in zip(truth.span, truth.times, truth.values, strict=True):
        inside = (trace.times >= span[0]) & (trace.times < span[1])
        np.testing.assert_allclose(trace.times[inside], times)
        np.testing.assert_allclose(values, (trace.values[inside] - mean) / sd, atol=1e-6)
    inside = intersect(truth.span, source.part("ts1", "test"))
    np.testing.assert_allclose(inside, truth.span)
    assert truth_of(source, task_of("left_paw_speed"), "test").sure.dtype == bool
    licks = truth_of(source, task_of("licking_rate"), "train").values
    assert (licks == np.round(licks)).all()
    assert licks.sum() > 0


def test_labels_follow_the_spikes_that_are_shown(source):
    truth = truth_of(source, task_of("choice"), "test")
    assert truth.values.shape == (len(truth.trial), 1)
    np.testing.assert_allclose(truth.span[:, 1] - truth.span[:, 0], 1.0)
    assert set(np.unique(truth.values)) <= {0, 1}


def test_counts_before(source):
    stops = np.array([3.0017, 11.25])
    counts = counts_before(source, stops, 40)
    for stop, row in zip(stops, counts, strict=True):
        for k in range(40):
            first = stop - (40 - k) * 0.02
            inside = (source.times >= first) & (source.times < first + 0.02)
            np.testing.assert_array_equal(
                row[k], np.bincount(source.unit[inside], minlength=source.n_units))
    some = counts_before(source, stops, 40, np.array([3, 7]))
    np.testing.assert_array_equal(some, counts[:, :, [3, 7]])


def test_windows_of_spikes_cover_each_trial(source):
    asked = spike_truth(source, task_of("co_smoothing"), "test")
    spans = intersect(source.trials, source.part("ts2", "test"))
    assert asked.targets.shape == (len(asked.start), 50, int(source.held_out.sum()))
    for i, (start, stop) in enumerate(spans):
        own = asked.start[asked.interval == i]
        assert own[0] == start
        assert own[-1] + 1.0 == pytest.approx(stop)
        assert (np.diff(own) <= 0.02 + 1e-9).all()
    ahead = spike_truth(source, task_of("forecasting"), "test")
    assert ahead.targets.shape == (len(asked.start), 5, 16)
    np.testing.assert_array_equal(ahead.targets[:, :, asked.units], asked.targets[:, -5:])


def test_windows_start_at_the_very_bits_of_torch(source):
    torch = pytest.importorskip("torch")
    asked = spike_truth(source, task_of("forecasting"), "test")
    spans = intersect(source.trials, source.part("ts2", "test"))
    for i, (start, stop) in enumerate(spans):
        own = asked.start[asked.interval == i]
        expected = [t.item() for t in torch.arange(start, stop, 0.02, dtype=torch.float64)
                    if t + 1.0 <= stop]
        np.testing.assert_array_equal(own[: len(expected)], expected)
        assert len(own) - len(expected) in (0, 1)


def test_synth_writes_the_schema(tmp_path, capsys):
    assert main(["synth", "--schema", "bwb-eval", "--seconds", "1300", "--units", "4",
                 "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.h5")
    source = read_source(path)
    assert path.stem == source.recording
    assert len(source.part("ts2", "val")) == 1  # chunks of five minutes
    gap = source.part("ts1", "test")[0, 0] - source.part("ts1", "val")[0, 1]
    assert gap >= 20
    assert main(["synth", "--schema", "bwb-eval", "--seconds", "30", "--units", "4",
                 "--out", str(tmp_path / "short")]) == 2
    assert "longer recording" in capsys.readouterr().err


def test_multi_unit_means():
    p = np.eye(10)[:4].astype(np.float32)
    near = pooled(p, np.array([0.0, 50, 100, 10]), np.array(["a", "a", "a", "b"]))
    np.testing.assert_allclose(near[0], p[[0, 1]].mean(0))
    np.testing.assert_allclose(near[1], p[[0, 1, 2]].mean(0))
    np.testing.assert_allclose(near[3], p[3])
    many = pooled(np.eye(10, dtype=np.float32), np.arange(10.0), np.full(10, "a"))
    np.testing.assert_allclose(many[0, :5], 0.2)
    assert many[0, 5:].sum() == 0
    alone = pooled(p, np.array([np.nan, 0, 200, 400]), np.full(4, "a"))
    np.testing.assert_allclose(alone, p)


def test_files_there_and_back(tmp_path):
    ids = ["a", "long-one", "b7"]
    assert decode_ids(encode_ids(ids)) == ids
    write_tensors(tmp_path / "x" / "a.safetensors", {"v": np.arange(3.0)}, {"seed": 43})
    tensors, facts = read_tensors(tmp_path / "x" / "a.safetensors")
    assert tensors["v"].tolist() == [0, 1, 2]
    assert facts == {"seed": "43"}
    for bad in (["é"], [""], []):
        with pytest.raises(BadInput, match="ids"):
            encode_ids(bad)
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match=r"b\.safetensors"):
        read_tensors(tmp_path / "b.safetensors")


def test_bad_recordings(recording, tmp_path):
    (tmp_path / "no.h5").write_bytes(b"no")
    for name in ("no.h5", "absent.h5"):
        with pytest.raises(BadInput, match=name):
            read_source(tmp_path / name)
    path = tmp_path / "part.h5"
    path.write_bytes(recording.read_bytes())
    with h5py.File(path, "a") as file:
        del file["units/ts2_co_smoothing_is_held_out_test"], file["licks"]
    poorer = read_source(path)
    assert "held out" in poorer.lacks(task_of("co_smoothing"))
    assert "licks" in poorer.lacks(task_of("licking_rate"))
    with h5py.File(path, "a") as file:
        file["spikes/unit_index"][0] = 99
    with pytest.raises(BadInput, match="unit_index"):
        read_source(path)


def test_temporaldata_cuts_the_same_windows(recording, source):
    temporaldata = pytest.importorskip("temporaldata")
    with h5py.File(recording, "r") as file:
        data = temporaldata.Data.from_hdf5(file, lazy=True)
        for name in ("whisker_motion_energy", "right_paw_speed"):
            task = task_of(name)
            truth = truth_of(source, task, "test")
            mean, sd = source.scale[name]
            for span, values in list(zip(truth.span, truth.values, strict=True))[:5]:
                part = data.slice(*span)
                raw = part.get_nested_attribute(task.values)
                np.testing.assert_allclose((raw - mean) / sd, values, atol=1e-6)
        assert data.units.id[0] == source.id[0]
        assert data.session.id == source.recording
        assert data.brainset.unit_filtering == "selected_units"
        assert data.ts1_test_domain.end[0] == source.part("ts1", "test")[0, 1]
