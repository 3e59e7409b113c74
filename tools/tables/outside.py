"""Tables of what others have the last word on: a bare system, the scorer of a benchmark."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tools.tables.page import NONE, Result, markdown
from tools.tables.words import METRICS


def wheel_table(results: Sequence[Result]) -> str:
    """A row for each wheel that was installed and run where there was no compiler."""
    rows = [["wheel", "system", "MB", "compilers in reach", "bins decoded", "R² of the demo"]]
    for r in results:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in r["r2"].items())
        rows.append([f"`{r['wheel']}`", r["runs_on"] or r["machine"]["system"],
                     f"{r['bytes'] / 1e6:.1f}", ", ".join(r["compilers"]) or "none",
                     f"{r['decodes']} of {r['expected_decodes']}", scores or NONE])
    return markdown(rows)


def bwb_table(results: Sequence[Result]) -> str:
    """Our scores beside those of the benchmark's scorer, a row for each task and metric."""
    rows, told = [["task", "metric", "scores", "ours, mean", "the scorer's, mean",
                   "largest difference"]], []
    for result in results:
        found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in result["rows"]:
            found[row["task"], row["metric"]].append(row)
        for (task, metric), same in sorted(found.items()):
            rows.append([task, METRICS.get(metric, metric), str(len(same)), _mean(same, "ours"),
                         _mean(same, "scorer"), f"{max(r['difference'] for r in same):.0e}"])
        versions = result["scorer_versions"]
        told.append(
            f"{result['files']} files{' of synthetic animals' if result.get('synthetic') else ''} "
            f"by ibl-bwb-eval {versions['ibl-bwb-eval']} with torch {versions['torch']}: the "
            f"largest difference is {result['largest_difference']:.0e}, "
            f"{result['tolerance']:.0e} are allowed.\n\n")
    return "".join(told) + markdown(rows)


def _mean(rows: Sequence[dict[str, Any]], by: str) -> str:
    """Mean of the scores that are numbers."""
    known = [row[by] for row in rows if row[by] is not None]
    return f"{statistics.fmean(known):.4f}" if known else NONE
