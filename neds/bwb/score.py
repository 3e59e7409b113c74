"""Our own scores of files of predictions, file by file as the benchmark's scorer goes about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neds.bwb.files import Tensors, decode_ids, read_tensors, truth_path
from neds.bwb.tasks import COSMOS, Task, task_of
from neds.metrics.benchmark import (
    label_scores,
    mean_absolute_error,
    poisson_d2,
    pooled_bits,
    region_scores,
    trace_scores,
)
from neds_rt.errors import BadInput

Row = dict[str, Any]


def score_folder(predictions: Path, truth: Path) -> list[Row]:
    """Scores of every file of predictions that has its truth: task, label, recording, seed, scores.

    Raises `BadInput` for files that do not fit each other.
    """
    rows = []
    for path in sorted(predictions.rglob("seed_*.safetensors")):
        found, facts = read_tensors(path)
        task = task_of(facts.get("task", ""))
        recording = facts.get("recording_id", "")
        expected = truth_path(truth, task, recording)
        if expected.is_file():
            rows.append({"task": task.id, "label": facts["label"], "recording": recording,
                         "seed": int(facts["seed"]),
                         "scores": score(task, found, read_tensors(expected)[0], path)})
    return rows


def score(task: Task, predicted: Tensors, truth: Tensors, where: object) -> dict[str, float]:
    """All metrics of a task for one file of predictions and its truth, aligned by their ids."""
    if task.suite == "ts3":
        return _score_regions(predicted, truth, where)
    key = "trial_id" if task.suite == "ts1" else "window_timestamps"
    _, rows, others = np.intersect1d(predicted[key], truth[key], return_indices=True)
    if not len(rows):
        raise BadInput(where, key, "none that the truth has", "windows of the same part")
    guess = predicted["predictions"][rows]
    asked = truth["values" if task.suite == "ts1" else "targets"][others]
    if task.kind != "label" and guess.shape != asked.shape:
        raise BadInput(where, "predictions", f"shape {guess.shape}", f"{asked.shape} of the truth")
    if task.suite == "ts2":
        flat = guess.reshape(-1, guess.shape[-1]), asked.reshape(-1, asked.shape[-1])
        return {"poisson_d2": poisson_d2(flat[1], flat[0]), "bps": pooled_bits(flat[1], flat[0])}
    if task.kind == "label":
        return label_scores(asked[:, 0], guess[:, 0])
    sure = truth["mask"][others].ravel() if task.mask else np.ones(guess.size, bool)
    values, guessed = asked.ravel()[sure], guess.ravel()[sure]
    if task.kind == "rate":  # the benchmark takes the absolute error of the log rate itself
        return {"poisson_d2": poisson_d2(values[:, None], guessed[:, None]),
                "mae": mean_absolute_error(values, guessed)}
    return trace_scores(values, guessed)


def _score_regions(predicted: Tensors, truth: Tensors, where: object) -> dict[str, float]:
    place = {name: i for i, name in enumerate(decode_ids(predicted["entity_ids"]))}
    wanted = decode_ids(truth["entity_ids"])
    missing = [name for name in wanted if name not in place]
    if missing:
        raise BadInput(where, "entity_ids", f"{len(missing)} units missing ({missing[0]})",
                       "all units of the truth")
    chosen = predicted["pred_proba"].argmax(1)[[place[name] for name in wanted]]
    return region_scores(truth["targets"], chosen, COSMOS)
