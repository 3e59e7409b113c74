"""The history of bins: an engine that follows it is, to the bit, where the one that served is."""

import threading

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.assemble import make_stepper
from neds_rt.bundle import Shape, random_bundle
from neds_rt.engines import load_engine
from neds_rt.engines.native import NativeEngine
from neds_rt.models import history_bins, reach
from tests.rt.serving import MODALITIES, SHAPE

UNITS = 7  # no multiple of the words that the ring is made of


class PythonEngine(NativeEngine):
    """The native engine, called from Python."""


class Live:
    """An engine that is stepped as a server steps it, and the history of it."""

    def __init__(self, bundle, capacity, engine="native"):
        self.bundle = bundle
        self.engine = load_engine(engine, bundle)
        self.history = _core.History(capacity, UNITS)
        self.rng = np.random.default_rng(5)
        self.outputs = np.zeros(self.engine.n_outputs, np.float32)

    def bins(self, n, lost=0.05):
        for _ in range(n):
            counts = self.rng.poisson(0.4, UNITS).astype(np.uint16)
            present = bool(self.rng.random() >= lost)
            self.history.add(counts, present)
            self.outputs = self.engine.step(counts, present).copy()

    def skip(self, n):
        self.history.skip(n)
        self.engine.skip(n)

    def reset(self):
        self.history.reset()
        self.engine.reset()

    def follower(self, engine=None):
        engine = engine or load_engine("native", self.bundle)
        counts = np.zeros(UNITS, np.uint16)
        stepper = make_stepper(engine, counts)
        return engine, _core.Follower(self.history, stepper, counts, engine.n_outputs)


@pytest.fixture(scope="module")
def bundle():
    return random_bundle(SHAPE, UNITS, MODALITIES)


def last(engine):
    """The outputs of the engine's last step."""
    return engine.core.outputs.copy()


@pytest.mark.parametrize("kind", [NativeEngine, PythonEngine])
def test_from_the_last_restart_on_it_is_the_same_to_the_bit(bundle, kind):
    live = Live(bundle, 300)
    live.reset()
    live.bins(100)
    live.reset()
    live.bins(40)
    live.skip(25)
    live.bins(60)
    engine, follower = live.follower(kind(bundle))
    assert follower.follow() == 102  # the restart, 40 bins, the skip, 60 bins
    np.testing.assert_array_equal(last(engine), live.outputs)
    for _ in range(20):
        live.bins(1)
        assert (follower.behind, follower.follow(5), follower.behind) == (1, 1, 0)
        np.testing.assert_array_equal(last(engine), live.outputs)
    assert follower.starts == 1


@pytest.mark.parametrize("recurrent", [False, True])
def test_from_the_middle_of_a_stream_it_is_the_same_to_the_bit(recurrent):
    shape = Shape(hidden=16, layers=2, heads=2, mlp=32, window=6, conv=3, recurrent=recurrent)
    bundle = random_bundle(shape, UNITS, MODALITIES)
    live = Live(bundle, 400)
    live.reset()
    live.bins(5000)
    engine, follower = live.follower()
    assert follower.follow() == 350  # an eighth stays clear of what is overwritten next
    np.testing.assert_array_equal(last(engine), live.outputs)


def test_fewer_bins_than_the_reach_are_not_enough_and_as_many_are():
    shape = Shape(hidden=16, layers=3, heads=2, mlp=32, window=6, conv=4, recurrent=False)
    bundle = random_bundle(shape, UNITS, MODALITIES)
    bins = np.random.default_rng(1).poisson(0.4, (50, UNITS)).astype(np.uint16)
    whole = load_engine("native", bundle)
    for counts in bins:
        whole.step(counts)
    needed = reach(bundle.manifest)
    assert needed == 3 * 5 + 4
    for n, same in ((needed - 1, False), (needed, True)):
        engine = load_engine("native", bundle)
        engine.skip(50 - n)
        for counts in bins[50 - n:]:
            engine.step(counts)
        assert np.array_equal(last(engine), last(whole)) == same


def test_what_fell_behind_the_ring_begins_anew_and_is_right(bundle):
    live = Live(bundle, 200)
    live.reset()
    live.bins(50)
    engine, follower = live.follower()
    follower.follow(10)
    live.bins(2000)
    follower.follow()
    assert follower.starts == 2
    np.testing.assert_array_equal(last(engine), live.outputs)


def test_where_another_began_it_is_the_same_to_the_bit(bundle):
    live = Live(bundle, 200)
    live.reset()
    live.bins(150)
    ours, first = live.follower()
    live.bins(60)
    first.follow()
    assert first.begun > 0
    live.bins(10)
    theirs, second = live.follower()
    with pytest.raises(IndexError, match="no such entry yet"):
        second.begin_at(live.history.end)
    second.begin_at(first.begun)
    assert second.begun == first.begun < live.history.end
    first.follow()
    second.follow()
    np.testing.assert_array_equal(last(ours), last(theirs))


def test_restart_begins_anew(bundle):
    live = Live(bundle, 200)
    live.reset()
    live.bins(30)
    engine, follower = live.follower()
    follower.follow()
    for _ in range(9):  # somewhere else
        engine.step(np.ones(UNITS, np.uint16))
    follower.restart()
    assert follower.follow() == 31
    np.testing.assert_array_equal(last(engine), live.outputs)


def test_an_empty_history_leaves_a_new_engine(bundle):
    live = Live(bundle, 100)
    engine, follower = live.follower()
    engine.step(np.ones(UNITS, np.uint16))
    assert (follower.follow(), follower.behind) == (0, 0)
    assert engine.core.position == 0


def test_outputs_that_are_not_finite_are_seen(bundle):
    class Bad(NativeEngine):
        def step(self, counts, present=True):
            found = super().step(counts, present).copy()
            found[-1] = np.nan
            return found

    live = Live(bundle, 100)
    live.bins(1)
    _, good = live.follower()
    _, bad = live.follower(Bad(bundle))
    good.follow()
    bad.follow()
    assert (good.finite, bad.finite) == (True, False)


def test_a_reader_beside_the_writer_sees_whole_bins():
    """Every bin holds one number only; a torn one would hold two."""

    class Checking(NativeEngine):
        torn = seen = 0

        def step(self, counts, present=True):
            self.seen += 1
            self.torn += len(set(counts.tolist())) > 1
            return super().step(counts, present)

        def skip(self, n_bins):
            pass

    n_units = 64
    bundle = random_bundle(Shape(hidden=2, layers=1, heads=1, mlp=2, window=1), n_units,
                           MODALITIES)
    history = _core.History(16, n_units)
    engine, counts = Checking(bundle), np.zeros(n_units, np.uint16)
    follower = _core.Follower(history, make_stepper(engine, counts), counts, engine.n_outputs)
    done = threading.Event()

    def write():
        for k in range(30_000):
            history.add(np.full(n_units, k % 60_000, np.uint16))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        follower.follow(50)
    writer.join()
    assert engine.seen > 0
    assert engine.torn == 0


def test_sizes(bundle):
    manifest = bundle.manifest
    assert history_bins(manifest) == 4096 + 2 * (2 * 5 + 3)
    with pytest.raises(ValueError, match="8 entries"):
        _core.History(7, UNITS)
    live = Live(bundle, 8)
    with pytest.raises(ValueError, match="one for every unit"):
        live.history.add(np.zeros(UNITS + 1, np.uint16))
    with pytest.raises(ValueError, match="one for every unit"):
        _core.Follower(live.history, make_stepper(live.engine, np.zeros(UNITS, np.uint16)),
                       np.zeros(UNITS - 1, np.uint16), 1)
