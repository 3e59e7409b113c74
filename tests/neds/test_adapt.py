"""A new session on a pretrained model: its start, what it is fitted on, `neds finetune`."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from neds.adapt import adapt, limit
from neds.checkpoint import CHECKPOINT_SCHEMA, CheckpointInfo, created_by, save_checkpoint
from neds.cli import main as neds
from neds.data.store import write_session
from neds.dataset import describe, to_recording
from neds.evaluate import decode_part
from neds.metrics import r2
from neds.train import build_model, train
from neds.transplant import transplant
from neds_rt.errors import BadInput
from tests.neds.conftest import make_session


def recording_of(config, session):
    return to_recording(*describe(session, config.data, config.model.window))


def with_shared(config, shared, own_dropout=0.0):
    return msgspec.structs.replace(
        config, model=msgspec.structs.replace(config.model, shared=shared),
        train=msgspec.structs.replace(config.train, own_dropout=own_dropout))


@pytest.fixture(scope="module")
def pretrained(small_config, tmp_path_factory):
    """A model of two sessions of one implant that shares channels, and a third one's recording."""
    config = with_shared(small_config, "channels", 0.3)
    config = msgspec.structs.replace(
        config, train=msgspec.structs.replace(config.train, steps=150, validate_every=75))
    sessions = [make_session(bins=900, seed=i, tuning=5, name=f"day{i}") for i in range(3)]
    recordings = [recording_of(config, s) for s in sessions]
    model = train(config, recordings[:2], progress=False).model
    folder = tmp_path_factory.mktemp("adapt")
    info = CheckpointInfo(CHECKPOINT_SCHEMA, created_by(), config,
                          [r.state for r in recordings[:2]], 150, {})
    save_checkpoint(folder / "base", model, info)
    write_session(sessions[2], folder / "day2.h5")
    return model, config, recordings, folder, info


def velocity_r2(model, recording):
    truth, predicted = decode_part(model, recording, "test")[0]
    return r2(truth, predicted)


def test_limit_leaves_nothing_of_later_rows(small_config):
    session = make_session()
    whole = recording_of(small_config, session)
    few = limit(whole, 10.0)
    assert few.state.split == {"train": [0, 160], "val": [160, 200],
                               "test": whole.state.split["test"]}
    counts = session.spikes.counts.copy()
    counts[200:] = 7
    object.__setattr__(session.spikes, "counts", counts)
    for behaviour in session.behaviours.values():
        values = behaviour.values.copy()
        values[160:] = values[160:][::-1]
        object.__setattr__(behaviour, "values", values)
    changed = limit(recording_of(small_config, session), 10.0)
    assert changed.state == few.state
    assert torch.equal(changed.encoded[0][:160], few.encoded[0][:160])
    np.testing.assert_allclose(few.state.null_rates, whole.counts[:160].float().mean(0))
    np.testing.assert_allclose(few.encoded[0][:160].mean(0), 0, atol=1e-5)
    assert limit(whole, None) is whole


def test_scaling_leans_on_the_same_subjects_sessions_while_data_are_few(small_config):
    whole = recording_of(small_config, make_session())
    seen = whole.state.behaviours[0]
    other = msgspec.structs.replace(seen, mean=[5.0, 5.0], sd=[2.0, 2.0])
    known = msgspec.structs.replace(whole.state, behaviours=[other])
    alone, leaning = (limit(whole, 10.0, k).state.behaviours[0] for k in ((), (known,)))
    share = 8 / (8 + 60)  # seconds of training data against those that known sessions weigh
    np.testing.assert_allclose(leaning.mean, share * np.array(alone.mean) + (1 - share) * 5)
    stranger = msgspec.structs.replace(known, subject="another")
    assert limit(whole, 10.0, (stranger,)).state.behaviours[0] == alone


def test_limit_to_nothing_takes_the_known_sessions_scaling(small_config):
    sessions = [recording_of(small_config, make_session(seed=i, tuning=5, name=f"day{i}"))
                for i in range(3)]
    known = [r.state for r in sessions[:2]]
    none = limit(sessions[2], 0, known)
    assert none.runs_within("train") == none.runs_within("val") == []
    for name in ("mean", "sd"):
        expected = np.mean([getattr(s.behaviours[0], name) for s in known], 0)
        np.testing.assert_allclose(getattr(none.state.behaviours[0], name), expected)
    np.testing.assert_allclose(none.state.null_rates, np.mean([s.null_rates for s in known], 0))
    with pytest.raises(BadInput, match="velocity"):
        limit(sessions[2], 0)


