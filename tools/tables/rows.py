"""Rows of scores from several files as one pool, and the means that tables need."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.protocols import MODELS
from neds_rt.errors import BadInput
from tools.tables.page import Result

Run = tuple[str, int]  # session, seed


@dataclass(frozen=True)
class Score:
    """One value, with what it takes to compare it."""

    session: str
    model: str
    seed: int
    key: str  # modality.metric
    value: float
    seconds: float
    device: str
    amount: float | None  # seconds of calibration data; None: the session was trained on
    adapt_s: float


def pool(results: Sequence[Result], models: Sequence[str] = ()) -> list[Score]:
    """All rows of some files, of these models if any; the same row in two files counts once.

    Raises `BadInput` if two files have different values for it.
    """
    found: dict[tuple[Any, ...], tuple[Score, str]] = {}
    for result in results:
        device = "GPU" if "--device cuda" in str(result.get("command")) else "CPU"
        for row in result.get("rows", []):
            score = _score(row, device)
            if not math.isfinite(score.value) or (models and score.model not in models):
                continue
            key = (score.session, score.model, score.seed, score.key, score.amount)
            other, file = found.setdefault(key, (score, result["file"]))
            if other.value != score.value:
                raise BadInput(result["file"], f"{score.model}, {score.session}, {score.key}",
                               score.value, f"{other.value}, as {file} has it")
    return [score for score, _ in found.values()]


def _score(row: dict[str, Any], device: str) -> Score:
    value = math.nan if row["value"] is None else float(row["value"])
    return Score(row["session"], row["model"], row["seed"], f"{row['modality']}.{row['metric']}",
                 value, float(row.get("seconds", math.nan)), device, row.get("calibration_s"),
                 float(row.get("adapt_s", math.nan)))


def trained_on(scores: Iterable[Score]) -> list[Score]:
    """Scores of sessions that the model was trained on."""
    return [s for s in scores if s.amount is None]


def keys(scores: Iterable[Score], *metrics: str) -> list[str]:
    """The `modality.metric`s with one of these metrics, in order of appearance."""
    found = dict.fromkeys(s.key for s in scores)
    return [key for key in found if key.rpartition(".")[2] in metrics]


def models_in(scores: Iterable[Score]) -> list[str]:
    """The models with scores, in order of appearance."""
    return list(dict.fromkeys(s.model for s in scores))


def values(scores: Iterable[Score], model: str, key: str) -> dict[Run, float]:
    """A model's values of one key by session and seed."""
    return {(s.session, s.seed): s.value for s in scores if (s.model, s.key) == (model, key)}


def seed_means(found: dict[Run, float]) -> list[float]:
    """The mean over sessions for each seed that all sessions have."""
    sessions = {session for session, _ in found}
    seeds = set.intersection(*({seed for s, seed in found if s == name} for name in sessions)
                             ) if sessions else set()
    return [statistics.fmean(found[s, seed] for s in sorted(sessions)) for seed in sorted(seeds)]


def session_means(found: dict[Run, float]) -> dict[str, float]:
    """The mean over seeds of each session."""
    names = sorted({session for session, _ in found})
    return {n: statistics.fmean(v for (s, _), v in found.items() if s == n) for n in names}


def differences(found: dict[Run, float], base: dict[Run, float]) -> dict[Run, float]:
    """Values less those of another model, where both have the session and seed."""
    return {run: value - base[run] for run, value in found.items() if run in base}


def fit_seconds(scores: Iterable[Score], model: str) -> str:
    """Mean seconds of a seed's fits by device: of one fit, or of all sessions' together."""
    took: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for s in scores:
        if s.model == model and math.isfinite(s.seconds):
            took[s.device, s.seed][s.session] = s.seconds
    alone = model in MODELS and MODELS[model].alone
    by_device: dict[str, list[float]] = defaultdict(list)
    for (device, _), seconds in sorted(took.items()):
        by_device[device].append(sum(seconds.values()) if alone else max(seconds.values()))
    return ", ".join(f"{statistics.fmean(seeds):.0f} ({device})"
                     for device, seeds in by_device.items()) or "–"
