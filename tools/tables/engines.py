"""Tables of engines: against other makes, above the echo, against size, plans for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tools.tables.page import NONE, Result, bold, details, markdown

SERVERS = {
    "zmq_torch": "pyzmq script, eager torch on the window",
    "ezmsg_torch": "ezmsg graph, eager torch on the window",
    "zmq_onnxruntime": "pyzmq script, ONNX Runtime on the window",
    "zmq_openvino": "pyzmq script, OpenVINO on the window",
    "neds.torch_engine:EagerWindow": "eager torch recomputing the window",
    "neds.torch_engine:EagerLastBin": "eager torch, last layer for the newest bin only",
}
AXES = {"units": ("{} units", "units"), "window": ("window of {} bins", "window, bins"),
        "hidden": ("width {}", "width")}


def server_words(row: Result) -> str:
    """A server as tables name it."""
    name = engine_name(row)
    return SERVERS.get(name) or f"`neds-rt serve --engine {name}`"


def engine_name(row: Result) -> str:
    """An engine with its precision where one was asked for; old results have no `name`."""
    return str(row.get("name", row["engine"]))


def compare_table(results: Sequence[Result]) -> str:
    """A row a server: arrival to publish and service in milliseconds, misses, CPU, agreement."""
    tables = []
    for result in results:
        period_us = 1e6 / result["bins_per_second"]
        rows = [["milliseconds", "arrival p50", "p99", "p99.9", "max", "service p50", "p99",
                 "p99.9", "max", "late or lost", "CPU of a core", "outputs differ"]]
        rows.append(["echo", *_cells(result["echo_us"]), *[NONE] * 4,
                     str(result["echo_late"] + result["echo_lost"]),
                     _share(result["echo_cpu_us_a_bin"], period_us), NONE])
        for row in result["engines"]:
            missed = row["late"] + row["lost"]
            # One slower than the pace falls further behind with every bin: no latency to report.
            behind = 2 * missed > result["bins"]
            cells = [server_words(row), *_cells(None if behind else row["arrival_to_publish_us"]),
                     *_cells(row["service_us"]), f"{missed} of {result['bins']}",
                     _share(row["cpu_us_a_bin"], period_us), _differ(row["difference"])]
            rows.append(bold(cells) if row["kind"] == "engine" else cells)
        rows += [[SERVERS.get(gone["name"], gone["name"]),
                  f"not installed ({gone['package']})", *[NONE] * 10]
                 for gone in result.get("not_installed", [])]
        tables.append(f"{_words(result)}\n\n{markdown(rows)}")
    return "\n".join(tables)


def _words(result: Result) -> str:
    model, facts = result["model"], result["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    return (f"{model['units']} units, width {model['hidden']}, {model['layers']} layers, window "
            f"{model['window']}; {result['bins']} bins a server at {result['bins_per_second']:g} a "
            f"second in {result['rounds']} interleaved rounds; {facts['cpu']}, "
            f"{facts['cores']} cores; {versions}.{_ratios(result)}")


def _ratios(result: Result) -> str:
    """Service of the first engine against every alternative, at the median and at p99.9."""
    ours = next((r for r in result["engines"] if r["kind"] == "engine"), None)
    theirs = [r for r in result["engines"] if r["kind"] == "alternative"]
    if ours is None or not theirs:
        return ""
    times = [f"{server_words(r)} {r['service_us']['p50'] / ours['service_us']['p50']:.1f} "
             f"and {r['service_us']['p999'] / ours['service_us']['p999']:.1f}" for r in theirs]
    return (f" Service, times that of `{ours['name']}` at the median and at p99.9: "
            f"{'; '.join(times)}.")


def above_table(results: Sequence[Result]) -> str:
    """What every engine adds to the echo, with the limits; empty where no run has measured it."""
    rows = [["above the echo of the same run", "median, ms", "in paced steps (at most 1.5)",
             "p99.9, times the echo's (at most 1.2)"]]
    for result in results:
        for row in result["engines"]:
            above = row.get("above_echo")
            if above and row.get("kind", "engine") == "engine":
                rows.append([f"`{engine_name(row)}`", f"{above['median_us'] / 1e3:.3f}",
                             f"{above['median_steps']:.2f}", f"{above['tail_ratio']:.2f}"])
    return markdown(rows) if len(rows) > 1 else ""


def sizes_table(results: Sequence[Result]) -> str:
    """A row a size, a column an engine: paced p50, p99 and p99.9, and the tight loop's p50."""
    tables = []
    for result in results:
        engines = list(dict.fromkeys(row["name"] for row in result["rows"]))
        base = ", ".join(AXES[axis][0].format(result["base"][axis]) for axis in result["axes"])
        head = f"{base}, {result['layers']} layers, but"
        rows = [[head, "parameters", *(f"`{engine}`" for engine in engines)]]
        for axis in result["axes"]:
            for size, found in _along(result, axis):
                cells = [_steps(found[engine]) for engine in engines]
                parameters = f"{next(iter(found.values()))['parameters'] / 1e6:.1f} M"
                rows.append([AXES[axis][0].format(size), parameters, *cells])
        words = ("Microseconds of a step, one every "
                 f"{result['period_s'] * 1e3:g} ms: p50 / p99 / p99.9 "
                 "(p50 in a tight loop).")
        tables.append(details("Every size", f"{words}\n\n{markdown(rows)}"))
    return "\n".join(tables)


