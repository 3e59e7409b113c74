"""Replayed steps, with a stand-in for CUDA's graphs that runs what was recorded again.

What a GPU adds, the recording itself, runs where there is one.
"""

import contextlib

import msgspec
import pytest
import torch

from neds.graphed import GraphedSteps, can_be_graphed
from neds.train import Run
from tests.neds.test_batches import recordings


class Graph:
    """Keeps the step that is captured, and makes it on replay."""

    def __init__(self):
        self.steps = None

    def replay(self):
        self.steps.loss.copy_(self.steps._step())


@pytest.fixture
def stubbed(monkeypatch):
    """CUDA's names on a CPU: streams that do nothing, and the graph above."""
    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr("neds.graphed.can_be_graphed", lambda run: True)


def config_for(small_config, **fields):
    model = msgspec.structs.replace(small_config.model, dropout=0.0, token_dropout=0.0)
    train = msgspec.structs.replace(small_config.train, sessions_per_batch=3, batch=6, **fields)
    return msgspec.structs.replace(small_config, model=model, train=train)


def graphed(run):
    for group in run.optimiser.param_groups:
        group["fused"] = False  # the fused CPU kernel takes no tensor for its rate
        group["foreach"] = False
    steps = GraphedSteps(run)
    steps.graph.steps = steps
    return steps


@pytest.mark.parametrize("own_dropout", [0.0, 0.3])
def test_replayed_steps_are_the_run_s_own_steps(small_config, stubbed, own_dropout):
    config = config_for(small_config, own_dropout=own_dropout)
    plain, replayed = Run(config, recordings(config)), Run(config, recordings(config))
    steps = graphed(replayed)
    for a, b in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
        assert torch.equal(a, b)  # warming up left no trace
    for _ in range(4):
        plain.advance()
        replayed.model.zero_grad()
        steps.advance()
    assert replayed.step == 4
    assert float(replayed.loss) == pytest.approx(float(plain.loss.detach()), abs=1e-5)
    for a, b in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_steps_that_differ_in_shape_are_not_replayed(small_config):
    config = config_for(small_config)
    run = Run(config, recordings(config))
    assert not can_be_graphed(run)  # no GPU
    with pytest.raises(ValueError, match="shape"):
        GraphedSteps(run)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_on_a_gpu_trains_like_single_steps(small_config):
    config = config_for(small_config)
    plain = Run(config, recordings(config), "cuda")
    replayed = Run(config, recordings(config), "cuda")
    steps = GraphedSteps(replayed)
    for _ in range(20):
        plain.advance()
        steps.advance()
    assert replayed.check_finite() == pytest.approx(plain.check_finite(), rel=0.05)
