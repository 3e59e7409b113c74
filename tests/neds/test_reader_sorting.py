"""SpikeInterface: sortings, analyzers with quality metrics, and sessions as sortings."""

import numpy as np
import pytest

from neds.data.dropped import dropped
from neds.data.presets import read_preset
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session
from tests.neds.reader_cases import event_session

core = pytest.importorskip("spikeinterface.core")

from neds.data.sorting import (  # noqa: E402
    SortingOptions,
    from_sorting,
    read_sorting,
    sorting_reader,
    to_sorting,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of SpikeInterface's own making


def test_there_and_back():
    session = event_session()
    again = from_sorting(to_sorting(session), SortingOptions(subject="mouse-1", session="made-1"))
    assert again.spikes.sample.tolist() == session.spikes.sample.tolist()
    assert again.spikes.unit_index.tolist() == session.spikes.unit_index.tolist()
    for name in ("probe", "channel", "cluster", "region", "depth_um"):
        np.testing.assert_array_equal(getattr(again.units, name), getattr(session.units, name))
    with pytest.raises(BadInput, match="spike events"):
        to_sorting(make_session(bins=60))


def test_real_recording_there_and_back(recordings, tmp_path):
    session = read_preset(recordings / "place_cells" / "animal1.npz", "place-cells")
    to_sorting(session).save(folder=tmp_path / "s")
    again = read_sorting(tmp_path / "s", SortingOptions(session=session.session))
    np.testing.assert_array_equal(again.spikes.sample, session.spikes.sample)
    np.testing.assert_array_equal(again.units.cluster, session.units.cluster)


def test_unit_columns_of_a_real_recording_there_and_back(recordings, tmp_path):
    """Regions of an IBL probe's units are properties of the sorting, on disk too."""
    session = read_preset(recordings / "ibl" / "ef3d059a_30_trials.npz", "ibl-sample")
    regions = set(session.units.region)
    assert len(regions) > 3
    to_sorting(session).save(folder=tmp_path / "s")
    options = SortingOptions(session=session.session, keep_silent=True)
    again = read_sorting(tmp_path / "s", options)
    order = np.lexsort((session.spikes.unit_index, session.spikes.sample))  # of one sample by unit
    np.testing.assert_array_equal(again.spikes.sample, session.spikes.sample)
    np.testing.assert_array_equal(np.lexsort((again.spikes.unit_index, again.spikes.sample)),
                                  np.arange(len(order)))
    np.testing.assert_array_equal(again.spikes.unit_index, session.spikes.unit_index[order])
    for name in ("probe", "channel", "cluster", "region", "depth_um"):
        np.testing.assert_array_equal(getattr(again.units, name), getattr(session.units, name))
    one = max(regions - {""})
    kept = read_sorting(tmp_path / "s", SortingOptions(keep=f"region={one}", keep_silent=True))
    assert kept.n_units == (session.units.region == one).sum() < session.n_units


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("si")
    recording, sorting = core.generate_ground_truth_recording(
        durations=[4.0], num_channels=4, num_units=5, seed=0)
    analyzer = core.create_sorting_analyzer(sorting, recording, format="binary_folder",
                                            folder=root / "analyzer", sparse=False)
    analyzer.compute(["random_spikes", "templates", "noise_levels"], n_jobs=1,
                     progress_bar=False)
    sorting.save(folder=root / "sorting")
    recording.save(folder=root / "recording", n_jobs=1, progress_bar=False)
    return root, sorting, analyzer


def test_a_sorting_with_its_recording(generated):
    root, sorting, _ = generated
    reader = sorting_reader(None, [f"recording={root / 'recording'}", "probe=probe03"])
    session = reader.read(str(root / "sorting"))
    vector = sorting.to_spike_vector()
    assert sorted(session.spikes.sample.tolist()) == sorted(vector["sample_index"].tolist())
    assert session.intervals.tolist() == [[0.0, 4.0]]
    assert set(session.units.probe) == {"probe03"}
    assert all(path.is_file() for path in reader.files(str(root / "sorting")))


def test_an_analyzer_knows_channels(generated):
    root, _, analyzer = generated
    session = read_sorting(root / "analyzer")
    templates = analyzer.get_extension("templates").get_data()  # the average, dense
    assert session.units.channel.tolist() == np.ptp(templates, 1).argmax(1).tolist()
    assert np.isfinite(session.units.depth_um).all()
    assert session.duration_s == 4.0


def test_quality_metrics_filter_units(generated):
    pytest.importorskip("spikeinterface.metrics")
    root, sorting, analyzer = generated
    analyzer.compute("quality_metrics", metric_names=["num_spikes", "firing_rate", "snr"])
    spikes = np.bincount(sorting.to_spike_vector()["unit_index"])
    limit = int(np.sort(spikes)[2])
    session = read_sorting(root / "analyzer", SortingOptions(keep=f"num_spikes>={limit}, snr>=0"))
    assert session.n_units == (spikes >= limit).sum() < 5
    units = [d for d in dropped(session) if d.level == "unit"]
    assert units[0].count == (spikes < limit).sum()
    with pytest.raises(BadInput, match="isi_wrong"):
        read_sorting(root / "analyzer", SortingOptions(keep="isi_wrong<=1"))


def test_refused(generated, tmp_path):
    root, _, _ = generated
    with pytest.raises(BadInput, match="nothing there"):
        read_sorting(tmp_path / "absent")
    with pytest.raises(BadInput, match="a sorting"):
        read_sorting(root / "recording")
    (tmp_path / "odd").mkdir()
    with pytest.raises(BadInput, match=r"spikeinterface\.load"):
        read_sorting(tmp_path / "odd")
    (tmp_path / "odd" / "x.pkl").write_bytes(b"")
    with pytest.raises(BadInput, match="no pickles"):
        read_sorting(tmp_path / "odd")
    two = core.NumpySorting.from_unit_dict([{0: np.array([1, 2])}, {0: np.array([3])}], 1000.0)
    with pytest.raises(BadInput, match="segment=0 to 1"):
        from_sorting(two)
    assert from_sorting(two, SortingOptions(segment=1)).spikes.sample.tolist() == [3]
