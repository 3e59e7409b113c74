"""Tables of scores: a row a model, within sessions, on new sessions, of spikes and of trials."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from bench.protocols import MODELS
from tools.tables.page import NONE, bold, details, markdown, spread
from tools.tables.rows import (
    Score,
    fit_seconds,
    keys,
    models_in,
    seed_means,
    session_means,
    trained_on,
    values,
)
from tools.tables.words import amount_words, metric_words, model_words

BEHAVIOUR = ("r2", "circular_r2", "trial_balanced_accuracy")
SPIKES = ("bps_pooled", "bps_neuron_mean")


def within_table(pooled: Sequence[Score]) -> str:
    """A row a model, best first, and every session's values in a folded table."""
    scores = trained_on(pooled)
    columns = keys(scores, *BEHAVIOUR)
    if not columns or len(models_in(scores)) < 2:
        return ""
    first = columns[0]
    order = sorted(models_in(scores), key=lambda m: -_mean(values(scores, m, first)))
    rows = [["model", *map(metric_words, columns), "sessions", "seeds", "fit, s"]]
    for model in order:
        cells = [model_words(model), *mean_cells(scores, model, columns),
                 fit_seconds(scores, model)]
        rows.append(bold(cells) if model == "neds" else cells)
    comparison = _comparison(scores, first)
    every = details(f"{metric_words(first)} of every session, mean over seeds",
                    _session_table(scores, order, first))
    return f"{comparison}{markdown(rows)}\n{every}"


def mean_cells(scores: Sequence[Score], model: str, columns: Sequence[str]) -> list[str]:
    """Means over sessions of some keys, then the numbers of sessions and of seeds.

    Means over a part of the sessions would not compare with the others: they are left empty.
    """
    own = [s for s in scores if s.model == model]
    n, of = len({s.session for s in own}), len({s.session for s in scores})
    seeds = len({s.seed for s in own})
    if n < of:
        return [*(NONE for _ in columns), f"{n} of {of}", str(seeds)]
    cells = [spread(seed_means(values(own, model, key))) for key in columns]
    return [*cells, str(n), str(seeds)]


def _comparison(scores: Sequence[Score], key: str) -> str:
    """How often NEDS trained on all sessions is above others, in words."""
    ours, words = session_means(values(scores, "neds", key)), []
    for other in ("neds_single", "gru"):
        theirs = session_means(values(scores, other, key))
        common = [s for s in ours if s in theirs]
        if common:
            better = sum(ours[s] > theirs[s] for s in common)
            gain = statistics.fmean(ours[s] - theirs[s] for s in common)
            words.append(f"{model_words(other)}: above on {better} of {len(common)} sessions, "
                         f"mean difference {gain:+.3f}")
    return f"{metric_words(key)} of NEDS against {'; '.join(words)}.\n\n" if words else ""


def _session_table(scores: Sequence[Score], models: Sequence[str], key: str) -> str:
    by_model = {model: session_means(values(scores, model, key)) for model in models}
    sessions = sorted({s for found in by_model.values() for s in found})
    rows = [["session", *map(model_words, models)]]
    for session in sessions:
        rows.append([session, *(f"{found[session]:.3f}" if session in found else NONE
                                for found in by_model.values())])
    return markdown(rows)


def encoding_table(pooled: Sequence[Score]) -> str:
    """Spikes from behaviour, beside what the same models decode; directions not trained are out."""
    scores = [s for s in trained_on(pooled) if _trained(s)]
    spikes = [key for key in (f"spikes.{m}" for m in SPIKES) if key in keys(scores, *SPIKES)]
    if not spikes or models_in(scores) == ["neds"]:
        return ""
    columns = [*spikes, *keys(scores, "r2", "circular_r2")]
    rows = [["model", *map(metric_words, columns), "sessions", "seeds"]]
    order = sorted(models_in(scores), key=lambda m: -_mean(values(scores, m, spikes[0])))
    for model in order:
        cells = [model_words(model), *mean_cells(scores, model, columns)]
        rows.append(bold(cells) if model == "neds" else cells)
    ours, glm = (session_means(values(scores, m, spikes[0])) for m in ("neds", "glm"))
    words = ""
    if ours and glm and set(ours) == set(glm) and statistics.fmean(glm.values()) > 0:
        ratio = statistics.fmean(ours.values()) / statistics.fmean(glm.values())
        words = f"Pooled over units, NEDS explains {ratio:.2f} times the bits of the GLM.\n\n"
    return words + markdown(rows)


