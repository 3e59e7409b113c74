"""A new animal from little data: what is fitted on it, and the few steps that fit a model to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import torch

from neds.checkpoint import BehaviourState, SessionState
from neds.config import RunConfig, TrainConfig, load_recipe
from neds.data.windows import fit_scaling
from neds.dataset import Recording, null_rates
from neds.model import Neds, encode_behaviour
from neds.runlog import RunLog
from neds.train import TrainResult, train
from neds.transplant import transplant
from neds_rt.errors import BadInput

HELD_BACK = 0.2
"""Share of the calibration data, at its end, that chooses when to stop."""

PRIOR_S = 60.0
"""Seconds of calibration data that the scaling of known sessions weighs as much as."""


def limit(
    recording: Recording, seconds: float | None, known: Sequence[SessionState] = ()
) -> Recording:
    """The recording as if only the first `seconds` of its training part had been recorded.

    The last fifth of them becomes the validation part; the test part stays. Scaling and null rates
    are fitted anew, so nothing of later rows is left in it. With 0 seconds they are the mean over
    the sessions `known` of the same subject, or over all of them. None leaves all as it is. Raises
    `BadInput` where units were chosen by their rate, which saw the whole training part.
    """
    if seconds is None:
        return recording
    state = recording.state
    if state.unit_rows != list(range(len(state.unit_rows))):
        raise BadInput(state.session, "units", "some left out by rate", "data.min_rate_hz = 0")
    first, stop = recording.part("train")
    last = min(stop, first + round(seconds / recording.bin_size_s))
    cut = last - round(HELD_BACK * (last - first))
    split = {"train": [first, cut], "val": [cut, last], "test": state.split["test"]}
    return fitted_on(recording, msgspec.structs.replace(state, split=split), known)


def fitted_on(
    recording: Recording, state: SessionState, known: Sequence[SessionState]
) -> Recording:
    """The recording with the split of `state`, scaling and null rates fitted on its training part.

    Scaling leans towards that of the sessions `known` of the same subject (without any, of all of
    them where the training part knows nothing); what the training part lacks is theirs alone.
    """
    rows = slice(*state.split["train"])
    relatives = [s for s in known if s.subject == state.subject] or list(known)
    behaviours = [_scaled(recording, b, rows, relatives) for b in state.behaviours]
    counts = recording.counts[rows].numpy()
    rates = null_rates(counts).tolist() if len(counts) else rates_of(state, relatives)
    state = msgspec.structs.replace(state, behaviours=behaviours, null_rates=rates)
    encoded = [
        encode_behaviour(b.spec, torch.from_numpy(recording.values[b.name]),
                         torch.tensor(b.mean), torch.tensor(b.sd)) for b in behaviours
    ]
    return replace(recording, state=state, encoded=encoded)


def _scaled(
    recording: Recording, b: BehaviourState, rows: slice, known: Sequence[SessionState]
) -> BehaviourState:
    values = recording.values[b.name][rows]
    n = int(np.isfinite(values).all(1).sum())
    found = [k for s in known for k in s.behaviours if (k.name, k.spec) == (b.name, b.spec)
             and (s.subject == recording.state.subject or not n)]
    if not n and not found:
        raise BadInput(recording.state.session, f"behaviour {b.name}", "never known in the "
                       "calibration data, nor in the checkpoint", "some of it in either")
    prior = PRIOR_S / recording.bin_size_s if found else 0.0
    mean, sd = fit_scaling(b.name, b.kind, values) if n else (np.zeros(1), np.ones(1))
    if found:  # in seconds a slow behaviour says little of its mean, and the heads expect another
        known_mean, known_sd = (np.mean([getattr(k, x) for k in found], 0) for x in ("mean", "sd"))
        mean = (n * mean + prior * known_mean) / (n + prior)
        sd = (n * sd + prior * known_sd) / (n + prior)
    return msgspec.structs.replace(b, mean=mean.tolist(), sd=sd.tolist())


def rates_of(state: SessionState, known: Sequence[SessionState]) -> list[float]:
    """Mean count per bin expected of each unit: that of its channel's units, or of all units."""
    by_channel: dict[tuple[str, str, int], list[float]] = {}
    for s in known:
        for unit, rate in zip(s.units, s.null_rates, strict=True):
            by_channel.setdefault((s.subject, unit.probe, unit.channel), []).append(rate)
    everything = [rate for rates in by_channel.values() for rate in rates] or [1.0]
    return [float(np.mean(by_channel.get((state.subject, u.probe, u.channel), everything)))
            for u in state.units]


def adapt(
    model: Neds,
    config: RunConfig,
    recording: Recording,
    *,
    seed: int = 0,
    steps: int | None = None,
    budget_s: float | None = None,
    device: str = "cpu",
    knobs: TrainConfig | None = None,
) -> Neds:
    """A model of the recording's session alone, fitted to its training and validation parts.

    `config` is the recipe `model` was trained with; `model` stays as it is. Without training rows
    nothing is fitted: what the checkpoint's sessions share decodes. `knobs` replaces the recipe
    "finetune".
    """
    knobs = knobs or load_recipe("finetune").train
    if steps is not None:
        knobs = msgspec.structs.replace(knobs, steps=steps)
    knobs = msgspec.structs.replace(knobs, seed=seed)
    return fit_to(model, config, [recording], knobs, budget_s=budget_s, device=device).model


def fit_to(
    model: Neds,
    config: RunConfig,
    recordings: list[Recording],
    knobs: TrainConfig,
    *,
    budget_s: float | None = None,
    device: str = "cpu",
    log: RunLog | None = None,
    progress: bool = False,
) -> TrainResult:
    """The model transplanted to the recordings and trained on them by `knobs`."""
    torch.manual_seed(knobs.seed)
    fresh = transplant(model, config, recordings).to(device)
    if not any(r.runs_within("train") for r in recordings):
        return TrainResult(fresh.eval(), 0, None, 0.0)
    return train(msgspec.structs.replace(config, train=knobs), recordings, log, progress,
                 device=device, init=fresh, budget_s=budget_s)
