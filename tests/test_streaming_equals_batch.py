"""Streaming equals batch: native and onnx steps against torch's batch form, bin for bin.

tests/rt/test_engines.py holds the engines to an independent float64 reference; here they are held
to the model that training uses.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neds.export import BatchDecoder
from neds_rt.bundle import ModalityOut, Shape, random_bundle
from neds_rt.engines import load_engine

RELATIVE = 1e-4
MODALITIES = (
    ModalityOut("wheel", "continuous", 1, sd=[1.0]),
    ModalityOut("choice", "categorical", 2, classes=["left", "right"]),
    ModalityOut("heading", "circular", 2),
    ModalityOut("velocity", "continuous", 3, sd=[1.0, 1.0, 1.0]),
)


@st.composite
def bundles(draw):
    heads = draw(st.integers(1, 4))
    shape = Shape(
        hidden=heads * 2 * draw(st.integers(1, 6)),
        layers=draw(st.integers(1, 4)),
        heads=heads,
        mlp=draw(st.integers(1, 40)),
        window=draw(st.integers(1, 30)),
        conv=draw(st.sampled_from([0, 1, 2, 5])),
        recurrent=draw(st.booleans()),
    )
    modalities = draw(st.lists(st.sampled_from(MODALITIES), min_size=1, unique_by=lambda m: m.name))
    return random_bundle(shape, draw(st.integers(1, 40)), modalities,
                         seed=draw(st.integers(0, 1000)))


def stream(rng, bins, units, gaps):
    """Counts (bins, units) and lost bins (bins,): single ones, and `gaps` long runs."""
    counts = rng.poisson(0.4, (bins, units)).astype(np.uint16)
    lost = rng.random(bins) < 0.05
    for length in gaps:
        start = int(rng.integers(0, bins))
        lost[start : start + length] = True
    return counts, lost


def stepped(name, bundle, counts, lost):
    engine = load_engine(name, bundle)
    return np.stack([engine.step(c, not gone).copy() for c, gone in zip(counts, lost, strict=True)])


def batch(bundle, counts, lost, chunk):
    """Torch's batch form: the stem over all bins at once, the attention in overlapping chunks."""
    decoder = BatchDecoder(bundle).eval()
    model, sessions = decoder.model, [decoder.session]
    maps, past = model.maps(sessions), model.receptive_field
    lost = torch.from_numpy(lost)[None]
    blank = [torch.zeros(1, len(counts), m.n_outputs) for m in bundle.manifest.modalities]
    hidden = torch.ones(1, len(blank), len(counts), dtype=torch.bool)
    parts = []
    with torch.inference_mode():
        embedded, _ = model.embed_spikes(maps, torch.from_numpy(counts.astype(np.float32))[None],
                                         lost)
        x, visible = model.tokens(maps, sessions, embedded, blank, lost, hidden)
        for start in range(0, len(counts), chunk):
            begin, end = max(0, start - past), min(len(counts), start + chunk)
            z = model.encode(x[:, begin:end], visible[:, begin:end], end - begin, begin)
            _, outputs = model.heads(maps, z[:, start - begin :], end - start)
            parts.append(decoder.finished(outputs)[0].numpy())
    return np.concatenate(parts)


def assert_agree(found, expected):
    scale = np.abs(expected).max(axis=0, keepdims=True).clip(min=1e-3)
    assert np.max(np.abs(found - expected) / scale) <= RELATIVE


@settings(max_examples=40)
@given(bundle=bundles(), seed=st.integers(0, 2**32 - 1), gaps=st.lists(st.integers(1, 80)))
def test_any_shape_window_and_gap(bundle, seed, gaps):
    rng = np.random.default_rng(seed)
    counts, lost = stream(rng, 120, len(bundle.manifest.units), gaps[:4])
    expected = batch(bundle, counts, lost, 120)
    for name in ("native", "onnx"):
        assert_agree(stepped(name, bundle, counts, lost), expected)


@pytest.mark.parametrize("name", ["native", "onnx"])
def test_more_than_ten_thousand_consecutive_bins(name):
    shape = Shape(hidden=32, layers=3, heads=4, mlp=64, window=40, conv=5, recurrent=True)
    bundle = random_bundle(shape, 50, list(MODALITIES), seed=3)
    rng = np.random.default_rng(11)
    counts, lost = stream(rng, 10_500, 50, [3, 50, 400])
    assert_agree(stepped(name, bundle, counts, lost), batch(bundle, counts, lost, 500))


@pytest.mark.parametrize("name", ["EagerWindow", "EagerLastBin"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_recomputed_window_equals_the_stream_while_it_lasts(name, recurrent):
    shape = Shape(hidden=16, layers=2, heads=2, mlp=20, window=30, conv=5, recurrent=recurrent)
    bundle = random_bundle(shape, 12, list(MODALITIES), seed=4)
    counts, lost = stream(np.random.default_rng(1), 30, 12, [4])
    lost[0] = True
    found = stepped(f"neds.torch_engine:{name}", bundle, counts, lost)
    assert_agree(found, stepped("native", bundle, counts, lost))
