"""How soon the drift alarm sees units dropped, swapped or rate-scaled, and how often it cries wolf.

    python bench/drift.py --data ../shared/data/indy --synthetic 3 --out bench/results/drift.json \\
        --plot docs/images/drift.svg
    python bench/drift.py --data ../shared/data/indy --sessions 2 --synthetic 1 --steps 300
    python bench/drift.py --synthetic 2 --still-hours 4

For every recording a small model is trained, its statistics are fitted as `neds export` does, and
its test part, which neither has seen, is replayed: as it was, to count alarms per hour, and with a
share of the units disturbed from a random moment on, to see whether and when that is noticed within
a minute. The curve moves the limits of both scores by one factor; at 1 they are those shipped. A
disturbance counts as harmful where the decoded R2 of that minute falls by 0.1 or more.

The cells of a recording change by themselves. Those of a synthetic animal do not: with
--still-hours further sessions of each are replayed, every alarm in which is a false one (`still`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench import archives  # noqa: E402
from bench.drift_trials import (  # noqa: E402
    HOLD_S,
    KINDS,
    SCORES,
    Subject,
    crossings,
    found_after,
    further,
    make_subject,
    replay,
    trials,
)
from bench.output import finish  # noqa: E402
from neds.config import load_recipe  # noqa: E402
from neds_rt.errors import BadInput, NedsError  # noqa: E402
from neds_rt.synthetic import SyntheticAnimal  # noqa: E402

FACTORS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
SHARES = (0.1, 0.25, 0.5)
HARM = 0.1  # of R2
SYNTHETIC_UNITS = 120
STILL_S = 1800.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; 2 after bad input."""
    args = parse(argv)
    try:
        report = measure(args)
        finish("drift", args, report, print_table)
        if args.plot:
            from neds.plots.drift import drift_curves
            from neds.plots.style import save

            save(drift_curves(report), Path(args.plot))
    except NedsError as error:
        print(f"drift: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Declare and read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", default="", metavar="DIR", help="archives, as bench/accuracy.py takes them")
    add("--sessions", type=int, default=0, metavar="N", help="only the first N of them (all)")
    add("--synthetic", type=int, default=0, metavar="N", help="and N synthetic animals")
    add("--synthetic-seconds", type=float, default=1200.0, metavar="S", help="length of each")
    add("--still-hours", type=float, default=0.0, metavar="H",
        help="hours of further sessions of each synthetic animal")
    add("--steps", type=int, default=400, help="training steps of each model (%(default)s)")
    add("--hidden", type=int, default=64, help="width of each model (%(default)s)")
    add("--onsets", type=int, default=4, help="moments at which units change (%(default)s)")
    add("--seed", type=int, default=101, help="of models and disturbances (%(default)s)")
    add("--out", default="", metavar="FILE", help="write the result there")
    add("--plot", default="", metavar="FILE", help="and the curves there (.svg, .png, .pdf)")
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run every recording; the report without command, commit and machine."""
    rows: list[dict[str, Any]] = []
    natural: list[dict[str, Any]] = []
    left_out: list[str] = []
    still: list[dict[str, Any]] = []
    for subject in subjects(args, left_out):
        manifest = subject.bundle.manifest
        rng = np.random.default_rng([args.seed, len(natural)])
        gauges, _ = replay(subject, subject.bins)
        health = manifest.health
        assert health is not None
        natural.append({
            "session": manifest.session, "set": subject.kind, "units": len(manifest.units),
            "hours": len(subject.bins) * manifest.bin_size_s / 3600,
            "bits_per_spike_held_back": health.bits_per_spike,
            "bits_per_spike_test": float(np.nanmean(gauges["bits_per_spike"])),
            "firing_limit": health.firing_limit, "likelihood_limit": health.likelihood_limit,
            "hold": subject.in_bins(HOLD_S), "series": {name: gauges[name] for name in SCORES},
        })
        if subject.animal is not None and args.still_hours:
            still.append(watch_still(subject, subject.animal, args.still_hours))
        rows += trials(subject, SHARES, args.onsets, rng)
        print(f"{manifest.session}: {natural[-1]['hours'] * 60:.1f} min of test, "
              f"{len(rows)} trials so far", file=sys.stderr, flush=True)
    if not rows:
        raise BadInput("drift", "recordings", "none", "--data, --synthetic, or both")
    return {
        "false_alarms_per_hour_intended": health.false_alarms_per_hour,
        "smooth_s": health.smooth_s,
        "hours": round(sum(n["hours"] for n in natural), 3), "left_out": left_out,
        "curves": [point for name in SCORES for point in curve(name, natural, rows)],
        "still": still, "cells": cells(rows),
        "sessions": [{k: round(v, 4) if isinstance(v, float) else v for k, v in n.items()
                      if k not in ("series", "hold")}
                     | {f"alarms_{name}": crossings(n["series"][name], 1.0, n["hold"])
                        for name in SCORES} for n in natural],
    }


def subjects(args: argparse.Namespace, left_out: list[str]) -> Iterator[Subject]:
    """Yield every recording with its model, one at a time; those that are too short are named."""
    sizes = [f"train.steps={args.steps}", f"train.seed={args.seed}", f"model.hidden={args.hidden}",
             f"model.mlp={2 * args.hidden}", "model.layers=2"]
    paths = archives.find(args.data) if args.data else []
    if args.data and not paths:
        raise BadInput("--data", args.data, "no archives", "a folder of .npz or .h5 files")
    for path in paths[: args.sessions or None]:
        session = archives.read(str(path), archives.preset_of(path))
        config = load_recipe("indy" if path.stem.startswith("indy") else "single", sizes)
        try:
            yield try_subject(session, config, path.parent.name)
        except BadInput as error:
            left_out.append(str(error))
            print(f"left out: {error}", file=sys.stderr, flush=True)
    for animal in range(args.synthetic):
        from neds.data.synthetic import synthetic_session

        made = SyntheticAnimal(args.seed + animal, SYNTHETIC_UNITS)
        session = synthetic_session(made, args.synthetic_seconds)
        yield replace(try_subject(session, load_recipe("single", sizes), "synthetic"), animal=made)


def try_subject(session: Any, config: Any, kind: str) -> Subject:
    """As `make_subject`, saying which recording is being worked on."""
    print(f"training on {session.session}", file=sys.stderr, flush=True)
    return make_subject(session, config, kind)


def watch_still(subject: Subject, animal: SyntheticAnimal, hours: float) -> dict[str, Any]:
    """Count the alarms in hours of an animal whose cells do not change, at the limits as shipped.

    Sessions of half an hour, the last one of what is left.
    """
    alarms, in_alarm, n = dict.fromkeys(SCORES, 0), 0, 0
    left, session = hours * 3600, 0
    while left > 0:
        session += 1
        gauges, _ = replay(subject, further(subject, animal, min(left, STILL_S), session))
        for name in SCORES:
            alarms[name] += crossings(gauges[name], 1.0, subject.in_bins(HOLD_S))
        in_alarm += int((np.nan_to_num(gauges["drift"]) >= 1).sum())
        n += len(gauges["drift"])
        left -= STILL_S
    return {"session": subject.bundle.manifest.session, "hours": round(hours, 3),
            **{f"alarms_{name}": count for name, count in alarms.items()},
            "false_alarms_per_hour": round(alarms["drift"] / hours, 3),
            "in_alarm": round(in_alarm / n, 4)}


def curve(
    name: str, natural: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of one score: false alarms per hour and detection rates, a point a factor on the limit."""
    hours = sum(n["hours"] for n in natural)
    points = []
    for factor in FACTORS:
        alarms = sum(crossings(n["series"][name], factor, n["hold"]) for n in natural)
        point: dict[str, Any] = {"score": name, "factor": factor,
                                 "false_alarms_per_hour": round(alarms / hours, 3)}
        point["in_alarm"] = round(float(np.concatenate(
            [np.nan_to_num(n["series"][name]) >= factor for n in natural]).mean()), 4)
        for kind in (*KINDS, "all", "harmful"):
            chosen = [r for r in rows if kind in ("all", r["kind"])
                      or (kind == "harmful" and harmful(r))]
            point[kind] = rate(chosen, name, factor)
        points.append(point)
    return points