def test_limit_refuses_units_chosen_on_later_rows(small_config):
    recording = recording_of(small_config, make_session())
    chosen = msgspec.structs.replace(recording.state, unit_rows=list(range(1, 13)))
    with pytest.raises(BadInput, match="min_rate_hz"):
        limit(replace(recording, state=chosen), 10.0)


def test_a_new_session_starts_with_exactly_what_is_shared(pretrained):
    model, config, recordings, _, _ = pretrained
    alone = train(msgspec.structs.replace(config, train=msgspec.structs.replace(
        config.train, steps=3)), recordings[:1], progress=False).model
    new = transplant(alone, config, recordings[:1]).eval()
    old, rows = recordings[0], slice(0, 60)
    hidden = torch.ones(1, 3, 60, dtype=torch.bool)
    inputs = (["day0"], old.counts[None, rows].float(), [e[None, rows] for e in old.encoded],
              torch.zeros(1, 60, dtype=torch.bool), hidden)
    with torch.no_grad():
        expected = alone(*inputs, keep_own=torch.zeros(1))[1]
        for a, b in zip(new(*inputs)[1], expected, strict=True):
            torch.testing.assert_close(a, b)
    for name, parameter in model.named_parameters():
        if name.startswith(("blocks.", "stem.", "norm.", "mask_token")):
            fresh = dict(transplant(model, config, recordings[2:]).named_parameters())
            assert torch.equal(fresh[name], parameter)


def test_units_start_with_the_mean_map_of_their_channel(small_config):
    sessions = [make_session(seed=i, tuning=5, name=f"day{i}", units=6 + i) for i in range(3)]
    recordings = [recording_of(small_config, s) for s in sessions]
    model = build_model(small_config, recordings[:2])
    stitch = transplant(model, small_config, recordings[2:]).stitcher("day2")
    weights = [s.spikes_in.weight for s in model.stitch_list()]
    both = (weights[0][:, 2] + weights[1][:, 2]) / 2
    torch.testing.assert_close(stitch.spikes_in.weight[:, 2], both)
    torch.testing.assert_close(stitch.spikes_in.weight[:, 6], weights[1][:, 6])  # there once
    everything = torch.cat(weights, 1).mean(1)
    torch.testing.assert_close(stitch.spikes_in.weight[:, 7], everything)  # a channel never seen
    heads = [s.parts()[0].out.weight for s in model.stitch_list()]
    torch.testing.assert_close(stitch.parts()[0].out.weight, (heads[0] + heads[1]) / 2)


def test_units_of_an_unseen_channel_share_the_tables_mean(pretrained):
    model, config, _, _, _ = pretrained
    more = recording_of(config, make_session(bins=500, seed=9, tuning=5, units=14, name="more"))
    new = transplant(model, config, [more])
    places = new.stitcher("more").places
    torch.testing.assert_close(new.place_in[places[13]], model.place_in.mean(0))
    torch.testing.assert_close(new.place_in[places[3]],
                               model.place_in[model.stitcher("day0").places[3]])


@pytest.mark.parametrize("shared", ["", "behaviours", "channels", "regions"])
def test_a_behaviour_the_checkpoint_lacks_gets_a_head(small_config, shared):
    config = with_shared(small_config, shared)
    session = make_session(seed=1, tuning=5, name="new")
    session.behaviours["speed"] = session.behaviours.pop("velocity")
    old = recording_of(config, make_session(tuning=5))
    new = recording_of(config, session)
    model = build_model(config, [old])
    result = transplant(model, config, [new])
    assert set(result.modality_index) == {"speed", "choice", "heading"}
    i, j = result.modality_index["choice"], model.modality_index["choice"]
    assert torch.equal(result.modality[i], model.modality[j])
    outputs = [b.out.weight for b in result.stitcher("new").parts()]
    if shared:
        outputs = [result.common[result.modality_index["speed"] - 1].out.weight]
    assert all(o.abs().sum() > 0 for o in outputs)


