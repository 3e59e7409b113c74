"""Bundles inside FALCON's loop and an ezmsg graph, against the engine itself."""

from pathlib import Path

import numpy as np
import pytest

from neds.adapters.counts import CountDecoder
from neds.adapters.falcon import FalconDecoder
from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle
from neds_rt.engines.native import NativeEngine
from neds_rt.errors import BadInput

MODALITIES = [
    ModalityOut("velocity", "continuous", 2, "cm/s", [], [1.0, 1.0]),
    ModalityOut("heading", "circular", 2),
    ModalityOut("choice", "categorical", 2, "", ["left", "right"]),
]
UNITS = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    made = random_bundle(Shape(16, 1, 2, 24, 8, conv=3, recurrent=True), UNITS, MODALITIES)
    path = tmp_path_factory.mktemp("bundles") / "rec.neds"
    m = made.manifest
    write_bundle(path, session="s", subject="a", bin_size_s=0.02, shape=m.shape, units=m.units,
                 modalities=m.modalities, weights=made.weights)
    return path


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(1.0, (20, UNITS)).astype(np.uint16)


def engine_outputs(decoder, counts):
    engine = NativeEngine(decoder.bundle)
    return np.array([engine.step(np.ascontiguousarray(row)).copy() for row in counts])


def test_count_decoder_is_the_engine(bundle, counts):
    decoder = CountDecoder(bundle)
    expected = engine_outputs(decoder, counts)
    np.testing.assert_array_equal([decoder.step(row) for row in counts], expected)
    assert decoder.labels == ["velocity.0", "velocity.1", "heading.cos", "heading.sin",
                              "choice.left", "choice.right"]
    some = CountDecoder(bundle, ["choice", "velocity"])
    chosen = np.array([some.step(row) for row in counts.tolist()])
    np.testing.assert_array_equal(chosen, expected[:, [4, 5, 0, 1]])
    assert some.widths == {"choice": 2, "velocity": 2}


@pytest.mark.parametrize("row", [
    np.zeros(UNITS + 1), np.full(UNITS, np.nan), np.full(UNITS, 0.5), np.full(UNITS, -1),
    np.full(UNITS, 70000), np.full(UNITS, "a"),
])
def test_what_is_no_count_is_refused_and_harms_nothing(bundle, counts, row):
    decoder = CountDecoder(bundle)
    expected = engine_outputs(decoder, counts)
    decoder.step(counts[0])
    with pytest.raises(BadInput, match="counts"):
        decoder.step(row)
    np.testing.assert_array_equal(decoder.step(counts[1]), expected[1])


def test_unknown_names(bundle):
    with pytest.raises(BadInput, match="speed"):
        CountDecoder(bundle, ["speed"])
    with pytest.raises(BadInput, match="precision"):
        CountDecoder(bundle, precision="float8")


def evaluator(decoder, files, counts, mask):
    """What FALCON's evaluator does with a decoder, for one data file after another."""
    predictions = []
    for name in files:
        decoder.reset(dataset_tags=[name])
        for row, needed in zip(counts, mask, strict=True):
            observed = row[None].astype(np.float64)
            if needed:
                predictions.append(decoder.predict(observed))
            else:
                decoder.observe(observed)
            decoder.on_done(np.zeros(1, bool))
    return np.concatenate(predictions)


def test_falcon_loop(bundle, counts):
    mask = np.arange(len(counts)) % 4 != 0
    decoder = FalconDecoder(bundle, ["velocity"])
    expected = engine_outputs(CountDecoder(bundle), counts)[mask, :2]
    found = evaluator(decoder, ["S0_set_1_eval", Path("S1_set_2_eval.nwb")], counts, mask)
    np.testing.assert_array_equal(found, np.concatenate([expected, expected]))
    assert decoder.batch_size == 1


def test_falcon_bundle_of_a_dataset(bundle, counts):
    decoder = FalconDecoder({"S0": bundle, "S0_set_2": bundle, "S1": bundle})
    decoder.reset(["S0_set_2_eval"])
    assert decoder._now is decoder._decoders["S0_set_2"]
    decoder.reset(["S0_set_1_eval"])
    assert decoder._now is decoder._decoders["S0"]
    with pytest.raises(BadInput, match="S7"):
        decoder.reset(["S7"])
    with pytest.raises(BadInput, match="batch"):
        decoder.reset(["S0", "S1"])
    with pytest.raises(BadInput, match="batch_size"):
        decoder.set_batch_size(2)
    with pytest.raises(BadInput, match="neural_observations"):
        decoder.predict(counts[:2])


