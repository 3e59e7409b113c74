"""Draw the README's pictures from the results, and the demo's terminal view from a run of it.

    python tools/make_pictures.py [--results bench/results] [--demo-seconds 12]

Writes beside the JSON files they are made of: accuracy.svg (bars a session trained alone),
latency.svg (percentiles an engine), sizes.svg (a step's cost against size), single-multi-SET.svg
(a dot a session), calibration-SET.svg (score against minutes), masking-SET.svg (bars a scheme left
out), and demo.svg. One whose results are missing is left out, with a line saying so.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.protocols import PROTOCOLS  # noqa: E402
from neds.plots import (  # noqa: E402
    ablation_bars,
    calibration_curve,
    model_bars,
    save,
    scaling_panels,
    session_scatter,
)
from neds_rt.errors import BadInput  # noqa: E402
from tools.make_tables import POOLED, read_all, sets_of  # noqa: E402
from tools.tables.engines import SERVERS, engine_name, size_curves  # noqa: E402
from tools.tables.page import Result  # noqa: E402
from tools.tables.rows import (  # noqa: E402
    Score,
    models_in,
    pool,
    seed_means,
    session_means,
    trained_on,
    values,
)
from tools.tables.speed import PERCENTILES, sizes  # noqa: E402

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
        for name, picture in pictures(args.results, args.score):
            save(picture, args.results / f"{name}.svg")
        if args.demo_seconds > 0:
            write(args.results / "demo.svg", demo_svg(args.demo_seconds))
    except BadInput as error:
        print(f"make_pictures: {error}", file=sys.stderr)
        return 2
    return 0


def pictures(folder: Path, score: str) -> Iterator[tuple[str, Any]]:
    """Names and figures of all that there are results for."""
    alone, latency = read_all(folder, "accuracy-*.json"), read_all(folder, "latency*.json")
    scaling = read_all(folder, "sizes.json")
    if alone:
        yield "accuracy", accuracy_bars(pool(alone), score)
    if latency:
        yield "latency", latency_lines(latency[0])
    if scaling:
        yield "sizes", scaling_panels(size_curves(scaling[0]), "microseconds a step, median",
                                      ("one every 20 ms", "in a tight loop"))
    of_models = {"single-multi": PROTOCOLS["within"], "masking": PROTOCOLS["masking"]}
    drawn = {"accuracy": bool(alone), "latency": bool(latency), "sizes": bool(scaling)}
    for kind, models in of_models.items():
        draw = single_against_multi if kind == "single-multi" else masking_bars
        for name, results in sets_of(folder, POOLED, models).items():
            picture = draw(trained_on(pool(results, models)), score)
            if picture is not None:
                yield f"{kind}-{name}", picture
                drawn[kind] = True
    for name, results in sets_of(folder, ("new-session-*.json",), ()).items():
        yield f"calibration-{name}", calibration(pool(results), score)
        drawn["calibration"] = True
    for kind in ("accuracy", "latency", "sizes", *of_models, "calibration"):
        if not drawn.get(kind):
            print(f"make_pictures: no results for {kind} in {folder}, left out", file=sys.stderr)


def accuracy_bars(scores: Sequence[Score], score: str) -> Any:
    """Bars of every model and session, a dot a seed."""
    bars: dict[str, dict[str, list[float]]] = {}
    for s in sorted((s for s in scores if s.key == score), key=lambda s: s.session):
        bars.setdefault(s.session, {}).setdefault(s.model, []).append(s.value)
    if not bars:
        raise BadInput("accuracy results", score, "no row", "a modality.metric that was scored")
    return model_bars(bars, score.replace(".", " "))


def single_against_multi(scores: Sequence[Score], score: str) -> Any:
    """A dot a session: trained on all sessions against trained on it alone; None without both."""
    one, all_of_them = (session_means(values(scores, m, score)) for m in ("neds_single", "neds"))
    if not set(one) & set(all_of_them):
        return None
    return session_scatter(one, all_of_them, "each session alone", "all sessions",
                           score.replace(".", " "))


def masking_bars(scores: Sequence[Score], score: str) -> Any:
    """Decoding and encoding with each scheme left out; None without a scheme left out."""
    keys = {score: score.replace(".", " "), "spikes.bps_pooled": "bits per spike, pooled"}
    names = {m: "all schemes" if m == "neds" else m.removeprefix("neds_no_").replace("_", " ")
             for m in models_in(scores)}
    if "neds" not in names or len(names) < 2:
        return None
    found = {names[m]: {key: seed_means(values(scores, m, key)) for key in keys} for m in names}
    return ablation_bars(found, "all schemes", keys)


def calibration(scores: Sequence[Score], score: str) -> Any:
    """Score against minutes of calibration data; all data are of no one length and left out."""
    few = [s for s in scores if s.amount is not None and s.amount >= 0 and s.key == score]
    if not few:
        raise BadInput("new-session results", score, "no row", "a modality.metric that was scored")
    curves: dict[str, dict[float, list[float]]] = {}
    for model in models_in(few):
        for amount in sorted({s.amount or 0.0 for s in few if s.model == model}):
            these = [s for s in few if s.amount == amount]
            curves.setdefault(model, {})[amount / 60] = seed_means(values(these, model, score))
    return calibration_curve(curves, score.replace(".", " "))


def latency_lines(result: Result) -> Any:
    """Service time of every engine at each percentile, over the echo floor; logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5))
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    at = range(len(PERCENTILES))
    lines = [(f"{SERVERS.get(engine_name(e), engine_name(e))}, service", e["service_us"], "-")
             for e in result["engines"]]
    lines += [("native, arrival to publish", e["arrival_to_publish_us"], "--")
              for e in result["engines"] if e["engine"] == "native"]
    lines.append(("echo, arrival to publish", result["echo_us"], ":"))
    for label, figure_us, style in lines:
        if figure_us:
            axis.plot(at, [figure_us[key] / 1e3 for key in PERCENTILES], style, marker="o", ms=4,
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
