"""The parity configuration: parameter counts, what reaches what, and its switches."""

import msgspec
import pytest
import torch

from neds.model import BehaviourSpec, SessionSpec
from neds.reference import ReferenceNeds, count_reference
from neds.reference_config import PADDING, ReferenceBatch, ReferenceConfig
from neds_rt.errors import BadInput

BEHAVIOURS = (
    BehaviourSpec("choice", "categorical", 1, ("right", "left")),
    BehaviourSpec("block", "categorical", 1, ("0.2", "0.5", "0.8")),
    BehaviourSpec("wheel", "continuous", 1),
    BehaviourSpec("whisker", "continuous", 1),
)
SMALL = {"layers": 2, "hidden": 16, "mlp": 24, "heads": 2, "bins": 6, "n_session_rows": 3}
SESSIONS = [SessionSpec("a", 5, BEHAVIOURS), SessionSpec("b", 3, BEHAVIOURS)]


def config(**fields):
    return ReferenceConfig(**SMALL | fields)


def make(**fields):
    torch.manual_seed(0)
    model = ReferenceNeds(config(**fields), SESSIONS).eval()
    with torch.no_grad():
        model.mask_token.normal_()
    return model


def batch(sessions=(0, 1, 0, 1)):
    generator = torch.Generator().manual_seed(1)
    session = torch.tensor(sessions)
    n = len(session)
    counts = torch.randint(0, 4, (n, 6, 5), generator=generator).float()
    counts[session == 1, :, 3:] = PADDING
    return ReferenceBatch(session, counts, [
        torch.randint(0, 2, (n,), generator=generator).float(),
        torch.randint(0, 3, (n,), generator=generator).float(),
        torch.randn(n, 6, 1, generator=generator),
        torch.randn(n, 6, 1, generator=generator),
    ])


def nothing(n=4):
    return torch.zeros(n, 5, 6, dtype=torch.bool)


def counted(layers, n_units, n_sessions=1):
    with torch.device("meta"):
        model = ReferenceNeds(
            ReferenceConfig(layers=layers),
            [SessionSpec(str(i), n_units, BEHAVIOURS) for i in range(n_sessions)],
        )
    return count_reference(model)


@pytest.mark.parametrize(("layers", "shared"), [(5, 2_878_208), (16, 8_676_352), (22, 11_838_976)])
def test_shared_parameters_are_the_papers(layers, shared):
    assert counted(layers, 3)["shared"] == shared == 527_104 * layers + 242_688


@pytest.mark.parametrize(("n", "own"), [(326, 470_033), (668, 1_413_611), (789, 1_859_496)])
def test_a_sessions_parameters_are_the_papers(n, own):
    assert counted(5, n)["sessions"] == own == 2 * n * n + 771 * n + 256 + 5_879


def test_whole_models_have_the_papers_size():
    assert counted(5, 326)["total"] == 3_348_241
    large = counted(22, 789, 74)
    assert large["total"] == 11_838_976 + 74 * 1_859_496 == 149_441_680
    assert round(large["sessions"] / large["total"], 2) == 0.92


def test_every_session_pays_for_the_largest_unless_told_otherwise():
    def own(stitcher, session):
        stitch = ReferenceNeds(config(stitcher=stitcher), SESSIONS).stitch(session)
        return sum(p.numel() for p in (*stitch.spikes_in.parameters(),
                                       *stitch.spikes_out.parameters()))

    def mlp(n):
        return 2 * n * n + 2 * n + 2 * n * 16 + 16 + 16 * n + n

    assert [own("mlp_max", s) for s in (0, 1)] == [mlp(5), mlp(5)]
    assert [own("mlp_own_n", s) for s in (0, 1)] == [mlp(5), mlp(3)]
    assert [own("linear", s) for s in (0, 1)] == [n * 16 + 16 + 16 * n + n for n in (5, 3)]


@pytest.mark.parametrize("stitcher", ["mlp_max", "mlp_own_n", "linear"])
def test_a_trials_outputs_do_not_depend_on_its_neighbours_in_the_batch(stitcher):
    model, whole = make(stitcher=stitcher), batch()
    spikes, outputs = model(whole, nothing())
    assert spikes.shape == (4, 6, 5)
    assert [tuple(o.shape) for o in outputs] == [(4, 2), (4, 3), (4, 6, 1), (4, 6, 1)]
    rows = torch.tensor([3, 0])
    part = ReferenceBatch(whole.session[rows], whole.counts[rows],
                          [b[rows] for b in whole.behaviours])
    again, outputs_again = model(part, nothing(2))
    torch.testing.assert_close(again, spikes[rows])
    for a, b in zip(outputs_again, outputs, strict=True):
        torch.testing.assert_close(a, b[rows])


