"""The stages of a bin, one by one: read a frame, bin it, step the model, write the decode.

    pytest bench                                     tables
    pytest bench --benchmark-json stages.json        with machine facts

Tight loops: caches are warm, so these are lower bounds. `neds-rt bench` has the figures of a rig.
"""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import numba
import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from neds_rt import _core
from neds_rt.assemble import make_assembler, make_encoder
from neds_rt.binning import bin_spikes
from neds_rt.bundle import Bundle, ModalityOut, Shape, random_bundle, write_bundle
from neds_rt.bundle import read_bundle as read
from neds_rt.engines import load_engine
from neds_rt.wire import SPIKE_DTYPE, SpikeHeader, decode_header, encode_spikes

FS, BIN_S, UNITS = 30_000.0, 0.02, 600
SHAPES = {
    "128x5": Shape(hidden=128, layers=5, heads=4, mlp=512, window=100, conv=5, recurrent=True),
    "256x5": Shape(hidden=256, layers=5, heads=8, mlp=512, window=100, conv=5, recurrent=True),
}
MODALITIES = [
    ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s", sd=[1.0]),
    ModalityOut(name="whisker", kind="continuous", n_outputs=1, unit="a.u.", sd=[1.0]),
    ModalityOut(name="choice", kind="categorical", n_outputs=2, classes=["right", "left"]),
    ModalityOut(name="block", kind="categorical", n_outputs=3, classes=["0.2", "0.5", "0.8"]),
]
ENGINES = ["native", "onnx", "neds.torch_engine:EagerLastBin", "neds.torch_engine:EagerWindow"]


def make_spikes(n: int, seconds: float) -> NDArray[np.void]:
    """Return `n` spikes over `seconds` from sample 0, ascending."""
    rng = np.random.default_rng(0)
    spikes = np.zeros(n, SPIKE_DTYPE)
    spikes["sample"] = np.sort(rng.integers(0, int(seconds * FS), n))
    spikes["unit"] = rng.integers(0, UNITS, n)
    return spikes


def make_frame(spikes: NDArray[np.void], k: int = 0) -> list[bytes]:
    """Return the two parts of the frame that covers bin `k`."""
    header = SpikeHeader(
        version=1, stream="probe00", session="bench", seq=k, t0_sample=600 * k,
        watermark=600 * (k + 1), fs=FS, sent_mono_ns=1, sent_real_ns=1, n_spikes=len(spikes),
    )
    return encode_spikes(header, spikes)


