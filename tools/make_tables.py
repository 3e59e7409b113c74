"""Write the README's tables from the results in bench/results, so that no figure is typed by hand.

    python tools/make_tables.py [--results bench/results] [--readme README.md]

Reads `accuracy-*.json` (from bench/accuracy.py) and `latency*.json` (from `neds-rt bench --json`).
The table that follows the comment `<!-- accuracy: ... -->` or `<!-- latency: ... -->` is replaced,
and the comment then names the files and their commits. A kind without results stays as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neds_rt.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"ridge": "ridge", "gru": "GRU", "neds": "NEDS"}  # others follow under their own name
METRICS = {"r2": "R²", "circular_r2": "circular R²", "balanced_accuracy": "balanced accuracy",
           "accuracy": "accuracy", "bps_pooled": "bits per spike, pooled"}
ENGINES = {"neds.torch_engine:EagerWindow": "eager torch recomputing the window",
           "neds.torch_engine:EagerLastBin": "eager torch, last layer for the newest bin only"}
FIGURES = {"arrival_to_publish_us": "arrival to publish", "service_us": "service",
           "step_us": "step, paced", "step_hot_us": "step, tight loop"}
PERCENTILES = ("p50", "p99", "p999", "max")
NONE = "–"

Result = dict[str, Any]
Scores = dict[str, dict[str, dict[int, float]]]  # session -> model -> seed -> value


def main(argv: list[str] | None = None) -> int:
    """Rewrite the README; 2 after bad input, named in one line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--score", default="velocity.r2", help="modality.metric (velocity.r2)")
    args = parser.parse_args(argv)
    try:
        rewrite(args.readme, args.results, args.score)
    except BadInput as error:
        print(f"make_tables: {error}", file=sys.stderr)
        return 2
    return 0


def rewrite(readme: Path, folder: Path, score: str) -> None:
    """Replace both tables in `readme` by those of the results in `folder`. Raises `BadInput`."""
    text = readme.read_text(encoding="utf-8")
    makers: dict[str, tuple[str, Callable[[list[Result]], str]]] = {
        "accuracy": ("accuracy-*.json", lambda results: accuracy_table(results, score)),
        "latency": ("latency*.json", latency_table),
    }
    written = 0
    for kind, (pattern, make) in makers.items():
        paths = sorted(folder.glob(pattern))
        if paths:
            results = [read_result(path) for path in paths]
            origin = ", ".join(f"{p.name} at {str(r.get('commit'))[:12]}"
                               for p, r in zip(paths, results, strict=True))
            text = replace_table(text, kind, origin, make(results), readme)
            written += 1
    if not written:
        raise BadInput(folder, "results", "none", "accuracy-*.json or latency*.json")
    staged = readme.with_name(f".{readme.name}.part")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, readme)


def read_result(path: Path) -> Result:
    """Read one JSON object: the whole file, or its last line. Raises `BadInput`."""
    text = path.read_text(encoding="utf-8").strip()
    for part in (text, text.rpartition("\n")[2]):
        try:
            found = json.loads(part)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            return {**found, "name": path.stem.partition("-")[2] or path.stem}
    raise BadInput(path, "result", "no JSON object", "the output of a program with --json")


def replace_table(text: str, kind: str, origin: str, table: str, where: object) -> str:
    """Put `table` in the place of the one that follows the comment `<!-- kind: ... -->`."""
    pattern = re.compile(rf"^<!-- {kind}: [^>]*-->\n(?:\|.*\n)+", re.M)
    if len(pattern.findall(text)) != 1:
        raise BadInput(where, f"<!-- {kind}: ... -->", f"{len(pattern.findall(text))} with a table",
                       "one comment with a table below it")
    note = f"<!-- {kind}: from bench/results ({origin}), written by tools/make_tables.py -->\n"
    return pattern.sub(lambda _: note + table, text)


