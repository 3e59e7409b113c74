"""The GPU suite: build, test and measure every engine on a bare machine with a GPU, offline.

    python tools/gpu_suite.py --wheels .whl --out gpu.json            everything, under 9 minutes
    python tools/gpu_suite.py --wheels .whl --out gpu.json --quick    about 3 minutes
    python tools/gpu_suite.py --out dry.json --dry-run                what needs no GPU

Needs Python 3.11 or later, torch with CUDA, numpy, nvcc, cmake, ninja, scikit-build-core, nanobind
and pytest; what is missing beside (msgspec, pyzmq) comes as wheels in the folder `--wheels`.
The project is built with its GPU step into a temporary folder, so nothing is installed. Results
are written after every part: a run that is cut off leaves what it had. Every part has a budget, and
engines are measured in the order in which they are wanted (tools/gpu_plan.py), so that the whole
ends in time; a GPU that hangs ends it at the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("3.2M", "1M", "12M")
PARTS = ("tests", "floor", "spread", "engines", "paced")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0, or 4 when a part failed."""
    args = parse(argv)
    if args.inside:
        sys.path.insert(0, str(ROOT))
        from tools.gpu_parts import run_parts

        return run_parts(args)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="neds-gpu-") as folder:
        site = Path(folder) / "site"
        environment = dict(os.environ)
        if not args.dry_run:
            seconds = build(site, args)
            print(f"built in {seconds:.0f} s", flush=True)
            paths = [str(site), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        given = sys.argv[1:] if argv is None else argv
        left = args.limit_s - (time.monotonic() - started)
        words = [sys.executable, str(Path(__file__).resolve()), "--inside", *given,
                 "--limit-s", f"{left:.1f}"]
        return subprocess.run(words, env=environment, cwd=ROOT).returncode


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the arguments; unknown parts end with exit code 2."""
    parser = argparse.ArgumentParser(description="Build, test and measure on a machine with a GPU.")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--only", default=",".join(p for p in PARTS if p != "spread"),
                        help=f"some of {','.join(PARTS)} (default all but spread, which compares "
                             "ways to lay out the kernel)")
    parser.add_argument("--models", default=",".join(MODELS),
                        help=f"sizes to measure, the first one most (default {','.join(MODELS)})")
    parser.add_argument("--quick", action="store_true", help="fewer steps and candidates")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU, no build")
    parser.add_argument("--architectures", default="native", help="of the build, as CMake has them")
    parser.add_argument("--limit-s", type=float, default=530.0,
                        help="seconds for everything, building included (530)")
    parser.add_argument("--commit", default="", help="commit to report, where git cannot say")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.only = args.only.split(",")
    args.models = args.models.split(",")
    for model in args.models:
        if model not in MODELS:
            parser.error(f"--models: found {model!r}, expected some of {', '.join(MODELS)}")
    for part in args.only:
        if part not in PARTS:
            parser.error(f"--only: found {part!r}, expected some of {', '.join(PARTS)}")
    return args


def build(site: Path, args: argparse.Namespace) -> float:
    """Install the wheels and the project with its GPU step into `site`; returns the seconds."""
    start = time.monotonic()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile",
           "--target", str(site)]
    wheels = sorted(map(str, args.wheels.glob("*.whl"))) if args.wheels else []
    if wheels:
        subprocess.run([*pip, "--no-index", "--no-cache-dir", *wheels], check=True)
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-index", str(ROOT),
         "-C", "cmake.define.NEDS_CUDA=ON", "-C", f"build-dir={site.parent / 'build'}",
         "-C", f"cmake.define.CMAKE_CUDA_ARCHITECTURES={args.architectures}"],
        check=True,
    )
    return time.monotonic() - start


class Report:
    """The JSON file, written anew after every part."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.data = path, head
        self.failed: list[str] = []

    def part(self, name: str, work: Callable[[list[Any]], None]) -> None:
        """Run a part, which appends its rows; what it raises is a row too, and the next part runs.
        """
        start = time.monotonic()
        rows = self.data[name] = []
        try:
            work(rows)
        except Exception as error:  # a part may fail in any way, the others shall still run
            import traceback

            traceback.print_exc()
            rows.append({"error": f"{type(error).__name__}: {error}"})
            self.failed.append(name)
        self.data.setdefault("seconds", {})[name] = round(time.monotonic() - start, 1)
        print(f"-- {name}: {self.data['seconds'][name]} s", flush=True)
        self.write()

    def give_up_after(self, seconds: float) -> None:
        """End the program then, with what there is: a GPU that hangs cannot be waited for."""
        def give_up() -> None:
            self.data["gave_up_after_s"] = seconds
            self.write()
            print(f"gave up after {seconds:g} s; written: {self.path}", flush=True)
            os._exit(4)

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()

    def write(self) -> None:
        """Replace the file as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)


if __name__ == "__main__":
    sys.exit(main())
