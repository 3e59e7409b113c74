"""Feed every parser with inputs that look for its weak places, guided by what code they reach.

    python tools/fuzz.py [TARGET ...] [--runs N] [--seconds S] [--json]

Needs atheris (`pip install atheris`), which is libFuzzer for Python. Every target runs in a process
of its own, for N inputs or S seconds, whichever comes first; an input that raises, takes more than
a second or more than `--memory` MB ends it and is kept in `--keep`. `cpp` is the C++ assembler
under address and undefined-behaviour sanitizers. Exit code 4 if anything was found.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TIMEOUT_S = 1  # for one input
MAX_BYTES = 4096
CPP = "cpp"
# Whose branches guide the search: ours, and those parsers of Python that are written in it.
WATCHED = ("neds_rt", "neds.", "tools.fuzz", "json.", "zipfile", "tomllib", "csv", "urllib.parse")
CPP_FLAGS = ("-std=c++20", "-O2", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")
_COVERED = re.compile(r"#\d+\s+\S+\s+cov: (\d+)")


def fuzz_here(name: str, arguments: list[str]) -> None:
    """Run one target in this process, for ever or as libFuzzer's arguments say; never returns."""
    import atheris

    from tools.fuzz_targets import TARGETS

    target = TARGETS[name]
    folder = Path(tempfile.mkdtemp(prefix=f"neds-fuzz-{name}-"))
    for i, seed in enumerate(target.seeds()):
        (folder / f"seed{i}").write_bytes(seed)
        target.run(seed)  # which imports the rest of what it needs
    # Not by atheris' import hook, which does not get past the finder of an editable install.
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and str(thing.__module__).startswith(WATCHED):
            atheris.instrument_func(thing)
    atheris.Setup([sys.argv[0], *arguments, str(folder)], target.run)
    atheris.Fuzz()


def run_target(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one target in a process of its own; returns what came of it."""
    limits = [f"-runs={args.runs}", f"-max_total_time={args.seconds}", f"-timeout={TIMEOUT_S}",
              f"-rss_limit_mb={args.memory}", f"-max_len={MAX_BYTES}", f"-seed={args.seed}",
              f"-artifact_prefix={args.keep}/{name}-", "-print_final_stats=1"]
    command = [sys.executable, str(Path(__file__)), "--one", name, *limits]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)
    row: dict[str, Any] = {"target": name, "inputs": 0, "seconds": time.monotonic() - started}
    if (found := _DONE.search(done.stderr)) is not None:
        row["inputs"] = int(found[1])
    elif (stat := re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)) is not None:
        row["inputs"] = int(stat[1])
    covered = _COVERED.findall(done.stderr)
    row["covered"] = int(covered[-1]) if covered else 0
    row["found"] = "" if done.returncode == 0 else _complaint(done.stderr)
    return row


def run_cpp(args: argparse.Namespace) -> dict[str, Any]:
    """Compile the assembler's own fuzzer with sanitizers and run it until the time is over."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return {"target": CPP, "inputs": 0, "seconds": 0.0, "covered": 0, "found": "no compiler"}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "fuzz"
        source = ROOT / "tests" / "rt" / "assembler_fuzz.cpp"
        subprocess.run([compiler, *CPP_FLAGS, "-I", str(ROOT / "rt" / "src"), str(source), "-o",
                        str(program)], check=True)
        started, inputs, seed, found = time.monotonic(), 0, args.seed, ""
        while not found and inputs < args.runs and time.monotonic() - started < args.seconds:
            seed += 1
            frames = min(400_000, args.runs - inputs)
            done = subprocess.run([str(program), str(seed), str(frames)], capture_output=True,
                                  text=True)
            inputs += frames
            found = "" if done.returncode == 0 else f"seed {seed}: {_complaint(done.stderr)}"
    return {"target": CPP, "inputs": inputs, "seconds": time.monotonic() - started, "covered": 0,
            "found": found}


def _complaint(text: str) -> str:
    """Return the line that says what went wrong, and where its input is kept."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"Error|Exception|ALARM|SUMMARY|Test unit", line)]
    return " | ".join((told or lines[-3:])[:4])[:600]


def main() -> int:
    """Entry point."""
    if sys.argv[1:2] == ["--one"]:
        fuzz_here(sys.argv[2], sys.argv[3:])
    from neds_rt.machine import commit, machine_facts
    from tools.fuzz_targets import TARGETS

    names = [*TARGETS, CPP]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)} (all)")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs a target, at most")
    parser.add_argument("--seconds", type=int, default=60, help="time a target, at most")
    parser.add_argument("--memory", type=int, default=1024, metavar="MB", help="resident, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", default=tempfile.gettempdir(), metavar="DIR",
                        help="where inputs that found something are kept")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    unknown = sorted(set(args.targets) - set(names))
    if unknown:
        parser.error(f"no target {unknown[0]!r}, expected some of {', '.join(names)}")
    rows = []
    for name in args.targets or names:
        row = run_cpp(args) if name == CPP else run_target(name, args)
        rows.append(row)
        if not args.json:
            print(f"{row['target']:12} {row['inputs']:>12,} inputs {row['seconds']:8.1f} s "
                  f"{row['covered']:>6} places  {row['found'] or 'nothing found'}", flush=True)
    total = sum(row["inputs"] for row in rows)
    report = {"command": " ".join(["python tools/fuzz.py", *sys.argv[1:]]), "commit": commit(),
              "inputs": total, "targets": rows, "machine": machine_facts()}
    print(json.dumps(report) if args.json else f"{total:,} inputs in all")
    return 4 if any(row["found"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
