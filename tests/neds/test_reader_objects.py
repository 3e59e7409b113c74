"""Sessions from arrays and from pynapple's objects."""

import numpy as np
import pytest

from neds.data.dropped import dropped
from neds.data.objects import from_arrays, from_pynapple, to_pynapple
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session
from tests.neds.reader_cases import event_session


def test_arrays():
    times = np.arange(50) / 10
    session = from_arrays(
        "day-1", [[0.5, 0.1, np.nan], [], [4.0]], subject="m",
        behaviours={"speed": (times, times * 2), "state": (times, np.repeat(["run", "rest"], 25)),
                    "short": (times, times[:-1])},
        units={"region": ["CA1", "CA1", "DG"], "snr": [9.0, 9.0, 2.0]},
        trials={"start": [0.0, 1.0], "end": [1.0, 2.0], "choice": ["l", "r"]})
    assert session.spikes.sample.tolist() == [3000, 15000, 120000]
    assert session.units.region.tolist() == ["CA1", "DG"]
    assert session.behaviour("state").classes == ("rest", "run")
    assert session.intervals.tolist() == [[0.0, 4.9]]
    assert {(d.level, d.name) for d in dropped(session)} == {
        ("spike", "spikes"), ("unit", "1"), ("behaviour", "short")}
    good = from_arrays("d", [[0.5], [1.0]], units={"snr": [9.0, 2.0]}, keep="snr>=5")
    assert good.n_units == 1
    with pytest.raises(BadInput, match=r"units\.snr"):
        from_arrays("d", [[0.5], [1.0]], units={"snr": [9.0]})
    with pytest.raises(BadInput, match="none of 1 left"):
        from_arrays("d", [[]])


@pytest.mark.filterwarnings("ignore")  # of pynapple's own imports
def test_pynapple_there_and_back():
    nap = pytest.importorskip("pynapple")
    session = event_session()
    group, series = to_pynapple(session)
    assert len(group) == session.n_units
    assert group.get_info("region").tolist() == session.units.region.tolist()
    again = from_pynapple("made-1", group, {"position": series["position"],
                                            "wheel": series["wheel"]}, subject="mouse-1")
    np.testing.assert_array_equal(again.spikes.sample, session.spikes.sample)
    np.testing.assert_array_equal(again.intervals, session.intervals)
    for name in ("probe", "channel", "cluster", "region", "depth_um"):
        np.testing.assert_array_equal(getattr(again.units, name), getattr(session.units, name))
    np.testing.assert_array_equal(again.behaviour("position").values,
                                  session.behaviour("position").values)
    epochs = nap.IntervalSet([0.0, 6.0], [2.0, 8.0])
    cut = from_pynapple("x", group, {"position": series["position"].restrict(epochs)},
                        trials=nap.IntervalSet([0.0, 3.0], [1.0, 4.0],
                                               metadata={"side": ["l", "r"]}))
    assert np.isnan(cut.behaviour("position").at(np.array([4.0]))).all()
    assert np.isfinite(cut.behaviour("position").at(np.array([1.0, 7.0]))).all()
    assert cut.trials["side"].tolist() == ["l", "r"]
    with pytest.raises(BadInput, match="TsGroup"):
        from_pynapple("x", [1, 2])
    with pytest.raises(BadInput, match="spike events"):
        to_pynapple(make_session(bins=60))
