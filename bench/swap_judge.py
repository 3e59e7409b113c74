"""What came of swaps and fail-overs under load: missing, wrong and late decodes, a verdict."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.swap_rig import BIN_S, Rig, counts_of, said, truth
from neds_rt.bundle import Bundle
from neds_rt.stats import percentiles

AFTER_BINS = 3  # of a change that count as around it
MOST_LATE = 1  # bins at one fail-over
FAILED_OVER = "failed over"
# Reading, building and warming hold the interpreter at times; replaying hardly does.
PHASES = ("elsewhere", "read, build, warm", "replay, shadow", "around the change")


def judge(rig: Rig, bundles: dict[str, Bundle]) -> dict[str, Any]:
    """Count what is missing, wrong and late, and set latencies around changes beside the rest."""
    counts = counts_of(rig.sent, len(next(iter(bundles.values())).manifest.units))
    expected = {b.manifest.model_hash: truth(b, counts) for b in bundles.values()}
    wrong, worst = 0, 0.0
    for _, decode in rig.rows:
        known = expected.get(decode.model)
        error = np.inf if known is None else float(np.abs(said(decode) - known[decode.bin]).max())
        wrong += not error <= 1e-5
        worst = max(worst, error)
    bins = np.array([row.decode.bin for row in rig.rows])
    arrival = np.array([row.arrival_ns for row in rig.rows])
    late_us = (arrival - rig.due_ns[bins]) / 1e3
    service = np.array([row.decode.service_us for row in rig.rows])
    phase = phases(rig, arrival)
    model = np.array([row.decode.model for row in rig.rows])

    def by_model(values: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
        """Percentiles by model, since one costs ten times the other, and by phase."""
        return {name: {p: percentiles(values[(phase == p) & (model == b.manifest.model_hash)])
                       for p in PHASES} for name, b in bundles.items()}

    return {
        "bins": rig.sent, "decodes": len(rig.rows), "missed": rig.sent - len(set(bins.tolist())),
        "twice": len(bins) - len(set(bins.tolist())), "wrong_model": wrong, "largest_error": worst,
        "late": {name: int((late_us[phase == name] > BIN_S * 1e6).sum()) for name in PHASES},
        "decodes_by_phase": {name: int((phase == name).sum()) for name in PHASES},
        "service_us": by_model(service), "arrival_us": by_model(late_us),
    }


def phases(rig: Rig, arrival: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return the phase of every decode; a change is the first decode of another model or engine."""
    phase = np.full(len(rig.rows), PHASES[0], dtype="U20")
    for change in rig.changes:
        seconds = change.report["seconds"]
        built = change.end_ns - 1e9 * sum(seconds[k] for k in ("replay", "shadow", "swap"))
        begun = built - 1e9 * sum(seconds[k] for k in ("read", "build", "warm"))
        phase[(arrival >= begun) & (arrival < built)] = PHASES[1]
        phase[(arrival >= built) & (arrival <= change.end_ns)] = PHASES[2]
    for i, (before, now) in enumerate(pairwise(row.decode for row in rig.rows), start=1):
        if now.model != before.model or now.reason == FAILED_OVER:
            phase[i : i + AFTER_BINS] = PHASES[3]
    return phase


def at_failure(rig: Rig, before: int) -> dict[str, Any]:
    """Return how late decodes were around the fail-overs, and whether the late ones said so.

    Around one are the `before` bins that the failing engine still decoded, the first one of the
    standby and those after it. Late is what the server wrote more than a bin after it was sent: a
    sender or a client that was held up itself is not the server's lateness.
    """
    written = np.array([row.decode.pub_ns for row in rig.rows])
    sent = rig.sent_ns[[row.decode.bin for row in rig.rows]]
    late = written - sent > BIN_S * 1e9
    places = [i for i, row in enumerate(rig.rows) if row.decode.reason == FAILED_OVER]
    around = [range(max(0, i - before), min(len(late), i + AFTER_BINS)) for i in places]
    told = [[rig.rows[k].decode.reason for k in rows if late[k]] for rows in around]
    reasons = Counter(reason for found in told for reason in found)
    return {
        "reported": len(places), "late_at_failure": sum(map(len, told)),
        "late_at_one_failure": max(map(len, told), default=0),
        "late_unreported": reasons["ok"], "late_reasons": dict(sorted(reasons.items())),
        "late_after_us": percentiles((written - sent)[[k for rows in around for k in rows]] / 1e3),
        "service_us_at_failure": percentiles(
            np.array([rig.rows[i].decode.service_us for i in places])),
    }


def broken(report: dict[str, Any]) -> list[str]:
    """Return what does not hold, a line each: every figure that should be none and is not."""
    lines = []
    for part, words in (("swaps", "swaps"), ("failovers", "engines killed"),
                        ("slow", "slow engines")):
        found = report.get(part)
        if found is None:
            continue
        asked = found["asked"]
        lines += [f"{words}: {found[key]} decodes {text}" for key, text in (
            ("missed", "missed"), ("twice", "sent twice"),
            ("wrong_model", "that are not those of the model they name")) if found[key]]
        if part == "swaps":
            if found["swaps"] != asked:
                lines.append(f"{words}: {found['swaps']} of {asked} seen in the decodes")
            continue
        for key, text in (("failed_over", "ended in a fail-over"),
                          ("reported", "are told by a decode")):
            if found[key] != asked:
                lines.append(f"{words}: {found[key]} of {asked} {text}")
        if found["late_at_one_failure"] > MOST_LATE:
            lines.append(f"{words}: {found['late_at_one_failure']} bins late at one fail-over, "
                         f"at most {MOST_LATE} expected")
        if found["late_unreported"]:
            lines.append(f"{words}: {found['late_unreported']} late bins at a fail-over that said "
                         "they were ok")
    return lines
