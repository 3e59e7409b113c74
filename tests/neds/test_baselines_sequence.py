"""Multi-session nets: planted relations, mixed batches, causality, new sessions."""

import numpy as np
import pytest
import torch

from neds.baselines import fit, sequence
from neds.baselines.adaptation import for_new_session
from neds.baselines.layout import Sampler, layout, loss_of, session_rows
from neds.baselines.nets import SessionNet, Sizes
from neds.baselines.rows import rows_of
from neds.baselines.sequence import Sequences, raw_outputs
from neds_rt.errors import BadInput
from tests.neds.planted import changed_from, driven, trials, with_split
from tests.neds.test_baselines_linear import scores

SMALL = Sizes(width=16, layers=2, lags=6, heads=2, window=8, dropout=0.1)
CORES = ("gru", "mlp", "ndt", "rrr")


@pytest.fixture(scope="module")
def sessions():
    """Two sessions of 16 and 15 units; the second lacks the heading and has unknown values."""
    return [driven("a", seed=0), driven("b", seed=1, missing=("heading",), unknown=0.1)]


@pytest.fixture(scope="module")
def gru(sessions):
    return fit("gru", sessions, seed=0, budget="quick")


def fresh(core, recordings, own_out=False):
    data = [session_rows(r, layout(recordings), "cpu") for r in recordings]
    return sequence.make_net(core, SMALL, data, layout(recordings), own_out, 0), data


@pytest.mark.parametrize("core", ["mlp", "ndt", "rrr"])
def test_planted_relations_are_found_in_every_session(core, sessions):
    fitted = fit(core, sessions, seed=0, budget="quick")
    for recording in sessions:
        found = scores(recording, fitted.decode_part(recording, "test"))
        assert found["velocity"] > 0.7
        assert found["side"] > 0.75


def test_the_gru_finds_them_and_each_session_has_its_own_behaviours(gru, sessions):
    for recording in sessions:
        found = scores(recording, gru.decode_part(recording, "test"))
        assert min(found["velocity"], found["side"]) > 0.8
    assert len(gru.decode_part(sessions[1], "test")) == 2
    assert scores(sessions[0], gru.decode_part(sessions[0], "test"))["heading"] > 0.7
    with pytest.raises(BadInput, match="one of a, b, or adapt"):
        gru.decode_part(driven("c", rows=400), "test")


def test_a_batch_of_sessions_is_each_session_alone(sessions):
    for own_out in (False, True):
        net, data = fresh("gru", sessions, own_out)
        net.eval()
        batch = Sampler(data, 8, 20, seed=0).draw()
        assert batch.counts.shape == (2, 4, 20, 16)
        together = net(batch.sessions, batch.counts)
        for g, s in enumerate(batch.sessions):
            units = data[s].counts.shape[1]
            alone = net([s], batch.counts[g : g + 1, ..., :units])
            torch.testing.assert_close(together[g : g + 1], alone)


def test_unknown_rows_and_lacking_behaviours_add_nothing_to_the_loss(sessions):
    net, data = fresh("gru", sessions)
    outputs = layout(sessions)
    batch = Sampler(data, 8, 20, seed=0).draw()
    predicted = net(batch.sessions, batch.counts)
    before = loss_of(predicted, batch, outputs)
    for m, o in enumerate(outputs):
        wrong = ~batch.known[..., m, None].expand(predicted[..., o.columns].shape)
        batch.targets[..., o.columns][wrong] += 100
    torch.testing.assert_close(loss_of(predicted, batch, outputs), before)
    heading = batch.known[batch.sessions.index(1), ..., 2]
    assert not heading.any()


@pytest.mark.parametrize("core", CORES)
def test_no_prediction_depends_on_later_rows(core, sessions):
    net, _ = fresh(core, sessions[:1])
    recording, row = sessions[0], 150
    changed = changed_from(recording, row)
    a, b = (raw_outputs(net, 0, r, [(100, 200)]) for r in (recording, changed))
    torch.testing.assert_close(a[:50], b[:50])
    assert not torch.allclose(a[50:], b[50:])


@pytest.mark.parametrize("core", ["mlp", "ndt", "rrr", "gru"])
def test_long_runs_in_chunks_and_short_ones_together_change_nothing(core, sessions, monkeypatch):
    net, _ = fresh(core, sessions[:1])
    runs = [(0, 300), (310, 330), (400, 420), (500, 537)]
    whole = torch.cat([raw_outputs(net, 0, sessions[0], [run]) for run in runs])
    monkeypatch.setattr(sequence, "CHUNK", 64)
    torch.testing.assert_close(raw_outputs(net, 0, sessions[0], runs), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "gru", "ridge_pretrained"])