def scores_of(result: Result, score: str) -> Scores:
    """The values of one `modality.metric`; those that are no number are left out."""
    modality, _, metric = score.rpartition(".")
    found: Scores = defaultdict(lambda: defaultdict(dict))
    for row in result.get("rows", []):
        value = math.nan if row["value"] is None else row["value"]
        if (row["modality"], row["metric"]) == (modality, metric) and math.isfinite(value):
            found[row["session"]][row["model"]][row["seed"]] = value
    return {session: dict(by_model) for session, by_model in found.items()}


def accuracy_table(results: Sequence[Result], score: str) -> str:
    """Markdown: a row a session, a column a model: mean over seeds ± standard deviation.

    The mean row takes the mean over sessions seed by seed, then mean and deviation over seeds. A
    session that a model was not run on leaves the model's mean empty, for it could not be compared.
    """
    tables = [(result, scores_of(result, score)) for result in results]
    tables = [(result, scores) for result, scores in tables if scores]
    if not tables:
        raise BadInput("accuracy results", score, "no row", "a modality.metric that was scored")
    seen = {model for _, scores in tables for row in scores.values() for model in row}
    models = [m for m in MODELS if m in seen] + sorted(seen - set(MODELS))
    modality, _, metric = score.rpartition(".")
    rows = [[f"{modality} {METRICS.get(metric, metric)}", *(MODELS.get(m, m) for m in models)]]
    for result, scores in tables:
        for session, by_model in sorted(scores.items()):
            rows.append([session, *(spread(list(by_model.get(m, {}).values())) for m in models)])
        label = f"mean of {len(scores)} sessions"
        label += f", {result['name']}" if len(tables) > 1 else ""
        means = (spread(seed_means(scores, m)) for m in models)
        rows.append([f"**{label}**", *(f"**{m}**" if m != NONE else m for m in means)])
    return markdown(rows)


def seed_means(scores: Scores, model: str) -> list[float]:
    """The mean over sessions for each seed that all sessions have."""
    runs = [by_model.get(model, {}) for by_model in scores.values()]
    seeds = set.intersection(*(set(run) for run in runs))
    return [statistics.fmean(run[seed] for run in runs) for seed in sorted(seeds)]


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, their standard deviation (n - 1)."""
    if not values:
        return NONE
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def latency_table(results: Sequence[Result]) -> str:
    """Markdown: echo floor, then the figures of every engine, percentiles in milliseconds."""
    first = results[0]["model"] if results else {}
    head = "milliseconds" if len(results) > 1 else f"{sizes(first)}; milliseconds"
    rows = [[head, "p50", "p99", "p99.9", "max"]]
    for result in results:
        if len(results) > 1:
            rows.append([f"**{sizes(result['model'])}**", "", "", "", ""])
        rows.append(["echo, arrival to publish", *percentile_cells(result["echo_us"])])
        for engine in result["engines"]:
            name = ENGINES.get(engine["engine"], engine["engine"])
            # One slower than the pace falls further behind with every bin: no latency to report.
            behind = 2 * engine.get("late", 0) > result.get("bins", math.inf)
            for key, label in FIGURES.items():
                dropped = behind and key == "arrival_to_publish_us"
                cells = percentile_cells(None if dropped else engine.get(key))
                rows.append([f"{name}, {label}", *cells])
    return markdown(rows)


def sizes(model: Result) -> str:
    """A benchmarked model in words."""
    return (f"{model['units']} units, width {model['hidden']}, {model['layers']} layers, "
            f"window {model['window']}")


def percentile_cells(figure: dict[str, float] | None) -> list[str]:
    """Microseconds by percentile as milliseconds in text, dashes where there is no figure."""
    if not figure:
        return [NONE] * len(PERCENTILES)
    return [f"{figure[key] / 1e3:.3f}" for key in PERCENTILES]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lines of a Markdown table, the first row its head."""
    head, *body = rows
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
