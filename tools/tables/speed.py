"""Tables of times and memory: whole servers, GPU engines, training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tools.tables.engines import SERVERS, above_table, engine_name
from tools.tables.page import NONE, Result, markdown

FIGURES = {"arrival_to_publish_us": "arrival to publish", "service_us": "service",
           "step_us": "step, paced", "step_hot_us": "step, tight loop"}
PERCENTILES = ("p50", "p99", "p999", "max")
TRAINED = {"reference": "paper's implementation", "reference_bf16": "paper's, bfloat16",
           "neds": "NEDS", "neds_as_paper": "NEDS in the paper's form"}


def latency_table(results: Sequence[Result]) -> str:
    """Echo floor, then the figures of every engine, percentiles in milliseconds."""
    first = results[0]["model"] if results else {}
    head = "milliseconds" if len(results) > 1 else f"{sizes(first)}; milliseconds"
    rows = [[head, "p50", "p99", "p99.9", "max"]]
    for result in results:
        if len(results) > 1:
            rows.append([f"**{sizes(result['model'])}**", "", "", "", ""])
        rows.append(["echo, arrival to publish", *percentile_cells(result["echo_us"])])
        for engine in result["engines"]:
            name = SERVERS.get(engine_name(engine), engine_name(engine))
            # One slower than the pace falls further behind with every bin: no latency to report.
            behind = 2 * engine.get("late", 0) > result.get("bins", math.inf)
            for key, label in FIGURES.items():
                dropped = behind and key == "arrival_to_publish_us"
                cells = percentile_cells(None if dropped else engine.get(key))
                rows.append([f"{name}, {label}", *cells])
    above = above_table(results)
    return markdown(rows) + (f"\n{above}" if above else "")


def sizes(model: Result) -> str:
    """A benchmarked model in words."""
    return (f"{model['units']} units, width {model['hidden']}, {model['layers']} layers, "
            f"window {model['window']}")


def percentile_cells(figure: dict[str, float] | None, unit: float = 1e3, digits: int = 3
                     ) -> list[str]:
    """Microseconds by percentile in another unit as text, dashes where there is no figure."""
    if not figure:
        return [NONE] * len(PERCENTILES)
    return [f"{figure[key] / unit:.{digits}f}" for key in PERCENTILES]


def gpu_table(results: Sequence[Result]) -> str:
    """Engines in a tight loop, then paced, in microseconds; parity is against the CPU engine."""
    blocks = []
    for result in results:
        measured = [e for e in result.get("engines", []) if "step_us" in e]
        many = len({e["model"] for e in measured}) > 1
        rows = [["a step; microseconds", "precision", "p50", "p99", "p99.9", "max", "parity"]]
        for e in measured:
            form = "" if e["form"] == "step" else ", window recomputed"
            rows.append([f"{_prefix(e, many)}{e['engine']}{form}", e["precision"],
                         *percentile_cells(e["step_us"], 1, 0), parity_cell(e)])
            if paced := e.get("paced_us"):
                rows.append([f"{_prefix(e, many)}{e['engine']}{form}, one every "
                             f"{paced['period_s'] * 1e3:g} ms ({paced['steps']} steps)",
                             e["precision"], *percentile_cells(paced, 1, 0), NONE])
        for e in result.get("paced", []):
            if "period_s" not in e:
                continue
            warm = f", kept warm every {e['warm_every_s'] * 1e3:g} ms" if e["warm_every_s"] else ""
            rows.append([f"{_prefix(e, many)}{e['engine']}, one every {e['period_s'] * 1e3:g} ms"
                         f"{warm}", e["precision"], *percentile_cells(e, 1, 0), NONE])
        blocks.append(f"{gpu_words(result, measured)}\n\n{markdown(rows)}")
    return "\n".join(blocks)


def parity_cell(engine: Result) -> str:
    """Largest difference to the CPU engine, of the largest output; none for that engine itself."""
    return NONE if engine["engine"].startswith("native") else f"{engine['parity']:.0e}"


def _prefix(row: Result, many: bool) -> str:
    return f"{row['model']}: " if many else ""


def gpu_words(result: Result, measured: Sequence[Result]) -> str:
    """The device, the models, and what the same run's tests said."""
    models = {e["model"]: e["parameters"] for e in measured}
    known = ", ".join(f"{name} ({count:,} parameters)" for name, count in models.items())
    words = [f"{result.get('gpu', {}).get('name', 'no GPU')}; model {known}"]
    floors = {row["name"].removeprefix("floor_us_").replace("_", " "): row["value"]
              for row in result.get("floor", []) if str(row.get("name")).startswith("floor_us_")}
    if floors:
        words.append("floor (empty launch, and bytes over bandwidth) in microseconds: "
                     + ", ".join(f"{name} {value:.0f}" for name, value in floors.items()))
    tests = result.get("tests", [])
    errors = [row["error"] for row in tests if "check" in row]
    failed = dict.fromkeys(name for row in tests if isinstance(row.get("error"), str)
                           for name in re.findall(r"^FAILED \S*::(\S+)", row["error"], re.M))
    if errors:
        words.append(f"largest difference to a plain step in {len(errors)} checks: "
                     f"{max(errors):.0e}")
    if failed:
        words.append(f"tests that failed: {', '.join(f'`{name}`' for name in failed)}")
    elif any("error" in row and "check" not in row for row in tests):
        words.append("its tests failed")
    return "; ".join(words) + "."


