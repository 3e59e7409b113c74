"""One run of `neds prepare` over damaged IBL sessions: each is degraded or fails by itself."""

import json

import numpy as np
import pytest

from neds.cli import main
from neds.data.store import read_session
from tests.neds.alf_cases import DATE, SUBJECT, TRIALS, make_alf


def change(folder, pattern, function):
    """Apply a function to the arrays of a session whose files have such a name."""
    paths = list(folder.rglob(pattern))
    assert paths
    for path in paths:
        np.save(path, function(np.load(path)))


def nan_at(*rows):
    def function(array):
        array = array.astype(float)
        array[list(rows) or slice(None)] = np.nan
        return array

    return function


def nothing(array):
    return array[:0]


def spikes_of(*changes):
    def damage(folder):
        for probe in ("probe00", "probe01"):
            for pattern, function in changes:
                change(folder / "alf" / probe, pattern, function)

    return damage


def behaviour(*changes):
    def damage(folder):
        for pattern, function in changes:
            change(folder, pattern, function)

    return damage


def no_cameras(folder):
    for path in folder.rglob("*Camera*"):
        path.unlink()


SILENT = ("unit", "4, 10", "no spikes")
SLOW = ("unit", "4, 10", "0 spikes/s or less in the trials' windows")
CAMERAS = [("behaviour", "whisker (left)", "leftCamera"), ("behaviour", "whisker", "rightCamera")]

# damage -> what does it, what both forms report, and the error of the form of trials or of both
DAMAGES = {
    "good": (lambda folder: None, [], {}),
    "nan spike times": (spikes_of(("spikes.times.npy", nan_at(3, 700))),
                        [("spike", "spikes", "time is not a number")], {}),
    "no spike times known": (spikes_of(("spikes.times.npy", nan_at())), [], {
        "continuous": "units: found none of 12 left", "trials": "units: found none of 12 left"}),
    "nan wheel times": (behaviour(("_ibl_wheel.timestamps.npy", nan_at(50))),
                        [("behaviour", "wheel", "not numbers")], {}),
    "nan camera times": (behaviour(("_ibl_leftCamera.times.npy", nan_at(50, 51))),
                         [("bin", "whisker", "time stamp is not a number")], {}),
    "no camera times known": (behaviour(("_ibl_*Camera.times.npy", nan_at())), [
        ("behaviour", "whisker (left)", "no frame with a time"),
        ("behaviour", "whisker", "no frame with a time")], {}),
    "empty wheel": (behaviour(("_ibl_wheel.timestamps.npy", nothing),
                              ("_ibl_wheel.position.npy", nothing)),
                    [("behaviour", "wheel", "columns of one length")], {}),
    "empty camera": (behaviour(("_ibl_leftCamera.times.npy", nothing),
                               ("leftCamera.ROIMotionEnergy.npy", nothing)),
                     [("behaviour", "whisker (left)", "0 frames")], {}),
    "no cameras": (no_cameras, CAMERAS, {}),
    "unequal trials": (behaviour(("_ibl_trials.rewardVolume.npy", lambda a: a[:7])), [
        ("column", "rewardVolume", f"has 7 rows, most have {TRIALS}")], {}),
    "unequal needed trials": (behaviour(("_ibl_trials.choice.npy", lambda a: a[:7])), [
        ("column", "choice", "has 7 rows"), ("behaviour", "block", "no choice")],
        {"trials": "no choice"}),
    "clusters of no spikes": (spikes_of(("spikes.clusters.npy", lambda a: np.where(a == 2, 1, a))),
                              [("unit", "2, 4, 8, 10", "")], {}),
    "unequal spikes": (spikes_of(("spikes.clusters.npy", lambda a: a[:9])), [], {
        "continuous": "2 probes, none usable", "trials": "2 probes, none usable"}),
}


@pytest.mark.parametrize("form", ["continuous", "trials"])
def test_a_run_over_every_damage(tmp_path, capsys, form):
    names, folders = {}, []
    for k, (name, (damage, _, _)) in enumerate(DAMAGES.items()):
        folders.append(make_alf(tmp_path, seconds=100.0, number=f"{k:03d}"))
        damage(folders[-1])
        names[name] = f"{SUBJECT}_{DATE}_{k:03d}"
    failing = {name for name, (_, _, errors) in DAMAGES.items() if form in errors}
    words = ["--reader", "ibl", "--out", str(tmp_path / "out"), "--json", "--set", f"form={form}"]
    code = main(["prepare", *map(str, folders), *words])
    shown = capsys.readouterr()
    assert code == 2
    facts = json.loads(shown.out.splitlines()[-1])
    assert {row["session"] for row in facts["sessions"]} == {
        names[name] for name in names if name not in failing}
    assert len(shown.err.splitlines()) == len(facts["failed"]) == len(failing)
    for k, (name, (_, reported, errors)) in enumerate(DAMAGES.items()):
        if name in failing:
            said = {row["source"]: row["error"] for row in facts["failed"]}
            assert errors[form] in said[str(folders[k])]
            continue
        found = [d for d in facts["dropped"]["entries"] if d["session"] == names[name]]
        own = reported or [SILENT if form == "continuous" else SLOW]
        for level, what, reason in own:
            assert any(d["level"] == level and d["name"] == what and reason in d["reason"]
                       and d["count"] >= (0 if "left" in what else 1) for d in found), \
                (name, (level, what, reason), found)
    counted = {(d["session"], d["level"]): d["count"] for d in facts["dropped"]["entries"]
               if d["level"] in ("spike", "bin", "behaviour", "probe")}
    assert counted[names["nan spike times"], "spike"] == 4
    assert counted[names["nan camera times"], "bin"] == 2
    assert not [key for key in counted if key[0] == names["good"]]
    good = read_session(tmp_path / "out" / f"{names['good']}.h5")
    assert set(good.behaviours) == {"wheel", "whisker", "choice", "block"}
    for name in ("nan wheel times", "empty wheel"):
        left = read_session(tmp_path / "out" / f"{names[name]}.h5")
        assert set(left.behaviours) == {"whisker", "choice", "block"}
    left = read_session(tmp_path / "out" / f"{names['no cameras']}.h5")
    assert set(left.behaviours) == {"wheel", "choice", "block"}
    whole = [str(f) for f, name in zip(folders, DAMAGES, strict=True) if name not in failing]
    assert main(["prepare", *whole, *words]) == 0