def test_what_is_shared_decodes_at_once(pretrained):
    model, config, recordings, _, info = pretrained
    before = {k: v.clone() for k, v in model.state_dict().items()}
    none = limit(recordings[2], 0, info.sessions)
    assert velocity_r2(adapt(model, config, none), none) > 0.4  # the same implant
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_adapting_learns_units_that_are_not_what_they_were(pretrained):
    model, config, recordings, _, info = pretrained
    turned = replace(recordings[2], counts=recordings[2].counts.flip(1))
    none, few = (limit(turned, seconds, info.sessions) for seconds in (0, 20.0))
    adapted = adapt(model, config, few, seed=1, steps=60)
    assert velocity_r2(adapted, few) > velocity_r2(adapt(model, config, none), none) + 0.1
    again = adapt(model, config, few, seed=1, steps=60)
    for a, b in zip(adapted.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_means_frozen_and_a_budget_ends(pretrained):
    model, config, recordings, _, info = pretrained
    turned = replace(recordings[2], counts=recordings[2].counts.flip(1))
    few = limit(turned, 20.0, info.sessions)
    knobs = msgspec.structs.replace(config.train, steps=20, validate_every=5, freeze=1.0)
    adapted = adapt(model, config, few, knobs=knobs)
    start = dict(transplant(model, config, [few]).named_parameters())
    moved = {name for name, p in adapted.named_parameters() if not torch.equal(p, start[name])}
    assert moved
    assert all(name.startswith("stitchers.") for name in moved)
    spent = adapt(model, config, few, budget_s=0.0)
    assert all(torch.equal(p, start[name]) for name, p in spent.named_parameters())


def test_finetune_writes_a_checkpoint_of_the_new_session(pretrained, tmp_path, capsys):
    folder = pretrained[3]
    command = ["finetune", str(folder / "day2.h5"), "--init", str(folder / "base"), "--device",
               "cpu", "--threads", "1", "--set", "train.steps=20", "--out", str(tmp_path / "new")]
    assert neds([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["validation"] > 0.2
    info = json.loads((tmp_path / "new" / "checkpoint.json").read_text())
    assert [s["session"] for s in info["sessions"]] == ["day2"]
    assert info["provenance"]["init"] == str(folder / "base")
    log = [json.loads(x) for x in (tmp_path / "new.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 20]
    assert neds(["evaluate", str(tmp_path / "new"), "--tasks", "decoding", "--plots", "none"]) == 0


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--set", "model.hidden=64"), "neds pretrain anew"),
        (("--set", "data.bin_size_s=0.1"), "the checkpoint decides"),
        (("--behaviours", "wheel"), "velocity"),
        (("--init", "/nowhere"), "/nowhere"),
    ],
)
def test_finetune_refuses(pretrained, tmp_path, capsys, more, named):
    folder = pretrained[3]
    command = ["finetune", str(folder / "day2.h5"), "--init", str(folder / "base"),
               "--out", str(tmp_path / "new"), *more]
    assert named in refusal(capsys, command)
    assert not list(tmp_path.iterdir())


def test_sessions_that_do_not_fit_are_refused_with_the_way_out(pretrained, tmp_path, capsys):
    folder = pretrained[3]
    coarse, fine, other = (make_session(bins=400, tuning=5, name="new") for _ in range(3))
    for session, size in ((coarse, 0.07), (fine, 0.025)):
        object.__setattr__(session.spikes, "bin_size_s", size)
        object.__setattr__(session, "domain", session.domain * size / 0.05)
        for b in session.behaviours.values():
            object.__setattr__(b, "timestamps", b.timestamps * size / 0.05)
    other.behaviours["velocity"] = other.behaviours["heading"]
    write_session(coarse, tmp_path / "coarse.h5")
    write_session(fine, tmp_path / "fine.h5")
    write_session(other, tmp_path / "other.h5")
    base = str(folder / "base")
    for name, named in (
        ("coarse", ("0.07 s", "0.05 s", base, "neds pretrain --set data.bin_size_s=0.07")),
        ("fine", ("0.025 s", "0.05 s", "neds finetune", "--rebin")),
        ("other", ("circular x 1", "continuous x 2", base, "--behaviours choice,heading")),
    ):
        for command in ("finetune", "calibrate"):
            line = refusal(capsys, [command, str(tmp_path / f"{name}.h5"), "--init", base,
                                    "--out", str(tmp_path / "out")])
            for word in named:
                assert word.replace("finetune", command) in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coarse.h5", "fine.h5", "other.h5"]


def refusal(capsys, command):
    capsys.readouterr()
    assert neds(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]
