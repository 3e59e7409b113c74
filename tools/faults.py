"""Break a rig in every way we know, many times at random moments, and hold the server to its word.

    python tools/faults.py --quick
    python tools/faults.py --runs 20 --json --out bench/results/faults.json

For every fault: how many decodes were wrong and claimed to be valid (must be none), how many bins
were lost without being reported (none), how long after the fault's beginning the first invalid
decode was published, and how long after its end the first valid one. Between two runs the rig is
well for a random while. Recordings made meanwhile are replayed. Then some of the faults again with
outputs that act: how long after validity was lost they were in their safe state. Ends with exit
code 4 if a decode was wrong and valid, a loss unreported, a recording not what was published, the
alarm later than one bin and 5 ms above the transport floor at p99, or an output safe later than
one bin and 5 ms.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.blackbox import replayed  # noqa: E402
from bench.output import finish  # noqa: E402
from neds_rt.errors import BadInput, NedsError  # noqa: E402
from neds_rt.wire import Decode  # noqa: E402
from tools.fault_judge import judge  # noqa: E402
from tools.fault_rig import BIN_S, SHAPE, Episode, Life, Rig  # noqa: E402
from tools.fault_sinks import NAMES, SAFE_MS, SafeStates  # noqa: E402
from tools.fault_table import FAULTS, Fault  # noqa: E402

WELL = SHAPE.window + 5  # bins until decodes must be valid again
MOST_WELL = 400  # and after which a recovery counts as failed
SLACK_MS = 5.0
CLOCKS_KNOWN = 250  # bins after which the server knows the streams' clocks and pace


def break_often(name: str, fault: Fault, runs: int, seed: int) -> dict[str, Any]:
    """Run one fault many times on one rig and return its row."""
    with fault.rig(seed, *fault.options, engine=fault.engine) as rig:
        settle(rig)
        floor = transport_floor(rig)
        episodes, failed = [], 0
        for _ in range(runs):
            be_well(rig)
            episodes.append(fault.do(rig))
            failed += not get_well(rig)
        rig.end()
        return {"fault": name, "runs": runs, **findings(rig, fault, episodes, failed),
                "floor_ms": floor}


def findings(
    rig: Rig, fault: Fault, episodes: Sequence[Episode], failed: int
) -> dict[str, Any]:
    """Return what the judge says of a rig that was broken, and its times."""
    verdict = judge(rig)
    alarms, recoveries = times(rig.decodes, episodes)
    reasons = {d.reason for d in rig.decodes if not d.valid}
    row: dict[str, Any] = {
        "alarm_expected": fault.alarm,
        "wrong_and_valid": len(verdict.wrong), "valid_checked": verdict.checked,
        "unreported_lost": verdict.unreported, "never_recovered": failed,
        "alarms": len(alarms), "to_invalid_ms": spread(alarms),
        "to_recover_ms": spread(recoveries),
        "reasons": sorted(reasons - {"warming up"}), "counters": counters(rig),
    }
    recordings = replay_all(rig)
    if recordings["replayed"]:
        row["recordings"] = recordings
    return row | {"problems": sorted(set(rig.problems))}


def counters(rig: Rig) -> dict[str, int]:
    """Add up what all servers of a rig counted, but for what is well."""
    total: dict[str, int] = {}
    for life in rig.lives:
        for name, count in life.summary.get("counters", {}).items():
            if count and name not in ("frames", "spikes", "bins"):
                total[name] = total.get(name, 0) + count
    return total


def replay_all(rig: Rig) -> dict[str, int]:
    """Replay what the servers of a rig recorded; what they published has to be in it."""
    found = dict.fromkeys(("replayed", "decodes", "different", "not_held"), 0)
    for path in sorted(rig.folder.glob("tape-*"), key=lambda path: int(path.name[5:])):
        life = rig.lives[int(path.name[5:])]
        try:
            held = replayed(path)
        except NedsError as error:
            rig.problems.append(f"{path.name}: {error}")
            continue
        whole = life.summary.get("recording", {}).get("state") == "complete"
        if whole and not held["complete"]:
            rig.problems.append("a recording that was called complete is not")
        found["replayed"] += 1
        found["decodes"] += held["decodes"]
        found["different"] += held["different"]
        if not held["decodes"]:
            rig.problems.append("a recording holds no decode")
        if whole:
            found["not_held"] += max(0, published(rig, life) - held["decodes"])
    return found


def published(rig: Rig, life: Life) -> int:
    """Return how many decodes of one server were heard."""
    later = [other.began_ns for other in rig.lives if other.began_ns > life.began_ns]
    until = min(later, default=sys.maxsize)
    return sum(life.began_ns <= d.pub_ns < until for d in rig.decodes)


def be_well(rig: Rig) -> None:
    """Let a random while pass in which nothing is wrong."""
    for _ in range(int(rig.rng.integers(WELL, 2 * WELL))):
        rig.tick()


def settle(rig: Rig) -> None:
    """Tick until the server knows clocks and pace, and decodes are valid."""
    for _ in range(CLOCKS_KNOWN):
        rig.tick()
    get_well(rig)


def measure_outputs(name: str, fault: Fault, runs: int, seed: int) -> dict[str, Any]:
    """Run one fault many times with outputs that act; how long they took to be safe."""
    with fault.rig(seed, *fault.options, engine=fault.engine) as rig:
        settle(rig)
        states, episodes, failed = SafeStates(rig), [], 0
        for _ in range(runs):
            be_well(rig)
            outputs = states.open()
            since = time.monotonic()
            episodes.append(fault.do(rig))
            failed += not get_well(rig)
            states.take(outputs, since)
        rig.end()
        found = states.close()
        return {"fault": name, "runs": runs, **{
                    f"{output}_ms": spread(ms) for output, ms in states.ms.items()},
                "limit_ms": SAFE_MS, "missed": states.missed, "early": states.early, **found,
                **{key: value for key, value in findings(rig, fault, episodes, failed).items()
                   if key in ("wrong_and_valid", "valid_checked", "unreported_lost",
                              "never_recovered", "problems")}}


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
    if not kept(row) or any(row.get("recordings", {}).get(k) for k in ("different", "not_held")):
        return False
    if not row["alarm_expected"]:
        return True
    limit = row["floor_ms"] + 1e3 * BIN_S + SLACK_MS
    return bool(row["alarms"] == row["runs"] and row["to_invalid_ms"]["p99"] <= limit)


def kept(row: dict[str, Any]) -> bool:
    """Whether nothing was wrong, untold or lost for good."""
    return row["valid_checked"] > 0 and not (
        row["wrong_and_valid"] or row["unreported_lost"] or row["never_recovered"]
        or row.get("problems"))


def outputs_passed(row: dict[str, Any]) -> bool:
    """Whether outputs were safe in time, every time, and never said what no decode had said."""
    if not kept(row) or row["missed"] or row["wrong_datagrams"]:
        return False
    spreads = [row["ttl_ms"], row["udp_ms"]]
    return all(each is not None and each["p99"] <= row["limit_ms"] for each in spreads)


def show(row: dict[str, Any]) -> str:
    """Return a row for people."""
    alarm, well = row["to_invalid_ms"], row["to_recover_ms"]
    told = "no alarm" if alarm is None else f"{alarm['p50']:.1f} / {alarm['p99']:.1f} ms"
    back = "" if well is None else f"{well['p50']:.0f} / {well['p99']:.0f} ms"
    notes = [*row["reasons"], *row.get("problems", [])]
    return (f"{row['fault']:<24} wrong and valid {row['wrong_and_valid']} of "
            f"{row['valid_checked']:<6} unreported {row['unreported_lost']}  alarm {told:<18} "
            f"well again {back:<18} {'ok' if passed(row) else 'FAILED'}  {', '.join(notes)}")


def show_outputs(row: dict[str, Any]) -> str:
    """Return a row of outputs for people."""
    spreads = [f"{name} {row[key]['p50']:.1f} / {row[key]['p99']:.1f} ms" if row[key] else
               f"{name} never" for name, key in (("TTL", "ttl_ms"), ("UDP", "udp_ms"))]
    return (f"safe: {row['fault']:<18} {'  '.join(spreads)} of {row['limit_ms']:g}  missed "
            f"{row['missed']}  wrong datagrams {row['wrong_datagrams']} of "
            f"{row['datagrams_checked']}  {'ok' if outputs_passed(row) else 'FAILED'}  "
            f"{', '.join(row['problems'])}")


def main() -> int:
    """Run the faults and report; returns 4 if one failed, 2 for a fault that is not known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="of each fault (default 20)")
    parser.add_argument("--quick", action="store_true", help="two runs of each")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which (default: all)")
    parser.add_argument("--outputs", default=",".join(NAMES),
                        help="with which of them outputs are measured (default: "
                             f"{', '.join(NAMES)}); empty for none")
    parser.add_argument("--seed", type=int, default=101, help="of spikes and moments")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write that object here")
    args = parser.parse_args()
    try:
        report = run_all(args, 2 if args.quick else args.runs)
    except NedsError as error:
        print(f"faults: {error}", file=sys.stderr)
        return error.exit_code
    finish("tools/faults", args, report, lambda _: None)  # the rows were printed as they came
    return 0 if report["passed"] else 4


def run_all(args: argparse.Namespace, runs: int) -> dict[str, Any]:
    """Run what was asked for, printing row by row; raises `BadInput` for an unknown fault."""
    faults, outputs = chosen("--faults", args.faults), chosen("--outputs", args.outputs)
    rows, safe = [], []
    for name in faults:
        rows.append(break_often(name, FAULTS[name], runs, args.seed))
        print(show(rows[-1]), flush=True)
    for name in outputs:
        safe.append(measure_outputs(name, FAULTS[name], runs, args.seed))
        print(show_outputs(safe[-1]), flush=True)
    return {"passed": all(map(passed, rows)) and all(map(outputs_passed, safe)), "faults": rows,
            "outputs": safe}


def chosen(option: str, names: str) -> list[str]:
    """Return the faults that an option names; raises `BadInput`."""
    found = [name for name in names.split(",") if name]
    for name in found:
        if name not in FAULTS:
            raise BadInput(option, "fault", repr(name), f"some of {', '.join(FAULTS)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