def _trained(score: Score) -> bool:
    only = MODELS[score.model].only
    return not only or (only == "encoding") == score.key.startswith("spikes.")


def new_session_table(pooled: Sequence[Score]) -> str:
    """Sessions left out of pretraining: a row a model and metric, a column an amount of data."""
    scores = [s for s in pooled if s.amount is not None]
    columns = keys(scores, *BEHAVIOUR)
    if not columns:
        return ""
    amounts = sorted({s.amount for s in scores if s.amount is not None},
                     key=lambda a: (a < 0, a))
    n = len({s.session for s in scores})
    rows = [[f"{n} sessions, after", *map(amount_words, amounts)]]
    for key in columns:
        for model in models_in(s for s in scores if s.key == key):
            cells = [f"{metric_words(key)}, {_base(model)}"]
            for amount in amounts:
                these = [s for s in scores if s.amount == amount]
                cells.append(spread(seed_means(values(these, model, key))))
            rows.append(bold(cells) if model == "neds" else cells)
    for model in models_in(scores):
        cells = [f"seconds to adapt, {_base(model)}"]
        for amount in amounts:
            took = [s.adapt_s for s in scores
                    if (s.model, s.amount, s.key) == (model, amount, columns[0])
                    and math.isfinite(s.adapt_s)]
            cells.append(f"{statistics.fmean(took):.1f}" if took else NONE)
        if set(cells[1:]) != {NONE}:  # a file may keep no times
            rows.append(cells)
    return markdown(rows)


def discrete_table(pooled: Sequence[Score]) -> str:
    """Decisions a trial: balanced accuracy by behaviour, of sessions trained on and of new ones."""
    columns = keys(pooled, "trial_balanced_accuracy")
    groups: dict[tuple[str, float | None], list[Score]] = defaultdict(list)
    for score in pooled:
        if score.key in columns:
            groups[score.model, score.amount].append(score)
    if not groups:
        return ""
    rows = [["model", *map(metric_words, columns), "sessions", "seeds"]]
    for (model, amount), scores in groups.items():
        name = model_words(model) if amount is None else (
            f"{_base(model)}, on sessions left out, after {amount_words(amount)}")
        cells = [name, *mean_cells(scores, model, columns)]
        rows.append(bold(cells) if model == "neds" else cells)
    return markdown(rows)


def alone_table(pooled: Sequence[Score], key: str = "velocity.r2") -> str:
    """A row a session, a column a model: mean over seeds ± standard deviation.

    The mean row takes the mean over sessions seed by seed. A session that a model was not run on
    leaves the model's mean empty, for it could not be compared.
    """
    scores = [s for s in pooled if s.key == key]
    models = sorted(models_in(scores), key=lambda m: ("ridge", "gru", "neds").index(m)
                    if m in ("ridge", "gru", "neds") else 9)
    sessions = sorted({s.session for s in scores})
    if not sessions:
        return ""
    rows = [[metric_words(key), *(_base(m) for m in models)]]
    for session in sessions:
        rows.append([session, *(spread(
            [v for (name, _), v in values(scores, m, key).items() if name == session])
            for m in models)])
    means = []
    for m in models:
        found = values(scores, m, key)
        whole = {s for s, _ in found} == set(sessions)
        means.append(spread(seed_means(found)) if whole else NONE)
    rows.append(bold([f"mean of {len(sessions)} sessions", *means]))
    return "Every session trained alone, in the form before the present one.\n\n" + markdown(rows)


def _base(model: str) -> str:
    """A model's name where it is clear what it was trained on."""
    return model_words(model).partition(",")[0]


def _mean(found: dict[tuple[str, int], float]) -> float:
    return statistics.fmean(found.values()) if found else float("-inf")
