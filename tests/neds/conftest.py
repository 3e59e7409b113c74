"""A small made recording whose behaviours can be read from its spikes."""

import numpy as np
import pytest

from neds.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from neds.data.session import Behaviour, Counts, Session, Units

BIN_S = 0.05


def make_session(bins=1500, units=12, seed=0, gap=False, tuning=None, name="made"):
    """Counts whose rates follow a slow 2-d trace, its side and its angle.

    Sessions with the same `tuning` have the same units, on channels of their own; by default every
    seed has its own units, on channels that nobody knows.
    """
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((bins + 40, 2))
    kernel = np.hanning(41) / np.hanning(41).sum()
    trace = np.stack([np.convolve(w, kernel, "valid") for w in white.T], 1)
    trace /= trace.std(0)
    weights = rng.standard_normal((2, units))
    if tuning is not None:
        weights = np.random.default_rng(tuning).standard_normal((2, units))
    counts = rng.poisson(np.exp(0.3 + 0.8 * trace @ weights * 0.7).clip(max=30))
    bin_index = np.arange(bins) + (500 * (np.arange(bins) >= bins // 2) if gap else 0)
    ends = (bin_index + 1) * BIN_S
    angle = np.arctan2(trace[:, 1], trace[:, 0])
    behaviours = {
        "velocity": Behaviour(kind="continuous", timestamps=ends, values=trace, unit="cm/s"),
        "choice": Behaviour(kind="categorical", timestamps=ends, classes=("left", "right"),
                            values=(trace[:, 0] > 0).astype(float)),
        "heading": Behaviour(kind="circular", timestamps=ends, values=angle),
    }
    return Session(
        session=name,
        subject="nobody",
        spikes=Counts(counts=counts, bin=bin_index, bin_size_s=BIN_S),
        units=Units.of(units) if tuning is None else Units.of(units, channel=np.arange(units)),
        behaviours=behaviours,
    )


@pytest.fixture(scope="session")
def small_config():
    return RunConfig(
        data=DataConfig(bin_size_s=BIN_S, fractions=(0.6, 0.2, 0.2)),
        model=ModelConfig(hidden=32, layers=2, heads=2, mlp=48, window=20, conv=3, dropout=0.1,
                          token_dropout=0.1),
        train=TrainConfig(steps=120, batch=8, bins=40, validate_every=40, unit_dropout=0.1),
    )


@pytest.fixture(scope="session")
def trained(small_config):
    """(config, session, recording, result) of one small training."""
    from neds.dataset import describe, to_recording
    from neds.train import train

    session = make_session()
    binned, state = describe(session, small_config.data, small_config.model.window)
    recording = to_recording(binned, state)
    return small_config, session, recording, train(small_config, [recording], progress=False)
