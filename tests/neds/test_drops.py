"""Many recordings, some of which cannot be trained on: named, counted, left out; never a crash."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from neds.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from neds.data.dropped import LEVELS, DropReport
from neds.data.rebin import rebin_factor, rebinned
from neds.data.session import Behaviour, Counts, Session, Units
from neds.data.store import write_session
from neds.data.synthetic import synthetic_session
from neds.dataset import match
from neds.drops import is_constant, load_recordings, usable
from neds.train import train
from neds_rt.errors import BadInput
from neds_rt.synthetic import SyntheticAnimal
from tests.neds.conftest import BIN_S, make_session

CONFIG = RunConfig(
    data=DataConfig(bin_size_s=BIN_S, fractions=(0.6, 0.2, 0.2)),
    model=ModelConfig(hidden=16, layers=1, heads=2, mlp=16, window=10, conv=3),
    train=TrainConfig(steps=4, batch=4, bins=20, validate_every=2),
)


def named(name, bins=400, **changes):
    """A good session of that name, some of its behaviours changed."""
    session = make_session(bins=bins, seed=len(name))
    behaviours = dict(session.behaviours)
    for key, change in changes.items():
        behaviours[key] = replace(behaviours[key], **change(behaviours[key]))
    return replace(session, session=name, behaviours=behaviours)


def constant(b):
    return {"values": np.full_like(b.values, b.values[0])}


def unknown_until(share):
    def change(b):
        values = b.values.copy()
        values[: int(share * len(values))] = np.nan
        return {"values": values, "gaps": True}

    return change


def entries(report, level):
    return [(d.session, d.name, d.count) for d in report.drops if d.level == level]


def behaviours(recording):
    return [b.name for b in recording.state.behaviours]


def test_good_sessions_pass_with_nothing_to_report():
    recordings, report = usable([named("a"), named("bb")], CONFIG)
    assert [r.state.session for r in recordings] == ["a", "bb"]
    assert report.drops == []
    assert report.lines() == []


def test_sessions_that_cannot_be_used_are_named_and_the_rest_is_trained_on():
    short = named("short", bins=11)
    tiny = named("tiny", bins=2)
    silent = replace(named("silent"), spikes=Counts(
        counts=np.zeros((400, 12), np.uint8), bin=np.arange(400), bin_size_s=BIN_S))
    config = msgspec.structs.replace(
        CONFIG, data=msgspec.structs.replace(CONFIG.data, min_rate_hz=0.1))
    recordings, report = usable([short, named("a"), tiny, silent, named("a"), named("bb")], config)
    assert [r.state.session for r in recordings] == ["a", "bb"]
    assert {d.session for d in report.drops if d.level == "session"} == {
        "short", "tiny", "silent", "a"}
    assert report.count("session") == 4
    assert next(d.reason for d in report.drops if d.session == "a") == "already read from a"
    result = train(config, recordings, progress=False)
    assert result.best_score is not None


def test_behaviours_that_teach_nothing_are_left_out_and_unknown_bins_counted():
    session = named("a", velocity=constant, choice=unknown_until(0.9), heading=unknown_until(0.1))
    (recording,), report = usable([session], CONFIG)
    assert behaviours(recording) == ["heading"]
    assert {(s, n) for s, n, _ in entries(report, "behaviour")} == {("a", "velocity"),
                                                                    ("a", "choice")}
    assert entries(report, "bin") == [("a", "heading", 40)]
    assert int((~recording.known[0]).sum()) == 40


def test_one_class_alone_on_the_training_part_is_constant_though_others_come_later():
    def later(b):
        values = np.zeros_like(b.values)
        values[-50:] = 1
        return {"values": values}

    (recording,), report = usable([named("a", choice=later)], CONFIG)
    assert "choice" not in behaviours(recording)
    assert "constant on the training part: 'left'" in report.drops[0].reason


def test_absent_class_is_named_with_the_bins_it_has_elsewhere():
    def third(b):
        values = b.values.copy()
        values[-30:] = 2
        return {"values": values, "classes": ("left", "right", "nogo", "never")}

    (recording,), report = usable([named("a", choice=third)], CONFIG)
    assert "choice" in behaviours(recording)
    assert entries(report, "class") == [("a", "choice=nogo", 30), ("a", "choice=never", 0)]
    assert report.count("class") == 2
    assert recording.known.all()


def test_units_below_the_rate_are_counted():
    session = named("a")
    counts = session.spikes.counts.copy()
    counts[:, :3] = 0
    session = replace(session, spikes=replace(session.spikes, counts=counts))
    config = msgspec.structs.replace(
        CONFIG, data=msgspec.structs.replace(CONFIG.data, min_rate_hz=0.1))
    (recording,), report = usable([session], config)
    assert entries(report, "unit") == [("a", "units", 3)]
    assert recording.counts.shape[1] == 9


@pytest.mark.parametrize("odd_first", [True, False])
def test_what_most_sessions_mean_by_a_name_counts(odd_first):
    def swapped(b):
        return {"classes": ("right", "left")}

    sessions = [named("bb"), named("ccc")]
    sessions.insert(0 if odd_first else 2, named("odd", choice=swapped))
    recordings, report = usable(sessions, CONFIG)
    by_name = {r.state.session: behaviours(r) for r in recordings}
    assert by_name["odd"] == ["velocity", "heading"]
    assert by_name["bb"] == by_name["ccc"] == ["velocity", "choice", "heading"]
    (drop,) = report.drops
    assert "(right, left)" in drop.reason
    assert "(left, right)" in drop.reason
    assert "bb" in drop.reason
    odd = next(r for r in recordings if r.state.session == "odd")
    assert len(odd.encoded) == len(odd.known) == len(odd.values) == 2
    assert odd.state.spec.behaviours[1].kind == "circular"
    assert train(CONFIG, recordings, progress=False).best_score is not None


def test_missing_behaviour_is_noted_and_one_that_nobody_has_is_refused():
    config = msgspec.structs.replace(
        CONFIG, data=msgspec.structs.replace(CONFIG.data, behaviours=["velocity", "choice"]))
    bare = replace(named("bare"), behaviours={"velocity": named("bare").behaviours["velocity"]})
    recordings, report = usable([bare, named("a")], config)
    assert [behaviours(r) for r in recordings] == [["velocity"], ["velocity", "choice"]]
    assert entries(report, "behaviour") == [("bare", "choice", 1)]
    wrong = msgspec.structs.replace(
        CONFIG, data=msgspec.structs.replace(CONFIG.data, behaviours=["velocty"]))
    with pytest.raises(BadInput, match=r"'velocty'.*choice, heading, velocity"):
        usable([named("a")], wrong)


def test_nothing_left_is_one_line_with_the_first_reason():
    with pytest.raises(BadInput, match=r"0 of 2 .*expected one or more"):
        usable([named("a", bins=11), named("bb", bins=11)], CONFIG)
    with pytest.raises(BadInput, match="none given"):
        usable([], CONFIG)


def test_files_that_cannot_be_read_are_drops_and_a_path_to_nothing_is_refused(tmp_path):
    write_session(named("good"), tmp_path / "good.h5")
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    recordings, config, report = load_recordings(
        [tmp_path / "bad.h5", tmp_path / "good.h5"], CONFIG)
    assert [r.state.session for r in recordings] == ["good"]
    assert config == CONFIG
    assert entries(report, "session") == [("bad", str(tmp_path / "bad.h5"), 1)]
    with pytest.raises(BadInput, match="no such file"):
        load_recordings([tmp_path / "good.h5", tmp_path / "god.h5"], CONFIG)


def test_recipe_is_fitted_to_the_first_sessions_bins_and_other_bins_are_left_out(tmp_path):
    write_session(named("a"), tmp_path / "a.h5")
    other = named("bb")
    other = replace(other, domain=None, spikes=replace(other.spikes, bin_size_s=0.02))
    write_session(other, tmp_path / "bb.h5")
    recipe = msgspec.structs.replace(
        CONFIG, data=msgspec.structs.replace(CONFIG.data, bin_size_s=0.025))
    recordings, config, report = load_recordings([tmp_path / "a.h5", tmp_path / "bb.h5"], recipe)
    assert config.data.bin_size_s == BIN_S
    assert config.model.window == 5
    assert [r.state.session for r in recordings] == ["a"]
    assert "whole number" not in report.drops[0].reason
    assert "0.02 s where the recipe has 0.05 s" in report.drops[0].reason
    with pytest.raises(BadInput, match="0 of 2"):
        load_recordings([tmp_path / "a.h5", tmp_path / "bb.h5"], recipe, fit=False)


def test_rebinning_on_request_sums_counts_and_takes_behaviour_at_the_new_end(tmp_path):
    fine = make_session(bins=803, gap=True)
    write_session(replace(fine, session="fine"), tmp_path / "fine.h5")
    write_session(synthetic_session(SyntheticAnimal(3, 20), 60.0), tmp_path / "events.h5")
    recipe = msgspec.structs.replace(
        CONFIG, data=msgspec.structs.replace(CONFIG.data, bin_size_s=0.1))
    with pytest.raises(BadInput, match=r"--rebin, which adds up 2 bins"):
        load_recordings([tmp_path / "fine.h5"], recipe, fit=False)
    recordings, config, report = load_recordings(
        [tmp_path / "fine.h5", tmp_path / "events.h5"], recipe, rebin=True)
    assert config == recipe
    coarse = recordings[0]
    at = np.searchsorted(fine.spikes.bin, 2 * coarse.bin)
    assert (fine.spikes.bin[at] == 2 * coarse.bin).all()
    want = fine.spikes.counts[at].astype(int) + fine.spikes.counts[at + 1]
    assert (coarse.counts.numpy() == want).all()
    end = fine.behaviours["velocity"].values[at + 1]
    assert np.allclose(coarse.values["velocity"], end)
    lost = len(fine.spikes.bin) - 2 * len(coarse.bin)
    assert entries(report, "bin")[0] == ("fine", "counts", lost)
    assert lost > 0
    assert recordings[1].state.session == "synthetic-0003-00"
    again = match(replace(fine, session="fine"), coarse.state, 0.1)
    assert (again.counts == coarse.counts).all()


def test_rebinning_refuses_what_is_no_whole_number_and_leaves_events_alone():
    session = make_session(bins=100)
    with pytest.raises(BadInput, match=r"whole number makes 0\.12 s"):
        rebin_factor(session, 0.12)
    with pytest.raises(BadInput, match="no 200 consecutive bins"):
        rebinned(session, 10.0)
    events = synthetic_session(SyntheticAnimal(3, 10), 5.0)
    assert rebinned(events, 0.1) == (events, 0)
    assert rebinned(session, BIN_S) == (session, 0)


def test_rebinned_counts_saturate():
    counts = np.full((4, 1), 65000, np.uint16)
    session = Session(session="full", units=Units.of(1),
                      spikes=Counts(counts=counts, bin=np.arange(4), bin_size_s=0.1))
    coarse, left = rebinned(session, 0.2)
    assert left == 0
    assert coarse.spikes.counts.tolist() == [[65535], [65535]]


def test_constancy_knows_angles():
    turn = np.array([[np.pi], [-np.pi]], np.float32)
    assert is_constant("circular", turn)
    assert not is_constant("continuous", turn)
    assert is_constant("continuous", np.ones((3, 2), np.float32))
    assert not is_constant("continuous", np.array([[0, 0], [0, 1]], np.float32))


def test_report_as_text_and_json():
    report = DropReport()
    report.add("session", "a", "a.h5", "too\n  short")
    report.add("unit", "bb", "units", "silent", 7)
    lines = report.lines()
    assert len(lines) == 3
    assert lines[1].split() == ["session", "1", "a", "a.h5", "too", "short"]
    assert len({line.index(word) for line, word in zip(lines, ("reason", "too", "silent"),
                                                       strict=True)}) == 1
    facts = json.loads(json.dumps(report.as_json()))
    assert facts["units"] == 7
    assert facts["sessions"] == 1
    assert set(facts) == {"sessions", "probes", "trials", "columns", "behaviours", "classes",
                          "units", "spikes", "bins", "entries"}
    assert len(facts) == len(LEVELS) + 1
    assert facts["entries"][1]["reason"] == "silent"


def test_a_session_without_any_usable_behaviour_still_teaches_spikes():
    bare = named("bare", velocity=constant, choice=constant, heading=constant)
    recordings, report = usable([bare, named("a")], CONFIG)
    assert behaviours(recordings[0]) == []
    assert report.count("behaviour") == 3
    assert train(CONFIG, recordings, progress=False).best_score is not None


def test_trial_aligned_session_shorter_than_a_window_in_every_trial_is_used():
    bins = (np.arange(60)[:, None] * 20 + np.arange(6)).ravel()
    rng = np.random.default_rng(0)
    session = Session(
        session="trials", units=Units.of(4),
        spikes=Counts(counts=rng.poisson(1.0, (360, 4)), bin=bins, bin_size_s=BIN_S),
        behaviours={"x": Behaviour(kind="continuous", timestamps=(bins + 1) * BIN_S,
                                   values=rng.standard_normal(360))})
    recordings, report = usable([session], CONFIG)
    assert len(recordings) == 1
    assert report.drops == []
