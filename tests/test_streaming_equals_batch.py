"""Streaming equals batch: native and onnx steps against torch's batch form, bin for bin.

tests/rt/test_engines.py holds the engines to an independent float64 reference; here they are held
to the model that training uses.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neds.export import BatchDecoder, unfold_model
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
        conv=draw(st.integers(0, 6)),
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
    """Torch's batch form over the whole stream, in chunks that overlap by the receptive field."""
    past = unfold_model(bundle).receptive_field + bundle.manifest.shape.conv
    decoder = BatchDecoder(bundle).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(counts), chunk):
            begin, end = max(0, start - past), start + chunk
            block = torch.from_numpy(counts[begin:end].astype(np.float32))[None]
            outputs = decoder(block, torch.from_numpy(lost[begin:end])[None])
            parts.append(outputs[0, start - begin :].numpy())
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
    shape = Shape(hidden=32, layers=3, heads=4, mlp=64, window=40, conv=5)
    bundle = random_bundle(shape, 50, list(MODALITIES), seed=3)
    rng = np.random.default_rng(11)
    counts, lost = stream(rng, 10_500, 50, [3, 50, 400])
    assert_agree(stepped(name, bundle, counts, lost), batch(bundle, counts, lost, 500))
