"""The protocol from a pretrained checkpoint to files of predictions and our own scores.

For every recording and seed the checkpoint is fitted to the recording's training part, once a
suite: the parts of TS1 and TS2 differ and overlap. Nothing of a test part is in what is fitted, but
for the units' maps of TS3, which are fitted to whole recordings without regions, as that task
allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from neds.adapt import fit_to
from neds.bwb.anatomy import Probe, fit_probe, pooled
from neds.bwb.files import (
    Tensors,
    about,
    encode_ids,
    labelled_units,
    prediction_path,
    truth_tensors,
    write_tensors,
)
from neds.bwb.predict import Decoder, input_bins, predict_behaviour, predict_spikes
from neds.bwb.score import score
from neds.bwb.sessions import protocol_recording
from neds.bwb.source import SUITE_BUILD, Source, read_source
from neds.bwb.tasks import BIN_S, COSMOS, SEEDS, TUNING_SEED, VERSION, Task
from neds.checkpoint import CheckpointInfo
from neds.config import MaskingConfig, TrainConfig
from neds.model import Neds
from neds.regions import unit_embeddings
from neds_rt.errors import BadInput

HOW = {
    "trace": "decoded directly, bins' values interpolated to the samples' times",
    "label": "decoded directly: mean log probability of the window, class shares taken out",
    "rate": "readout: log rate from the decoded rate by two numbers fitted on the training windows",
    "spikes": "direct, rates at hidden bins",
    "region": "linear probe on the units' maps (transductive, backbone frozen)",
}
SPIKES = MaskingConfig(encoding=0.0, decoding=0.2, self_spike=0.6, self_behaviour=0.0,
                       random_token=0.2)
"""How TS2 is fitted: what is asked are spikes at hidden bins."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to run. knobs: the training table of the recipe that fits each recording."""

    tasks: Sequence[Task]
    seeds: Sequence[int] = SEEDS
    label: str = "neds"
    context_s: float = 20.0
    knobs: TrainConfig
    device: str = "cpu"


@dataclass(eq=False)
class Outcome:
    """Files written with their scores, and what was not run, a line each."""

    files: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def skip(self, line: str) -> None:
        """Note what is not run, once."""
        if line not in self.skipped:
            self.skipped.append(line)


