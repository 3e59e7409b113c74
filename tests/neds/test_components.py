"""Maps learnt in the components of a session's counts: what they are, and what is left of them."""

from dataclasses import replace as with_fields

import msgspec
import pytest
import torch

from neds.components import components, hold_to_components, release
from neds.dataset import describe, to_recording
from neds.train import Run, build_model, train
from tests.neds.conftest import make_session

NUMBER = 3


@pytest.fixture(scope="module")
def recording(small_config):
    return to_recording(*describe(make_session(bins=600), small_config.data, 20))


@pytest.fixture(scope="module")
def config(small_config):
    knobs = msgspec.structs.replace(small_config.train, steps=6, validate_every=3,
                                    components=NUMBER, own_decay=0.1)
    return msgspec.structs.replace(small_config, train=knobs)


def test_all_components_hold_any_map_and_few_its_nearest(recording):
    units = recording.counts.shape[1]
    weight = torch.randn(4, units, generator=torch.Generator().manual_seed(1))
    whole = components(recording, units + 5)
    torch.testing.assert_close(whole(whole.right_inverse(weight)), weight, atol=1e-4, rtol=1e-4)
    few = components(recording, NUMBER)
    once = few(few.right_inverse(weight))
    assert torch.linalg.matrix_rank(once) == NUMBER
    torch.testing.assert_close(few(few.right_inverse(once)), once, atol=1e-4, rtol=1e-4)


def test_components_see_the_training_part_alone(recording):
    counts = recording.counts.clone()
    counts[recording.state.split["train"][1] :] = 9
    other = components(with_fields(recording, counts=counts), NUMBER)
    torch.testing.assert_close(other.basis, components(recording, NUMBER).basis)


def test_what_is_trained_in_components_is_a_plain_model_of_low_rank(config, recording):
    model = train(config, [recording], progress=False).model
    assert model.state_dict().keys() == build_model(config, [recording]).state_dict().keys()
    weight = model.stitcher("made").spikes_in.weight
    assert torch.linalg.matrix_rank(weight.detach()) == NUMBER
    assert weight.requires_grad


def test_releasing_keeps_the_map_and_holding_again_finds_it(config, recording):
    model = build_model(config, [recording])
    hold_to_components(model, [recording], NUMBER, fresh=True)
    held = model.stitcher("made").spikes_in.weight.detach().clone()
    release(model)
    torch.testing.assert_close(model.stitcher("made").spikes_in.weight.detach(), held)
    hold_to_components(model, [recording], NUMBER, fresh=False)
    torch.testing.assert_close(model.stitcher("made").spikes_in.weight.detach(), held,
                               atol=1e-5, rtol=1e-4)


def test_a_killed_run_goes_on_exactly(config, recording, tmp_path):
    whole = train(config, [recording], progress=False).model.state_dict()

    class Killed(Exception):
        pass

    def kill(step, score):
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        train(config, [recording], progress=False, saved=tmp_path, save_every=3, report=kill)
    resumed = train(config, [recording], progress=False, saved=tmp_path, save_every=3)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_only_the_small_maps_are_decayed_as_own(config, recording):
    run = Run(config, [recording])
    into = run.model.stitcher("made").spikes_in
    small = into.parametrizations.weight.original
    assert small.shape == (config.model.hidden, NUMBER)
    (group,) = [g for g in run.optimiser.param_groups if any(p is small for p in g["params"])]
    assert group["weight_decay"] == 0.1
    assert not any(p is into.bias for p in group["params"])
