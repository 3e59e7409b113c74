"""What a round of bins has shown of a server, and the row of figures it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.stats import percentiles
from neds_rt.wire import decode_message

# What a server may add to the echo's arrival to publish (see `above_echo`).
MEDIAN_STEPS, TAIL_RATIO = 1.5, 1.2


@dataclass
class Seen:
    """A server as it looks from outside."""

    name: str
    engine: str = ""
    arrival_us: list[float] = field(default_factory=list)
    service_us: list[float] = field(default_factory=list)
    late: int = 0  # decodes that came later than one bin
    lost: int = 0
    cpu_s: float = 0.0  # of the server's process during its own rounds
    cpu_bins: int = 0  # bins of those rounds
    # Outputs of the first bin whose window is full, (n_outputs,).
    full_window: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def values_of(raw: bytes) -> NDArray[np.float64]:
    """Return the decoded numbers of a message in its order, (n,); none for one of the echo's."""
    import msgspec

    try:
        values = decode_message(raw).values.values()
    except msgspec.DecodeError:
        return np.zeros(0)
    numbers = [v.mean or v.p or [np.nan if v.angle is None else v.angle] for v in values]
    return np.array([x for part in numbers for x in part], np.float64)


def engine_row(
    seen: Seen, summary: dict[str, Any], echo: Seen, first: Seen
) -> dict[str, Any]:
    """Return a server's figures, with its own `summary`, beside the echo's.

    `difference` is the largest one to the first server's outputs, of the largest of those.
    """
    row: dict[str, Any] = {
        "name": seen.name,
        "engine": seen.engine or seen.name,
        "precision": summary["precision"],
        "step_us": summary["latency"]["step_us"],
        "service_us": percentiles(np.array(seen.service_us)),
        "arrival_to_publish_us": percentiles(np.array(seen.arrival_us)),
        "keep_warm": summary.get("keep_warm"),
        "late": seen.late,
        "lost": seen.lost,
        "cpu_us_a_bin": cpu_us_a_bin(seen),
        "difference": _difference(seen.full_window, first.full_window),
    }
    return row | {"above_echo": above_echo(row, percentiles(np.array(echo.arrival_us)))}


def echo_row(echo: Seen) -> dict[str, Any]:
    """Return the echo server's figures under the names that the report has for them."""
    return {
        "echo_us": percentiles(np.array(echo.arrival_us)),
        "echo_late": echo.late, "echo_lost": echo.lost, "echo_cpu_us_a_bin": cpu_us_a_bin(echo),
    }


def cpu_us_a_bin(seen: Seen) -> float | None:
    """Return the CPU microseconds of a bin, None where the system does not say."""
    return round(seen.cpu_s / seen.cpu_bins * 1e6, 1) if seen.cpu_bins else None


def above_echo(row: dict[str, Any], echo_us: dict[str, float] | None) -> dict[str, Any] | None:
    """Return what a server's arrival to publish adds to the echo's, and whether that is little.

    `median_steps` is the difference of the medians in paced steps, at most `MEDIAN_STEPS`;
    `tail_ratio` that of p99.9, at most `TAIL_RATIO`. None if there is nothing to compare.
    """
    arrival, step = row["arrival_to_publish_us"], row["step_us"]
    if not (arrival and step and echo_us):
        return None
    steps = (arrival["p50"] - echo_us["p50"]) / step["p50"]
    ratio = arrival["p999"] / echo_us["p999"]
    return {
        "median_us": round(arrival["p50"] - echo_us["p50"], 3), "median_steps": round(steps, 3),
        "tail_ratio": round(ratio, 3),
        "within": steps <= MEDIAN_STEPS and ratio <= TAIL_RATIO,
    }


def _difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float | None:
    if found.shape != expected.shape or not expected.size:
        return None
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def summary_line(row: dict[str, Any], key: str) -> list[str]:
    """Return p50, p99, p99.9 and max of one figure in milliseconds, as text."""
    values = row.get(key)
    return [f"{values[k] / 1e3:.3f}" for k in ("p50", "p99", "p999", "max")] if values else ["–"]


def print_table(report: dict[str, Any]) -> None:
    """Print the report of a run for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['bins']} bins an engine at {report['bins_per_second']:g} a "
                  f"second, {report['rounds']} interleaved rounds; milliseconds")
    for column in ("engine", "figure", "p50", "p99", "p99.9", "max"):
        words = column in ("engine", "figure")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    table.add_row("echo", "arrival to publish", *summary_line(report, "echo_us"), style="dim")
    for row in report["engines"]:
        for key, label in (("arrival_to_publish_us", "arrival to publish"),
                           ("service_us", "service"), ("step_us", "step, paced"),
                           ("step_hot_us", "step, tight loop")):
            if key in row:
                name = row["name"].rpartition(".")[2] if label == "arrival to publish" else ""
                table.add_row(name, label, *summary_line(row, key))
        table.add_row("", "a bin late / lost", str(row["late"]), str(row["lost"]))
        if row["cpu_us_a_bin"] is not None:
            table.add_row("", "CPU of a bin", f"{row['cpu_us_a_bin'] / 1e3:.3f}")
        above = row["above_echo"]
        if above:
            table.add_row("", "above echo", f"{above['median_steps']:.2f} steps", "",
                          f"x {above['tail_ratio']:.2f}")
    Console().print(table)
