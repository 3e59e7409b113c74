"""The session container: what it refuses, how it slices, how it bins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neds.data import Behaviour, Counts, Session, Spikes, Units
from neds_rt.errors import BadInput

FS = 1000.0


def events(samples=(10, 20, 900), unit=(0, 1, 0), fs=FS):
    return Spikes(sample=np.array(samples), unit_index=np.array(unit), fs=fs)


def make(**changes):
    fields = {
        "session": "s1",
        "subject": "mouse",
        "spikes": events(),
        "units": Units.of(2, region=["CA1", "DG"]),
        "behaviours": {
            "wheel": Behaviour(kind="continuous", timestamps=[0.0, 1.0], values=[0.0, 10.0])
        },
        "trials": {"start": np.array([0.1, 0.6])},
        "domain": np.array([[0.0, 1.0]]),
    }
    return Session(**(fields | changes))


def behaviour(kind="continuous", t=(0.0, 1.0), v=(0.0, 1.0), **more):
    return Behaviour(kind=kind, timestamps=np.array(t), values=np.array(v), **more)


BAD = {
    "unsorted spikes": (lambda: events((20, 10), (0, 0)), "sorted"),
    "negative sample": (lambda: events((-1, 10), (0, 0)), "before time 0"),
    "spike lengths": (lambda: events((1, 2), (0,)), "spikes.unit_index length: found 1"),
    "fractional sample": (lambda: events((0.5, 1.0), (0, 0)), "whole numbers"),
    "fs zero": (lambda: events(fs=0.0), "spikes.fs: found 0.0"),
    "fs nan": (lambda: events(fs=np.nan), "spikes.fs: found nan"),
    "unit beyond int32": (lambda: events((1, 2), (0, 2**32)), "32-bit"),
    "nan spike time": (lambda: Spikes.from_seconds([0.1, np.nan], [0, 0]), "nan at index 1"),
    "unsorted times": (lambda: Spikes.from_seconds([0.2, 0.1], [0, 0]), "0.1 after 0.2 at index 1"),
    "times in samples": (lambda: Spikes.from_seconds([1e12], [0]), "below 1e+09"),
    "text times": (lambda: Spikes.from_seconds(["a"], [0]), "numbers"),
    "negative counts": (lambda: counts(np.array([[1, -2]])), "found -2"),
    "nan counts": (lambda: counts(np.array([[1.0, np.nan]])), "whole numbers"),
    "huge counts": (lambda: counts(np.array([[1, 70000]])), "0 to 65535"),
    "counts of one dimension": (lambda: counts(np.zeros(3, int)), "shape (3,)"),
    "bins go back": (lambda: counts(np.zeros((2, 1), int), bin=[1, 0]), "increasing bins"),
    "bin length": (lambda: counts(np.zeros((2, 1), int), bin=[0]), "counts.bin length"),
    "bin size": (lambda: counts(np.zeros((1, 1), int), size=-0.1), "bin_size_s"),
    "no units": (lambda: Units.of(0), "at least one unit"),
    "unit columns": (lambda: Units.of(2, region=["a"]), "units.region length"),
    "unit out of range": (lambda: make(spikes=events(unit=(0, 2, 0))), "0 to 1"),
    "negative unit": (lambda: make(spikes=events(unit=(0, -1, 0))), "found -1"),
    "units of counts": (lambda: make(spikes=counts(np.zeros((2, 3), int)), domain=None), "units"),
    "spike outside": (lambda: make(domain=[[0.0, 0.5]]), "inside the domain"),
    "no domain": (lambda: make(domain=None), "domain"),
    "domain backwards": (lambda: make(domain=[[1.0, 0.5]]), "start < stop"),
    "domain overlaps": (lambda: make(domain=[[0.0, 0.6], [0.5, 1.0]]), "overlapping"),
    "domain nan": (lambda: make(domain=[[0.0, np.nan]]), "finite"),
    "session name": (lambda: make(session="a/b"), "file name"),
    "behaviour name": (lambda: make(behaviours={"a/b": behaviour()}), "without /"),
    "trial columns": (lambda: make(trials={"a": np.zeros(2), "b": np.zeros(3)}), "one length"),
    "trial objects": (lambda: make(trials={"a": np.array([{}])}), "numbers or text"),
    "metadata": (lambda: make(metadata={"a": object()}), "JSON"),
    "kind": (lambda: behaviour("wobbly"), "one of continuous, circular, categorical"),
    "behaviour lengths": (lambda: behaviour(v=(1.0,)), "values length: found 1"),
    "behaviour empty": (lambda: behaviour(t=(), v=()), "a sample"),
    "behaviour nan": (lambda: behaviour(v=(0.0, np.nan)), "finite values"),
    "behaviour inf": (lambda: behaviour(v=(0.0, np.inf), gaps=True), "finite values"),
    "behaviour overflow": (lambda: behaviour(v=(0.0, 1e300)), "finite values"),
    "behaviour nan time": (lambda: behaviour(t=(0.0, np.nan)), "finite times"),
    "behaviour unsorted": (lambda: behaviour(t=(1.0, 0.0)), "sorted times"),
    "no classes": (lambda: behaviour("categorical"), "two or more"),
    "equal classes": (lambda: behaviour("categorical", classes=("a", "a")), "different"),
    "code range": (lambda: behaviour("categorical", v=(0, 2), classes=("a", "b")), "0 to 1"),
    "code fraction": (lambda: behaviour("categorical", v=(0, 0.5), classes=("a", "b")), "0 to 1"),
    "circular width": (lambda: behaviour("circular", v=[[0, 1], [0, 1]]), "1 for circular"),
}


def counts(array, bin=None, size=0.1):
    return Counts(counts=array, bin=np.arange(len(array)) if bin is None else bin, bin_size_s=size)


@pytest.mark.parametrize("name", BAD)
def test_refuses(name):
    build, expected = BAD[name]
    with pytest.raises(BadInput) as caught:
        build()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seconds_round_to_the_nearest_sample():
    spikes = Spikes.from_seconds([0.0000166, 0.0000167, 1.00001], [0, 0, 0], fs=30000)
    assert spikes.sample.tolist() == [0, 1, 30000]


def test_arrays_cannot_be_changed():
    session = make()
    for array in (session.spikes.sample, session.intervals, session.behaviours["wheel"].values,
                  session.units.region, session.trials["start"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[-1]


def test_unknown_behaviour_lists_those_there_are():
    with pytest.raises(BadInput, match="'pupil', expected wheel"):
        make().behaviour("pupil")


def test_continuous_is_linear_and_unknown_outside():
    found = behaviour(t=(1.0, 2.0), v=(10.0, 20.0)).at(np.array([0.9, 1.0, 1.25, 2.0, 2.1]))
    np.testing.assert_array_equal(found[:, 0], [np.nan, 10, 12.5, 20, np.nan])


def test_circular_takes_the_shorter_arc():
    found = behaviour("circular", v=(np.pi - 0.1, -np.pi + 0.1)).at(np.array([0.0, 0.25, 0.75, 1]))
    np.testing.assert_allclose(np.cos(found[:, 0] - np.pi), np.cos([0.1, 0.05, 0.05, 0.1]), 1e-6)
    assert (np.abs(found) <= np.pi).all()


def test_categorical_holds_from_its_time_stamp():
    held = behaviour("categorical", t=(1.0, 2.0, 3.0), v=(1, np.nan, 0), classes=("a", "b"),
                     gaps=True)
    found = held.at(np.array([0.5, 1.0, 1.9, 2.0, 2.9, 3.0, 99.0]))[:, 0]
    np.testing.assert_array_equal(found, [np.nan, 1, 1, np.nan, np.nan, 0, 0])


def test_nothing_is_interpolated_into_a_gap():
    trace = behaviour(t=(0.0, 1.0, 2.0, 3.0), v=(0.0, 1.0, np.nan, 3.0), gaps=True)
    found = trace.at(np.array([0.5, 1.0, 1.5, 2.5, 3.0]))[:, 0]
    np.testing.assert_array_equal(found, [0.5, 1, np.nan, np.nan, 3])


def test_per_bin_behaviour_comes_back_unchanged():
    n, size = 5000, 0.064
    values = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    ends = (np.arange(n) + 1) * size
    session = Session(
        session="s", spikes=counts(np.ones((n, 1), int), size=size), units=Units.of(1),
        behaviours={"v": behaviour(t=ends, v=values),
                    "rounded": behaviour(t=np.cumsum(np.full(n, size)), v=values)},
    )
    binned = session.binned(size)
    np.testing.assert_array_equal(binned.values["v"], values)
    np.testing.assert_array_equal(binned.values["rounded"], values)  # stamps off by rounding


def test_binned_by_hand():
    binned = make().binned(0.1)
    assert binned.bin.tolist() == list(range(10))
    assert binned.counts.dtype == np.uint16
    assert binned.counts[0].tolist() == [1, 1]
    assert binned.counts[9].tolist() == [1, 0]
    assert binned.counts.sum() == 3
    np.testing.assert_allclose(binned.values["wheel"][:, 0], np.arange(1, 11), rtol=1e-6)


def test_bins_exist_only_where_whole_in_the_domain():
    session = make(spikes=events((150, 460, 777), (0, 1, 0)), domain=[[0.15, 0.5], [0.75, 1.0]])
    binned = session.binned(0.1)
    assert binned.bin.tolist() == [2, 3, 4, 8, 9]
    assert binned.runs().tolist() == [[0, 3], [3, 5]]
    assert binned.counts.sum(0).tolist() == [0, 1]


@pytest.mark.parametrize(("start", "stop", "bins"), [
    (0.1, 0.5, [1, 2, 3, 4]), (0.101, 0.5, [2, 3, 4]), (0.099, 0.5, [1, 2, 3, 4]),
    (0.1, 0.499, [1, 2, 3]), (0.1, 0.501, [1, 2, 3, 4]),
])
def test_a_sample_more_or_less_decides_a_bin(start, stop, bins):
    session = make(spikes=events((), ()), domain=[[start, stop]])
    assert session.binned(0.1).bin.tolist() == bins


def test_no_bin_fits():
    with pytest.raises(BadInput, match="s1: bin_size_s: found 3"):
        make().binned(3.0)


def test_counts_have_only_their_own_bin_size():
    session = make(spikes=counts(np.ones((4, 2), int), bin=[0, 1, 5, 6]), domain=None)
    assert session.intervals.tolist() == [[0.0, 0.2], [0.5, 0.7000000000000001]]
    assert session.binned(0.1).bin.tolist() == [0, 1, 5, 6]
    with pytest.raises(BadInput, match="in which it was recorded"):
        session.binned(0.2)


def test_slice_keeps_the_clock():
    part = make().slice(0.015, 0.95)
    assert part.spikes.sample.tolist() == [20, 900]
    assert part.intervals.tolist() == [[0.015, 0.95]]
    assert part.trials["start"].tolist() == [0.1, 0.6]
    assert make().slice(0.5, 1.0).trials["start"].tolist() == [0.6]
    assert part.duration_s == pytest.approx(0.935)


@pytest.mark.parametrize(("start", "stop"), [(2.0, 3.0), (0.5, 0.5), (0.6, 0.5), (np.nan, 1.0)])
def test_slice_of_nothing(start, stop):
    with pytest.raises(BadInput, match="slice"):
        make().slice(start, stop)


@st.composite
def sessions(draw):
    """Random events in one to three intervals, with a behaviour of each kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fs = draw(st.sampled_from([30000.0, 1000.0, 24414.0625]))
    border = np.sort(rng.choice(np.arange(1, 4000), 2 * draw(st.integers(1, 3)), replace=False))
    domain = border.reshape(-1, 2) / 1000.0
    times = np.concatenate([np.sort(rng.uniform(a, b, rng.integers(0, 200))) for a, b in domain])
    stamps = np.sort(rng.uniform(0, 4.0, 60))
    trace = behaviour(t=stamps, v=rng.standard_normal(60))
    label = behaviour("categorical", t=stamps, v=rng.integers(0, 3, 60), classes=("a", "b", "c"))
    angle = behaviour("circular", t=stamps, v=rng.uniform(-3, 3, 60))
    return Session(
        session="h", spikes=Spikes.from_seconds(times, rng.integers(0, 3, len(times)), fs=fs),
        units=Units.of(3), domain=domain,
        behaviours={"trace": trace, "label": label, "angle": angle},
    )


