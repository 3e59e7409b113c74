"""Draw the README's pictures from the results, and the demo's terminal view from a run of it.

    python tools/make_pictures.py [--results bench/results] [--demo-seconds 12]

Writes accuracy.svg (bars a session), latency.svg (percentiles an engine) and demo.svg beside the
JSON files they are made of; one whose results are missing is left out, with a line saying so.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from make_tables import ENGINES, PERCENTILES, ROOT, read_result, scores_of, sizes

from neds.plots import model_bars, save
from neds_rt.errors import BadInput

WIDTH = 100  # columns of the demo's terminal


def main(argv: list[str] | None = None) -> int:
    """Draw what there are results for; 2 after bad input, named in one line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--score", default="velocity.r2", help="modality.metric (velocity.r2)")
    parser.add_argument("--demo-seconds", type=float, default=12.0, help="0 for no demo (12)")
    args = parser.parse_args(argv)
    try:
        args.results.mkdir(parents=True, exist_ok=True)
        accuracy = read_all(args.results, "accuracy-*.json")
        latency = read_all(args.results, "latency*.json")
        if accuracy:
            save(accuracy_bars(accuracy, args.score), args.results / "accuracy.svg")
        if latency:
            save(latency_lines(latency[0]), args.results / "latency.svg")
        if args.demo_seconds > 0:
            write(args.results / "demo.svg", demo_svg(args.demo_seconds))
    except BadInput as error:
        print(f"make_pictures: {error}", file=sys.stderr)
        return 2
    return 0


def read_all(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The results of one kind, by name."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        print(f"make_pictures: no {pattern} in {folder}, picture left out", file=sys.stderr)
    return [read_result(path) for path in paths]


def accuracy_bars(results: Sequence[dict[str, Any]], score: str) -> Any:
    """Bars of every model and session, a dot a seed."""
    bars = {
        session: {model: list(seeds.values()) for model, seeds in by_model.items()}
        for result in results
        for session, by_model in sorted(scores_of(result, score).items())
    }
    if not bars:
        raise BadInput("accuracy results", score, "no row", "a modality.metric that was scored")
    return model_bars(bars, score.replace(".", " "))


def latency_lines(result: dict[str, Any]) -> Any:
    """Service time of every engine at each percentile, over the echo floor; logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5))
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    at = range(len(PERCENTILES))
    lines = [(f"{ENGINES.get(e['engine'], e['engine'])}, service", e["service_us"], "-")
             for e in result["engines"]]
    lines += [("native, arrival to publish", e["arrival_to_publish_us"], "--")
              for e in result["engines"] if e["engine"] == "native"]
    lines.append(("echo, arrival to publish", result["echo_us"], ":"))
    for label, values, style in lines:
        if values:
            axis.plot(at, [values[key] / 1e3 for key in PERCENTILES], style, marker="o", ms=4,
                      color="#444444" if label.startswith("echo") else None, label=label)
    axis.set_yscale("log")
    axis.set_xticks(at, ["p50", "p99", "p99.9", "max"])
    axis.set_ylabel("milliseconds")
    axis.set_title(sizes(result["model"]), fontsize=9)
    axis.legend(frameon=False, fontsize=7)
    return figure


def demo_svg(seconds: float) -> str:
    """Run the demo for some seconds and return the last frame of its terminal view as SVG."""
    from rich.console import Console

    from neds_rt.demo import BUNDLE, run
    from neds_rt.demo.state import DemoState
    from neds_rt.demo.view import render

    # The demo keeps its state to itself; the picture is drawn of it once the run has ended.
    kept: list[DemoState] = []

    def remember(*arguments: Any) -> DemoState:
        kept.append(DemoState(*arguments))
        return kept[0]

    original, run.DemoState = run.DemoState, remember  # type: ignore[assignment,misc]
    try:
        run.run_demo(BUNDLE, "native", seconds, view=False)
    finally:
        run.DemoState = original  # type: ignore[misc]
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(render(kept[0], "native", seconds, WIDTH))
    return console.export_svg(title="neds-rt demo")


def write(path: Path, text: str) -> None:
    """Write a file so that a reader never finds a part of it."""
    staged = path.with_name(f".{path.name}.part")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)


if __name__ == "__main__":
    sys.exit(main())
