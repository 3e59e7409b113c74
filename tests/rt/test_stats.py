"""Latency figures, the keep-warm tick under a clock of our own, and the thread that logs."""

import logging

import numpy as np
import pytest

from neds_rt import keepwarm
from neds_rt.assemble import COUNTERS, FIRST_REFUSAL, GAP, OK, WARMING_UP, Validity
from neds_rt.housekeeping import MESSAGES, Housekeeping
from neds_rt.keepwarm import BLOCK_BINS, LEAD_NS, NEVER, TRIAL_BLOCKS, KeepWarm
from neds_rt.machine import machine_facts, resident_bytes
from neds_rt.stats import LatencyRing, percentiles

BIN_NS = 20_000_000


def test_percentiles_are_values_that_occurred():
    values = np.random.default_rng(0).permutation(1000) + 1.0
    assert percentiles(values) == {"p50": 501.0, "p99": 991.0, "p999": 1000.0, "max": 1000.0}
    assert percentiles(np.array([3.0])) == {"p50": 3.0, "p99": 3.0, "p999": 3.0, "max": 3.0}
    assert percentiles(np.array([])) is None


def test_the_ring_keeps_the_newest_bins_and_their_stages():
    ring = LatencyRing(8)
    assert set(ring.summary().values()) == {None}
    for k in range(11):
        ring.add(1000 * k, 1000 * k + 10, 1000 * k + 30, 1000 * k + 70, 1000 * k + 150)
    assert ring.recorded == 11
    assert ring.stamps()[:, 0].tolist() == [1000 * k for k in range(3, 11)]
    medians = {name: span["p50"] for name, span in ring.summary().items()}
    assert medians == pytest.approx({"assemble_us": 0.01, "step_us": 0.02, "encode_us": 0.04,
                                     "send_us": 0.08, "service_us": 0.15})


class Rig:
    """Bins that come every 20 ms of a clock that only this moves, and steps of given lengths."""

    def __init__(self, monkeypatch, mode, *, cold=400, warm=400, cost=100, bin_ns=BIN_NS):
        self.now, self.cold, self.warm, self.cost, self.bin_ns = 10**12, cold, warm, cost, bin_ns
        monkeypatch.setattr(keepwarm, "now_ns", lambda: self.now)
        self.ticked = False
        self.keep = KeepWarm(mode, bin_ns, self.tick)

    def tick(self):
        self.ticked = True
        self.now += self.cost

    def run(self, n_bins):
        for _ in range(n_bins):
            closed = self.now
            self.keep.bin_closed(closed, self.warm if self.ticked else self.cold)
            self.ticked = False
            if self.keep.due_ns < closed + self.bin_ns:
                self.now = self.keep.due_ns
                self.keep.tick(self.now)
            self.now = closed + self.bin_ns


def test_off_never_ticks_and_on_ticks_once_for_every_bin(monkeypatch):
    off = Rig(monkeypatch, "off")
    off.run(50)
    assert (off.keep.ticks, off.keep.due_ns) == (0, NEVER)
    on = Rig(monkeypatch, "on")
    on.run(50)
    assert on.keep.ticks == 50


@pytest.mark.parametrize(("cold", "warm", "kept"), [(600, 100, True), (300, 300, False),
                                                    (300, 299, False), (100, 400, False)])
def test_auto_keeps_the_tick_only_where_it_helps(monkeypatch, cold, warm, kept):
    rig = Rig(monkeypatch, "auto", cold=cold * 1000, warm=warm * 1000)
    rig.run(TRIAL_BLOCKS * BLOCK_BINS + BLOCK_BINS)
    report = rig.keep.report()
    assert report["decided"]
    assert report["active"] == kept
    assert (report["step_us_without"], report["step_us_with"]) == (cold, warm)
    before = rig.keep.ticks
    rig.run(100)
    assert rig.keep.ticks - before == 100 * kept


def test_a_tick_that_might_delay_a_frame_is_left_out(monkeypatch):
    rig = Rig(monkeypatch, "on", cost=LEAD_NS)  # takes as long as there is
    rig.run(20)
    assert 1 <= rig.keep.ticks < 4
    late = Rig(monkeypatch, "on")
    late.keep.bin_closed(late.now, 1)
    late.keep.tick(late.now + BIN_NS + 1)  # the frame should be here by now
    assert late.keep.ticks == 0
    assert late.keep.due_ns == NEVER
    short = Rig(monkeypatch, "on", bin_ns=LEAD_NS)
    short.run(20)
    assert short.keep.ticks == 0


def test_bins_in_a_burst_neither_tick_nor_count_in_the_trial(monkeypatch):
    rig = Rig(monkeypatch, "auto")
    for _ in range(1000):
        rig.now += 1000
        rig.keep.bin_closed(rig.now, 100)
    assert rig.keep.report()["step_us_with"] is None
    assert rig.keep.due_ns == NEVER


def test_validity_follows_what_the_window_holds():
    validity = Validity(3)
    reasons = [validity.advance(present) for present in (1, 1, 1, 1, 0, 1, 1, 1, 1)]
    assert reasons == [WARMING_UP, WARMING_UP, OK, OK, GAP, GAP, GAP, OK, OK]
    assert validity.advance(False, 100) == GAP
    assert [validity.advance(True) for _ in range(3)] == [GAP, GAP, OK]
    validity.reset()
    assert [validity.advance(True) for _ in range(3)] == [WARMING_UP, WARMING_UP, OK]


def test_each_kind_of_trouble_is_logged_once(caplog):
    counters = np.zeros(len(COUNTERS), np.int64)
    keeping = Housekeeping(counters)
    with caplog.at_level(logging.WARNING, "neds_rt.server"):
        counters[COUNTERS.index("frames")] = 5
        counters[COUNTERS.index("bad_header")] = 1
        keeping._look()
        counters[COUNTERS.index("bad_header")] = 9
        counters[COUNTERS.index("late_spikes")] = 2
        keeping._look()
    assert [r.message.split(":")[0] for r in caplog.records] == ["bad_header", "late_spikes"]


def test_every_refusal_has_a_message():
    assert set(COUNTERS[FIRST_REFUSAL:]) <= set(MESSAGES) <= set(COUNTERS)


def test_machine_facts_are_there():
    facts = machine_facts()
    assert facts["cpu"]
    assert facts["cores_usable"] >= 1
    assert {"numpy", "pyzmq", "msgspec"} <= set(facts["versions"])
    assert resident_bytes() > 1e6
