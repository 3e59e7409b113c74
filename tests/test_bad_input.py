"""Every kind of bad input ends in one line that names it, exit code 2, and nothing half-written."""

import json
import socket
import zipfile

import numpy as np
import pytest

from neds.cli import main as neds
from neds.data.store import write_session
from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle
from neds_rt.cli import main as neds_rt
from tests.neds.conftest import make_session

GOOD = {
    "t": np.array([0.1, 0.2, 0.3]),
    "u": np.array([0, 1, 0]),
    "v": np.arange(5.0),
    "vt": np.arange(5) * 0.1,
    "counts": np.ones((10, 3), np.int16),
}
EVENTS = ["spike_times=t", "spike_units=u", "behaviour.wheel=v:vt"]
COUNTS = ["counts=counts", "bin_size=0.02"]


def refused(capsys, command, *words):
    """Run a command that must refuse its input; returns its one line."""
    assert command([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.endswith("\n")
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.parametrize(
    ("change", "mapping", "named"),
    [
        ({"t": np.array([0.1, 0.2])}, EVENTS, "u"),
        ({"t": np.array([0.1, np.nan, 0.3])}, EVENTS, "t"),
        ({"t": np.array([0.3, 0.2, 0.1])}, EVENTS, "t"),
        ({"u": np.array([0, -1, 0])}, EVENTS, "u"),
        ({"vt": np.array([0.0, 0.2, 0.1, 0.3, 0.4])}, EVENTS, "behaviour wheel"),
        ({"v": np.arange(4.0)}, EVENTS, "behaviour wheel"),
        ({"counts": -np.ones((10, 3), np.int16)}, COUNTS, "counts"),
        ({"counts": np.zeros((10, 0), np.int16)}, COUNTS, "units"),
        ({}, ["counts=missing", "bin_size=0.02"], "missing"),
        ({}, ["cuonts=counts"], "cuonts"),
    ],
)
def test_archives(capsys, tmp_path, change, mapping, named):
    path = tmp_path / "rec.npz"
    np.savez(path, **(GOOD | change))
    line = refused(capsys, neds, "prepare", path, "--out", tmp_path / "out", "--map", *mapping)
    assert named in line
    assert list(tmp_path.rglob("*.h5")) == []


def test_missing_and_truncated_archives(capsys, tmp_path):
    path = tmp_path / "rec.npz"
    np.savez(path, **GOOD)
    path.write_bytes(path.read_bytes()[:200])
    for file in (path, tmp_path / "nothing.npz"):
        line = refused(capsys, neds, "prepare", file, "--out", tmp_path / "o", "--map", *EVENTS)
        assert file.name in line
    assert list(tmp_path.rglob("*.h5")) == []


def test_unknown_behaviour_and_truncated_session(capsys, tmp_path):
    path = tmp_path / "made.h5"
    write_session(make_session(bins=400), path)
    words = ("--recipe", "smoke", "--out", tmp_path / "ckpt", "--set", "data.bin_size_s=0.05")
    line = refused(capsys, neds, "train", path, *words, "--behaviours", "wheel")
    assert "wheel" in line
    assert "velocity" in line
    path.write_bytes(path.read_bytes()[:1000])
    assert "made.h5" in refused(capsys, neds, "train", path, *words)
    assert not (tmp_path / "ckpt").exists()


@pytest.fixture
def bundle(tmp_path):
    made = random_bundle(Shape(hidden=16, layers=1, heads=2, mlp=16, window=4), 5,
                         [ModalityOut("wheel", "continuous", 1, sd=[1.0])])
    path = tmp_path / "made.neds"
    m = made.manifest
    write_bundle(path, session=m.session, subject=m.subject, bin_size_s=m.bin_size_s,
                 shape=m.shape, units=m.units, modalities=m.modalities, weights=made.weights)
    return path


def rewrite(path, change):
    """Change a bundle's files without its hashes."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def with_manifest(**fields):
    def change(files):
        files["manifest.json"] = json.dumps(json.loads(files["manifest.json"]) | fields).encode()

    return change


def damage_weights(files):
    data = bytearray(files["weights.safetensors"])
    data[-1] ^= 1
    files["weights.safetensors"] = bytes(data)


SERVE = ("serve", "--probe", "probe00=zmq+tcp://127.0.0.1:5999", "--out", "tcp://127.0.0.1:*")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (damage_weights, "sha256"),
        (with_manifest(schema=99), "schema"),
        (with_manifest(units=[{"probe": "p", "channel": 0, "cluster": 0}]), "input.weight"),
        (with_manifest(extra=1), "extra"),
    ],
)
def test_bundles(capsys, bundle, change, named):
    rewrite(bundle, change)
    line = refused(capsys, neds_rt, *SERVE, "--model", bundle)
    assert "made.neds" in line
    assert named in line or "model_hash" in line


def test_endpoints(capsys, bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(capsys, neds_rt, "serve", "--probe", "probe00=zmq+tcp://127.0.0.1:5999",
                       "--out", f"tcp://127.0.0.1:{port}", "--model", bundle)
        assert str(port) in line
    line = refused(capsys, neds_rt, "serve", "--probe", "probe00=carrier-pigeon://loft",
                   "--model", bundle)
    assert "carrier-pigeon" in line
    assert "zmq+tcp" in line
    line = refused(capsys, neds_rt, *SERVE, "--model", bundle, "--engine", "abacus")
    assert "abacus" in line
    assert "native" in line
    line = refused(capsys, neds_rt, "serve", "--probe", "probe00=zmq+tcp://0.0.0.0:5999",
                   "--out", "tcp://0.0.0.0:5998", "--model", bundle)
    assert "0.0.0.0" in line


def test_wrong_words_on_the_command_line(capsys, tmp_path):
    for command, words in ((neds, ("train", "x.h5", "--out", tmp_path / "o", "--seed", "text")),
                           (neds_rt, ("serve", "--stale-after", "soon"))):
        with pytest.raises(SystemExit) as ended:
            command([str(word) for word in words])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words[-1] in error


def test_the_bin_size_of_a_binned_recording_is_not_overridden(capsys, tmp_path):
    path = tmp_path / "made.h5"
    write_session(make_session(bins=400), path)
    line = refused(capsys, neds, "train", path, "--recipe", "smoke", "--out", tmp_path / "ckpt",
                   "--set", "data.bin_size_s=0.02")
    assert "0.05" in line
    assert not (tmp_path / "ckpt").exists()