def test_falcon_forgets_if_asked(bundle, counts):
    going_on, forgetting = FalconDecoder(bundle), FalconDecoder(bundle, forget=True)
    first = forgetting.predict(counts[:1])
    for decoder in (going_on, forgetting):
        decoder.reset()
        decoder.predict(counts[:1])
        decoder.on_done(np.ones(1, bool))
    np.testing.assert_array_equal(forgetting.predict(counts[:1]), first)
    assert (going_on.predict(counts[:1]) != first).any()


def test_falcon_needs_its_bins(tmp_path):
    made = random_bundle(Shape(16, 1, 2, 24, 8), UNITS, MODALITIES, bin_size_s=0.05)
    m = made.manifest
    write_bundle(tmp_path / "x.neds", session="s", subject="a", bin_size_s=0.05, shape=m.shape,
                 units=m.units, modalities=m.modalities, weights=made.weights)
    with pytest.raises(BadInput, match="bin_size_s"):
        FalconDecoder(tmp_path / "x.neds")


def message(counts, start_s, bin_s=0.02):
    from ezmsg.util.messages.axisarray import AxisArray

    return AxisArray(counts, dims=["time", "ch"], key="probe00",
                     axes={"time": AxisArray.TimeAxis(fs=1 / bin_s, offset=start_s)})


def test_decoding_of_messages(bundle, counts):
    pytest.importorskip("ezmsg.core")
    from neds.adapters.ezmsg_unit import Decoding, NedsSettings

    decoding = Decoding(NedsSettings(bundle=str(bundle)))
    expected = engine_outputs(decoding.decoder, counts)
    first = decoding.answer(message(counts[:8], 0.16))
    np.testing.assert_array_equal(first.data, expected[:8])
    assert first.axes["time"].offset == pytest.approx(0.18)  # a bin's values are those at its end
    assert first.axes["ch"].data.tolist() == decoding.decoder.labels
    for bad in (message(counts[:2, :3], 0.32), message(counts[:2], 0.32, 0.05),
                message(counts[:2], np.nan), message(counts[:2] - 0.5, 0.32), counts):
        assert decoding.answer(bad) is None
    assert decoding.refused == 5
    np.testing.assert_array_equal(decoding.answer(message(counts[8:9], 0.32)).data, expected[8:9])
    late = decoding.answer(message(counts[9:10], 0.32 + 4 * 0.02))  # three bins are lost
    engine = NativeEngine(decoding.decoder.bundle)
    for row in counts[:9]:
        engine.step(row)
    engine.skip(3)
    np.testing.assert_array_equal(late.data[0], engine.step(counts[9]))
    again = decoding.answer(message(counts[:1], 0.0))  # the clock went back: a new stream
    np.testing.assert_array_equal(again.data, expected[:1])


def test_ezmsg_graph(bundle, counts):
    """A real graph: a unit that sends counts, the decoder, and one that ends the graph."""
    ez = pytest.importorskip("ezmsg.core")
    from ezmsg.util.messages.axisarray import AxisArray

    from neds.adapters.ezmsg_unit import NedsSettings, NedsUnit

    received = []

    class Sender(ez.Unit):
        OUTPUT = ez.OutputStream(AxisArray)

        @ez.publisher(OUTPUT)
        async def send(self):
            for i in range(0, 20, 4):
                yield self.OUTPUT, message(counts[i : i + 4], i * 0.02)

    class Collector(ez.Unit):
        INPUT = ez.InputStream(AxisArray)

        @ez.subscriber(INPUT)
        async def take(self, decode):
            received.append(decode.data)
            if len(received) == 5:
                raise ez.NormalTermination

    units = {"sender": Sender(), "neds": NedsUnit(NedsSettings(bundle=str(bundle),
                                                               behaviours="velocity")),
             "collector": Collector()}
    ez.run(components=units, force_single_process=True, connections=(
        (units["sender"].OUTPUT, units["neds"].INPUT),
        (units["neds"].OUTPUT, units["collector"].INPUT),
    ))
    expected = engine_outputs(CountDecoder(bundle), counts)[:, :2]
    np.testing.assert_array_equal(np.concatenate(received), expected)


def test_without_ezmsg_the_rest_works(bundle):
    """Partners are imported late: FALCON's needs none, the unit says what to install."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['ezmsg'] = None\n"
        "from neds.adapters.falcon import FalconDecoder\n"
        f"FalconDecoder({str(bundle)!r})\n"
        "assert 'torch' not in sys.modules and 'ezmsg.core' not in sys.modules\n"
        "try:\n    import neds.adapters.ezmsg_unit\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("StartError ezmsg is not usable")
    assert "neds[ezmsg]" in done.stdout
