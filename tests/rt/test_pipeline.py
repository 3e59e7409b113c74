"""The pipeline from frame to message: the same for every engine, undisturbed by rehearsals."""

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.assemble import Rehearsal, make_assembler, make_encoder, make_stepper
from neds_rt.bundle import random_bundle
from neds_rt.engines import load_engine
from neds_rt.engines.native import NativeEngine
from neds_rt.wire import decode_message
from tests.rt.serving import MODALITIES, SHAPE, outputs
from tests.rt.spike_frames import Sender

BIN = 600
UNITS = 4


class PythonEngine(NativeEngine):
    """The native engine, called from Python."""


def stream():
    """Frames with a gap, a gap longer than the window, and a restart."""
    rng = np.random.default_rng(0)

    def frame(sender, k, n=1):
        samples = rng.integers(k * BIN, (k + n) * BIN, 9 * n)
        return sender.frame(k * BIN, (k + n) * BIN, samples, rng.integers(0, UNITS, 9 * n))

    first, second = Sender("a", "first"), Sender("a", "second")
    found = [frame(first, k, 2) for k in (0, 2, 4, 8, 10, 500, 502)]
    return found + [frame(second, k) for k in range(9)]


def decodes(bundle, engine, rehearse=False):
    """All messages that a pipeline makes of the stream, and its latency ring."""
    assembler = make_assembler(bundle.manifest, ["a"])
    encoder, ring = make_encoder(bundle.manifest), _core.LatencyRing(1000)
    stepper = make_stepper(engine, assembler.counts)
    pipeline = _core.Pipeline(assembler, encoder, stepper, ring, SHAPE.window)
    between = Rehearsal(bundle.manifest, engine) if rehearse else lambda: None
    found = []
    for header, payload in stream():
        size = pipeline.feed(header, payload, _core.monotonic_ns())
        while size:
            found.append(decode_message(encoder.buffer[:size].tobytes()))
            between()
            size = pipeline.next()
    return found, ring


@pytest.fixture(scope="module")
def bundle():
    return random_bundle(SHAPE, UNITS, MODALITIES)


@pytest.mark.parametrize("rehearse", [False, True])
@pytest.mark.parametrize("kind", ["native", "python", "onnx"])
def test_every_engine_gives_the_same_messages(bundle, kind, rehearse):
    expected, ring = decodes(bundle, load_engine("native", bundle))
    engine = PythonEngine(bundle) if kind == "python" else load_engine(kind, bundle)
    found, _ = decodes(bundle, engine, rehearse)
    told = [[(d.seq, d.session, d.bin, d.t_s, d.valid, d.reason) for d in run]
            for run in (expected, found)]
    assert told[0] == told[1]
    np.testing.assert_allclose(
        [outputs(d) for d in found], [outputs(d) for d in expected], rtol=1e-4, atol=1e-5)
    window = SHAPE.window
    bins = [*range(12), *range(12, 12 + window), *range(500, 504), *range(9)]
    assert [d.bin for d in found] == bins
    assert {d.reason for d in found} == {"ok", "warming up", "gap"}
    assert ring.recorded == len(bins)
    assert (np.diff(ring.rows[: len(bins)], axis=1) >= 0).all()


def test_an_error_in_an_engine_is_passed_on_with_the_lock_in_order(bundle):
    class Failing(NativeEngine):
        def step(self, counts, present=True):
            raise KeyError("gone")

    for _ in range(20):
        with pytest.raises(KeyError, match="gone"):
            decodes(bundle, Failing(bundle))
