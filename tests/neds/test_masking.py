"""The five schemes: which tokens each hides, their shares, and that every sample draws its own."""

import torch

from neds.config import MaskingConfig
from neds.masking import SCHEMES, apply_schemes, draw_masks, draw_schemes


def one_scheme(name, batch=64, behaviours=3, bins=50, ratio=0.3):
    schemes = torch.full((batch,), SCHEMES.index(name))
    return apply_schemes(schemes, behaviours, bins, ratio, torch.Generator().manual_seed(1))


def test_encoding_hides_all_spikes_and_no_behaviour():
    masks = one_scheme("encoding")
    assert masks.spikes.all()
    assert not masks.behaviours.any()


def test_decoding_hides_all_behaviours_and_no_spikes():
    masks = one_scheme("decoding")
    assert not masks.spikes.any()
    assert masks.behaviours.all()


def test_self_spike_hides_random_bins_of_spikes_only():
    masks = one_scheme("self_spike")
    assert 0.25 < masks.spikes.float().mean() < 0.35
    assert not masks.behaviours.any()


def test_self_behaviour_draws_bins_apart_for_each_behaviour():
    masks = one_scheme("self_behaviour")
    assert not masks.spikes.any()
    assert 0.25 < masks.behaviours.float().mean() < 0.35
    assert (masks.behaviours[:, 0] != masks.behaviours[:, 1]).any()


def test_random_token_hides_the_same_bins_in_every_modality():
    masks = one_scheme("random_token")
    assert 0.25 < masks.spikes.float().mean() < 0.35
    for m in range(3):
        assert torch.equal(masks.behaviours[:, m], masks.spikes)


def test_samples_of_one_scheme_draw_their_own_bins():
    masks = one_scheme("self_spike")
    assert len({tuple(row.tolist()) for row in masks.spikes}) > 60


def test_schemes_come_with_their_configured_shares():
    config = MaskingConfig(encoding=0.5, decoding=0.5, self_spike=0, self_behaviour=0,
                           random_token=0)
    drawn = draw_schemes(config, 4000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.5, 0, 0, 0]), atol=0.03)
    even = torch.bincount(draw_schemes(MaskingConfig(), 4000, torch.Generator().manual_seed(0)))
    assert torch.allclose(even / 4000, torch.full((5,), 0.2), atol=0.03)


def test_masks_repeat_with_the_seed():
    first = draw_masks(MaskingConfig(), 8, 2, 20, torch.Generator().manual_seed(3))
    again = draw_masks(MaskingConfig(), 8, 2, 20, torch.Generator().manual_seed(3))
    other = draw_masks(MaskingConfig(), 8, 2, 20, torch.Generator().manual_seed(4))
    assert torch.equal(first.spikes, again.spikes)
    assert torch.equal(first.behaviours, again.behaviours)
    assert not torch.equal(first.behaviours, other.behaviours)
