"""NEDS under BrainWideBench's protocol, on synthetic animals and a model trained for seconds."""

import json

import h5py
import numpy as np
import pytest
import torch

from neds.bwb.files import prediction_path, read_tensors, write_tensors
from neds.bwb.predict import Decoder, fit_log_rate, predict_behaviour, predict_spikes
from neds.bwb.score import score_folder
from neds.bwb.sessions import protocol_recording
from neds.bwb.source import read_source
from neds.bwb.synthetic import write_synthetic
from neds.bwb.tasks import TASKS, tasks_of
from neds.cli import main
from neds.config import ModelConfig
from neds.model import Neds
from neds_rt.errors import BadInput
from neds_rt.synthetic import SyntheticAnimal

SMALL = ["--set", "train.steps=4", "--set", "train.batch=4", "--set", "train.bins=50"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of two animals, and the recordings of two others."""
    folder = tmp_path_factory.mktemp("bwb")
    for i in range(2):
        write_synthetic(SyntheticAnimal(10 + i, 12), 100, folder / f"pre{i}.h5", regime="pretrain")
        write_synthetic(SyntheticAnimal(900 + i, 12, n_probes=2), 200, folder / f"eval{i}.h5",
                        chunk_s=35, gap_s=5)
    sources = [str(folder / f"pre{i}.h5") for i in range(2)]
    assert main(["prepare", "--reader", "bwb", *sources, "--out", str(folder / "sessions")]) == 0
    sessions = sorted(str(p) for p in (folder / "sessions").glob("*.h5"))
    assert main(["pretrain", *sessions, "--recipe", "smoke", "--out", str(folder / "run"),
                 "--set", "train.steps=6", "--json"]) == 0
    return folder


def evaluate(folder, out, *words, sessions=("eval0.h5",), capsys=None):
    code = main(["evaluate", str(folder / "run"), *(str(folder / s) for s in sessions),
                 "--protocol", "bwb", "--predictions", str(out), "--context", "3", *SMALL, *words])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1]) if capsys else None


@pytest.fixture
def model(folder):
    """A model of random weights for the first recording, and that recording."""
    source = read_source(folder / "eval0.h5")
    recording = protocol_recording(source, source.part("ts1", "train"), source.part("ts1", "val"),
                                   0.02)
    torch.manual_seed(0)
    config = ModelConfig(hidden=16, layers=1, heads=2, mlp=16, window=25, conv=3, recurrent=True,
                         tokens="summed")
    return Neds(config, [recording.state.spec]).eval(), recording.state, source


def test_whole_protocol(folder, tmp_path, capsys):
    code, report = evaluate(folder, tmp_path / "p", "--seeds", "43,44", "--truth",
                            str(tmp_path / "t"), "--json", sessions=("eval0.h5", "eval1.h5"),
                            capsys=capsys)
    assert code == 0
    assert {row["task"] for row in report["tasks"]} == {task.id for task in TASKS}
    assert report["not_run"] == []
    assert any("no submission" in note for note in report["notes"])
    # 10 tasks of 2 recordings, TS3 once for single and once for multi unit; each by 2 seeds.
    assert len(report["files"]) == 2 * (10 * 2 + 2)
    ours = {(r["task"], r["label"], r["recording"], r["seed"]): r["scores"]
            for r in score_folder(tmp_path / "p", tmp_path / "t")}
    assert len(ours) == len(report["files"])
    for row in report["files"]:
        for name, value in ours[row["task"], row["label"], row["recording"], row["seed"]].items():
            assert row["scores"][name] == (pytest.approx(value, abs=1e-12)
                                           if np.isfinite(value) else None)


def test_metadata_and_shapes(folder, tmp_path, capsys):
    evaluate(folder, tmp_path, "--seeds", "43", "--json", "--label", "mine", capsys=capsys)
    source = read_source(folder / "eval0.h5")
    for task in TASKS:
        label = "mine_linear_single" if task.suite == "ts3" else "mine"
        name = "" if task.suite == "ts3" else source.recording
        tensors, facts = read_tensors(prediction_path(tmp_path, label, task, name, 43))
        assert facts["task"] == task.id
        assert facts["label"] == label
        assert (facts["seed"], facts["ibl_bwb_eval_version"]) == ("43", "0.1.0")
        assert facts["unit_filtering"] == "selected_units"
        assert facts["dataset_version"] == "synthetic"
        if task.suite == "ts3":
            assert tensors["pred_proba"].shape == (12, 10)
            np.testing.assert_allclose(tensors["pred_proba"].sum(1), 1, atol=1e-5)
            assert facts["label_names"].startswith("CB,CNU,")
            continue
        assert facts["recording_id"] == source.recording
        predictions = tensors["predictions"]
        assert np.isfinite(predictions).all()
        if task.suite == "ts2":
            assert predictions.dtype == np.float16
            assert tensors["window_timestamps"].dtype == np.float64
            units = 12 if task.name == "forecasting" else 1
            assert predictions.shape[1:] == ((5 if task.name == "forecasting" else 50), units)
        else:
            assert predictions.dtype == np.float32
            assert predictions.shape[1:] == (task.steps, task.dim)
            assert len(predictions) == len(tensors["trial_id"]) > 3


def test_the_scorer_agrees(folder, tmp_path, capsys):
    """The benchmark's own scorer reads the files, and finds what we find."""
    scoring = pytest.importorskip("ibl_bwb_eval.scoring.ts1")
    pytest.importorskip("torchmetrics")
    from ibl_bwb_eval.scoring import ts2, ts3

    predictions, truth = tmp_path / "p", tmp_path / "t"
    evaluate(folder, predictions, "--seeds", "43", "--truth", str(truth), "--json", capsys=capsys)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        theirs = {**scoring.score_dir(predictions, truth), **ts2.score_dir(predictions, truth)}
        theirs |= {(label, "ts3-unit_cosmos", "", seed): scores
                   for (label, seed), scores in ts3.score_dir(predictions, truth).items()}
    rows = score_folder(predictions, truth)
    assert len(rows) == len(theirs) == 12
    for row in rows:
        found = theirs[row["label"], row["task"], row["recording"], row["seed"]]
        assert found.keys() == row["scores"].keys()
        for name, value in found.items():
            assert row["scores"][name] == pytest.approx(value, abs=1e-6, rel=1e-6, nan_ok=True)


def test_same_seed_same_files(folder, tmp_path):
    for name in ("a", "b"):
        evaluate(folder, tmp_path / name, "--seeds", "43", "--tasks", "wheel_speed,forecasting")
    files = sorted((tmp_path / "a").rglob("*.safetensors"))
    assert len(files) == 2
    for path in files:
        one, other = (read_tensors(p) for p in
                      (path, tmp_path / "b" / path.relative_to(tmp_path / "a")))
        assert one[1] == other[1]
        for name, tensor in one[0].items():
            np.testing.assert_array_equal(tensor, other[0][name])


def changed(folder, tmp_path, change):
    path = tmp_path / "changed.h5"
    path.write_bytes((folder / "eval0.h5").read_bytes())
    with h5py.File(path, "a") as file:
        change(file)
    return read_source(path)


def test_nothing_of_the_test_part_is_fitted(folder, tmp_path):
    source = read_source(folder / "eval0.h5")
    first = source.part("ts1", "test")[0, 0]

    def change(file):
        times = 0.02 + np.arange(len(file["wheel/wheel_speed"])) / 50
        for name in ("wheel/wheel_speed", "whisker/whisker_motion_energy", "licks/licking_rate"):
            values = file[name][()]
            file[name][...] = np.where(times >= first - 3, 77.0, values)
        unit = file["spikes/unit_index"][()]
        late = file["spikes/timestamps"][()] >= first
        file["spikes/unit_index"][...] = np.where(late, 0, unit)
        late = file["task_aligned_intervals/choice/start"][()] >= first
        file["task_aligned_intervals/choice/choice"][late] = 1

    pair = [protocol_recording(s, s.part("ts1", "train"), s.part("ts1", "val"), 0.02)
            for s in (source, changed(folder, tmp_path, change))]
    assert pair[0].state == pair[1].state
    assert torch.equal(pair[0].counts, pair[1].counts)
    for one, other in zip(pair[0].encoded, pair[1].encoded, strict=True):
        assert torch.equal(one, other)
    assert {u.region for u in pair[0].state.units} == {""}  # anatomy is an answer, not an input
    assert pair[0].runs_within("test") == []


def test_predictions_see_no_answers(folder, tmp_path, model):
    """Truth that is changed changes no prediction; the spikes that are shown do."""
    net, state, source = model
    tasks = [t for t in TASKS if t.suite == "ts1" and t.kind != "rate"]

    def change(file):
        for name in ("wheel/wheel_speed", "whisker/whisker_motion_energy"):
            file[name][...] = 5.0
        held = np.flatnonzero(file["units/ts2_co_smoothing_is_held_out_test"][()])
        unit, times = file["spikes/unit_index"][()], file["spikes/timestamps"][()]
        gone = np.isin(unit, held)
        file["spikes/timestamps"][...] = np.where(gone, 0.001, times)

    other = changed(folder, tmp_path, change)
    held = tasks_of("co_smoothing")[0]
    pair = [predict_spikes(Decoder.of(net, state, s, 3.0), held)["predictions"]
            for s in (source, other)]
    np.testing.assert_array_equal(*pair)
    traces = [predict_behaviour(Decoder.of(net, state, s, 3.0), tasks)["ts1-wheel_speed"]
              for s in (source, other)]
    assert (traces[0]["predictions"] != traces[1]["predictions"]).any()  # other spikes


def test_forecasts_do_not_see_what_they_forecast(folder, tmp_path, model):
    net, state, source = model
    decoder = Decoder.of(net, state, source, 3.0)
    task = tasks_of("forecasting")[0]
    before = predict_spikes(decoder, task)
    forward = decoder.forward

    def blind(counts, hide):
        assert hide.sum() == 5
        assert hide[-5:].all()
        return forward(np.where(hide[:, None], 0, counts), hide)

    object.__setattr__(decoder, "forward", blind)
    np.testing.assert_array_equal(predict_spikes(decoder, task)["predictions"],
                                  before["predictions"])


def test_co_smoothing_of_a_window_is_that_of_its_segment(folder, model):
    """Windows that share a pass get what each would get alone, with the same spikes before it."""
    net, state, source = model
    decoder = Decoder.of(net, state, source, 3.0)
    found = predict_spikes(decoder, tasks_of("co_smoothing")[0])
    starts = found["window_timestamps"]
    same = np.flatnonzero(np.abs(np.diff(starts) - 0.02) < 1e-9)
    for row in same[:20]:  # the bins that two windows share
        np.testing.assert_array_equal(found["predictions"][row, 1:],
                                      found["predictions"][row + 1, :-1])


def test_window_form(folder, model):
    source = model[2]
    config = ModelConfig(form="window", hidden=16, layers=1, heads=2, mlp=16, window=60)
    net = Neds(config, [model[1].spec]).eval()
    decoder = Decoder.of(net, model[1], source, 20.0)
    assert decoder.bins == 60
    found = predict_behaviour(decoder, tasks_of("wheel_speed,choice"))
    assert np.isfinite(found["ts1-wheel_speed"]["predictions"]).all()
    short = Neds(ModelConfig(form="window", hidden=16, layers=1, heads=2, mlp=16, window=40),
                 [model[1].spec])
    with pytest.raises(BadInput, match=r"model\.window"):
        Decoder.of(short, model[1], source, 20.0)


def test_log_rate_readout():
    rng = np.random.default_rng(0)
    rate_hz = rng.uniform(0.2, 8, (40, 50))
    counts = rng.poisson(2 * rate_hz**1.5 / 50)
    readout = fit_log_rate(rate_hz, counts)
    assert readout.slope == pytest.approx(1.5, abs=0.1)
    assert readout.offset == pytest.approx(np.log(2 / 50), abs=0.15)
    assert fit_log_rate(rate_hz, np.zeros((40, 50))).slope == 0.0
    assert np.isfinite(readout.log_rate(np.array([-3.0, 0.0]))).all()


def test_what_cannot_be_run_is_said(folder, tmp_path, capsys):
    path = folder / "poor.h5"
    path.write_bytes((folder / "eval1.h5").read_bytes())
    with h5py.File(path, "a") as file:
        del file["units/ts2_co_smoothing_is_held_out_test"], file["licks"]
        file["units/region_cosmos"][...] = np.array([b"root"] * 12)
    code, report = evaluate(folder, tmp_path, "--seeds", "43", "--json", "--tasks",
                            "licking_rate,wheel_speed,co_smoothing,ts3", sessions=("poor.h5",),
                            capsys=capsys)
    assert code == 0
    assert [row["task"] for row in report["tasks"]] == ["ts1-wheel_speed"]
    assert {line.partition(":")[0] for line in report["not_run"]} == {
        "ts1-licking_rate", "ts2-co_smoothing", "ts3-unit_cosmos"}


@pytest.mark.parametrize(("words", "match"), [
    (["--tasks", "encoding"], "--tasks"), (["--seeds", "43,43"], "--seeds"),
    (["--seeds", "x"], "--seeds"), (["--label", "a/b"], "--label"), (["--context", "0.2"], "bins"),
    (["--set", "model.hidden=8"], ""), (["--baselines", "ridge"], "--baselines"),
])
def test_bad_options(folder, tmp_path, capsys, words, match):
    code, _ = evaluate(folder, tmp_path, "--seeds", "43", *words)
    if not match:
        assert code == 0  # only the training table of the recipe counts
        return
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert match in said.splitlines()[-1]


def test_animals_that_the_checkpoint_knows_are_refused(folder, tmp_path, capsys):
    assert evaluate(folder, tmp_path, "--seeds", "43", sessions=("pre0.h5",))[0] == 2
    assert "the checkpoint knows" in capsys.readouterr().err


def test_files_that_do_not_fit_their_truth(folder, tmp_path, capsys):
    evaluate(folder, tmp_path / "p", "--seeds", "43", "--tasks", "wheel_speed", "--truth",
             str(tmp_path / "t"), "--json", capsys=capsys)
    path = next((tmp_path / "p").rglob("*.safetensors"))
    tensors, facts = read_tensors(path)
    write_tensors(path, tensors | {"trial_id": tensors["trial_id"] + 10_000}, facts)
    with pytest.raises(BadInput, match="trial_id"):
        score_folder(tmp_path / "p", tmp_path / "t")
    write_tensors(path, tensors | {"predictions": tensors["predictions"][:, :3]}, facts)
    with pytest.raises(BadInput, match="predictions"):
        score_folder(tmp_path / "p", tmp_path / "t")


@pytest.mark.parametrize("words", [["--label", "x"], ["--truth", "t"], ["--context", "3"]])
def test_options_of_this_protocol_are_of_no_other(folder, capsys, words):
    assert main(["evaluate", str(folder / "run"), *words]) == 2
    assert words[0] in capsys.readouterr().err