def rate(rows: list[dict[str, Any]], name: str, factor: float) -> float | None:
    """Share of the trials noticed, of those that were not in alarm before they began."""
    after = [found_after(r["series"][name], factor) for r in rows]
    judged = [a for a in after if a is None or a >= 0]
    return round(sum(a is not None for a in judged) / len(judged), 3) if judged else None


def harmful(row: dict[str, Any]) -> bool:
    """Whether the disturbance cost R2."""
    return bool(row["r2_before"] - row["r2_after"] >= HARM)


def cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each set, kind and share, at the limits as shipped."""
    found = []
    for where in dict.fromkeys(r["set"] for r in rows):
        for kind in KINDS:
            for share in SHARES:
                cell = (where, kind, share)
                mine = [r for r in rows if (r["set"], r["kind"], r["share"]) == cell]
                seen = [(found_after(r["series"]["drift"], 1.0), r["bin_s"]) for r in mine]
                delays = [a * s for a, s in seen if a is not None and a >= 0]
                found.append({
                    "set": where, "kind": kind, "share": share, "trials": len(mine),
                    **{name: rate(mine, name, 1.0) for name in SCORES},
                    "seconds_median": round(float(np.median(delays)), 2) if delays else None,
                    "r2_before": round(float(np.median([r["r2_before"] for r in mine])), 3),
                    "r2_after": round(float(np.median([r["r2_after"] for r in mine])), 3),
                    "harmful": round(float(np.mean([harmful(r) for r in mine])), 3),
                })
    return found


def print_table(report: dict[str, Any]) -> None:
    """Print what matters for people."""
    print(f"{report['hours']:.2f} h of undisturbed test data; limits as shipped: factor 1")
    for p in report["curves"]:
        if p["factor"] in (0.5, 1.0, 2.0):
            print(f"{p['score']:>10} x{p['factor']:<4} {p['false_alarms_per_hour']:6.2f} alarms/h  "
                  f"noticed: all {p['all']}, harmful {p['harmful']}, "
                  + ", ".join(f"{kind} {p[kind]}" for kind in KINDS))
    for s in report["still"]:
        print(f"{s['session']}: {s['alarms_drift']} alarms in {s['hours']:g} h of cells that do "
              f"not change, {s['false_alarms_per_hour']:.2f} an hour")
    for c in report["cells"]:
        print(f"{c['set']:>10} {c['kind']:>8} {c['share']:4.0%}: firing {c['firing']}, likelihood "
              f"{c['likelihood']}, either {c['drift']} after {c['seconds_median']} s; R2 "
              f"{c['r2_before']:.2f} -> {c['r2_after']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