def _along(result: Result, axis: str) -> list[tuple[int, dict[str, Result]]]:
    """Sizes of an axis, ascending, the others at the base: what every engine took."""
    others = {a: n for a, n in result["base"].items() if a != axis}
    rows = [row for row in result["rows"] if all(row[a] == n for a, n in others.items())]
    sizes = sorted({row[axis] for row in rows})
    return [(size, {row["name"]: row for row in rows if row[axis] == size}) for size in sizes]


def size_curves(
    result: Result,
) -> dict[str, dict[str, tuple[dict[float, float], dict[float, float]]]]:
    """By the words for an axis and by engine: medians against size, paced and in a tight loop."""
    engines = dict.fromkeys(row["name"] for row in result["rows"])
    return {
        AXES[axis][1]: {
            engine: tuple({size: found[engine][key]["p50"] for size, found in _along(result, axis)}
                          for key in ("step_us", "step_hot_us"))
            for engine in engines
        }
        for axis in result["axes"]
    }


def plans_table(results: Sequence[Result]) -> str:
    """A row a GPU plan that was built: model, form, precision, target, size and time."""
    tables = []
    for result in results:
        rows = [[f"{result['product']} {result['version']}", "form", "precision", "target",
                 "graph, MB", "plan, MB", "seconds to build", "of CPU"]]
        for plan in result["plans"]:
            rows.append([f"{plan['model']} ({plan['parameters'] / 1e6:.1f} M, {plan['units']} "
                         f"units, window {plan['window']})",
                         plan["form"], plan["precision"], plan["target"],
                         f"{plan['graph_bytes'] / 1e6:.1f}", f"{plan['plan_bytes'] / 1e6:.1f}",
                         f"{plan['build_s']:.1f}", f"{plan['build_cpu_s']:.1f}"])
        tables.append(markdown(rows))
    return "\n".join(tables)


def _cells(figure: dict[str, float] | None) -> list[str]:
    if not figure:
        return [NONE] * 4
    return [f"{figure[key] / 1e3:.3f}" for key in ("p50", "p99", "p999", "max")]


def _share(cpu_us: float | None, period_us: float) -> str:
    return NONE if cpu_us is None else f"{100 * cpu_us / period_us:.1f} %"


def _differ(value: float | None) -> str:
    return f"{value:.0e}" if value else NONE


def _steps(row: dict[str, Any]) -> str:
    paced = row["step_us"]
    return (f"{paced['p50']:.0f} / {paced['p99']:.0f} / {paced['p999']:.0f} "
            f"({row['step_hot_us']['p50']:.0f})")
