"""Synthetic animals as recordings in the benchmark's schema, with its splits and held-out units.

The animals are those of `neds_rt.synthetic`. What they lack is made here from what they have: paws
that move with the wheel, licks after a reward, samples of the paws that are unsure. Of trials whose
windows overlap every second one is not valid, as the benchmark wants spans that are disjoint.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from neds.bwb.splits import (
    CHUNK_S,
    FRACTIONS,
    causal_split,
    chunked_split,
    held_out_units,
    intersect,
)
from neds.bwb.tasks import CONTEXT_S, EVENTS, RATE_HZ
from neds.data.brainsets import write_group, write_regular, write_series
from neds.data.whole import whole_file
from neds_rt.synthetic import SyntheticAnimal, SyntheticRecording

COSMOS_OF = {"PO": "TH", "LP": "TH", "DG": "HPF", "CA1": "HPF", "VISa": "Isocortex"}
CONTRASTS = (0.0, 0.0625, 0.125, 0.25, 1.0)
PAW_NOISE_S = 0.2
LICK_HZ = 7.0  # of a mouse that drinks
IDLE_LICK_HZ = 0.2
UNSURE = 0.05  # share of samples that a camera does not see a paw in

Columns = dict[str, NDArray[Any]]


def write_synthetic(
    animal: SyntheticAnimal, seconds: float, path: str | Path, *, seed: int = 0,
    regime: str = "eval", chunk_s: float = CHUNK_S, gap_s: float = CONTEXT_S,
) -> str:
    """Write session `seed` of an animal as one file; returns its recording id.

    regime "eval" has the parts of TS1 and TS2 and the units held out, "pretrain" neither. `chunk_s`
    and `gap_s` shorten what is 5 minutes and 20 s in the benchmark. Raises `BadInput` for a
    recording that is too short for its parts.
    """
    made = animal.simulate(seconds, seed)
    name = recording_id(animal, seed)
    trials = _trials(made)
    spans = np.stack([trials["span_start"], trials["span_end"]], 1)[trials["is_valid"]]
    domain = np.array([[0.0, made.n_steps * made.step_s]])
    units = _units(animal, name, made)
    parts: dict[str, NDArray[np.float64]] = {}
    if regime == "eval":
        parts = {f"ts1_{k}": v for k, v in causal_split(domain, spans, FRACTIONS, gap_s).items()}
        parts |= {f"ts2_{k}": v for k, v in chunked_split(domain, spans, chunk_s, gap_s).items()}
        units |= {f"ts2_co_smoothing_is_held_out_{part}": held_out_units(units["id"].tolist(), part)
                  for part in ("test", "val")}
    traces = _traces(made, trials, np.random.default_rng([animal.seed, seed, 11]))
    with whole_file(Path(path), "a recording in the benchmark's schema") as target, \
            h5py.File(target, "w") as file:
        file.attrs.update({"object": "Data", "absolute_start": 0.0})
        _data(file, "session", id=name)
        _data(file, "subject", id=f"synthetic-{animal.seed:04d}", species="MUS_MUSCULUS")
        _data(file, "brainset", id="ibl_brain_wide_bench_2026", derived_version="synthetic",
              unit_filtering="selected_units" if regime == "eval" else "all_units")
        _interval(file, "domain", domain)
        write_group(file, "units", "ArrayDict", units)
        write_series(file, "spikes", {"timestamps": made.sample / made.fs,
                                      "unit_index": made.unit.astype(np.int64)}, domain)
        for group, columns in traces.items():
            write_regular(file, group, columns, float(made.timestamps[0]), RATE_HZ)
        write_group(file, "trials", "Interval", trials)
        _intervals(file, trials, spans, traces["paws"], made.timestamps)
        for part, intervals in parts.items():
            _interval(file, f"{part}_domain", intervals)
        if parts:
            _normalise(file, trials, parts["ts1_train"], traces, made.timestamps)
    return name


def recording_id(animal: SyntheticAnimal, seed: int) -> str:
    """The id of session `seed` of an animal, always the same."""
    return _id(f"{animal.seed}/{seed}")


def _id(what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"neds/synthetic/{what}"))


def _data(parent: Any, name: str, **attributes: Any) -> Any:
    group = parent.create_group(name)
    group.attrs.update({"object": "Data", "absolute_start": 0.0, **attributes})
    return group


def _interval(parent: Any, name: str, spans: NDArray[np.float64], **columns: NDArray[Any]) -> None:
    write_group(parent, name, "Interval", {"start": spans[:, 0], "end": spans[:, 1], **columns})


def _units(animal: SyntheticAnimal, recording: str, made: SyntheticRecording) -> Columns:
    own, n = animal.units, animal.n_units
    fired = np.bincount(made.unit, minlength=n) / (made.n_steps * made.step_s)
    return {
        "id": np.array([_id(f"{recording}/{i}") for i in range(n)]),
        "cluster_id": own["cluster"].astype(np.int64), "channels": own["channel"].astype(np.int64),
        "depths": own["depth_um"].astype(np.float64), "firing_rate": fired,
        "probe_id": np.array([_id(f"{recording}/{p}") for p in own["probe"]]),
        "region_allen": own["region"],
        "region_cosmos": np.array([COSMOS_OF[r] for r in own["region"]]),
        "label": np.ones(n), "qc_neural": np.full(n, "PASS"),
        "qc_neural_alignment": np.full(n, "PASS"),
    }


def _trials(made: SyntheticRecording) -> Columns:
    """The trials table under the benchmark's names, with the span that a trial's windows cover."""
    raw = made.trials
    start = raw["stimOn_times"] - 1.0  # the window of the block's prior
    stop = np.maximum(raw["firstMovement_times"], raw["feedback_times"]) + 1.0
    valid, last = np.zeros(len(start), bool), 0.0
    for i in range(len(start)):
        if start[i] >= last and stop[i] <= made.n_steps * made.step_s:
            valid[i], last = True, stop[i]
    contrast = np.nan_to_num(raw["contrastLeft"]) + np.nan_to_num(raw["contrastRight"])
    return {
        "start": raw["intervals_0"], "end": raw["intervals_1"],
        "stim_on_time": raw["stimOn_times"], "movement_onset_time": raw["firstMovement_times"],
        "feedback_time": raw["feedback_times"],
        "choice": (raw["choice"] > 0).astype(np.int64),
        "reward": (raw["feedbackType"] > 0).astype(np.int64),
        "stimulus_contrast": np.abs(contrast[:, None] - CONTRASTS).argmin(1).astype(np.int64),
        "is_valid": valid, "trial_index": np.arange(len(start)),
        "span_start": start, "span_end": stop,
    }


def _traces(made: SyntheticRecording, trials: Columns, rng: np.random.Generator) -> dict[
        str, Columns]:
    n, step = made.n_steps, made.step_s
    wheel = made.steps.wheel.astype(np.float64)
    decay = np.exp(-step / PAW_NOISE_S)
    paws: Columns = {}
    for side in ("left", "right"):
        noise = rng.standard_normal(n) * np.sqrt(1 - decay**2)
        for i in range(1, n):
            noise[i] += decay * noise[i - 1]
        paws[f"{side}_paw_speed"] = 20 * np.abs(np.abs(wheel) + 0.4 * noise)
        blind = np.repeat(rng.random(n // 25 + 1) < UNSURE, 25)[:n]
        paws[f"is_{side}_paw_confident"] = ~blind
    after = made.timestamps[:, None] - trials["feedback_time"][trials["reward"] == 1]
    drinking = ((after > 0.1) & (after < 0.9)).any(1)
    licks = rng.poisson(np.where(drinking, LICK_HZ, IDLE_LICK_HZ) * step)
    return {
        "whisker": {"whisker_motion_energy": made.steps.whisker.astype(np.float64)},
        "wheel": {"wheel_vel": wheel, "wheel_speed": np.abs(wheel)},
        "paws": paws, "licks": {"licking_rate": licks * RATE_HZ},
    }


def _intervals(
    file: Any, trials: Columns, spans: NDArray[np.float64], paws: Columns,
    times: NDArray[np.float64],
) -> None:
    group = _data(file, "task_aligned_intervals")
    _interval(group, "domain", spans)
    valid = trials["is_valid"]
    for name, (event, before, after) in EVENTS.items():
        at = trials[event][valid]
        windows = np.stack([at - before, at + after], 1)
        columns = {"trial_index": trials["trial_index"][valid]}
        if name in trials:
            columns[name] = trials[name][valid]
        if name == "movement_window":
            edges = np.searchsorted(times, windows)
            for side in ("left", "right"):
                sure = np.r_[0, np.cumsum(paws[f"is_{side}_paw_confident"])]
                columns[f"num_{side}_paw_confident"] = sure[edges[:, 1]] - sure[edges[:, 0]]
        _interval(group, name, windows, **columns)


def _normalise(
    file: Any, trials: Columns, train: NDArray[np.float64], traces: dict[str, Columns],
    times: NDArray[np.float64],
) -> None:
    """Mean and sd over the movement windows of the training part, of sure samples alone."""
    at = trials["movement_onset_time"][trials["is_valid"]]
    windows = intersect(np.stack([at, at + 1.0], 1), train)
    row = np.clip(np.searchsorted(windows[:, 0], times, side="right") - 1, 0, None)
    inside = (times >= windows[row, 0]) & (times < windows[row, 1])
    group = _data(file, "ts1_normalize")
    for series, name, mask in (
        ("whisker", "whisker_motion_energy", ""),
        ("paws", "left_paw_speed", "is_left_paw_confident"),
        ("paws", "right_paw_speed", "is_right_paw_confident"),
    ):
        sure = traces[series][mask] if mask else np.ones(len(times), bool)
        values = traces[series][name][inside & sure]
        own = group[series] if series in group else _data(group, series)
        _data(own, name, mean=values.mean(), std=max(float(values.std()), 1e-8))
