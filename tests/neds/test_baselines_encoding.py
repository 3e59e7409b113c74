"""Encoding baselines: a planted Poisson relation, causality, products, many sessions."""

import numpy as np
import pytest
import torch

from neds.baselines import fit
from neds.baselines.features import make_features, offsets
from neds.baselines.layout import layout, session_rows
from neds.baselines.poisson import PoissonProblem
from neds.baselines.rows import rows_of
from neds.metrics import bits_per_spike
from neds_rt.errors import BadInput
from tests.neds.planted import changed_from, driven, made, smooth, with_split


def planted(session="made", rows=3000, units=6, seed=0, shift=2, curved=0.0):
    """Rates that follow a trace `shift` bins ago (ahead if negative); (recording, rates)."""
    rng = np.random.default_rng(seed)
    trace = smooth(rng, rows + 20, 2, length=5)
    weights = 0.6 * np.random.default_rng(9).standard_normal((2, units))
    drive = trace @ weights + curved * (trace[:, :1] ** 2 - 1)
    rates = np.exp(0.2 + np.roll(drive, shift, 0)).clip(max=40)[10:-10]
    counts = rng.poisson(rates)
    recording = made(session, counts, {"velocity": ("continuous", trace[10:-10], ())},
                     channel=np.arange(units))
    return recording, rates


def bps(recording, rates, part="test"):
    at = rows_of(recording.runs_within(part))
    counts = recording.counts[at].float().numpy()
    return bits_per_spike(counts, rates, np.array(recording.state.null_rates))[1]


def ceiling(recording, rates):
    return bps(recording, rates[rows_of(recording.runs_within("test"))])


def test_the_solver_finds_the_minimum_that_newtons_method_finds():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    counts = torch.poisson((x[:, :3] * 0.4 + 0.3).exp(), generator=generator)
    problem = PoissonProblem(lambda rows: x[rows], counts, torch.arange(400))
    found = problem.solve(3.0)
    for unit in range(3):
        w = torch.zeros(6, dtype=torch.float64)
        design = torch.cat([x, torch.ones(400, 1)], 1).double()
        shrink = torch.diag(torch.tensor([3.0] * 5 + [0.0], dtype=torch.float64))
        for _ in range(30):
            rate = (design @ w).exp()
            gradient = design.T @ (rate - counts[:, unit]) + shrink @ w
            w -= torch.linalg.solve(design.T @ (rate[:, None] * design) + shrink, gradient)
        np.testing.assert_allclose(found.weights[:, unit], w[:5], atol=1e-3)
        np.testing.assert_allclose(found.intercept[unit], w[5], atol=1e-3)


def test_the_glm_reaches_the_ceiling_of_a_planted_relation():
    recording, rates = planted()
    fitted = fit("glm", [recording], seed=0, budget="quick")
    assert bps(recording, fitted.encode_part(recording, "test")) > 0.93 * ceiling(recording, rates)


def test_products_are_used_where_they_help():
    recording, rates = planted(curved=0.5)
    fitted = fit("glm", [recording], seed=0, budget="quick")
    assert fitted.fits["made"].choice[0]
    assert bps(recording, fitted.encode_part(recording, "test")) > 0.9 * ceiling(recording, rates)


def test_only_the_window_form_sees_the_future():
    recording, rates = planted(shift=-3)
    causal = fit("glm", [recording], seed=0, budget="quick")
    window = fit("glm_window", [recording], seed=0, budget="quick")
    a = bps(recording, causal.encode_part(recording, "test"))
    b = bps(recording, window.encode_part(recording, "test"))
    assert b > 0.9 * ceiling(recording, rates) > a + 0.02
    first, stop = recording.part("test")
    row = (first + stop) // 2
    changed = changed_from(recording, row)
    before, after = (causal.encode_part(r, "test")[: row - first] for r in (recording, changed))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", ["glm", "rrr_encoder"])
def test_the_test_part_has_no_say_in_a_fit(name):
    recording, _ = planted(rows=600)
    changed = changed_from(recording, recording.part("test")[0])
    a, b = (fit(name, [r], seed=0, budget="quick").encode_part(recording, "test")
            for r in (recording, changed))
    np.testing.assert_array_equal(a, b)


def test_features_stay_inside_a_run_and_a_part():
    recording, _ = planted(rows=600)
    outputs = layout([recording])
    data = session_rows(recording, outputs, "cpu")
    runs = [(100, 200), (200, 260)]
    features = make_features(data, outputs, runs, quadratic=False).with_lags(offsets(3, True))
    assert features.lags == (-2, -1, 0, 1, 2)
    base = features.base
    got = features.rows(torch.tensor([100, 150, 199])).view(3, 5, -1)
    assert not got[0, 3:].any()
    assert not got[2, :2].any()
    torch.testing.assert_close(got[1], base[[152, 151, 150, 149, 148]])


def test_all_kinds_and_unknown_values_are_inputs():
    recording = driven(unknown=0.2)
    rates = fit("glm", [recording], seed=0, budget="quick").encode_part(recording, "test")
    assert np.isfinite(rates).all()
    assert bps(recording, rates) > 0.15


def test_the_reduced_rank_encoder_shares_sessions_and_adapts():
    pairs = [planted(f"s{i}", rows=1500, seed=i) for i in range(2)]
    fitted = fit("rrr_encoder", [r for r, _ in pairs], seed=0, budget="quick")
    for recording, rates in pairs:
        found = bps(recording, fitted.encode_part(recording, "test"))
        assert found > 0.9 * ceiling(recording, rates)
    new, rates = planted("new", seed=5)
    nothing = with_split(new, train=(0, 0), val=(0, 0))
    little = with_split(new, train=(0, 40), val=(40, 60))
    zero = bps(new, fitted.adapt(nothing, seed=0).encode_part(nothing, "test"))
    some = bps(new, fitted.adapt(little, seed=0).encode_part(little, "test"))
    alone = bps(new, fit("glm", [little], seed=0, budget="quick").encode_part(little, "test"))
    assert zero > 0.8 * ceiling(new, rates)  # the same channels, tuned alike
    assert some > alone
    with pytest.raises(BadInput, match="not fitted"):
        fitted.encode_part(new, "test")
    with pytest.raises(BadInput, match="decodes"):
        fitted.decode_part(pairs[0][0], "test")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["glm", "glm_window", "rrr_encoder"])
def test_every_encoder_runs_on_a_cuda_device(name):
    recording, _ = planted(rows=1500)
    fitted = fit(name, [recording], seed=0, device="cuda", budget="quick")
    assert bps(recording, fitted.encode_part(recording, "test")) > 0.2
