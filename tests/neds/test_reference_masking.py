"""The masking of both releases and its repair, by their statistics."""

import pytest
import torch

from neds.masking import SCHEMES
from neds.reference_config import ReferenceConfig
from neds.reference_masking import draw_reference_masks, scheme_tokens, task_masks

MASKS = ("paper_apr2025", "head", "fixed")


def draw(batch=400, seed=0, behaviours=4, **fields):
    generator = torch.Generator().manual_seed(seed)
    return draw_reference_masks(ReferenceConfig(**fields), batch, behaviours, generator)


def rows(masks, scheme):
    return masks.asked[masks.schemes == SCHEMES.index(scheme)]


@pytest.mark.parametrize("mask", MASKS)
def test_what_is_asked_follows_the_table_of_schemes(mask):
    masks = draw(mask=mask)
    encoding, decoding = rows(masks, "encoding"), rows(masks, "decoding")
    assert encoding[:, 0].all()
    assert not encoding[:, 1:].any()
    assert decoding[:, 1:].all()
    assert not decoding[:, 0].any()
    assert not rows(masks, "self_spike")[:, 1:].any()
    within = rows(masks, "self_behaviour")
    assert not within[:, 0].any()
    assert not torch.equal(within[:, 1], within[:, 2])  # drawn apart for each behaviour
    across = rows(masks, "random_token")
    assert (across == across[:, :1]).all()  # the same bins in every modality
    assert across.any()


@pytest.mark.parametrize("mask", MASKS)
def test_each_scheme_is_drawn_a_fifth_of_the_time(mask):
    schemes = torch.cat([draw(seed=s, mask=mask).schemes for s in range(20)])
    shares = torch.bincount(schemes, minlength=5) / len(schemes)
    assert torch.allclose(shares, torch.full((5,), 0.2), atol=0.02)


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_random_bins_have_the_ratio(ratio):
    share = rows(draw(2000, mask="fixed", mask_ratio=ratio), "self_spike")[:, 0].float().mean()
    assert share.item() == pytest.approx(ratio, abs=0.01)


def test_at_head_trials_of_a_scheme_share_their_random_bins():
    masks = draw(mask="head")
    partial = torch.cat([rows(masks, "self_spike")[:, 0], rows(masks, "random_token")[:, 0]])
    assert len(partial) > 100
    assert len(partial.unique(dim=0)) == 2
    assert len(rows(masks, "self_behaviour").unique(dim=0)) == 1
    assert torch.equal(masks.blank, masks.asked)
    assert not masks.emptied.any()


def test_repaired_every_trial_has_its_own_random_bins():
    masks = draw(mask="fixed")
    for scheme in ("self_spike", "self_behaviour", "random_token"):
        own = rows(masks, scheme)
        assert len(own.unique(dim=0)) == len(own) > 50
    assert torch.equal(masks.blank, masks.asked)


def test_in_april_2025_trial_0_decides_what_the_batch_cannot_see():
    masks = draw(mask="paper_apr2025")
    assert (masks.blank == masks.asked[:1]).all()
    assert len(masks.schemes.unique()) == 5
    visible = (masks.asked & ~masks.blank).sum() / masks.asked.sum()
    assert visible > 0.5  # most of what is asked for can be read off the input


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_in_april_2025_six_patterns_empty_the_spike_input(ratio):
    share = draw(2000, mask="paper_apr2025", mask_ratio=ratio).emptied.float().mean().item()
    assert share == pytest.approx(1 - (1 - ratio) ** 6, abs=0.01)
    fewer = draw(2000, mask="paper_apr2025", mask_ratio=ratio, behaviours=2).emptied
    assert fewer.float().mean().item() == pytest.approx(1 - (1 - ratio) ** 4, abs=0.01)


@pytest.mark.parametrize("mask", MASKS)
def test_one_scheme_a_batch(mask):
    seen = {int(s) for seed in range(40)
            for s in draw(16, seed, mask=mask, one_scheme_per_batch=True).schemes.unique()}
    assert seen == set(range(5))
    for seed in range(5):
        schemes = draw(16, seed, mask=mask, one_scheme_per_batch=True).schemes
        assert len(schemes.unique()) == 1


def test_masks_repeat_with_their_seed():
    a, b, c = draw(seed=3), draw(seed=3), draw(seed=4)
    assert torch.equal(a.asked, b.asked)
    assert not torch.equal(a.asked, c.asked)


@pytest.mark.parametrize("mode", ["encoding", "decoding"])
def test_unimodal_models_hide_nothing_and_are_asked_for_everything(mode):
    masks = draw(8, mode=mode)
    assert not masks.blank.any()
    assert masks.asked[:, 0].all() == (mode == "encoding")
    assert masks.asked[:, 1:].all() == (mode == "decoding")
    assert masks.asked.any(dim=(0, 2)).tolist() == [mode == "encoding"] + [mode == "decoding"] * 4


def test_patterns_are_used_by_their_schemes():
    patterns = torch.eye(6, dtype=torch.bool)[None]  # pattern p hides bin p alone
    spike = scheme_tokens(torch.tensor([2]), patterns)[0]
    behaviour = scheme_tokens(torch.tensor([3]), patterns)[0]
    token = scheme_tokens(torch.tensor([4]), patterns)[0]
    assert spike.nonzero().tolist() == [[0, 0]]
    assert behaviour.nonzero().tolist() == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert token.nonzero().tolist() == [[m, 1] for m in range(5)]


def test_tasks_of_evaluation():
    config = ReferenceConfig()
    encoding, decoding = (task_masks(config, 2, 4, t) for t in ("encoding", "decoding"))
    assert encoding.blank.any(dim=(0, 2)).tolist() == [True] + [False] * 4
    assert decoding.blank.any(dim=(0, 2)).tolist() == [False] + [True] * 4
    one = task_masks(config, 2, 4, "encoding", shown=2)
    assert one.blank.all(dim=2)[0].tolist() == [True, True, True, False, True]
    assert torch.equal(one.asked, encoding.asked)
