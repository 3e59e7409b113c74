"""A decode that is late is told of while the engine is still at work on it."""

import threading
from collections import Counter

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.assemble import DEADLINE_MISSED, make_assembler, make_encoder, make_stepper
from neds_rt.bundle import read_bundle
from neds_rt.engines import load_engine
from neds_rt.overdue import OverdueNotice
from neds_rt.recording.header import open_recording, recorded_bundle
from neds_rt.recording.verify import Verification
from neds_rt.stats import now_ns
from tests.rt.flights import Flight, read
from tests.rt.serving import SHAPE, small_bundle, wait_for
from tests.rt.spike_frames import Sender
from tools.fault_judge import judge
from tools.fault_process import RECORD
from tools.fault_rig import Rig
from tools.fault_table import FAULTS, FAULTY
from tools.faults import get_well

BIN = 600


@pytest.fixture
def model(tmp_path):
    return small_bundle(tmp_path / "x.neds")


@pytest.fixture
def pipeline(model):
    bundle = read_bundle(model)
    assembler = make_assembler(bundle.manifest, ["a"])
    encoder = make_encoder(bundle.manifest, 1)
    engine = load_engine("native", bundle)
    return _core.Pipeline(assembler, encoder, make_stepper(engine, assembler.counts),
                          _core.LatencyRing(4), SHAPE.window)


def test_what_is_borrowed_holds_up_the_step_until_it_is_given_back(pipeline):
    assert not pipeline.borrow(0)  # nobody is at work
    pipeline.enter()
    since = pipeline.busy_since
    assert not pipeline.borrow(since - 1)  # another call than the one that was seen
    assert pipeline.borrow(since)
    assert not pipeline.borrow(since)
    assert not pipeline.cut_off(since)  # the watchdog comes again
    returned = threading.Thread(target=pipeline.leave)
    returned.start()
    returned.join(0.1)
    assert returned.is_alive()
    pipeline.give_back(since)
    returned.join(30)
    assert not returned.is_alive()
    assert pipeline.busy_since == 0
    assert not pipeline.borrow(since)


def test_waiting_for_an_overdue_step_ends_with_it_or_when_told(pipeline):
    pipeline.enter()
    since = pipeline.busy_since
    assert pipeline.overdue(1_000_000) == since
    assert now_ns() - since >= 1_000_000
    pipeline.leave()
    pipeline.end_overdue()
    assert pipeline.overdue(1) == 0


def test_it_is_said_every_bin_until_the_step_is_over(pipeline):
    said = []
    notice = OverdueNotice(pipeline, 0.01, 0.01, said.append)
    notice.start()
    pipeline.enter()
    began = pipeline.busy_since
    wait_for(lambda: len(said) >= 3)
    pipeline.leave()
    notice.stop()
    assert all(later - sooner >= 10_000_000
               for sooner, later in zip([began, *said], said, strict=False))


def test_a_step_in_time_is_not_told_of(pipeline):
    said = []
    notice = OverdueNotice(pipeline, 60.0, 0.001, said.append)
    notice.start()
    for _ in range(20):
        pipeline.enter()
        pipeline.leave()
    notice.stop()
    assert said == []


def test_a_server_says_so_and_its_recording_replays():
    with Rig(3, RECORD, engine=FAULTY) as rig:
        assert get_well(rig)
        for _ in range(3):
            FAULTS["engine too slow"].do(rig)
            assert get_well(rig)
        summary = rig.end()
        assert judge(rig)[1:] == ([], 0)
        recording = open_recording(rig.folder / "tape-0")
        bundle = recorded_bundle(recording, None)
        engine = load_engine("native", bundle)
        found = Verification(recording, bundle, engine, 0.0).run()
    notices = [d for d in rig.decodes if d.bin < 0 and d.reason == "deadline missed"]
    late = [d for d in rig.decodes if d.bin >= 0 and d.reason == "deadline missed"]
    assert len(notices) >= 3
    assert summary["overdue_decodes"] == len(notices)
    assert summary["reasons"]["deadline missed"] == len(notices) + len(late)
    assert all(np.isnan(d.values["velocity"].mean).all() and not d.valid for d in notices)
    seqs = [d.seq for d in rig.decodes]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))  # the order of messages is whole
    assert found["different"] == 0, found["differences"]
    assert found["equal"] == len(rig.decodes) + seqs[0]


class Interrupted:
    """Has a word published from within chosen steps, as the thread beside them does."""

    def __init__(self, flight, steps):
        self.flight, self.steps, self.done = flight, steps, 0
        self.name, self.n_units, self.n_outputs = (
            flight.engine.name, flight.engine.n_units, flight.engine.n_outputs)

        self.reset, self.skip, self.warm = (
            flight.engine.reset, flight.engine.skip, flight.engine.warm)

    def step(self, counts, present=True):
        if self.done in self.steps:
            self.flight.pipeline.nothing(DEADLINE_MISSED, now_ns())
        self.done += 1
        return self.flight.engine.step(counts, present)


@pytest.mark.parametrize("steps", [{0}, {3}, {4}, {5}, {2, 3, 4, 5, 6}])
def test_words_from_within_steps_replay_where_frames_close_several_bins(model, tmp_path, steps):
    path = tmp_path / "tape"
    with Flight(path, model, engine="native") as flight:
        engine = Interrupted(flight, steps)
        bundle = read_bundle(model)
        assembler = make_assembler(bundle.manifest, ["a"])
        flight.pipeline = _core.Pipeline(
            assembler, flight.encoder, make_stepper(engine, assembler.counts),
            _core.LatencyRing(16), SHAPE.window)
        flight.recorder._tape.record(flight.pipeline)
        send = Sender()
        for begin, end in ((0, 1), (1, 3), (3, 6), (6, 8)):
            flight.feed(send.frame(begin * BIN, end * BIN, [begin * BIN], [0]))
        engine.flight = None  # of which the pipeline is a part, that holds the engine
    recording = open_recording(path)
    found = Verification(recording, bundle, load_engine("native", bundle), 0.0).run()
    assert found["different"] == 0, found["differences"]
    assert found["equal"] == 8 + len(steps)
    kinds = Counter(record.kind for record in read(path)[0])
    assert kinds[b"N"] == len(steps)
