"""Compile the C++ for systems that are not here, with the clang of `pip install ziglang`.

    python tools/check_portable.py [--target aarch64-linux-gnu ...] [--json]

Every source of the extension is compiled to an object file, warnings included, for Linux on both
processors; on macOS and Windows, whose Python headers are not here, the step's kernels and all
headers are. Nothing is linked or run: that is what the wheels' own machines are for. Exit code 4 if
one does not compile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from neds_rt.errors import NedsError, StartError  # noqa: E402

SOURCES = ROOT / "rt" / "src"
TARGETS = ("x86_64-linux-gnu", "aarch64-linux-gnu", "x86_64-macos", "aarch64-macos",
           "x86_64-windows-gnu")
FLAGS = ("-std=c++20", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Wconversion",
         "-Wno-sign-conversion", "-fno-math-errno", "-fno-trapping-math")
X86 = {"avx2": ("-mavx2", "-mfma"),
       "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma")}


def main(argv: list[str] | None = None) -> int:
    """Compile for every target; 4 if something does not."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, help="only these")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    try:
        rows = [row for target in args.target or TARGETS for row in compiled(target)]
    except NedsError as error:
        print(f"check_portable: {error}", file=sys.stderr)
        return error.exit_code
    bad = [row for row in rows if row["errors"]]
    for row in bad:
        print(f"{row['target']} {row['source']}: {row['errors']}", file=sys.stderr)
    counts = {t: sum(r["target"] == t for r in rows) for t in dict.fromkeys(r["target"]
                                                                           for r in rows)}
    warnings = sum(int(str(row["warnings"])) for row in rows)
    print(json.dumps({"compiled": counts, "failed": len(bad), "warnings": warnings})
          if args.json else f"objects: {counts}, failed: {len(bad)}, warnings: {warnings}")
    return 4 if bad else 0


def compiled(target: str) -> list[dict[str, object]]:
    """Compile what can be for one target and return a row an object."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        everything = Path(scratch) / "headers.cpp"
        headers = sorted(path.name for path in SOURCES.glob("*.hpp")
                         if path.name not in ("buffers.hpp", "step_math.hpp", "step_weights.hpp"))
        everything.write_text("".join(f'#include "{name}"\n' for name in headers))
        jobs = [(everything, ()), (SOURCES / "step.cpp", ()), (SOURCES / "step_kernels.cpp", ())]
        if target.startswith("x86_64"):
            jobs += [(SOURCES / "step_kernels.cpp", (f"-DNEDS_ISA={isa}", *flags))
                     for isa, flags in X86.items()]
        if "linux" in target:
            jobs += [(path, _python()) for path in sorted(SOURCES.glob("bind*.cpp"))]
        for source, more in jobs:
            command = [sys.executable, "-m", "ziglang", "c++", "-target", target, *FLAGS, *more,
                       f"-I{SOURCES}", "-c", str(source), "-o", f"{scratch}/object.o"]
            done = subprocess.run(command, capture_output=True, text=True)
            if "No module named ziglang" in done.stderr:
                raise StartError("ziglang is needed: pip install ziglang")
            lines = done.stderr.splitlines()
            error = next((line for line in lines if "error:" in line), "no reason given")
            rows.append({"target": target, "source": source.name, "flags": list(more)[:1],
                         "errors": error if done.returncode else "",
                         "warnings": sum("warning:" in line for line in lines)})
    return rows


def _python() -> tuple[str, ...]:
    """Include paths of Python and nanobind, as system headers."""
    import nanobind

    return ("-isystem", sysconfig.get_path("include"), "-isystem", nanobind.include_dir())


if __name__ == "__main__":
    sys.exit(main())
