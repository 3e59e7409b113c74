"""What can be known of synthetic spikes, as predictions, by who made them or has more of them.

Rates are expected spikes per bin, (T, N), of one part of a recording.

    true_rates   the rates that the spikes were drawn from
    true_drive   a Poisson regression on the generator's own features of the recorded behaviours, at
                 each unit's own lead, fitted on the training part. What is missing to the true
                 rates comes from latent noise and events that no behaviour of the session holds.
                 It looks ahead where a unit leads its behaviour
    long_glm     the Poisson GLM of the baselines, fitted to another 15 minutes of the same animal:
                 what more data would give it. Chosen from the candidates of a quick budget
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from neds import baselines
from neds.config import DataConfig
from neds.data.session import Session
from neds.data.synthetic import synthetic_session
from neds.dataset import Recording, describe, to_recording
from neds_rt.errors import BadInput
from neds_rt.synthetic import SyntheticAnimal, SyntheticRecording
from neds_rt.synthetic_task import FEATURES

Rates = NDArray[np.float64]
LONGER_S = 900.0  # that `long_glm` is fitted to
APART_S = 2.0  # between that and the recording itself
FROM_BEHAVIOURS = ("wheel_left", "wheel_right", "whisker", "choice", "block")


def simulated(session: Session, recording: Recording) -> tuple[SyntheticAnimal, SyntheticRecording]:
    """The animal and its recording, made once more.

    Raises `BadInput` for a session that was not made here, or bins that are not its steps.
    """
    made = session.metadata.get("synthetic")
    if made is None:
        raise BadInput(session.session, "true rates", "not recorded", "a session of neds synth")
    animal = SyntheticAnimal(made["animal_seed"], made["units"], n_probes=made["probes"])
    truth = animal.simulate(made["seconds"], made["session_seed"])
    if not np.isclose(recording.bin_size_s, truth.step_s):
        raise BadInput(session.session, "data.bin_size_s", recording.bin_size_s, truth.step_s)
    return animal, truth


def true_rates(session: Session, recording: Recording, part: str) -> Rates:
    """The rates that the spikes were drawn from."""
    _, truth = simulated(session, recording)
    rates = truth.rates[recording.bin[recording.rows(part)]][:, recording.state.unit_rows]
    return rates.astype(np.float64) * truth.step_s


def true_drive(session: Session, recording: Recording, part: str) -> Rates:
    """A regression on what the generator computes from the recorded behaviours."""
    animal, truth = simulated(session, recording)
    columns = [FEATURES.index(name) for name in FROM_BEHAVIOURS]
    features = np.c_[truth.steps.features[:, columns], np.ones(truth.n_steps)].astype(np.float64)
    lead = animal.lead[recording.state.unit_rows]
    train, wanted = recording.rows("train"), recording.rows(part)
    rates = np.zeros((len(wanted), len(lead)))
    for steps in np.unique(lead):
        mine = np.flatnonzero(lead == steps)

        def at(rows: NDArray[np.int64], steps: int = int(steps)) -> Rates:
            ahead = np.clip(recording.bin[rows] + steps, 0, len(features) - 1)
            return np.asarray(features[ahead])

        weights = _poisson(at(train), recording.counts[train][:, mine].double().numpy())
        rates[:, mine] = np.exp(at(wanted) @ weights)
    return rates


def long_glm(session: Session, recording: Recording, part: str) -> Rates:
    """The baselines' GLM, of the same units and behaviours, fitted to what came after."""
    animal, truth = simulated(session, recording)
    made = session.metadata["synthetic"]
    seconds = made["seconds"] + APART_S + LONGER_S
    longer = synthetic_session(animal, seconds, made["session_seed"])
    names = [b.name for b in recording.state.behaviours]
    config = DataConfig(bin_size_s=recording.bin_size_s, behaviours=names)
    binned, state = describe(longer, config, 0)
    found = to_recording(binned, state)
    wanted = np.searchsorted(found.bin, recording.bin[recording.rows(part)])
    begin = truth.n_steps + round(APART_S / truth.step_s)
    cut = begin + round(0.9 * (len(found.bin) - begin))
    split = {"train": [begin, cut], "val": [cut, len(found.bin)],
             "test": [int(wanted[0]), int(wanted[-1]) + 1]}
    found = dataclasses.replace(found, state=msgspec.structs.replace(state, split=split))
    fitted = baselines.fit("glm", [found], seed=0, budget="quick")
    rates = fitted.encode_part(found, "test")[wanted - wanted[0]]
    return np.asarray(rates[:, recording.state.unit_rows], dtype=np.float64)


def _poisson(features: Rates, counts: Rates) -> Rates:
    """Weights (F, N) of log rates, by maximum likelihood; the last feature is constant."""
    x, y = torch.from_numpy(features), torch.from_numpy(counts)
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
    weights[-1] = (y.sum(0).clamp(min=1) / len(y)).log()
    weights.requires_grad_()
    search = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        log_rates = x @ weights
        value = (log_rates.exp() - y * log_rates).mean(0).sum()
        value.backward()
        return value

    search.step(loss)
    return weights.detach().numpy()


ORACLES = {"true_rates": true_rates, "true_drive": true_drive, "long_glm": long_glm}