def test_the_test_part_has_no_say_in_a_fit(name, sessions, monkeypatch):
    monkeypatch.setitem(sequence.RECIPES, "gru", sequence.Recipe(sizes=SMALL))
    monkeypatch.setattr(sequence, "for_budget", lambda recipe, _: sequence.Recipe(
        sizes=SMALL, least_steps=6, most_steps=6, batch=4, bins=20, validations=2))
    first, _ = sessions[0].part("test")
    changed = changed_from(sessions[0], first)
    fits = [fit(name, [r], seed=0, budget="quick") for r in (sessions[0], changed)]
    a, b = (f.decode_part(sessions[0], "test") for f in fits)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_new_map_is_the_mean_of_its_channel(sessions):
    net, _ = fresh("gru", sessions)
    units = [r.state.units for r in sessions]
    new = driven("new", channels=9, seed=2).state.units  # channel 8 is new
    zero = for_new_session(net, units, new, trained=False, seed=0)
    maps = torch.cat([m.detach() for m in net.maps])
    channels = np.array([u.channel for s in units for u in s])
    for i, unit in enumerate(new):
        expected = maps[channels == unit.channel].mean(0) if unit.channel < 8 else torch.zeros(16)
        torch.testing.assert_close(zero.maps[0][i].detach(), expected)
    drawn = for_new_session(net, units, new, trained=True, seed=0)
    assert drawn.maps[0][-1].any()  # what will be trained does not start at zero


def test_the_gru_adapts_to_a_new_session(gru):
    new = driven("new", seed=5)
    nothing = with_split(new, train=(0, 0), val=(0, 0))
    little = with_split(new, train=(0, 160), val=(160, 200))
    zero = scores(new, gru.adapt(nothing, seed=0).decode_part(nothing, "test"))
    some = scores(new, gru.adapt(little, seed=0).decode_part(little, "test"))
    assert zero["velocity"] > 0.6
    assert some["velocity"] > zero["velocity"] - 0.02
    assert some["velocity"] > 0.75


def test_zero_shot_predictions_do_not_use_a_scaling_fitted_on_nothing(gru):
    new = driven("new", rows=400, seed=5)
    nothing = with_split(new, train=(0, 0), val=(0, 0))
    adapted = gru.adapt(nothing, seed=0)
    before = adapted.decode_part(nothing, "test")[0]
    nothing.state.behaviours[0].mean[:] = [1e3, 1e3]
    np.testing.assert_array_equal(adapted.decode_part(nothing, "test")[0], before)


def test_one_seed_gives_one_fit_and_leaves_the_global_generator_alone(sessions, monkeypatch):
    monkeypatch.setattr(sequence, "for_budget", lambda recipe, _: sequence.Recipe(
        sizes=SMALL, least_steps=5, most_steps=5, batch=4, bins=20, validations=1))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (fit("gru_single", sessions[:1], seed=s).decode_part(sessions[0], "val")
               for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(a[0], b[0])
    assert np.abs(a[0] - c[0]).max() > 1e-3


def test_ranks_and_maps_out_are_chosen_by_a_pilot(sessions, monkeypatch):
    chosen = []
    monkeypatch.setattr(sequence, "train", lambda net, *rest: chosen.append(
        (net.sizes.width, net.own_out)) or float(net.sizes.width == 16 or net.own_out))
    monkeypatch.setattr(sequence, "Sequences", lambda *parts: Sequences(*parts))
    sequence.fit(sessions, seed=0, device="cpu", budget="full", progress=False, core="rrr")
    assert chosen == [(4, False), (8, False), (16, False), (32, False), (16, False)]
    chosen.clear()
    sequence.fit(sessions, seed=0, device="cpu", budget="full", progress=False, core="gru")
    assert chosen == [(192, False), (192, True), (192, True)]


def test_sessions_whose_behaviours_differ_in_kind_are_refused(sessions):
    other = driven("other", classes=("near", "far"))
    with pytest.raises(BadInput, match=r"other: behaviour side: classes: .*as in the other"):
        fit("gru", [sessions[0], other], seed=0, budget="quick")


def test_trials_shorter_than_a_sequence_are_filled_up():
    recording = trials()
    data = session_rows(recording, layout([recording]), "cpu")
    batch = Sampler([data], 8, 100, seed=0).draw()
    assert batch.counts.shape == (1, 8, 10, 12)  # never longer than the longest run
    fitted = fit("mlp", [recording], seed=0, budget="quick")
    predicted = fitted.decode_part(recording, "test")[0]
    assert predicted.shape == (len(rows_of(recording.runs_within("test"))), 2)
    last = predicted.reshape(-1, 10, 2)[:, -1]
    truth = recording.values["side"][rows_of(recording.runs_within("test"))].reshape(-1, 10)[:, -1]
    assert np.mean(last.argmax(1) == truth) > 0.75


def test_a_net_of_one_session_and_shared_output_owns_its_map_alone():
    net = SessionNet("gru", SMALL, [4], 2, own_out=False)
    assert len(net.own_parameters()) == 2
    assert len(SessionNet("gru", SMALL, [4, 5], 2, own_out=True).own_parameters()) == 5
    assert len(SessionNet("rrr", SMALL, [4, 5], 2, own_out=False).own_parameters()) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["linear", "ridge_pretrained", "rrr", "gru", "mlp", "ndt"])
def test_every_decoder_runs_on_a_cuda_device(name, sessions):
    fitted = fit(name, sessions, seed=0, device="cuda", budget="quick")
    assert scores(sessions[0], fitted.decode_part(sessions[0], "test"))["velocity"] > 0.6
    if name != "linear":
        new = with_split(driven("new", seed=5), train=(0, 160), val=(160, 200))
        found = fitted.adapt(new, seed=0).decode_part(new, "test")
        assert scores(new, found)["velocity"] > 0.5