def run_protocol(
    model: Neds, info: CheckpointInfo, paths: Sequence[Path], folder: Path,
    settings: Settings, said: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Fit, predict, write under `folder`, score; one recording at a time is held in memory.

    `said` is told of each recording and seed. Raises `BadInput` for recordings of animals that the
    checkpoint knows, and other bins.
    """
    heads = [read_source(path, spikes=False) for path in paths]
    check_unseen(info, heads)
    input_bins(info.config.model, settings.context_s)
    if abs(info.config.data.bin_size_s - BIN_S) > 1e-9:
        raise BadInput("checkpoint", "data.bin_size_s", info.config.data.bin_size_s,
                       f"{BIN_S}, the benchmark's bins")
    outcome = Outcome(notes=remarks(settings, heads))
    anatomy = Anatomy.of(model, info, settings, outcome)
    for path in paths:
        source = read_source(path)
        able = []
        for task in settings.tasks:
            reason = source.lacks(task)
            if reason:
                outcome.skip(f"{task.id}: {source.recording}: {reason}")
            else:
                able.append(task)
        for seed in settings.seeds:
            said(f"{source.recording}, seed {seed}")
            for suite, run in (("ts1", _behaviour), ("ts2", _spikes)):
                tasks = [t for t in able if t.suite == suite]
                if tasks:
                    run(model, info, source, tasks, folder, settings, seed, outcome)
            if seed in anatomy.probes:
                anatomy.add(model, info, source, settings, seed, outcome)
    anatomy.write(heads, folder, settings, outcome)
    return outcome


def check_unseen(info: CheckpointInfo, sources: Sequence[Source]) -> None:
    """Raise `BadInput` for a recording, or an animal, that the checkpoint was trained on."""
    known = {s.session for s in info.sessions} | {s.subject for s in info.sessions if s.subject}
    for source in sources:
        if {source.recording, source.subject} & known:
            raise BadInput(source.path, "animal", f"{source.subject}, which the checkpoint knows",
                           "an animal held out of pretraining, as the benchmark demands")
    names = [s.recording for s in sources]
    if len(set(names)) < len(names):
        raise BadInput(sources[0].path, "recording", "given twice", "every recording once")


def remarks(settings: Settings, sources: Sequence[Source]) -> list[str]:
    """What a reader of the numbers must know."""
    notes = ["BrainWideBench's protocol (windows of 1 s, eight behaviours), not the NEDS paper's"]
    seeds = sorted(settings.seeds)
    if len(seeds) < 3 or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        notes.append("fewer than three seeds in a row: no submission")
    if TUNING_SEED in seeds:
        notes.append(f"seed {TUNING_SEED} is for tuning: no reported number uses it")
    for suite, build in SUITE_BUILD.items():
        others = sorted({s.build for s in sources} - {build})
        if others and any(t.suite == suite for t in settings.tasks):
            notes.append(f"{suite} is reported on {build}, these are {', '.join(others)}")
    return notes


def _fitted(
    model: Neds, info: CheckpointInfo, source: Source, settings: Settings, seed: int, suite: str
) -> Decoder:
    """The checkpoint fitted to the training part of one suite."""
    train = source.part(suite, "train") if suite != "ts3" else source.domain
    # By decoding, which TS2 and TS3 do not ask for, nothing is chosen there: the newest counts.
    val = source.part("ts1", "val") if suite == "ts1" else np.zeros((0, 2))
    recording = protocol_recording(source, train, val, BIN_S)
    config, knobs = info.config, msgspec.structs.replace(settings.knobs, seed=seed)
    if suite == "ts2":
        config = msgspec.structs.replace(config, masking=SPIKES)
        knobs = msgspec.structs.replace(knobs, spike_weight=max(1.0, knobs.spike_weight))
    if suite == "ts3":
        knobs = msgspec.structs.replace(knobs, freeze=1.0)
    result = fit_to(model, config, [recording], knobs, device=settings.device)
    return Decoder.of(result.model, recording.state, source, settings.context_s)


def _behaviour(
    model: Neds, info: CheckpointInfo, source: Source, tasks: list[Task], folder: Path,
    settings: Settings, seed: int, outcome: Outcome,
) -> None:
    decoder = _fitted(model, info, source, settings, seed, "ts1")
    found = predict_behaviour(decoder, tasks)
    for task in tasks:
        if task.id not in found:
            outcome.skip(f"{task.id}: {source.recording}: never known in the training part")
        elif not len(found[task.id]["trial_id"]):
            outcome.skip(f"{task.id}: {source.recording}: no window in the test part")
        else:
            _write(source, task, found[task.id], folder, settings, seed, outcome)


def _spikes(
    model: Neds, info: CheckpointInfo, source: Source, tasks: list[Task], folder: Path,
    settings: Settings, seed: int, outcome: Outcome,
) -> None:
    decoder = _fitted(model, info, source, settings, seed, "ts2")
    for task in tasks:
        tensors = predict_spikes(decoder, task)
        if not len(tensors["window_timestamps"]):
            outcome.skip(f"{task.id}: {source.recording}: no window in the test part")
        else:
            _write(source, task, tensors, folder, settings, seed, outcome)


def _write(
    source: Source, task: Task, tensors: Tensors, folder: Path, settings: Settings, seed: int,
    outcome: Outcome,
) -> None:
    path = prediction_path(folder, settings.label, task, source.recording, seed)
    write_tensors(path, tensors, about(source, task, settings.label, seed, settings.context_s))
    _add(outcome, task, path, settings.label, seed, source.recording,
         score(task, tensors, truth_tensors(source, task), path))


def _add(
    outcome: Outcome, task: Task, path: Path, label: str, seed: int, recording: str,
    scores: dict[str, float],
) -> None:
    outcome.files.append({"task": task.id, "how": HOW[task.kind], "label": label, "seed": seed,
                          "recording": recording, "file": str(path), "scores": scores})


@dataclass(eq=False)
class Anatomy:
    """TS3 over recordings: a probe a seed, and what it says of their units."""

    task: Task | None
    probes: dict[int, Probe] = field(default_factory=dict)
    ids: dict[int, list[str]] = field(default_factory=dict)
    found: dict[int, list[tuple[Any, Any, Any]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: Neds, info: CheckpointInfo, settings: Settings, outcome: Outcome
    ) -> Anatomy:
        """Fit the probes, where the task is asked for and the checkpoint's units have regions."""
        task = next((t for t in settings.tasks if t.suite == "ts3"), None)
        if task is None:
            return cls(None)
        try:
            return cls(task, {seed: fit_probe(model, info, seed) for seed in settings.seeds})
        except BadInput as error:
            outcome.skip(f"{task.id}: {error}")
            return cls(task)

    def add(
        self, model: Neds, info: CheckpointInfo, source: Source, settings: Settings, seed: int,
        outcome: Outcome,
    ) -> None:
        """Fit a recording's maps, and ask the probe of its units."""
        rows, codes = labelled_units(source)
        if not len(rows):
            assert self.task is not None
            outcome.skip(f"{self.task.id}: {source.recording}: no unit in a Cosmos region")
            return
        decoder = _fitted(model, info, source, settings, seed, "ts3")
        single = self.probes[seed].probabilities(
            unit_embeddings(decoder.model, decoder.state)[rows])
        multi = pooled(single, source.depth_um[rows], source.probe[rows])
        self.ids.setdefault(seed, []).extend(source.id[rows].tolist())
        self.found.setdefault(seed, []).append((single, multi, codes))

    def write(
        self, heads: Sequence[Source], folder: Path, settings: Settings, outcome: Outcome
    ) -> None:
        """Write and score single-unit and multi-unit predictions, each under a label of its own."""
        task = self.task
        for seed, parts in self.found.items() if task else ():
            assert task is not None
            ids = encode_ids(self.ids[seed])
            single, multi, codes = (np.concatenate(p) for p in zip(*parts, strict=True))
            for scope, proba in (("single", single), ("multi", multi)):
                label = f"{settings.label}_linear_{scope}"
                path = prediction_path(folder, label, task, "", seed)
                tensors: Tensors = {"pred_proba": proba, "entity_ids": ids}
                write_tensors(path, tensors, about(heads[0], task, label, seed))
                truth: Tensors = {"targets": codes, "entity_ids": ids}
                _add(outcome, task, path, label, seed, "", score(task, tensors, truth, path))


def summary(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """The report: per task and label the mean over recordings and seeds, and every file's scores.

    As in the benchmark, scores against a null (r2, poisson_d2, bps) count as 0 where they are
    below it, in the means alone; a score that is not a number becomes null.
    """
    groups: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in outcome.files:
        groups.setdefault((row["task"], row["label"]), []).append(row["scores"])
    return {
        "protocol": "bwb", "contract": VERSION, "label": settings.label,
        "seeds": list(settings.seeds), "context_s": settings.context_s,
        "classes": list(COSMOS), "notes": outcome.notes, "not_run": outcome.skipped,
        "tasks": [{"task": task, "label": label, "files": len(rows),
                   "scores": {m: _mean(m, [r[m] for r in rows]) for m in rows[0]}}
                  for (task, label), rows in groups.items()],
        "files": [{**row, "scores": {k: _number(v) for k, v in row["scores"].items()}}
                  for row in outcome.files],
    }


def _mean(metric: str, values: list[float]) -> float | None:
    floor = 0.0 if metric in ("r2", "poisson_d2", "bps") else -np.inf
    return _number(float(np.mean([max(v, floor) for v in values])))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
