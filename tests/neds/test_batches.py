"""Batches that mix sessions compute what each session alone would."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from neds.batches import Sampler, collate, draw_rows, step_generator, without_first
from neds.config import MaskingConfig, ModelConfig, TrainConfig
from neds.dataset import describe, to_recording
from neds.losses import (
    draw_inputs,
    inputs_loss,
    loss_weights,
    masked_losses,
    training_loss,
)
from neds.model import BehaviourSpec, Neds, SessionSpec
from neds.processes import Processes
from neds.train import build_model
from tests.neds.conftest import make_session

VELOCITY = BehaviourSpec("velocity", "continuous", 2)
CHOICE = BehaviourSpec("choice", "categorical", 1, ("left", "right"))
SESSIONS = [
    SessionSpec("a", 7, (VELOCITY, CHOICE), tuple(f"rat/p/{i}" for i in range(7))),
    SessionSpec("b", 4, (CHOICE,), tuple(f"rat/p/{i + 2}" for i in range(4))),
    SessionSpec("c", 9, (VELOCITY,), tuple(f"cat/p/{i}" for i in range(9))),
]


def model(**fields):
    torch.manual_seed(3)
    net = Neds(ModelConfig(**({"hidden": 16, "layers": 2, "heads": 2, "mlp": 24, "window": 6,
                               "conv": 3} | fields)), SESSIONS).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("fields", [
    {}, {"shared": "channels"}, {"shared": "behaviours", "recurrent": True},
    {"tokens": "summed", "inputs": "counts", "recurrent": True, "shared": "channels"},
    {"form": "window", "window": 10}, {"form": "window", "window": 10, "tokens": "summed"},
])
def test_a_mixed_batch_equals_each_session_alone(fields):
    net, bins, each = model(**fields), 10, 2
    generator = torch.Generator().manual_seed(0)
    names, behaviours = ["a", "b", "c"], [VELOCITY, CHOICE]
    assert net.behaviours_of(names) == behaviours
    counts = torch.randint(0, 4, (6, bins, 9), generator=generator).float()
    for row, units in ((0, 7), (2, 4)):
        counts[row : row + each, :, units:] = 0
    values = [torch.randn(6, bins, b.n_outputs, generator=generator) for b in behaviours]
    hide = torch.rand(6, bins, generator=generator) < 0.3
    hidden = torch.rand(6, 2, bins, generator=generator) < 0.5
    hidden[2:4, 0], hidden[4:6, 1] = True, True
    absent = torch.zeros(6, 3, bins, dtype=torch.bool)
    absent[2:4, 1], absent[4:6, 2] = True, True
    with torch.no_grad():
        rates, outputs = net(names, counts, values, hide, hidden, absent=absent)
        for g, spec in enumerate(SESSIONS):
            rows, own = slice(2 * g, 2 * g + 2), [behaviours.index(b) for b in spec.behaviours]
            alone, alone_outputs = net(
                [spec.session], counts[rows, :, : spec.n_units], [values[m][rows] for m in own],
                hide[rows], hidden[rows][:, own])
            torch.testing.assert_close(rates[rows, :, : spec.n_units], alone, atol=1e-5, rtol=1e-5)
            for m, found in zip(own, alone_outputs, strict=True):
                torch.testing.assert_close(outputs[m][rows], found, atol=1e-5, rtol=1e-5)


def test_the_own_part_of_a_session_can_be_taken_away():
    net = model(shared="channels")
    keep = torch.tensor([1.0, 0.0])
    both, alone = net.maps(["a", "b"], keep), net.maps(["a"])
    torch.testing.assert_close(both.spikes_in[0][0], alone.spikes_in[0][0])
    places = net.stitcher("b").places
    torch.testing.assert_close(both.spikes_in[0][1, :4], net.place_in[places])
    assert both.embedding[1].abs().max() == 0
    assert not both.spikes_in[0][1, 4:].any()


def recordings(config):
    found = []
    for seed, units in ((0, 12), (1, 8), (2, 10)):
        session = make_session(units=units, seed=seed)
        binned, state = describe(session, config.data, 20)
        state = msgspec.structs.replace(state, session=f"s{seed}")
        found.append(to_recording(binned, state))
    return found


def test_a_step_draws_the_same_batch_whenever_it_is_made(small_config):
    found = recordings(small_config)
    net = build_model(small_config, found)
    sampler = Sampler.make(found, msgspec.structs.replace(small_config.train, batch=7,
                                                          sessions_per_batch=2), "stream")
    assert (sampler.batch, sampler.sessions) == (8, 2)
    cpu = torch.device("cpu")
    first, again, other = (draw_inputs(net, sampler, small_config, step, Processes(), cpu)
                           for step in (5, 5, 6))
    assert torch.equal(first.counts, again.counts)
    assert torch.equal(first.masks.spikes, again.masks.spikes)
    assert first.counts.shape != other.counts.shape or not torch.equal(first.counts, other.counts)


def test_counts_spilled_to_disk_are_the_same(small_config, tmp_path):
    session = make_session()
    binned, state = describe(session, small_config.data, 20)
    plain, spilled = to_recording(binned, state), to_recording(binned, state, tmp_path)
    assert torch.equal(plain.counts, spilled.counts)
    assert plain.counts.dtype == torch.uint8
    assert any(tmp_path.iterdir())


def test_padding_and_unknown_bins_cost_nothing(small_config):
    found = recordings(small_config)
    net = build_model(small_config, found)
    generator = step_generator(0, 1)
    drawn = [(r, *draw_rows(r, 2, 20, generator)) for r in found]
    batch = collate(net, drawn, torch.device("cpu"))
    from neds.masking import Masks

    everything = Masks(torch.ones(6, 20, dtype=torch.bool),
                       torch.ones(6, batch.known.shape[1], 20, dtype=torch.bool))
    rates = torch.zeros(6, 20, 12, requires_grad=True)
    outputs = [torch.zeros_like(e, requires_grad=True) for e in batch.encoded]
    sums, terms = masked_losses(net, batch, everything, rates, outputs)
    assert terms[0] == 20 * 2 * (12 + 8 + 10)
    sums.sum().backward()
    assert not rates.grad[2:4, :, 8:].any()
    for m, output in enumerate(outputs):
        assert not output.grad[~batch.known[:, m]].any()


def test_the_first_bins_of_every_run_are_not_asked_for(small_config):
    binned, state = describe(make_session(gap=True), small_config.data, 20)
    whole = to_recording(binned, state)
    late = without_first(whole, 7)
    early = np.concatenate([np.arange(a, a + 7) for a, _ in whole.runs])
    assert len(early) == 14
    assert not late.known[:, early].any()
    rest = np.setdiff1d(np.arange(len(whole.counts)), early)
    assert torch.equal(late.known[:, rest], whole.known[:, rest])
    assert whole.known[:, early].all()  # what is scored stays
    assert without_first(whole, 10**6).known.sum() == 0


def test_without_spikes_to_predict_their_head_is_left_out_and_nothing_else(small_config):
    only = MaskingConfig(encoding=0, decoding=1, self_spike=0, self_behaviour=0, random_token=0)
    config = msgspec.structs.replace(small_config, masking=only)
    found = recordings(config)
    net = build_model(config, found)
    sampler = Sampler.make(found, config.train, "stream")
    loss = training_loss(net, sampler, config, 3, Processes())
    loss.backward()
    stitch = net.stitch_list()[0]
    assert stitch.spikes_out.weight.grad is None
    inputs = draw_inputs(net, sampler, config, 3, Processes(), torch.device("cpu"))
    assert not inputs.rates
    assert not inputs.masks.spikes.any()
    weights = loss_weights(net, inputs.batch.sessions, config.train)
    net.eval()
    with_head = inputs_loss(net, replace(inputs, rates=True), weights, Processes())
    torch.testing.assert_close(inputs_loss(net, inputs, weights, Processes()), with_head)


def test_the_loss_of_two_halves_adds_up(small_config):
    """What two processes compute, done in one: shares of every session, divided by the whole."""
    config = msgspec.structs.replace(
        small_config,
        model=msgspec.structs.replace(small_config.model, dropout=0.0, token_dropout=0.0),
        train=msgspec.structs.replace(small_config.train, batch=12, sessions_per_batch=3))
    found = recordings(config)
    net = build_model(config, found)
    sampler = Sampler.make(found, config.train, "stream")
    whole = training_loss(net, sampler, config, 3, Processes())

    class Half(Processes):
        def summed(self, values):
            return counted

    cpu = torch.device("cpu")
    inputs = draw_inputs(net, sampler, config, 3, Processes(), cpu)
    _, counted = masked_losses(
        net, inputs.batch, inputs.masks, torch.zeros_like(inputs.counts),
        [torch.zeros_like(e) for e in inputs.batch.encoded])
    halves = [training_loss(net, sampler, config, 3, Half(rank, 2)) for rank in (0, 1)]
    torch.testing.assert_close(sum(halves), whole)


def test_the_sampler_takes_no_more_sessions_than_the_batch_has_sequences(small_config):
    knobs = TrainConfig(batch=2, sessions_per_batch=8)
    assert Sampler.make(recordings(small_config), knobs, "stream").sessions == 2
