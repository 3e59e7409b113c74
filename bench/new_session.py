"""Sessions that pretraining never saw: decoded after some seconds of their data.

Every model is pretrained on the other sessions and given the same calibration rows, the first
seconds of the held-out session's training part; scored on its last 20 %.
"""

from __future__ import annotations

import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from bench.protocols import MODELS
from bench.tasks import Row, Task, behaviour_scores, recordings_of, rows_of
from neds import baselines
from neds.baselines import Fitted
from neds.config import RunConfig
from neds.dataset import Recording
from neds.evaluate import decode_part
from neds.model import Neds
from neds.train import build_model, train


def adapted_rows(
    task: Task, config: RunConfig, recordings: list[Recording], started: float
) -> list[Row]:
    """Pretrain (or take the pretrained model), then adapt to every held-out session."""
    held, _ = recordings_of(task, config, task.held_out)
    if MODELS[task.model].baseline:
        fitted = baselines.fit(MODELS[task.model].baseline, recordings, seed=task.seed,
                               device=task.device, budget="full")
        return [row for r in held for row in _baseline_rows(task, fitted, r, started)]
    model = pretrained(task, config, recordings)
    return [row for r in held for row in _neds_rows(task, config, model, r, started)]


def pretrained(task: Task, config: RunConfig, recordings: list[Recording]) -> Neds:
    """The model of this task's seed, from `models_dir` if it is there, else trained and kept."""
    path = Path(task.models_dir) / f"{task.model}-{task.seed}.safetensors"
    if task.models_dir and path.exists():
        model = build_model(config, recordings)
        model.load_state_dict(load_file(path), strict=False)
        return model
    model = train(config, recordings, progress=False, device=task.device).model.cpu()
    if task.models_dir:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The sessions' own unit maps are of no use to another session, and most of the bytes.
        save_file({k: v.contiguous() for k, v in model.state_dict().items()
                   if not k.endswith(("spikes_in.weight", "spikes_out.weight"))}, path)
    return model


def _baseline_rows(task: Task, fitted: Fitted, recording: Recording, started: float) -> list[Row]:
    from neds.adapt import limit

    rows = []
    for amount in task.amounts:
        begun = time.monotonic()
        few = limit(recording, None if amount < 0 else amount)
        adapted = fitted.adapt(few, seed=task.seed)
        scores = behaviour_scores(recording, adapted.decode_part(few, "test"))
        rows += rows_of(task, recording.state.session, scores, round(time.monotonic() - started, 1),
                        calibration_s=amount, adapt_s=round(time.monotonic() - begun, 1))
    return rows


def _neds_rows(task: Task, config: RunConfig, model: Neds, recording: Recording, started: float
               ) -> list[Row]:
    rows: list[Row] = []
    for amount in task.amounts:
        from neds.adapt import adapt, limit

        begun = time.monotonic()
        few = limit(recording, None if amount < 0 else amount)
        adapted = adapt(model, config, few, seed=task.seed)
        predicted = [p for _, p in decode_part(adapted, few, "test")]
        rows += rows_of(task, recording.state.session, behaviour_scores(recording, predicted),
                        round(time.monotonic() - started, 1), calibration_s=amount,
                        adapt_s=round(time.monotonic() - begun, 1))
    return rows


