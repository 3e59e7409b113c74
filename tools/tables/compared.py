"""Tables of differences: variants of the model against it, and what was tried before."""

from __future__ import annotations

from collections.abc import Sequence

from bench.protocols import MODELS
from tools.tables.page import NONE, Result, bold, markdown, spread
from tools.tables.rows import Score, differences, keys, models_in, seed_means, trained_on, values
from tools.tables.words import metric_words, model_words


def variants_table(pooled: Sequence[Score]) -> str:
    """NEDS, then every variant by its difference to it, paired by session and seed."""
    scores = trained_on(pooled)
    columns = [*keys(scores, "r2", "circular_r2"), *keys(scores, "bps_pooled")]
    variants = sorted((m for m in models_in(scores) if m != "neds"), key=[*MODELS].index)
    if not variants or "neds" not in models_in(scores) or not columns:
        return ""
    base = {key: values(scores, "neds", key) for key in columns}
    rows = [["variant", *map(metric_words, columns), "sessions", "seeds"]]
    rows.append(bold([model_words("neds"), *(spread(seed_means(base[key])) for key in columns),
                      *_counts(base[columns[0]])]))
    for model in variants:
        found = {key: differences(values(scores, model, key), base[key]) for key in columns}
        rows.append([model_words(model), *(spread(seed_means(found[key]), "+") for key in columns),
                     *_counts(found[columns[0]])])
    return markdown(rows)


def _counts(found: dict[tuple[str, int], float]) -> list[str]:
    return [str(len({s for s, _ in found})), str(len(seed_means(found)))]


def tried_table(results: Sequence[Result]) -> str:
    """The search for a form: a row a variant, with the row that it changes."""
    tables = []
    for result in results:
        scores = list(dict.fromkeys(key for v in result["variants"] for key in v if "." in key))
        head = (f"{result['sessions']} sessions, {result['part']} part, seed {result['seed']}, "
                f"{result['device']}")
        rows = [[head, "changed in", *map(metric_words, scores)]]
        number = {v["name"]: i for i, v in enumerate(result["variants"], 1)}
        for variant in result["variants"]:
            cells = [f"{variant[key]:.3f}" if key in variant else NONE for key in scores]
            on = f"row {number[variant['on']]}" if variant["on"] else NONE
            rows.append([f"{number[variant['name']]}. {variant['what']}", on, *cells])
        tables.append(markdown(rows))
    return "\n".join(tables)


PROBED = {"neds": "what NEDS learned of each unit", "activity": "activity statistics",
          "rate": "the mean rate alone", "chance": "shuffled labels"}


def regions_table(results: Sequence[Result]) -> str:
    """Brain regions by a linear probe: a row each for what is known of a unit, chance at last."""
    tables = []
    for result in results:
        rows = [["probe on", "within animals", "p", "across animals", "p"]]
        found = {"neds": result["metrics"], **result["baselines"]}
        for name, words in PROBED.items():
            cells = [words]
            for split in ("within", "across"):
                scores = found[name][split]
                p = scores.get("p_value")
                cells += [f"{scores['balanced_accuracy']:.3f}", NONE if p is None else f"{p:.2f}"]
            rows.append(cells)
        tables.append(markdown(rows))
    return "\n".join(tables)