SIZES = st.sampled_from([0.02, 0.01, 0.0333, 0.064])


@given(session=sessions(), size=SIZES, a=st.floats(0, 4), length=st.floats(0.01, 4))
def test_a_slice_binned_is_the_bins_sliced(session, size, a, length):
    try:
        whole, part = session.binned(size), session.slice(a, a + length).binned(size)
    except BadInput:
        return  # nothing recorded there, or no whole bin
    rows = np.isin(whole.bin, part.bin)
    assert rows.sum() == len(part.bin)
    np.testing.assert_array_equal(whole.counts[rows], part.counts)
    for name, values in part.values.items():
        np.testing.assert_array_equal(whole.values[name][rows], values)
    # and no bin that lies wholly inside was lost
    low, high = np.rint(np.array([a, a + length]) * session.spikes.fs)
    width = session.spikes.fs * size
    inside = (np.floor(whole.bin * width + 0.5) >= low) & (
        np.floor((whole.bin + 1) * width + 0.5) <= high)
    assert inside.sum() == len(part.bin)


@given(session=sessions(), size=SIZES)
def test_bins_equal_a_histogram(session, size):
    try:
        binned = session.binned(size)
    except BadInput:
        return
    width = session.spikes.fs * size
    for row in range(0, len(binned.bin), 7):
        low, high = np.floor((binned.bin[row] + np.arange(2)) * width + 0.5)
        inside = (session.spikes.sample >= low) & (session.spikes.sample < high)
        expected = np.bincount(session.spikes.unit_index[inside], minlength=3)
        assert binned.counts[row].tolist() == expected.tolist()


@given(data=st.data(), size=st.sampled_from([0.064, 0.01, 0.5]))
def test_counts_slice_to_whole_bins(data, size):
    gaps = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=60))
    bins = np.cumsum(gaps) - gaps[0]
    session = Session(session="c", spikes=counts(np.arange(len(bins))[:, None], bins, size),
                      units=Units.of(1))
    a, b = sorted(data.draw(st.tuples(st.integers(0, 100), st.integers(101, 300))))
    expected = bins[(bins >= a) & (bins < b)]
    if not len(expected):
        return
    part = session.slice(a * size, b * size)
    assert part.spikes.bin.tolist() == expected.tolist()
    assert part.duration_s == pytest.approx(len(expected) * size)
