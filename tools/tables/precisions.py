"""Tables of the CPU engine's precisions: what they change, and how near they are to the floor."""

from __future__ import annotations

from collections.abc import Sequence

from tools.tables.page import NONE, Result, markdown

TIMES = {"read": "reading, in a loop", "step": "step, in a loop", "read_cold": "reading, paced",
         "step_cold": "step, paced", "step_warmed": "step, paced and kept warm"}


def parity_table(results: Sequence[Result]) -> str:
    """A row a session and precision: errors and changes of scores; then the long stream's errors.

    Results are those of `bench/parity.py`.
    """
    tables = []
    for result in results:
        behaviours = list(dict.fromkeys(name for case in result["sessions"]
                                        for name in case["torch"]))
        rows = [["against torch float32", "precision", "largest error", "RMS error",
                 *(f"change of {name}" for name in behaviours)]]
        for case in result["sessions"]:
            scores = ", ".join(f"{name} {score:.3f}" for name, score in case["torch"].items())
            for engine in case["engines"]:
                changes = [engine["score_change"].get(name) for name in behaviours]
                rows.append([f"{case['session']}, {case['bins']} test bins ({scores})",
                             engine["precision"], f"{engine['max']:.1e}", f"{engine['rms']:.1e}",
                             *map(_change, changes)])
        stream = result["stream"]
        for precision, errors in stream.items():
            if isinstance(errors, dict):
                rows.append([f"{stream['session']}, one stream of {stream['bins']} bins", precision,
                             f"{errors['max']:.1e}", f"{errors['rms']:.1e}",
                             *[NONE] * len(behaviours)])
        tables.append(markdown(rows))
    return "\n".join(tables)


def floor_table(results: Sequence[Result]) -> str:
    """A row a precision: median microseconds of reading the bytes and of the step, and their ratio.

    Results are those of `bench/floor.py`.
    """
    tables = []
    for result in results:
        sizes, cases = result["sizes"], result["precisions"]
        keys = [key for key in TIMES if all(key in case["us"] for case in cases)]
        head = (f"{sizes['units']} units, width {sizes['hidden']}, {sizes['layers']} layers, "
                f"window {sizes['window']}; µs (GB/s)")
        rows = [[head, "MB read", *(TIMES[key] for key in keys), "step over reading"]]
        for case in cases:
            times = [f"{case['us'][key]['p50']:.0f} ({case['gb_s'][key]:.0f})" for key in keys]
            rows.append([case["precision"], f"{case['bytes'] / 1e6:.2f}", *times,
                         f"{case['of_floor']:.2f}"])
        tables.append(markdown(rows))
    return "\n".join(tables)


def _change(value: float | None) -> str:
    """A change of a score; one that rounds to nothing has no sign."""
    if value is None:
        return NONE
    return f"{value:+.4f}" if abs(value) >= 0.00005 else "0.0000"
