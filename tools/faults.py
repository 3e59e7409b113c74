"""Break a rig in every way we know, many times at random moments, and hold the server to its word.

    python tools/faults.py --quick
    python tools/faults.py --runs 20 --json --out bench/results/faults.json

For every fault: how many decodes were wrong and claimed to be valid (must be none), how many bins
were lost without being reported (none), how long after the fault's beginning the first invalid
decode was published, and how long after its end the first valid one. Between two runs the rig is
well for a random while. Ends with exit code 4 if a decode was wrong and valid, a loss unreported,
or the alarm later than one bin and 5 ms above the transport floor at p99.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds_rt.wire import Decode  # noqa: E402
from tools.fault_rig import BIN_S, SHAPE, Rig, judge  # noqa: E402
from tools.fault_table import FAULTS, Episode, Fault  # noqa: E402

WELL = SHAPE.window + 5  # bins until decodes must be valid again
MOST_WELL = 400  # and after which a recovery counts as failed
SLACK_MS = 5.0
CLOCKS_KNOWN = 250  # bins after which the server knows the streams' clocks and pace


def break_often(name: str, fault: Fault, runs: int, seed: int) -> dict[str, Any]:
    """Run one fault many times on one rig and return its row."""
    with Rig(seed, *fault.options, engine=fault.engine) as rig:
        episodes, failed = [], 0
        for _ in range(CLOCKS_KNOWN):
            rig.tick()
        get_well(rig)
        floor = transport_floor(rig)
        for _ in range(runs):
            for _ in range(int(rig.rng.integers(WELL, 2 * WELL))):
                rig.tick()
            episodes.append(fault.do(rig))
            failed += not get_well(rig)
        summary = rig.end()
        verdict = judge(rig, summary)
        alarms, recoveries = times(rig.decodes, episodes)
        reasons = {d.reason for d in rig.decodes if not d.valid}
    return {
        "fault": name, "runs": runs, "alarm_expected": fault.alarm,
        "wrong_and_valid": len(verdict.wrong), "valid_checked": verdict.checked,
        "unreported_lost": verdict.unreported, "never_recovered": failed,
        "alarms": len(alarms), "to_invalid_ms": spread(alarms),
        "to_recover_ms": spread(recoveries), "floor_ms": floor,
        "reasons": sorted(reasons - {"warming up"}),
        "counters": {k: v for k, v in summary.get("counters", {}).items()
                     if v and k not in ("frames", "spikes", "bins")},
    }


def get_well(rig: Rig) -> bool:
    """Tick until decodes are valid; False if they never are."""
    rig.catch_up()
    for _ in range(MOST_WELL):
        sent = rig.tick()
        valid = [d for d in rig.decodes[-3:] if d.valid and d.pub_ns > sent - int(3e9 * BIN_S)]
        if len(valid) == 3:
            return True
    return False


def transport_floor(rig: Rig) -> float:
    """Return the p99 of frame sent to decode published, in ms, while all is well."""
    sent = {}
    for _ in range(50):
        index = rig.index
        sent[index] = rig.tick()
    rig.tick()
    found = [(d.pub_ns - sent[d.bin]) / 1e6 for d in rig.decodes if d.valid and d.bin in sent]
    return round(float(np.percentile(found, 99)), 3)


def times(
    decodes: Sequence[Decode], episodes: Sequence[Episode]
) -> tuple[list[float], list[float]]:
    """Return ms to the first invalid decode and from the end to the first valid one, by run."""
    alarms, recoveries = [], []
    for k, (began, ended) in enumerate(episodes):
        until = episodes[k + 1].began if k + 1 < len(episodes) else sys.maxsize
        invalid = [d.pub_ns for d in decodes if began <= d.pub_ns < until and not d.valid]
        if invalid:
            alarms.append((invalid[0] - began) / 1e6)
            after = max(ended, invalid[0])
            valid = [d.pub_ns for d in decodes if after <= d.pub_ns < until and d.valid]
            if valid:
                recoveries.append((valid[0] - ended) / 1e6)
    return alarms, recoveries


def spread(values: list[float]) -> dict[str, float] | None:
    """Return p50, p99 and max of times in ms, None for none."""
    if not values:
        return None
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2),
            "max": round(max(values), 2)}


def passed(row: dict[str, Any]) -> bool:
    """Whether the server kept its word."""
    if row["wrong_and_valid"] or row["unreported_lost"] or row["never_recovered"]:
        return False
    if not row["alarm_expected"]:
        return True
    limit = row["floor_ms"] + 1e3 * BIN_S + SLACK_MS
    return bool(row["alarms"] == row["runs"] and row["to_invalid_ms"]["p99"] <= limit)


def show(row: dict[str, Any]) -> str:
    """Return a row for people."""
    alarm, well = row["to_invalid_ms"], row["to_recover_ms"]
    told = "no alarm" if alarm is None else f"{alarm['p50']:.1f} / {alarm['p99']:.1f} ms"
    back = "" if well is None else f"{well['p50']:.0f} / {well['p99']:.0f} ms"
    return (f"{row['fault']:<24} wrong and valid {row['wrong_and_valid']} of "
            f"{row['valid_checked']:<6} unreported {row['unreported_lost']}  alarm {told:<18} "
            f"well again {back:<18} {'ok' if passed(row) else 'FAILED'}  "
            f"{', '.join(row['reasons'])}")


def main() -> int:
    """Run the faults and report; returns 4 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="of each fault (default 20)")
    parser.add_argument("--quick", action="store_true", help="two runs of each")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which (default: all)")
    parser.add_argument("--seed", type=int, default=101, help="of spikes and moments")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write that object here")
    args = parser.parse_args()
    rows = []
    for name in args.faults.split(","):
        rows.append(break_often(name, FAULTS[name], 2 if args.quick else args.runs, args.seed))
        print(show(rows[-1]), flush=True)
    report = {"passed": all(map(passed, rows)), "faults": rows}
    finish("tools/faults", args, report, lambda _: None)  # the rows were printed as they came
    return 0 if report["passed"] else 4


if __name__ == "__main__":
    sys.exit(main())
