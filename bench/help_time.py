"""CPU time of `neds-rt --help` and `neds --help`: user plus system seconds of a fresh process.

    python bench/help_time.py --json

Ends with exit code 4 if a median is above its limit (0.15 s and 0.35 s).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

LIMITS_S = {"neds-rt": 0.15, "neds": 0.35}


def cpu_seconds(command: list[str]) -> float:
    """Run `command` once and return the CPU seconds it and its children used."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Return median, worst and limit per program; the programs take turns."""
    scripts = {name: str(Path(sys.executable).parent / name) for name in LIMITS_S}
    times: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(runs + 1):
        for name, path in scripts.items():
            times[name].append(cpu_seconds([path, "--help"]))
    return {
        name: {
            "median_s": statistics.median(values[1:]),  # the first run reads files from disk
            "max_s": max(values[1:]),
            "limit_s": LIMITS_S[name],
        }
        for name, values in times.items()
    }


def main() -> int:
    """Print the figures and return 0, or 4 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="measured runs a program (default 9)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    found = measure(args.runs)
    if args.json:
        print(json.dumps({"command": " ".join(sys.argv), "help_cpu": found}))
    else:
        for name, row in found.items():
            print(f"{name:8s} median {row['median_s']:.3f} s, limit {row['limit_s']:.2f} s")
    return 0 if all(row["median_s"] <= row["limit_s"] for row in found.values()) else 4


if __name__ == "__main__":
    sys.exit(main())