def throughput_table(results: Sequence[Result]) -> str:
    """Samples a second of every model, and how many times the paper's implementation."""
    rows = [["training", "parameters", "samples/s, median (least to most)", "times the paper's"]]
    for result in results:
        if len(results) > 1:
            rows.append([f"**{_setting(result)}**", "", "", ""])
        for name, model in result["models"].items():
            rate, ratio = model["samples_per_s"], result["speedup"].get(name)
            rows.append([TRAINED.get(name, name), f"{model['parameters']['total']:,}",
                         f"{_rate(rate['median'])} ({_rate(rate['min'])} to {_rate(rate['max'])})",
                         NONE if ratio is None else f"{ratio['median']:.2f}"])
    words = f"{_setting(results[0])}.\n\n" if len(results) == 1 else ""
    return words + markdown(rows)


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _setting(result: Result) -> str:
    size, units = result["sizes"], result["units"]
    changed = f" with {', '.join(result['set'])}" if result.get("set") else ""
    return (f"{result['device']}, {len(units)} {result['data']} sessions of {min(units)} to "
            f"{max(units)} units, batch {size['batch']} of {size['bins']} bins, width "
            f"{size['hidden']}, {size['layers']} layers, recipe {result['recipe']}{changed}")


def memory_table(results: Sequence[Result]) -> str:
    """Memory of pretraining, a row a number of sessions, and what one more takes."""
    rows = [["MB", "files", "peak", "cannot be taken back", "of it parameters"]]
    for result in results:
        for run in result["runs"]:
            rows.append([f"{run['sessions']} sessions", f"{run['files_mb']:.0f}",
                         f"{run['peak_mb']:.0f}", f"{run['anonymous_mb']:.0f}",
                         f"{run['parameters_mb']:.0f}"])
        growth = result["mb_a_session"]
        rows.append(["a session more", NONE, f"{growth['peak_mb']:.2f}",
                     f"{growth['anonymous_mb']:.2f}", f"{growth['parameters_mb']:.2f}"])
    return markdown(rows)


def preparing_table(results: Sequence[Result]) -> str:
    """Preparing many sessions, a row a run: pace, memory, and what a kill cost."""
    rows = [["sessions", "hours each", "units", "jobs", "sessions a minute", "peak, MB",
             "finished when killed", "of these read again", "files left behind"]]
    for r in results:
        again = r["killed"]["finished"] - r["resumed"]["skipped"]
        rows.append([str(r["sessions"]), f"{r['seconds'] / 3600:g}", str(r["units"]),
                     str(r["jobs"]), f"{r['sessions_a_minute']:g}", str(r["peak_mb"]),
                     str(r["killed"]["finished"]), str(again), str(len(r["left_behind"]))])
    return markdown(rows)
