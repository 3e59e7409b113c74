"""Replay of what other programs write: NWB units as `neds prepare` has them, or how to prepare."""

from datetime import UTC, datetime

import h5py
import numpy as np
import pytest

from neds_rt.binning import bin_spikes
from neds_rt.cli import main
from neds_rt.errors import BadInput
from neds_rt.sources.replay import bin_axis, blocks, read_recording
from tests.rt.test_replay import binned

FS, BIN_S = 30_000.0, 0.02
PLACES = [("b", 7, 3), ("a", 5, 2), ("a", 1, 9), ("a", 1, 4), ("b", 0, 0)]


def write(path, times, columns=True, electrodes=False, **more):
    """An NWB file by pynwb: the spike times of each unit, named by columns or by electrodes."""
    pynwb = pytest.importorskip("pynwb")
    nwb = pynwb.NWBFile(session_description="x", identifier="x",
                        session_start_time=datetime(2024, 1, 1, tzinfo=UTC))
    if columns:
        for name in ("probe", "channel", "cluster"):
            nwb.add_unit_column(name, name)
    if electrodes:
        device = nwb.create_device("d")
        group = nwb.create_electrode_group("probe00", "x", "CA1", device)
        nwb.add_electrode(location="CA1", group=group)
    for k, own in enumerate(times):
        named = dict(zip(("probe", "channel", "cluster"), PLACES[k], strict=True))
        nwb.add_unit(spike_times=own, **(named if columns else {}),
                     **({"electrodes": [0]} if electrodes else {}), **more)
    if more or columns:
        nwb.units.resolution = 1 / FS
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


def drawn(seed=0):
    """Spike samples of five units, the last one silent, none of them before 0.1 s."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.integers(3000, 90_000, n)) for n in (300, 200, 100, 400, 0)]


def test_bins_are_those_of_the_whole_recording_at_once(tmp_path):
    samples = drawn()
    path = write(tmp_path / "x.nwb", [own / FS for own in samples])
    order = [PLACES[2], PLACES[1], PLACES[3]]
    recording = read_recording(path, "a", order)
    assert (recording.fs, recording.session) == (FS, "x")
    assert recording.units.places == [key[1:] for key in order]
    played = list(blocks(recording, 0, 90_000, 300))
    spikes = np.concatenate([block.spikes for block in played])
    bins = bin_axis(recording, BIN_S)
    assert len(bins) > 140
    whole = np.concatenate([samples[k] for k in (2, 1, 3)])
    unit = np.repeat([0, 1, 2], [len(samples[k]) for k in (2, 1, 3)])
    counts = bin_spikes(whole, unit, 3, FS, BIN_S, int(bins[0]), len(bins))
    assert counts.sum() > 650
    np.testing.assert_array_equal(binned(spikes, bins, 3, FS, BIN_S), counts)


def test_units_are_numbered_as_in_the_prepared_session(tmp_path):
    from neds.data.nwb import read_nwb
    from neds.data.store import write_session

    path = write(tmp_path / "x.nwb", [own / FS for own in drawn()])
    write_session(read_nwb(path), tmp_path / "x.h5", provenance={})
    for probe, n in (("a", 3), ("b", 1)):
        one, two = (read_recording(tmp_path / name, probe) for name in ("x.nwb", "x.h5"))
        assert (one.units.n_units, one.units.places) == (n, two.units.places)
        found = [r.spikes(0, 90_000) for r in (one, two)]
        np.testing.assert_array_equal(*(np.sort(f, order=["sample", "unit"]) for f in found))


def test_intervals_in_which_units_were_observed_are_the_spans(tmp_path):
    samples = drawn()
    path = write(tmp_path / "x.nwb", [own / FS for own in samples],
                 obs_intervals=[[0.0, 1.0], [1.5, 2.0], [1.9, 2.5]])
    recording = read_recording(path, "a")
    assert recording.spans.tolist() == [[0, 30_000], [45_000, 75_000]]
    spikes = recording.spikes(0, 90_000)["sample"]
    every = np.sort(np.concatenate(samples[1:4]))
    inside = (every < 30_000) | ((every >= 45_000) & (every < 75_000))
    np.testing.assert_array_equal(spikes, every[inside])


def test_units_without_columns_are_numbered_by_their_ids(tmp_path):
    samples = drawn()
    path = write(tmp_path / "x.nwb", [own / FS for own in samples], columns=False)
    recording = read_recording(path)
    assert recording.units.probe == "probe00"
    assert recording.units.places == [(-1, 0), (-1, 1), (-1, 2), (-1, 3)]


def test_units_named_by_electrodes_are_for_prepare(tmp_path, capfd):
    path = write(tmp_path / "x.nwb", [own / FS for own in drawn()], columns=False, electrodes=True)
    assert main(["replay", str(path), "--wait", "0.1"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert f"neds prepare --reader nwb {path} --out sessions" in err


@pytest.mark.parametrize("spoil", [
    lambda units: units["spike_times_index"].__setitem__(0, 65_000),
    lambda units: units["spike_times_index"].__setitem__(-1, 1),
    lambda units: units.pop("spike_times"),
    lambda units: units.pop("channel"),
    lambda units: units["spike_times"].__setitem__(slice(None), np.nan),
    lambda units: units.parent.pop("units"),
])
def test_a_damaged_file_is_one_line(tmp_path, spoil, capfd):
    path = write(tmp_path / "x.nwb", [own / FS for own in drawn()])
    with h5py.File(path, "r+") as file:
        spoil(file["units"])
    order = [key for key in PLACES if key[0] == "a"]
    with pytest.raises(BadInput):
        read_recording(path, "a", order)
    assert main(["replay", str(path), "--probe", "zz", "--wait", "0.1"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("names", "text"), [
    (["spike_times.npy", "params.py"], "neds prepare --reader phy {} --out sessions"),
    (["spikes.npy", "si_folder.json", "numpysorting_info.json"], "--reader sorting {} --out"),
    ([".zgroup"], "--reader sorting {} --out"),
    (["si_folder.json", "binary.json"], "neds detect {} --templates"),
    ([], "a session file of neds prepare"),
])
def test_folders_name_the_command_that_prepares_them(tmp_path, capfd, names, text):
    folder = tmp_path / "it is"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    assert main(["replay", str(folder), "--wait", "0.1"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert text.format(f"'{folder}'") in err


@pytest.mark.filterwarnings("ignore")  # of SpikeInterface's own making
def test_what_spikeinterface_saves_is_known(tmp_path):
    core = pytest.importorskip("spikeinterface.core")
    sorting = core.NumpySorting.from_samples_and_labels([np.arange(9) * 50], [np.arange(9) % 3], FS)
    recording = core.NumpyRecording([np.zeros((100, 2), np.int16)], FS)
    sorting.save(folder=tmp_path / "s")
    sorting.save(folder=tmp_path / "z.zarr", format="zarr")
    recording.save(folder=tmp_path / "r", verbose=False, progress_bar=False)
    for name, text in (("s", "--reader sorting"), ("z.zarr", "--reader sorting"),
                       ("r", "neds detect")):
        with pytest.raises(BadInput, match=text):
            read_recording(tmp_path / name)


def test_archives_and_binaries_name_their_command(tmp_path):
    for name, text in (("x.npz", "--reader arrays"), ("x.ap.bin", "neds detect")):
        (tmp_path / name).touch()
        with pytest.raises(BadInput, match=text):
            read_recording(tmp_path / name)
