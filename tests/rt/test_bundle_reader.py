"""A bundle read by a child process is the one that `read_bundle` returns, and so are its errors."""

import numpy as np
import pytest

from neds_rt.bundle import random_bundle, read_bundle, write_bundle
from neds_rt.bundle_reader import read_apart
from neds_rt.engines import load_engine
from neds_rt.errors import BadInput, NedsError, StartError
from tests.rt.serving import MODALITIES, SHAPE


@pytest.fixture
def path(tmp_path):
    bundle = random_bundle(SHAPE, 5, MODALITIES)
    m = bundle.manifest
    write_bundle(tmp_path / "x.neds", session="s", subject="m", bin_size_s=m.bin_size_s,
                 shape=m.shape, units=m.units, modalities=m.modalities, weights=bundle.weights,
                 files={"notes/a.txt": b"seven", "notes/none": b""})
    return tmp_path / "x.neds"


def test_it_is_the_same_bundle(path):
    apart, here = read_apart(str(path)), read_bundle(path)
    assert (apart.manifest, apart.files, apart.path) == (here.manifest, here.files, path)
    assert list(apart.weights) == list(here.weights)
    for name, tensor in here.weights.items():
        np.testing.assert_array_equal(apart.weights[name], tensor)
        assert not apart.weights[name].flags.writeable
    counts = np.ones(5, np.uint16)
    np.testing.assert_array_equal(*(load_engine("native", b).step(counts) for b in (apart, here)))


@pytest.mark.parametrize("damage", ["one bit", "gone", "text"])
def test_errors_are_those_of_reading_here(path, damage):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw if damage == "one bit" else b"what is this")
    if damage == "gone":
        path.unlink()
    with pytest.raises(BadInput) as here:
        read_bundle(path)
    with pytest.raises(NedsError) as apart:
        read_apart(str(path))
    assert str(apart.value) == str(here.value)
    assert apart.value.exit_code == 2


def test_a_child_that_dies_is_one_line(path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(StartError, match="ended with code 1"):
        read_apart(str(path))
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(StartError, match="cannot be read by another process"):
        read_apart(str(path))
