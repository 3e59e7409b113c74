"""One fit of one model with one seed, and its scores on every session: what a worker does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import archives
from bench.oracles import ORACLES
from bench.protocols import MODELS, masking_for
from neds import baselines
from neds.config import RunConfig, load_recipe
from neds.dataset import Recording, describe, fit_bins, to_recording
from neds.evaluate import decode_last_bins, decode_part, encode_part, part_counts
from neds.metrics import bits_per_spike, score
from neds.model import Neds
from neds.train import train

Row = dict[str, Any]
Floats = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Task:
    """A fit: the model's name, the seed, the archives, and how to read and train."""

    model: str
    seed: int
    files: tuple[str, ...]
    preset: str
    recipe: str
    overrides: tuple[str, ...] = ()
    device: str = "cpu"
    budget: baselines.Budget = "full"
    held_out: tuple[str, ...] = field(default=())
    amounts: tuple[float, ...] = ()  # seconds of calibration data; negative is all
    models_dir: str = ""
    animal: str = ""  # that all held-out archives are of: its sessions are fine-tuned together
    finetune: str = "finetune"  # the recipe of that

    def label(self) -> str:
        """How progress lines call it."""
        if self.animal:
            return f"{self.model} seed {self.seed} without {self.animal}"
        alone = f" {Path(self.files[0]).stem}" if len(self.files) == 1 else ""
        return f"{self.model} seed {self.seed}{alone}"


def config_of(task: Task) -> RunConfig:
    """The recipe with the task's and the model's own changes, and the seed."""
    model = MODELS[task.model]
    config = load_recipe(task.recipe, [*task.overrides, *model.overrides])
    return msgspec.structs.replace(
        config,
        masking=masking_for(model, config.masking),
        train=msgspec.structs.replace(config.train, seed=task.seed),
    )


def recordings_of(task: Task, config: RunConfig, files: tuple[str, ...]
                  ) -> tuple[list[Recording], RunConfig]:
    """The archives as recordings, in the recipe's bins or theirs."""
    found = []
    gap = load_recipe(task.recipe, list(task.overrides)).model.window  # the same for every form
    for path in files:
        session = archives.read(path, task.preset)
        config = fit_bins(config, session)
        binned, state = describe(session, config.data, gap)
        found.append(to_recording(binned, state))
    return found, config


def run_task(task: Task) -> list[Row]:
    """Fit and score. Rows: session, model, seed, modality, metric, value, seconds."""
    started = time.monotonic()
    config = config_of(task)
    recordings, config = recordings_of(task, config, task.files)
    if task.held_out:
        from bench.new_session import adapted_rows

        return adapted_rows(task, config, recordings, started)
    model = MODELS[task.model]
    scores: Iterator[tuple[str, dict[str, dict[str, float]]]]
    if model.oracle:
        scores = oracle_scores(task, model.oracle, recordings)
    elif model.baseline:
        scores = baseline_scores(task, recordings)
    else:
        trained = train(config, recordings, progress=False, device=task.device).model
        scores = ((r.state.session, neds_scores(trained, r)) for r in recordings)
    found = list(scores)
    seconds = round(time.monotonic() - started, 1)
    return [row for session, of in found for row in rows_of(task, session, of, seconds)]


def rows_of(task: Task, session: str, scores: dict[str, dict[str, float]], seconds: float,
            **more: Any) -> list[Row]:
    """Scores of one session as rows; scores that do not exist are left out."""
    return [
        {"session": session, "model": task.model, "seed": task.seed, "modality": modality,
         "metric": metric, "value": round(float(value), 5), "seconds": seconds, **more}
        for modality, metrics in scores.items()
        for metric, value in metrics.items()
        if not np.isnan(value)
    ]


def baseline_scores(
    task: Task, recordings: list[Recording]
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Fit a baseline and score it on the test part of every session."""
    name = MODELS[task.model].baseline
    fitted = baselines.fit(name, recordings, seed=task.seed, device=task.device,
                           budget=task.budget)
    for recording in recordings:
        if baselines.BASELINES[name].direction == "encoding":
            runs = recording.runs_within("test")
            counts = np.concatenate([recording.counts[a:b].numpy() for a, b in runs])
            yield recording.state.session, spike_scores(
                recording, counts, fitted.encode_part(recording, "test"))
        else:
            yield recording.state.session, behaviour_scores(
                recording, fitted.decode_part(recording, "test"))


def oracle_scores(
    task: Task, oracle: str, recordings: list[Recording]
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Score what an oracle of `bench.oracles` says of synthetic spikes."""
    for path, recording in zip(task.files, recordings, strict=True):
        rates = ORACLES[oracle](archives.read(path, task.preset), recording, "test")
        counts = part_counts(recording, "test")
        yield recording.state.session, spike_scores(recording, counts, rates)


def neds_scores(model: Neds, recording: Recording) -> dict[str, dict[str, float]]:
    """Decoding and encoding scores on the test part.

    A window form decodes every bin as the last of a window, as it would have to beside a rig;
    with `window_` before them its scores where windows lie side by side and show what comes after.
    """
    predicted = [p for _, p in decode_part(model, recording, "test")]
    counts, rates = encode_part(model, recording, "test")
    found = behaviour_scores(recording, predicted)
    if model.config.form == "window":
        lasts = behaviour_scores(recording, decode_last_bins(model, recording, "test"))
        found = {name: lasts[name] | {f"window_{k}": v for k, v in of.items()}
                 for name, of in found.items()}
    return found | spike_scores(recording, counts, rates)


def spike_scores(recording: Recording, counts: Floats, rates: Floats
                 ) -> dict[str, dict[str, float]]:
    """Bits per spike against the training part's mean rates."""
    per_neuron, pooled = bits_per_spike(counts, rates, np.array(recording.state.null_rates))
    return {"spikes": {"bps_neuron_mean": per_neuron, "bps_pooled": pooled}}


def behaviour_scores(recording: Recording, predictions: list[Floats]
                     ) -> dict[str, dict[str, float]]:
    """Scores of the test part per behaviour: of every bin, and of trials where they have labels.

    A label that is constant in every run is decided once a trial, from the trial's last bin.
    """
    runs = recording.runs_within("test")
    rows = np.concatenate([np.arange(a, b) for a, b in runs])
    ends = np.cumsum([b - a for a, b in runs]) - 1
    found = {}
    for b, predicted in zip(recording.state.behaviours, predictions, strict=True):
        truth = recording.values[b.name][rows]
        found[b.name] = score(b.kind, truth, predicted)
        if b.kind == "categorical" and len(runs) > 1:
            last = score(b.kind, truth[ends], predicted[ends])
            found[b.name] |= {f"trial_{k}": v for k, v in last.items()}
    return found
