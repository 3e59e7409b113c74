"""The paper's traces, value by value: the wheel, windows that are hardly covered, gaps inside."""

import numpy as np
import pytest
from scipy.interpolate import interp1d

from neds.data.dropped import dropped
from neds.data.ibl import IblOptions, read_alf
from neds.data.ibl_trials import BINS, trial_traces
from tests.neds.alf_cases import BAD, TRIALS, make_alf, trials_table

KEPT = [k for k in range(TRIALS) if k not in BAD]
EDGE_S = 1e-4  # how far inside or outside of 20 ms a trace starts or ends


def line(times, values, start, end):
    """Between the samples inside the window, extrapolated at its ends, at the bins' right edges."""
    use = (times > start) & (times < end)
    between = interp1d(times[use], values[use], kind="linear", fill_value="extrapolate")
    return between(np.linspace(start + 0.02, end, BINS))


def trace(session, name):
    return session.binned(0.02).values[name].reshape(-1, BINS)


@pytest.mark.parametrize("bugs", ["", "scale"])
def test_wheel_speed_is_that_of_a_known_turn(tmp_path, bugs):
    """Slow turning passes the filter, at its 20 Hz it is halved (by 1 / sqrt 2 forwards and again
    backwards), above it falls with the 16th power, and far above nothing is left."""
    folder = make_alf(tmp_path)
    at = np.arange(100_000) / 1000.0

    def position(slow, limit, above, fast):
        return (slow * np.sin(2 * np.pi * 0.7 * at) + limit * np.sin(2 * np.pi * 20.0 * at + 1.0)
                + above * np.sin(2 * np.pi * 22.0 * at) + fast * np.sin(2 * np.pi * 80.0 * at))

    np.save(folder / "alf" / "_ibl_wheel.timestamps.npy", at)
    np.save(folder / "alf" / "_ibl_wheel.position.npy", position(1.0, 0.01, 0.01, 0.01))
    passed = 1 / (1 + (np.tan(np.pi * 0.022) / np.tan(np.pi * 0.02)) ** 16)
    speed = np.abs(np.r_[0.0, np.diff(position(1.0, 0.005, 0.01 * passed, 0.0))] * 1000.0)
    stim = trials_table()["stimOn_times"][KEPT]
    expected = np.stack([line(at, speed, on - 0.5, on + 1.5) for on in stim])
    assert 4 < expected.max() < 6  # 2 pi 0.7 of the slow turn, 2 pi 20 x 0.005 of the other
    if bugs:
        expected = (expected - expected.min()) / np.ptp(expected)
    session = read_alf(folder, IblOptions(form="trials", bugs=bugs))
    np.testing.assert_allclose(trace(session, "wheel"), expected, atol=2e-3)


def hole(times, start, stop):
    return ~((times > start) & (times < stop))


def test_a_trace_may_start_or_end_a_bin_off_the_window_and_no_more():
    window = np.array([[5.0, 7.0]])
    times = np.arange(4.0, 8.0, 0.001) + 0.0005
    values = np.sin(times)
    for inside in (True, False):
        edge = 0.02 + (-EDGE_S if inside else EDGE_S)
        for start, stop in ((4.0, 5.0 + edge), (7.0 - edge, 8.0)):
            use = hole(times, start, stop)
            t = np.sort(np.r_[times[use], start, stop])
            out, there = trial_traces(t, np.sin(t), window)
            assert there.tolist() == [inside]
            if inside:
                np.testing.assert_allclose(out[0], line(t, np.sin(t), 5.0, 7.0), rtol=1e-9)
            else:
                assert np.isnan(out).all()
    out, there = trial_traces(times, values, window)
    assert there.all()
    assert not trial_traces(times[times < 4.9], values[times < 4.9], window)[1].any()
    assert not trial_traces(np.array([6.0]), np.array([1.0]), window)[1].any()  # one sample


def test_trials_at_the_edge_of_a_lost_camera(tmp_path):
    folder = make_alf(tmp_path, cameras=("left",))
    stim = trials_table()["stimOn_times"]
    begin, end = stim - 0.5, stim + 1.5
    within, over = 0.02 - EDGE_S, 0.02 + EDGE_S
    times = np.arange(0.2, 100.0, 0.002)
    added = []
    for k, off, late in ((14, within, True), (16, over, True), (18, within, False),
                         (20, over, False)):
        start, stop = (begin[k] - 0.3, begin[k] + off) if late else (end[k] - off, end[k] + 0.3)
        times = times[hole(times, start, stop)]
        added += [start, stop]
    times = np.sort(np.r_[times, added])
    np.save(folder / "alf" / "_ibl_leftCamera.times.npy", times)
    np.save(folder / "alf" / "leftCamera.ROIMotionEnergy.npy", np.cos(times))
    session = read_alf(folder, IblOptions(form="trials"))
    lost = [d for d in dropped(session) if "no whisker" in d.reason]
    assert [(d.name, d.count) for d in lost] == [("16, 20", 2)]
    kept = [k for k in KEPT if k not in (16, 20)]
    expected = np.stack([line(times, np.cos(times), begin[k], end[k]) for k in kept])
    np.testing.assert_allclose(trace(session, "whisker"), expected, atol=1e-6)


@pytest.mark.parametrize("bugs", ["", "scale"])
def test_nan_inside_a_trace_are_kept_as_gaps(tmp_path, bugs):
    folder = make_alf(tmp_path, cameras=("left",))
    stim = trials_table()["stimOn_times"]
    times = np.arange(0.2, 100.0, 0.005)
    energy = np.cos(times) + 3.0
    for k, after in ((14, 1.0), (16, -0.499)):  # in its middle, and from its first frame on
        energy[(times > stim[k] + after) & (times < stim[k] + after + 0.03)] = np.nan
    np.save(folder / "alf" / "_ibl_leftCamera.times.npy", times)
    np.save(folder / "alf" / "leftCamera.ROIMotionEnergy.npy", energy)
    session = read_alf(folder, IblOptions(form="trials", bugs=bugs))
    assert len(session.trials["choice"]) == len(KEPT)
    expected = np.stack([line(times, energy, on - 0.5, on + 1.5) for on in stim[KEPT]])
    if bugs:
        low, high = np.nanmin(expected), np.nanmax(expected)
        expected = (expected - low) / (high - low)
    unknown = np.isnan(expected)
    assert np.flatnonzero(unknown.any(axis=1)).tolist() == [KEPT.index(14), KEPT.index(16)]
    assert (unknown.sum(axis=1)[[KEPT.index(14), KEPT.index(16)]] <= 3).all()
    np.testing.assert_allclose(trace(session, "whisker"), expected, atol=1e-6)
