"""What the tests of readers share: a session of every kind of part, and equality of sessions."""

import numpy as np

from neds.data.parts import Behaviour, Spikes, Units
from neds.data.session import Session


def event_session(seconds=20.0, units=5, seed=0, fs=30000.0):
    """Spike events on a domain with a gap; behaviours of all kinds, with and without gaps."""
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.integers(0, int(seconds * fs), 400))
    sample = sample[(sample < 8 * fs) | (sample > 9 * fs)]
    unit = rng.integers(0, units, len(sample))
    order = np.lexsort((unit, sample))  # readers order spikes of one sample by unit
    times = np.arange(int(seconds * 50)) / 50 + 0.01
    wheel = rng.standard_normal((len(times), 1))
    wheel[5:9] = np.nan
    return Session(
        session="made-1", subject="mouse-1",
        spikes=Spikes(sample=sample[order], unit_index=unit[order], fs=fs),
        units=Units.of(units, probe=["probe00"] * 3 + ["probe01"] * (units - 3),
                       channel=np.arange(units) * 3 - 1, cluster=np.arange(units) + 100,
                       region=["CA1", "DG", "", "PO", "VISa"][:units],
                       depth_um=[20.0, np.nan, 40.0, 60.5, 80.0][:units]),
        behaviours={
            "wheel": Behaviour(kind="continuous", timestamps=times, values=wheel, unit="rad/s",
                               gaps=True),
            "position": Behaviour(kind="continuous", timestamps=times, unit="cm",
                                  values=rng.standard_normal((len(times), 2))),
            "heading": Behaviour(kind="circular", timestamps=times, unit="rad",
                                 values=rng.uniform(-3, 3, len(times))),
            "choice": Behaviour(kind="categorical", timestamps=[1.0, 2.0, 5.0],
                                values=[0.0, np.nan, 1.0], classes=("left", "right"), gaps=True),
        },
        trials={"start": np.array([1.0, 3.0, 5.0]), "end": np.array([2.0, 4.0, 6.0]),
                "stimOn_times": np.array([1.1, np.nan, 5.1]),
                "choice": np.array(["left", "right", "left"])},
        domain=np.array([[0.0, 8.0], [9.0, seconds]]),
    )


def same(one, two, behaviours=None, trials=True):
    """Assert that two sessions are equal: spikes, times and values to the bit."""
    assert (one.session, one.subject) == (two.session, two.subject)
    if isinstance(one.spikes, Spikes):
        assert one.spikes.fs == two.spikes.fs
        order = [np.lexsort((s.spikes.unit_index, s.spikes.sample)) for s in (one, two)]
        for name in ("sample", "unit_index"):
            a, b = (getattr(s.spikes, name)[o] for s, o in zip((one, two), order, strict=True))
            np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_array_equal(one.spikes.counts, two.spikes.counts)
        np.testing.assert_array_equal(one.spikes.bin, two.spikes.bin)
        assert one.spikes.bin_size_s == two.spikes.bin_size_s
    for name in ("probe", "channel", "cluster", "region", "depth_um"):
        np.testing.assert_array_equal(getattr(one.units, name), getattr(two.units, name))
    np.testing.assert_array_equal(one.intervals, two.intervals)
    assert sorted(two.behaviours) == sorted(one.behaviours if behaviours is None else behaviours)
    for name, b in two.behaviours.items():
        a = one.behaviours[name]
        # That a behaviour may have gaps is kept where it has some.
        gaps = a.gaps and bool(np.isnan(a.values).any())
        assert (a.kind, a.unit, a.classes, gaps) == (b.kind, b.unit, b.classes, b.gaps), name
        np.testing.assert_array_equal(a.timestamps, b.timestamps)
        np.testing.assert_array_equal(a.values, b.values)
    if trials:
        assert set(one.trials) <= set(two.trials)
        for name, column in one.trials.items():
            np.testing.assert_array_equal(column, two.trials[name])
