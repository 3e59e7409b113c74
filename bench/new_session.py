"""Sessions and animals that pretraining never saw: decoded after some of their data.

Every model is pretrained on the other sessions and given the same calibration rows, the first
seconds of the held-out session's training part; scored on its last 20 %. Of an animal left out,
all sessions are fine-tuned in one fit, on the whole of their training parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from bench.protocols import MODELS
from bench.tasks import Floats, Row, Task, behaviour_scores, recordings_of, rows_of
from neds import baselines
from neds.adapt import adapt, fit_to, limit
from neds.baselines import Fitted, sequence
from neds.checkpoint import SessionState
from neds.config import RunConfig, load_recipe
from neds.dataset import Recording
from neds.evaluate import decode_part
from neds.model import Neds
from neds.train import build_model, train
from neds_rt.errors import BadInput


def adapted_rows(
    task: Task, config: RunConfig, recordings: list[Recording], started: float
) -> list[Row]:
    """Pretrain (or take the pretrained model), then adapt to every held-out session."""
    held, _ = recordings_of(task, config, task.held_out)
    known = [r.state for r in recordings]  # whose scaling stands in where a session has no data
    if MODELS[task.model].baseline:
        fitted = pretrained_baseline(task, recordings)

        def decode(few: Recording) -> list[Floats]:
            return fitted.adapt(few, seed=task.seed).decode_part(few, "test")
    else:
        model = pretrained(task, config, recordings)
        if task.animal and task.amounts:
            return _rows_of_animal(task, config, model, held, started)

        def decode(few: Recording) -> list[Floats]:
            adapted = adapt(model, config, few, seed=task.seed)
            return [predicted for _, predicted in decode_part(adapted, few, "test")]

    return [row for r in held for row in _rows_by_amount(task, r, known, started, decode)]


def _rows_of_animal(
    task: Task, config: RunConfig, model: Neds, held: list[Recording], started: float
) -> list[Row]:
    """Scores of an animal's sessions after the model was fine-tuned on all of them at once."""
    begun = time.monotonic()
    knobs = replace(load_recipe(task.finetune).train, seed=task.seed)
    fitted = fit_to(model, config, held, knobs).model
    took = {"adapt_s": round(time.monotonic() - begun, 1),
            "seconds": round(time.monotonic() - started, 1)}
    rows = []
    for recording in held:
        scores = behaviour_scores(
            recording, [predicted for _, predicted in decode_part(fitted, recording, "test")])
        rows += rows_of(task, recording.state.session, scores, calibration_s=-1.0,
                        animal=task.animal, **took)
    return rows


def pretrained(task: Task, config: RunConfig, recordings: list[Recording]) -> Neds:
    """The model of this task's seed, from `models_dir` if it is there, else trained and kept."""
    path = Path(task.models_dir) / f"{task.model}-{task.seed}.safetensors"
    if task.models_dir and path.exists():
        model = build_model(config, recordings)
        model.load_state_dict(load_file(path))
        return model
    model = train(config, recordings, progress=False, device=task.device).model.cpu()
    if task.models_dir:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model


def pretrained_baseline(task: Task, recordings: list[Recording]) -> Fitted:
    """The baseline of this task's seed; nets are kept in `models_dir` and taken from there."""
    path = Path(task.models_dir) / f"{task.model}-{task.seed}.safetensors"
    if task.models_dir and path.exists():
        return _restored(task, recordings, path)
    fitted = baselines.fit(MODELS[task.model].baseline, recordings, seed=task.seed,
                           device=task.device, budget=task.budget)
    if task.models_dir and isinstance(fitted, sequence.Sequences):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in fitted.net.state_dict().items()}, path)
    return fitted


def _restored(task: Task, recordings: list[Recording], path: Path) -> Fitted:
    core = baselines.BASELINES[MODELS[task.model].baseline].options["core"]
    recipe = sequence.for_budget(sequence.RECIPES[core], task.budget)
    outputs = sequence.layout(recordings)
    data = [sequence.session_rows(r, outputs, "cpu") for r in recordings]
    weights = load_file(path)
    for own_out in (False, True):  # which of the two was chosen shows in the shapes
        net = sequence.make_net(core, recipe.sizes, data, outputs, own_out, task.seed)
        if {k: v.shape for k, v in net.state_dict().items()} == {
            k: v.shape for k, v in weights.items()
        }:
            net.load_state_dict(weights)
            return sequence.Sequences(net, outputs, recordings, task.budget)
    raise BadInput(path, "weights", "of another shape", "what this program wrote")


def _rows_by_amount(
    task: Task, recording: Recording, known: list[SessionState], started: float,
    decode: Callable[[Recording], list[Floats]],
) -> list[Row]:
    """Scores after each amount of calibration data, given to `decode` as all there is."""
    rows: list[Row] = []
    for amount in task.amounts:
        begun = time.monotonic()
        few = limit(recording, None if amount < 0 else amount, known)
        scores = behaviour_scores(recording, decode(few))
        rows += rows_of(task, recording.state.session, scores, round(time.monotonic() - started, 1),
                        calibration_s=amount, adapt_s=round(time.monotonic() - begun, 1))
    return rows
