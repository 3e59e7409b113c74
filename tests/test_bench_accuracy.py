"""`bench/accuracy.py` on a small made archive in the format of the Indy set."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import accuracy, oracles
from bench.protocols import MODELS, PROTOCOLS, masking_for
from neds import baselines
from neds.baselines import BASELINES, sequence
from neds.config import DataConfig, MaskingConfig, load_recipe
from neds.data.store import provenance, session_path, write_session
from neds.data.synthetic import synthetic_session
from neds.dataset import describe, to_recording
from neds.evaluate import part_counts
from neds.masking import SCHEMES
from neds.metrics import bits_per_spike
from neds_rt.synthetic import SyntheticAnimal
from tests.neds.planted import TINY as TINY_NET

ROOT = Path(__file__).parents[1]
TINY = ("--recipe", "smoke", "--single-recipe", "smoke", "--preset", "indy",
        "--behaviours", "velocity",
        *(word for pair in ("model.hidden=16", "model.window=10", "train.steps=4",
                            "train.bins=20", "train.batch=4", "train.validate_every=2")
          for word in ("--set", pair)))


def archive(path, seed, bins=600, units=6, **more):
    """Counts that follow a slow velocity, in the arrays of the Indy set."""
    rng = np.random.default_rng(seed)
    kernel = np.hanning(31) / np.hanning(31).sum()
    noise = rng.standard_normal((2, bins + 30))
    velocity = np.stack([np.convolve(n, kernel, "valid") for n in noise], 1)
    velocity = 5 * velocity / velocity.std(0)
    rates = np.exp(0.5 + 0.15 * velocity @ rng.standard_normal((2, units)))
    start = np.arange(bins) * 0.064
    np.savez(
        path,
        spike_counts=rng.poisson(rates.clip(max=20)).astype(np.uint8),
        bin_start_s=start, bin_size_s=0.064,
        unit_channel=np.arange(units), unit_id=np.arange(units),
        finger_velocity_cm_s=velocity, finger_position_cm=np.cumsum(velocity, 0) * 0.064, **more,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy")
    for seed, name in enumerate(("indy_1", "indy_2")):
        archive(folder / f"{name}.npz", seed)
    out = folder / "results" / "accuracy-made.json"
    patch = pytest.MonkeyPatch()
    patch.setattr(sequence, "for_budget", lambda recipe, budget: TINY_NET)
    code = accuracy.main(["--data", str(folder), *TINY, "--seeds", "2", "--out", str(out),
                          "--protocol", "within,masking",
                          "--models", "linear,gru_single,gru,neds_single,neds,neds_no_encoding"])
    patch.undo()
    assert code == 0
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    return json.loads(out.read_text())


def test_every_model_session_and_seed_has_its_rows(result):
    rows = result["rows"]
    keys = {(r["session"], r["model"], r["seed"]) for r in rows if r["modality"] == "velocity"}
    sessions, seeded = ("indy_1", "indy_2"), (
        "gru_single", "gru", "neds_single", "neds", "neds_no_encoding")
    assert keys == {(s, "linear", 101) for s in sessions} | {
        (s, model, seed) for s in sessions for model in seeded for seed in (101, 102)}
    metrics = {(r["model"], r["modality"], r["metric"]) for r in rows}
    assert ("neds", "spikes", "bps_pooled") in metrics
    ridge = [r["value"] for r in rows if r["model"] == "linear" and r["metric"] == "r2"]
    assert min(ridge) > 0.3  # the made rates do follow the velocity
    assert set(result) >= {"protocol", "command", "commit", "rows", "mean", "machine"}


def test_the_tables_name_each_other():
    for model in MODELS.values():
        assert not model.baseline or model.baseline in BASELINES
        load_recipe("indy_many", list(model.overrides))
        shares = masking_for(model, MaskingConfig())
        assert sum(getattr(shares, scheme) for scheme in SCHEMES) == pytest.approx(1)
    assert {name for names in PROTOCOLS.values() for name in names} <= set(MODELS)


def test_held_out_sessions_are_spread_and_apart(tmp_path):
    for i in range(9):
        archive(tmp_path / f"indy_{i}.npz", i, bins=50)
    args = accuracy.parse_arguments(["--data", str(tmp_path), "--protocol", "new-session",
                                     "--held-out", "3", "--models", "neds", "--seeds", "1"])
    (task,) = accuracy.tasks_of(args)
    assert [Path(f).stem for f in task.held_out] == ["indy_1", "indy_4", "indy_7"]
    assert len(task.files) == 6
    assert not set(task.files) & set(task.held_out)


def test_every_animal_is_left_out_in_turn(tmp_path):
    for i in range(5):
        archive(tmp_path / f"indy_{i}.npz", i, bins=50, subject_id="AABBC"[i])
    tasks = list(accuracy.tasks_of(accuracy.parse_arguments(
        ["--data", str(tmp_path), "--protocol", "new-animal", "--seeds", "1"])))
    alone = [t for t in tasks if t.model == "linear"]
    assert [len(t.files) for t in alone] == [1] * 5
    left_out = {t.animal: t for t in tasks if t.model == "neds"}
    assert {a: [Path(f).stem for f in t.held_out] for a, t in left_out.items()} == {
        "A": ["indy_0", "indy_1"], "B": ["indy_2", "indy_3"], "C": ["indy_4"]}
    for task in left_out.values():
        assert not set(task.files) & set(task.held_out)
        assert len(task.files) + len(task.held_out) == 5


def test_an_animal_left_out_is_fine_tuned_at_once(tmp_path):
    for i in range(3):
        archive(tmp_path / f"indy_{i}.npz", i, subject_id="AAB"[i])
    out = tmp_path / "animals.json"
    assert accuracy.main(["--data", str(tmp_path), "--protocol", "new-animal", "--seeds", "1",
                          "--models", "neds", "--out", str(out), *TINY]) == 0
    rows = [r for r in json.loads(out.read_text())["rows"] if r["metric"] == "r2"]
    assert {(r["session"], r["animal"]) for r in rows} == {
        ("indy_0", "A"), ("indy_1", "A"), ("indy_2", "B")}
    assert {r["calibration_s"] for r in rows} == {-1.0}


def test_jobs_side_by_side_give_the_same_rows(result, tmp_path):
    for seed, name in enumerate(("indy_1", "indy_2")):
        archive(tmp_path / f"{name}.npz", seed)
    out = tmp_path / "out.json"
    assert accuracy.main(["--data", str(tmp_path), *TINY, "--seeds", "2", "--out", str(out),
                          "--models", "neds", "--jobs", "2"]) == 0

    def values(rows):
        return {(r["session"], r["seed"], r["metric"], r["modality"]): r["value"]
                for r in rows if r["model"] == "neds"}

    assert values(json.loads(out.read_text())["rows"]) == values(result["rows"])


def test_a_mean_is_over_sessions_of_the_mean_over_seeds(result):
    for model, means in result["mean"].items():
        per_session = [
            np.mean([r["value"] for r in result["rows"] if r["metric"] == "r2"
                     and (r["model"], r["session"]) == (model, session)])
            for session in ("indy_1", "indy_2")
        ]
        assert means["velocity.r2"] == pytest.approx(np.mean(per_session))


def test_means_do_not_count_a_session_with_more_seeds_twice():
    def row(session, value):
        return {"session": session, "model": "neds", "modality": "velocity", "metric": "r2",
                "value": value}

    rows = [row("a", 0.2), row("a", 0.4), row("b", 0.9)]
    assert accuracy.means(rows) == {"neds": {"velocity.r2": pytest.approx(0.6)}}


def test_json_is_the_last_line(tmp_path, capsys):
    archive(tmp_path / "indy_3.npz", 3)
    archive(tmp_path / "left_out.npz", 4)
    words = ["--data", str(tmp_path), *TINY, "--models", "linear", "--sessions", "indy", "--json"]
    assert accuracy.main(words) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {r["session"] for r in printed["rows"]} == {"indy_3"}
    assert set(printed["mean"]) == {"linear"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--models", "linear,magic"], "'magic'"),
        (["--seeds", "0"], "--seeds"),
        (["--protocol", "guess"], "'guess'"),
        (["--protocol", "new-session"], "--held-out"),
        (["--protocol", "new-animal"], "no subject_id"),
        (["--sessions", "nobody"], "none to score"),
        (["--preset", "nowhere"], "nowhere"),
        (["--out", "/proc/neds/x.json"], "/proc/neds"),
    ],
)
def test_refusals_are_one_line(tmp_path, capsys, words, named):
    archive(tmp_path / "indy_5.npz", 5)
    assert accuracy.main(["--data", str(tmp_path), *TINY, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert named in lines[0]


def test_session_files_are_scored_beside_the_rates_they_were_drawn_from(tmp_path):
    for seed in (1, 2):
        session = synthetic_session(SyntheticAnimal(seed, 30), 60.0)
        write_session(session, session_path(tmp_path, session.session),
                      provenance=provenance("synthetic", {"seed": seed}, "", ""))
    out = tmp_path / "results.json"
    words = [w for o in ("data.bin_size_s=0.02", "data.behaviours=[\"wheel\"]", "model.hidden=16",
                         "train.bins=100", "train.steps=2") for w in ("--set", o)]
    assert accuracy.main(["--data", str(tmp_path), "--recipe", "smoke", "--single-recipe", "smoke",
                          "--protocol", "encoding", "--models", "true_rates,true_drive,neds_window",
                          "--seeds", "1", "--first-seed", "102", "--out", str(out), *words]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {r["seed"] for r in rows} == {102}
    ceiling, drive = ({r["session"]: r["value"] for r in rows
                       if (r["model"], r["metric"]) == (model, "bps_pooled")}
                      for model in ("true_rates", "true_drive"))
    assert len(ceiling) == len(drive) == 2
    assert all(0.05 < drive[session] < ceiling[session] < 2 for session in ceiling)
    wheel = {r["metric"] for r in rows if r["modality"] == "wheel"}
    assert {"r2", "window_r2"} <= wheel


def test_more_of_the_same_animal_tells_more_of_its_spikes(monkeypatch):
    monkeypatch.setattr(oracles, "LONGER_S", 120.0)
    session = synthetic_session(SyntheticAnimal(1, 30), 40.0)
    binned, state = describe(session, DataConfig(min_rate_hz=2.0), 5)
    recording = to_recording(binned, state)
    counts, null = part_counts(recording, "test"), np.array(state.null_rates)
    few = baselines.fit("glm", [recording], seed=0, budget="quick").encode_part(recording, "test")
    many = oracles.long_glm(session, recording, "test")
    assert many.shape == counts.shape
    assert len(state.unit_rows) < 30
    assert bits_per_spike(counts, many, null)[1] > bits_per_spike(counts, few, null)[1] > 0


def test_true_rates_of_real_recordings_are_not_known(tmp_path, capsys):
    archive(tmp_path / "indy_1.npz", 0)
    code = accuracy.main(["--data", str(tmp_path), *TINY, "--models", "true_rates", "--seeds", "1"])
    assert code == 2
    assert "true rates: found not recorded" in capsys.readouterr().err
