"""Both forms of the model: who sees whom, causality, and independence of chunking."""

import pytest
import torch

from neds.config import ModelConfig
from neds.model import BehaviourSpec, Neds, SessionSpec, count_parameters, encode_behaviour

BEHAVIOURS = (
    BehaviourSpec("velocity", "continuous", 2),
    BehaviourSpec("choice", "categorical", 1, ("left", "right")),
    BehaviourSpec("heading", "circular", 1),
)
SESSION = SessionSpec("s", 7, BEHAVIOURS)


def make(form="stream", **sizes):
    torch.manual_seed(0)
    config = ModelConfig(**({"form": form, "hidden": 16, "layers": 2, "heads": 2, "mlp": 24,
                             "window": 8, "conv": 3} | sizes))
    model = Neds(config, [SESSION]).eval()
    with torch.no_grad():  # nothing may hide behind a zero
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(bins, batch=2):
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 4, (batch, bins, 7), generator=generator).float()
    behaviours = [torch.randn(batch, bins, b.n_outputs, generator=generator) for b in BEHAVIOURS]
    spikes = torch.rand(batch, bins, generator=generator) < 0.3
    hidden = torch.rand(batch, 3, bins, generator=generator) < 0.5
    return counts, behaviours, spikes, hidden


def run(model, counts, behaviours, spikes, hidden, first_bin=0):
    with torch.no_grad():
        rates, outputs = model(["s"], counts, behaviours, spikes, hidden, first_bin)
    return torch.cat([rates, *outputs], -1)


def test_stream_outputs_do_not_depend_on_later_bins():
    model = make()
    counts, behaviours, spikes, hidden = inputs(20)
    before = run(model, counts, behaviours, spikes, hidden)
    counts[:, 12:] += 1
    for b in behaviours:
        b[:, 12:] += 1
    after = run(model, counts, behaviours, spikes, hidden)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("form", ["stream", "window"])
def test_hidden_values_reach_no_output(form):
    model = make(form)
    bins = 8 if form == "window" else 20
    counts, behaviours, spikes, hidden = inputs(bins)
    before = run(model, counts, behaviours, spikes, hidden)
    counts[spikes] += 3
    for m, b in enumerate(behaviours):
        b[hidden[:, m]] += 3
    assert torch.equal(before, run(model, counts, behaviours, spikes, hidden))


def test_stream_forgets_bins_beyond_the_receptive_field():
    model = make(recurrent=False)
    field = model.receptive_field + 2  # the convolution reaches two bins further
    assert field == 2 * 7 + 2
    counts, behaviours, spikes, hidden = inputs(field + 6)
    before = run(model, counts, behaviours, spikes, hidden)
    changed = counts.clone()
    changed[:, 2] += 2
    spikes[:, 2] = False
    before = run(model, counts, behaviours, spikes, hidden)
    after = run(model, changed, behaviours, spikes, hidden)
    assert torch.equal(before[:, 3 + field :], after[:, 3 + field :])
    assert not torch.allclose(before[:, 2 : field - 2], after[:, 2 : field - 2])


def test_stream_depends_on_relative_time_only():
    model = make()
    data = inputs(20)
    assert torch.allclose(run(model, *data), run(model, *data, first_bin=1_000_000), atol=2e-5)


def test_a_bin_with_nothing_to_see_is_finite_and_constant():
    model = make()
    counts, behaviours, spikes, hidden = inputs(10)
    spikes[:], hidden[:] = True, True
    out = run(model, counts, behaviours, spikes, hidden)
    assert torch.isfinite(out).all()
    assert torch.allclose(out, out[:1, :1].expand_as(out), atol=1e-5)


def test_window_form_sees_the_future_and_positions():
    model = make("window")
    counts, behaviours, spikes, hidden = inputs(8)
    spikes[:] = False
    before = run(model, counts, behaviours, spikes, hidden)
    counts[:, -1] += 2
    assert not torch.allclose(before[:, 0], run(model, counts, behaviours, spikes, hidden)[:, 0])


def test_parameters_are_counted_apart():
    model = make(conv=0, recurrent=False)
    counted = count_parameters(model)
    stitch = 7 * 16 + 16 + 16 * 7 + 7 + 16
    stitch += sum(b.n_outputs * 16 + 16 + 16 * b.n_outputs + b.n_outputs for b in BEHAVIOURS)
    layer = 4 * (16 * 16 + 16) + (24 * 16 + 24) + (16 * 24 + 16) + 4 * 16
    assert counted["stitchers"] == stitch
    assert counted["backbone"] == 2 * layer + 2 * 16 + 4 * 16 + 16
    stem = 3 * 16 + 16 + 2 * (3 * 16 * 16 + 3 * 16)
    assert count_parameters(make())["backbone"] == counted["backbone"] + stem


def test_behaviours_are_encoded_by_kind():
    mean, sd = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    z = encode_behaviour(BEHAVIOURS[0], torch.tensor([[3.0, float("nan")]]), mean, sd)
    assert z.tolist() == [[1.0, 0.0]]
    one_hot = encode_behaviour(BEHAVIOURS[1], torch.tensor([[1.0], [float("nan")]]), mean, sd)
    assert one_hot.tolist() == [[0.0, 1.0], [0.0, 0.0]]
    pair = encode_behaviour(BEHAVIOURS[2], torch.tensor([[torch.pi / 2]]), mean, sd)
    assert torch.allclose(pair, torch.tensor([[0.0, 1.0]]), atol=1e-6)