@pytest.fixture(scope="module", params=SHAPES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = random_bundle(SHAPES[request.param], UNITS, MODALITIES)
    graph = pytest.importorskip("neds_rt.engines.onnx_graph", reason="onnx is not installed")
    path = tmp_path_factory.mktemp("bench") / "random.neds"
    write_bundle(
        path, session="random", subject="random", bin_size_s=BIN_S, shape=SHAPES[request.param],
        units=made.manifest.units, modalities=MODALITIES, weights=made.weights,
        files={"model.onnx": graph.build_step_graph(made.manifest, made.weights)},
    )
    return read(path)


@pytest.mark.benchmark(group="read a frame of 120 spikes")
@pytest.mark.parametrize("method", ["msgspec and frombuffer", "list of lists in msgpack"])
def test_read_frame(benchmark: BenchmarkFixture, method: str) -> None:
    spikes = make_spikes(120, BIN_S)
    header, payload = make_frame(spikes)
    plain = msgpack.packb([[int(s), int(u)] for s, u in spikes])

    def native() -> Any:
        decode_header(header)
        return np.frombuffer(payload, SPIKE_DTYPE)["sample"]

    def listed() -> Any:
        return np.array(msgpack.unpackb(plain))[:, 0]

    found = benchmark(native if method.startswith("msgspec") else listed)
    np.testing.assert_array_equal(found, spikes["sample"])


@pytest.mark.benchmark(group="frame to closed bin, 120 spikes")
def test_assemble(benchmark: BenchmarkFixture) -> None:
    manifest = random_bundle(SHAPES["128x5"], UNITS, MODALITIES).manifest
    assembler = make_assembler(manifest, ["probe00"])
    spikes = make_spikes(120, BIN_S)
    frames = []
    for k in range(20_000 if benchmark.enabled else 30):
        moved = spikes.copy()
        moved["sample"] += 600 * k
        frames.append(make_frame(moved, k))
    source = iter(frames)
    closed = []

    def run() -> None:
        header, payload = next(source)
        assembler.push(header, payload)
        while assembler.pop():
            closed.append(int(assembler.counts.sum()))

    benchmark.pedantic(run, rounds=len(frames) // 10 - 1, iterations=10)
    assert set(closed) == {120}


@numba.njit(cache=False)  # type: ignore[untyped-decorator]
def _numba_bins(sample: Any, unit: Any, width: float, counts: Any) -> None:
    for i in range(len(sample)):
        counts[int(sample[i] / width), unit[i]] += 1


@pytest.mark.benchmark(group="bin spikes")
@pytest.mark.parametrize("method", ["core", "numba", "np.add.at"])
@pytest.mark.parametrize(("n", "bins"), [(120, 1), (120_000, 1000)], ids=["1 bin", "1000 bins"])
def test_bin(benchmark: BenchmarkFixture, method: str, n: int, bins: int) -> None:
    spikes = make_spikes(n, bins * BIN_S)
    sample, unit = spikes["sample"].copy(), spikes["unit"].astype(np.int64)
    width = FS * BIN_S

    def core() -> NDArray[np.uint16]:
        return bin_spikes(sample, unit, UNITS, FS, BIN_S, 0, bins)

    def compiled() -> NDArray[np.uint16]:
        counts = np.zeros((bins, UNITS), np.uint16)
        _numba_bins(sample, unit, width, counts)
        return counts

    def added() -> NDArray[np.uint16]:
        counts = np.zeros((bins, UNITS), np.uint16)
        np.add.at(counts, ((sample / width).astype(np.int64), unit), 1)
        return counts

    ways = {"core": core, "numba": compiled, "np.add.at": added}
    found = benchmark(ways[method])
    np.testing.assert_array_equal(found, added())


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("name", ENGINES)
def test_step(benchmark: BenchmarkFixture, bundle: Bundle, name: str) -> None:
    if name.startswith("neds."):
        pytest.importorskip("torch", reason="torch is not installed")
        if bundle.manifest.shape.hidden > 128:
            pytest.skip("takes seconds a call and says nothing new at this width")
    engine = load_engine(name, bundle)
    counts = np.random.default_rng(1).poisson(0.2, (64, UNITS)).astype(np.uint16)
    for row in range(bundle.manifest.shape.window):
        engine.step(counts[row % 64])
    found = benchmark(engine.step, counts[0])
    assert found.shape == (7,)
    assert np.isfinite(found).all()


@pytest.mark.benchmark(group="step, native by instruction set")
@pytest.mark.parametrize("isa", _core.supported_isas())
def test_step_isa(
    benchmark: BenchmarkFixture, bundle: Bundle, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEDS_ISA", isa)
    engine = load_engine("native", bundle)
    counts = np.random.default_rng(1).poisson(0.2, UNITS).astype(np.uint16)
    for _ in range(bundle.manifest.shape.window):
        engine.step(counts)
    assert np.isfinite(benchmark(engine.step, counts)).all()


@pytest.mark.benchmark(group="write a decode")
@pytest.mark.parametrize("method", ["core", "msgspec from a dict"])
def test_write_decode(benchmark: BenchmarkFixture, method: str) -> None:
    manifest = random_bundle(SHAPES["128x5"], UNITS, MODALITIES).manifest
    encoder = make_encoder(manifest)
    encoder.set_session("bench")
    outputs = np.array([0.1, 0.2, 0.3, 0.7, 0.2, 0.3, 0.5], np.float32)
    size = encoder.encode(0, 10, 0.22, 0.001, 1, 0, outputs)
    message = msgspec.msgpack.decode(encoder.buffer[:size].tobytes())
    pack = msgspec.msgpack.Encoder().encode

    if method == "core":
        assert benchmark(encoder.encode, 0, 10, 0.22, 0.001, 1, 0, outputs) == size
    else:
        assert msgspec.msgpack.decode(benchmark(pack, message)) == message
