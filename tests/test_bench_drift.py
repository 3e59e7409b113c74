"""bench/drift.py: what counts as an alarm, what a disturbance does, and a whole run in small."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bench import drift
from bench.drift_trials import KINDS, crossings, disturb, found_after, further
from neds.config import load_recipe
from neds.plots.drift import drift_curves
from neds.plots.style import save
from neds_rt.manifest import Unit
from neds_rt.synthetic import SyntheticAnimal


def test_an_alarm_that_flickers_is_one():
    series = np.array([np.nan, 0, 2, 0, 2, 0, 0, 0, 0, 0, 2, 2])
    assert crossings(series, 1.0, 3) == 2
    assert crossings(series, 1.0, 1) == 3
    assert crossings(series, 3.0, 3) == 0


def test_what_was_in_alarm_before_is_not_a_find():
    assert found_after(np.array([0.0, 0.5, 1.5, 0.2]), 1.0) == 2
    assert found_after(np.array([1.5, 0.5, 1.5]), 1.0) == -1
    assert found_after(np.array([np.nan, 0.5]), 1.0) is None


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_chosen_units_change_and_only_from_the_onset_on(kind):
    counts = np.random.default_rng(0).poisson(3.0, (400, 20)).astype(np.uint16)
    changed = disturb(counts, kind, 0.25, 100, np.random.default_rng(1))
    np.testing.assert_array_equal(changed[:100], counts[:100])
    moved = np.flatnonzero((changed != counts).any(0))
    assert len(moved) == 5
    late = changed[100:, moved].astype(float)
    if kind == "dropped":
        assert not late.any()
    elif kind == "swapped":
        np.testing.assert_array_equal(np.sort(late, 1), np.sort(counts[100:, moved], 1))
    else:
        ratio = late.mean(0) / counts[100:, moved].mean(0)
        assert np.logical_or(np.isclose(ratio, 2), np.isclose(ratio, 0.5, atol=0.06)).all()


def test_a_curve_counts_alarms_by_the_hour_and_finds_by_the_trial():
    natural = [{"hours": 0.5, "hold": 2, "series": {"drift": np.array([0.1, 1.2, 0.1, 0.1])}}]
    rows = [{"kind": kind, "r2_before": 0.8, "r2_after": after, "series": {"drift": np.array(s)}}
            for kind, after, s in (("dropped", 0.5, [0.0, 0.7]), ("dropped", 0.79, [0.0, 0.0]),
                                   ("swapped", 0.2, [0.0, 2.0]), ("swapped", 0.2, [3.0, 3.0]))]
    points = {p["factor"]: p for p in drift.curve("drift", natural, rows)}
    assert points[1.0]["false_alarms_per_hour"] == 2.0
    assert points[1.3]["false_alarms_per_hour"] == 0.0
    assert (points[1.0]["dropped"], points[0.6]["dropped"]) == (0.0, 0.5)
    assert points[1.0]["swapped"] == 1.0  # the last of them was in alarm before
    assert points[0.6]["harmful"] == 1.0
    assert points[1.0]["scaled"] is None


def test_a_run_in_small_ends_in_a_report_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(drift, "SYNTHETIC_UNITS", 16)
    monkeypatch.setattr(drift, "SHARES", (0.5,))
    coarse = ["data.bin_size_s=0.1", "model.window=15", "train.bins=30", "train.batch=2"]
    monkeypatch.setattr(drift, "load_recipe", lambda name, sizes: load_recipe(name, sizes + coarse))
    out, plot = tmp_path / "drift.json", tmp_path / "drift.svg"
    assert drift.main(["--synthetic", "1", "--synthetic-seconds", "560", "--steps", "2", "--hidden",
                       "16", "--onsets", "1", "--seed", "2", "--out", str(out), "--plot",
                       str(plot), "--still-hours", "0.02"]) == 0
    report = json.loads(out.read_text())
    (still,) = report["still"]
    assert (still["hours"], still["session"]) == (0.02, report["sessions"][0]["session"])
    assert still["false_alarms_per_hour"] == still["alarms_drift"] / 0.02
    assert {(c["kind"], c["trials"]) for c in report["cells"]} == {(kind, 1) for kind in KINDS}
    assert len(report["curves"]) == 3 * len(drift.FACTORS)
    assert report["sessions"][0]["units"] == 16
    assert plot.read_text().count("<svg") == 1
    assert "alarms/h" in capsys.readouterr().out
    save(drift_curves(report), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == plot.read_bytes()


def test_a_further_session_is_binned_in_the_order_of_the_model():
    animal = SyntheticAnimal(7, 6)
    names = [Unit(*(column[i].item() for column in (animal.units["probe"], animal.units["channel"],
                                                    animal.units["cluster"]))) for i in range(6)]
    kept = [names[i] for i in (4, 0, 2)]
    subject = SimpleNamespace(recording=SimpleNamespace(bin_size_s=0.02),
                              bundle=SimpleNamespace(manifest=SimpleNamespace(units=kept)))
    counts = further(subject, animal, 10.0, 3)
    spikes = animal.simulate(10.0, 3)
    assert counts.shape == (500, 3)
    assert counts.sum(0).tolist() == [int((spikes.unit == i).sum()) for i in (4, 0, 2)]
    assert not np.array_equal(counts, further(subject, animal, 10.0, 4))


def test_without_recordings_there_is_one_line(capsys):
    assert drift.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
