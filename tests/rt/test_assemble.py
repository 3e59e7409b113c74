"""Live binning against offline binning of the same spikes, bit for bit, whatever the frames do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neds_rt import _core
from neds_rt.binning import bin_edge, bin_of, bin_spikes
from tests.rt.spike_frames import Sender, counters_of, drain, feed

FS, SIZE = 30_000.0, 0.02  # bins of 600 samples


def assembler(n_units=3, open_bins=64, size=SIZE, streams=None):
    return _core.Assembler(size, streams or [("a", list(range(n_units)))], n_units, open_bins)


def recording(rng, fs, size, n_bins, n_units, rate=8):
    end = int(fs * size * n_bins)
    n = rng.poisson(rate * n_bins)
    return np.sort(rng.integers(0, end, n)), rng.integers(0, n_units, n), end


def cut(rng, sender, samples, units, start, end, *, n_cuts, ahead=0, reach_first=False):
    """Frames that tile [start, end) at random places, some of them empty.

    Spikes come shuffled, some up to `ahead` samples before their own frame, and borders overlap:
    a frame repeats spikes below the watermark already announced.
    """
    cuts = np.sort(np.r_[start, rng.integers(start, end + 1, n_cuts), end])
    home = np.searchsorted(cuts, samples, side="right") - 1
    if ahead:
        early = np.searchsorted(cuts, samples - rng.integers(0, ahead, len(samples)), "right") - 1
        home = np.where(rng.random(len(samples)) < 0.3, np.maximum(early, 0), home)
    if reach_first:  # the first frame shows how far this source runs ahead: as far as it ever will
        samples[np.searchsorted(samples, cuts[1] + ahead - 1) - 1] = cuts[1] + ahead - 1
        home[samples < cuts[1] + ahead] = 0
    frames = []
    for i in range(len(cuts) - 1):
        mine = np.flatnonzero((home == i) & (samples >= start))
        overlap = int(rng.integers(0, 900)) if i and rng.random() < 0.3 else 0
        t0 = max(start, cuts[i] - overlap)
        repeated = np.flatnonzero((samples >= t0) & (samples < cuts[i]))
        mine = rng.permutation(np.r_[mine, repeated])
        frames.append(sender.frame(t0, cuts[i + 1], samples[mine], units[mine]))
    return frames


def with_duplicates(rng, frames):
    out = []
    for i, frame in enumerate(frames):
        out.append(frame)
        if rng.random() < 0.2:
            out.append(frames[int(rng.integers(0, i + 1))])
    return out


def interleave(rng, queues):
    queues = [list(q) for q in queues]
    while any(queues):
        yield queues[int(rng.choice([i for i, q in enumerate(queues) if q]))].pop(0)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_streams=st.integers(1, 3),
    fs=st.sampled_from([30_000.0, 29_999.954, 24_414.0625, 1000.0]),
    size=st.sampled_from([0.02, 1 / 60, 0.0123]),
    n_cuts=st.integers(0, 120),
    run_ahead=st.booleans(),
)
def test_live_equals_offline_bit_for_bit(seed, n_streams, fs, size, n_cuts, run_ahead):
    rng = np.random.default_rng(seed)
    n_bins = int(rng.integers(2, 40))
    n_units = [int(rng.integers(1, 5)) for _ in range(n_streams)]
    rows = np.split(rng.permutation(sum(n_units)), np.cumsum(n_units)[:-1])
    live = _core.Assembler(
        size, [(f"p{i}", own.tolist()) for i, own in enumerate(rows)], sum(n_units), 64
    )
    queues, offline, first, last = [], np.zeros((n_bins, sum(n_units)), np.uint16), 0, n_bins
    for i, own in enumerate(rows):
        rate = fs * (1 + 0.01 * i)  # every probe has its own clock
        samples, units, end = recording(rng, rate, size, n_bins, len(own))
        start = int(rng.integers(0, end // 2))
        ahead = int(10 * rate * size) if run_ahead else 0
        frames = cut(rng, Sender(f"p{i}", "s1", rate), samples, units, start, end,
                     n_cuts=n_cuts, ahead=ahead)
        queues.append(with_duplicates(rng, frames))
        offline[:, own] = bin_spikes(samples, units, len(own), rate, size, 0, n_bins)
        first = max(first, bin_of(start - 1, rate, size) + 1)
        last = min(last, bin_of(end, rate, size))
    bins = feed(live, interleave(rng, queues))
    assert sorted(bins) == list(range(first, last))
    for index, counts in bins.items():
        np.testing.assert_array_equal(counts, offline[index])
    found = counters_of(live)
    bad = {"lost_bins", "gaps", "ahead_spikes", "unit_range", "overrun", "restarts"}
    assert not bad & set(found)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), run_ahead=st.booleans())
def test_lost_frames_lose_bins_and_never_change_one(seed, run_ahead):
    rng = np.random.default_rng(seed)
    samples, units, end = recording(rng, FS, SIZE, 60, 3)
    ahead = 700 if run_ahead else 0
    frames = cut(rng, Sender(), samples, units, 0, end, n_cuts=80, ahead=ahead,
                 reach_first=run_ahead)
    lost = [i for i in range(1, len(frames) - 1) if rng.random() < 0.1]
    live = assembler(3, 256)
    bins = feed(live, [f for i, f in enumerate(frames) if i not in lost])
    offline = bin_spikes(samples, units, 3, FS, SIZE, 0, 60)
    assert sorted(bins) == list(range(60))
    for index, counts in bins.items():
        if counts is not None:
            np.testing.assert_array_equal(counts, offline[index])
    assert counters_of(live).get("lost_frames", 0) == len(lost)


def test_exactly_the_bins_a_lost_frame_touches_are_lost():
    send = Sender()
    frames = [send.frame(t, t + 300, [t, t + 299], [0, 1]) for t in range(0, 6000, 300)]
    del frames[5]  # samples 1500..1800: bin 2
    del frames[9:12]  # samples 3000..3900: bins 5 and 6
    bins = feed(assembler(), frames)
    assert [k for k, counts in bins.items() if counts is None] == [2, 5, 6]
    assert all(c.tolist() == [2, 2, 0] for c in bins.values() if c is not None)
    assert sorted(bins) == list(range(10))


def test_a_gap_in_the_source_clock_is_lost_without_a_lost_frame():
    send, live = Sender(), assembler()
    bins = feed(live, [send.frame(0, 1300), send.frame(2500, 4200, [2600], [1])])
    lost = [k for k, counts in bins.items() if counts is None]
    assert (sorted(bins), lost) == ([0, 1, 2, 3, 4, 5, 6], [2, 3, 4])
    assert counters_of(live)["gaps"] == 1
    assert counters_of(live)["partial_spikes"] == 1  # the spike at 2600 is in bin 4, which is lost


def test_a_gap_at_bin_edges_loses_the_bins_between_and_no_other():
    send = Sender()
    frames = [send.frame(0, 1200, [1199], [0]), send.frame(2400, 3000, [2400], [1])]
    bins = feed(assembler(), frames)
    assert [None if c is None else c.tolist() for c in bins.values()] == [
        [0, 0, 0], [1, 0, 0], None, None, [0, 1, 0]]


def test_a_gap_of_ten_minutes_is_handed_out_as_one_run():
    send, live = Sender(), assembler()
    gap = int(600 * FS)
    live.push(*send.frame(0, 600))
    assert live.pop() == 1
    live.push(*send.frame(600 + gap, 1800 + gap, [700 + gap], [2]))
    assert live.pop() == -30_000
    assert live.bin == 1
    assert not live.counts.any()
    assert live.pop() == 1
    assert (live.bin, live.counts.tolist()) == (30_001, [0, 0, 1])
    assert live.pop() == 1
    assert live.pop() == 0
    assert counters_of(live)["lost_bins"] == 30_000


def test_a_gap_of_years_is_handed_out_at_once():
    send, live = Sender(), assembler()
    live.push(*send.frame(0, 600))
    far = 2**52 - 6000
    live.push(*send.frame(far, far + 3000))
    assert live.pop() == 1
    assert -live.pop() == live.available * 0 + bin_of(far - 1, FS, SIZE)
    assert drain(live)


def test_bins_wait_for_the_slowest_probe():
    fast, slow = Sender("fast"), Sender("slow")
    live = assembler(streams=[("fast", [2, 0]), ("slow", [1])])
    assert live.push(*fast.frame(0, 3000, [10, 20, 650], [0, 1, 0])) == 0
    assert live.push(*slow.frame(0, 599, [5], [0])) == 0
    assert live.push(*slow.frame(599, 1200)) == 2
    assert [c.tolist() for c in drain(live).values()] == [[1, 1, 1], [0, 0, 1]]


def test_a_gap_in_one_probe_loses_the_bin_for_all():
    a, b = Sender("a"), Sender("b")
    live = assembler(streams=[("a", [0, 1]), ("b", [2])])
    frames = [a.frame(0, 3000, [0], [0]), b.frame(0, 600), b.frame(1300, 3000, [2000], [0])]
    bins = feed(live, frames)
    assert [None if c is None else c.tolist() for c in bins.values()] == [
        [1, 0, 0], None, None, [0, 0, 1], [0, 0, 0]]


def test_both_probes_pausing_for_long_does_not_lock_them_out():
    a, b = Sender("a"), Sender("b")
    live = assembler(streams=[("a", [0, 1]), ("b", [2])])
    later = int(600 * FS)
    bins = feed(live, [a.frame(0, 600), b.frame(0, 600), a.frame(later, later + 1200)])
    assert list(bins) == [0]
    bins = feed(live, [b.frame(later, later + 1200, [later], [0])])
    assert bins[30_000].tolist() == [0, 0, 1]
    assert bins[29_999] is None
    assert len(bins) == 30_001


def test_waiting_long_for_a_second_probe_starts_at_its_first_bin():
    a, b = Sender("a"), Sender("b")
    live = assembler(streams=[("a", [0, 1]), ("b", [2])], open_bins=16)
    early = [a.frame(t, t + 600, [t], [0]) for t in range(0, 60_000, 600)]
    assert feed(live, early) == {}
    bins = feed(live, [b.frame(58_800, 60_000, [58_801], [0])])
    assert {k: c.tolist() for k, c in bins.items()} == {98: [1, 0, 1], 99: [1, 0, 0]}
    assert "overrun" not in counters_of(live)


def test_a_probe_that_stands_still_makes_the_other_wait_and_then_lose_bins():
    a, b = Sender("a"), Sender("b")
    live = assembler(streams=[("a", [0, 1]), ("b", [2])], open_bins=16)
    feed(live, [a.frame(0, 600), b.frame(0, 600)])
    bins = feed(live, [a.frame(t, t + 600, [t], [0]) for t in range(600, 18_000, 600)])
    assert bins == {}
    assert counters_of(live)["overrun"] == 13  # 16 bins kept of 29
    bins = feed(live, [b.frame(600, 9600, [700], [0]), a.frame(18_000, 18_600),
                       b.frame(9600, 18_600), a.frame(18_600, 19_200), b.frame(18_600, 19_200)])
    held = {k: c.tolist() for k, c in bins.items() if c is not None}
    assert held == {1: [1, 0, 1]} | {k: [1, 0, 0] for k in range(2, 17)} | {
        30: [0, 0, 0], 31: [0, 0, 0]}
    assert sorted(bins) == list(range(1, 32))


def test_late_spikes_are_counted_and_dropped():
    send, live = Sender(), assembler()
    bins = feed(live, [send.frame(0, 650), send.frame(650, 1200, [640, 649, 650], [0, 0, 0])])
    assert bins[1].tolist() == [1, 0, 0]
    assert counters_of(live)["late_spikes"] == 2


def test_spikes_too_far_ahead_are_counted_and_dropped():
    send, live = Sender(), assembler(open_bins=16)  # keeps 4 bins past the open one
    edge = 5 * 600
    bins = feed(live, [send.frame(0, 0, [edge - 1, edge, 2**62, 2**63 - 1], [0, 0, 0, 0])])
    assert bins == {}
    bins = feed(live, [send.frame(0, 6000)])
    assert [c.tolist()[0] for c in bins.values()] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert counters_of(live)["ahead_spikes"] == 3


def test_a_frame_longer_than_the_queue_is_refused_and_becomes_a_gap():
    send, live = Sender(), assembler(open_bins=16)
    bins = feed(live, [send.frame(0, 600), send.frame(600, 600 * 20), send.frame(12_000, 12_600)])
    assert counters_of(live)["overrun"] == 1
    assert [k for k, c in bins.items() if c is not None] == [0, 20]
    assert len(bins) == 21


def test_the_first_bin_is_the_first_whole_one():
    for t0, first in [(0, 0), (1, 1), (599, 1), (600, 1), (601, 2), (-1, 0), (-600, -1)]:
        bins = feed(assembler(), [Sender().frame(t0, 1800)])
        assert list(bins) == list(range(first, 3)), t0


def test_units_out_of_range_cost_only_their_spike():
    send, live = Sender(), assembler(3)
    bins = feed(live, [send.frame(0, 600, [1, 2, 3], [3, 2**32 - 1, 2])])
    assert bins[0].tolist() == [0, 0, 1]
    assert counters_of(live)["unit_range"] == 2


def test_counts_stop_at_65535():
    send, live = Sender(), assembler(1)
    bins = feed(live, [send.frame(0, 600, np.full(70_000, 3), np.zeros(70_000))])
    assert bins[0].tolist() == [65_535]
    assert counters_of(live)["saturated"] == 70_000 - 65_535


def test_a_new_session_starts_anew():
    live = assembler()
    old, new = Sender(session="s1"), Sender(session="s2")
    feed(live, [old.frame(0, 6100)])
    assert (live.epoch, live.session) == (0, "s1")
    live.push(*new.frame(100, 1900, [150, 700], [0, 1]))
    assert (live.epoch, live.session) == (1, "s2")
    assert {k: c.tolist() for k, c in drain(live).items()} == {1: [0, 1, 0], 2: [0, 0, 0]}
    # What the old source still had under way changes nothing; nor does a clock that differs.
    late = old.frame(6100, 9000, [6200], [0])
    assert feed(live, [late]) == {}
    assert (live.epoch, counters_of(live)["ended_session"]) == (1, 1)
    assert live.push(*Sender(session="s1", fs=25_000.0).frame(0, 500)) == 1  # seq 0: a real start
    assert live.epoch == 2
    assert counters_of(live)["restarts"] == 2


def test_a_restart_of_both_probes_loses_none_of_their_first_bins():
    live = assembler(streams=[("a", [0, 1]), ("b", [2])])
    feed(live, [Sender("a").frame(0, 6000), Sender("b").frame(0, 6000)])
    a, b = Sender("a", "s2"), Sender("b", "s2")
    bins = feed(live, [b.frame(0, 1200, [1], [0]), a.frame(0, 1200, [601], [1])])
    assert [c.tolist() for c in bins.values()] == [[0, 0, 1], [0, 1, 0]]
    assert (live.epoch, live.session) == (2, "s2")


def test_a_restart_of_one_probe_keeps_the_other_going():
    live = assembler(streams=[("a", [0, 1]), ("b", [2])])
    a, b = Sender("a"), Sender("b")
    feed(live, [a.frame(0, 6000), b.frame(0, 6000)])
    a = Sender("a", "s2")
    bins = feed(live, [a.frame(6000, 7200), b.frame(6000, 6600), b.frame(6600, 7200, [6700], [0])])
    assert {k: c.tolist() for k, c in bins.items()} == {10: [0, 0, 0], 11: [0, 0, 1]}
    assert live.session == "s2+s1"


def test_spike_lag_is_the_age_of_the_newest_spike_in_the_source_clock():
    send, live = Sender(), assembler()
    live.push(*send.frame(0, 900))
    assert live.pop() == 1
    assert live.spike_lag_s == -1
    live.push(*send.frame(900, 1200, [900, 1000], [0, 0]))
    assert live.pop() == 1
    assert live.spike_lag_s == pytest.approx(200 / FS)
    assert live.end_s(1) == bin_edge(2, FS, SIZE) / FS


@pytest.mark.parametrize(
    "streams", [[], [("a", [0, 1])], [("a", [0, 1, 3])], [("a", [0, 1]), ("b", [1, 2])],
                [("a", [0, 1, -1])]]
)
def test_rows_must_be_every_unit_once(streams):
    with pytest.raises(ValueError, match="streams"):
        _core.Assembler(SIZE, streams, 3, 64)
