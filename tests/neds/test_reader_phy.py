"""Kilosort and phy folders."""

import numpy as np
import pytest

from neds.data.dropped import dropped
from neds.data.phy import PhyOptions, phy_reader, read_phy
from neds_rt.errors import BadInput

SAMPLES = np.array([10, 20, 20, 45, 60, 90, 120], np.uint64)
CLUSTERS = np.array([3, 5, 3, 3, 5, 9, 3], np.int32)
TEMPLATES = np.array([0, 1, 0, 2, 1, 2, 0], np.int32)


def folder(path, **without):
    path.mkdir()
    shapes = np.zeros((3, 8, 4), np.float32)
    for template, channel in enumerate([2, 0, 3]):
        shapes[template, 4, channel] = -5 - template
    arrays = {
        "spike_times": SAMPLES[:, None], "spike_clusters": CLUSTERS, "spike_templates": TEMPLATES,
        "templates": shapes, "channel_map": np.array([7, 6, 5, 4]),
        "channel_positions": np.array([[0, 0], [0, 20], [0, 40], [0, 60]], float),
    }
    for name, array in arrays.items():
        if name not in without:
            np.save(path / f"{name}.npy", array)
    (path / "params.py").write_text("import os\ndat_path = 'x'\nsample_rate = 25000.\n")
    (path / "cluster_group.tsv").write_text(
        "cluster_id\tgroup\n3\tgood\n5\tmua\n9\tgood\n11\tnoise\n")
    return path


def test_a_folder_of_kilosort(tmp_path):
    session = read_phy(folder(tmp_path / "rec"))
    assert session.session == "rec"
    assert session.spikes.fs == 25000.0
    assert session.spikes.sample.tolist() == SAMPLES.tolist()
    assert session.units.cluster.tolist() == [3, 5, 9]
    assert session.units.cluster[session.spikes.unit_index].tolist() == [
        3, 3, 5, 3, 5, 9, 3]  # of one sample by unit
    # Cluster 3 was found three times with template 0, on site 2, which is channel 5.
    assert session.units.channel.tolist() == [5, 7, 4]
    assert session.units.depth_um.tolist() == [40.0, 0.0, 60.0]
    assert [(d.level, d.name, d.reason) for d in dropped(session)] == [("unit", "3", "no spikes")]


def test_curation_and_info(tmp_path):
    path = folder(tmp_path / "rec")
    (path / "cluster_info.tsv").write_text(
        "cluster_id\tch\tdepth\tamp\tgroup\n3\t12\t240.0\t50\tgood\n5\t13\t260.0\t9\tmua\n"
        "9\t14\t\t70\tgood\n")
    words = ["keep=group=good, amp>=60", "probe=probe01", "seconds=1"]
    session = phy_reader(None, words).read(path)
    assert session.units.cluster.tolist() == [9]
    assert session.units.channel.tolist() == [14]
    assert np.isnan(session.units.depth_um).all()
    assert session.units.probe.tolist() == ["probe01"]
    assert session.intervals.tolist() == [[0.0, 1.0]]


def test_degrades(tmp_path):
    path = folder(tmp_path / "rec", templates=1, spike_clusters=1)
    (path / "params.py").unlink()
    (path / "cluster_odd.tsv").write_text("name\tvalue\na\tb\n")
    session = read_phy(path)
    assert session.spikes.fs == 30000.0
    assert session.units.cluster.tolist() == [0, 1, 2]  # of templates
    assert session.units.channel.tolist() == [-1, -1, -1]
    assert {d.name for d in dropped(session) if d.level == "column"} == {
        "sample_rate", "channel", "cluster_odd.tsv"}


def test_a_script_in_params_is_not_run(tmp_path):
    path = folder(tmp_path / "rec")
    (path / "params.py").write_text(f"open(r'{tmp_path}/ran', 'w')\nsample_rate = 20000\n")
    assert read_phy(path, PhyOptions()).spikes.fs == 20000
    assert not (tmp_path / "ran").exists()


def test_refused(tmp_path):
    with pytest.raises(BadInput, match="nothing there"):
        read_phy(tmp_path / "absent")
    path = folder(tmp_path / "rec", spike_times=1)
    with pytest.raises(BadInput, match=r"spike_times\.npy"):
        read_phy(path)
    np.save(path / "spike_times.npy", SAMPLES[:3])
    with pytest.raises(BadInput, match="as many samples"):
        read_phy(path)
    (path / "spike_times.npy").write_bytes(b"none")
    with pytest.raises(BadInput, match="whole array"):
        read_phy(path)
