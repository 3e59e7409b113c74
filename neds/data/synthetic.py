"""Synthetic animals as sessions."""

from __future__ import annotations

import numpy as np

from neds.data.parts import Behaviour, Spikes, Units
from neds.data.session import Session
from neds_rt.synthetic import SyntheticAnimal, SyntheticRecording, Trace


def synthetic_session(animal: SyntheticAnimal, seconds: float, seed: int = 0) -> Session:
    """Return the first `seconds` of session `seed` of `animal`.

    The metadata's `synthetic` holds what makes the same recording again, its true rates included,
    and the ceiling: bits per spike (20 ms) of the true rates over each unit's mean.
    """
    recording = animal.simulate(seconds, seed)
    return Session(
        session=f"synthetic-{animal.seed:04d}-{seed:02d}",
        subject=f"synthetic-{animal.seed:04d}",
        spikes=Spikes(sample=recording.sample, unit_index=recording.unit, fs=recording.fs),
        units=Units(**animal.units),
        behaviours={name: _behaviour(recording, trace)
                    for name, trace in recording.behaviours.items()},
        trials=recording.trials,
        domain=np.array([[0.0, recording.n_steps * recording.step_s]]),
        metadata={"synthetic": {
            "animal_seed": animal.seed, "session_seed": seed, "units": animal.n_units,
            "probes": len(np.unique(animal.units["probe"])), "seconds": seconds,
            "ceiling_bits_per_spike": recording.ceiling(),
        }},
    )


def _behaviour(recording: SyntheticRecording, trace: Trace) -> Behaviour:
    times, values = recording.timestamps, trace.values
    if trace.kind == "categorical":  # a code holds until the next, so only changes are kept
        column = np.nan_to_num(values[:, 0], nan=-1)
        changed = np.r_[True, column[1:] != column[:-1]]
        times, values = times[changed], values[changed]
    return Behaviour(kind=trace.kind, timestamps=times, values=values, unit=trace.unit,
                     classes=trace.classes, gaps=bool(np.isnan(values).any()))