def test_blanked_tokens_reach_no_output_and_others_do():
    model, data, blank = make(), batch(), nothing()
    blank[:, 0, 2] = True
    blank[:, 1] = True
    before = torch.cat([o.flatten(1) for o in model(data, blank)[1]], 1)
    counts = data.counts.clone()
    counts[:, 2, :3] += 2
    other = ReferenceBatch(data.session, counts, [1 - data.behaviours[0], *data.behaviours[1:]])
    assert torch.equal(before, torch.cat([o.flatten(1) for o in model(other, blank)[1]], 1))
    counts[:, 3, :3] += 2  # bin 3 is in view: full attention carries it everywhere
    changed = torch.cat([o.flatten(1) for o in model(data.with_counts(counts), blank)[1]], 1)
    assert (changed != before).any(0).all()


def test_sessions_differ_by_their_embedding_and_bins_by_their_position():
    model, data = make(), batch((0, 0))
    alone = model(data, nothing(2))[0]
    with torch.no_grad():
        for tables in model.tables:
            tables.session.weight[0].neg_()
    assert not torch.allclose(alone, model(data, nothing(2))[0])
    constant = data.with_counts(torch.ones_like(data.counts))
    rates = model(constant, nothing(2))[0]
    assert not torch.allclose(rates[:, 0], rates[:, 1])


def test_a_lone_session_loses_embedding_and_static_heads_when_asked():
    kept, lost = make(), make(lone_session="dropped")
    data, blank = batch((0, 0, 1)), nothing(3)
    a, b = kept(data, blank), lost(data, blank)
    torch.testing.assert_close(a[0][:2], b[0][:2])
    assert not torch.allclose(a[0][2], b[0][2])
    bias = lost.stitch(1).behaviours_out[1].bias
    torch.testing.assert_close(b[1][1][2], bias)
    assert not torch.allclose(a[1][1][2], bias)


def test_branches_start_small_as_fixup_asks():
    torch.manual_seed(0)
    layer = ReferenceNeds(ReferenceConfig(layers=16), SESSIONS).layers[0]
    plain = (1 / 256) ** 0.5  # torch draws a Linear's weights from U(-plain, plain)
    scale = 0.67 / 2  # 16 ** -0.25
    for linear, factor in ((layer.query, 1), (layer.out, scale), (layer.up, scale),
                           (layer.value, scale * 2**0.5)):
        assert linear.weight.abs().max().item() == pytest.approx(plain * factor, rel=0.01)
    assert layer.down.weight.abs().max().item() == pytest.approx((1 / 512) ** 0.5 * scale, rel=0.01)


def test_the_mask_token_is_a_constant_zero_before_the_repair():
    def token(mask):
        return ReferenceNeds(config(mask=mask), SESSIONS).mask_token

    assert token("head").requires_grad
    assert not token("paper_apr2025").requires_grad
    assert not token("paper_apr2025").any()


@pytest.mark.parametrize(("mode", "tokens"), [("encoding", 4), ("decoding", 1)])
def test_unimodal_models_train_their_heads(mode, tokens):
    model = make(mode=mode)
    assert len(model.tables) == tokens
    spikes, outputs = model(batch(), nothing())
    assert (spikes is None) == (mode == "decoding")
    assert len(outputs) == (4 if mode == "decoding" else 0)
    sum(o.sum() for o in (*outputs, *([] if spikes is None else [spikes]))).backward()
    heads = [p for n, p in model.stitches.named_parameters() if "out" in n or "pool" in n]
    assert len(heads) == (2 * (2 * 4 + 2) if mode == "decoding" else 2 * 2)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads)
    assert all(n in model.state_dict() for n, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"mask": "both"}, "mask"), ({"static_loss": "mean"}, "static_loss"), ({"heads": 3}, "heads"),
     ({"stitcher": "mlp"}, "stitcher"), ({"dropout": 1.0}, "dropout"), ({"layers": 0}, "layers"),
     ({"mode": "spikes"}, "mode"), ({"mask_ratio": float("nan")}, "mask_ratio")],
)
def test_a_value_that_is_none_is_named(fields, named):
    with pytest.raises(BadInput, match=f"reference: {named}"):
        config(**fields)


def test_unknown_fields_are_refused():
    with pytest.raises(msgspec.ValidationError, match="layer"):
        msgspec.convert({"layer": 5}, ReferenceConfig)


def test_sessions_that_one_model_cannot_hold():
    with pytest.raises(BadInput, match="n_session_rows"):
        ReferenceNeds(config(), SESSIONS * 2)
    with pytest.raises(BadInput, match="those of a"):
        ReferenceNeds(config(), [SESSIONS[0], SessionSpec("c", 2, BEHAVIOURS[:2])])
    heading = (BehaviourSpec("heading", "circular", 1),)
    with pytest.raises(BadInput, match="categorical or continuous"):
        ReferenceNeds(config(), [SessionSpec("c", 2, heading)])
