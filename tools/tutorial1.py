"""Run tutorial 1 as a reader would, in a new environment, and keep its pictures.

    python tools/tutorial1.py [--wheel neds-*.whl] [--python PYTHON] [--out docs/images] [--json]

Makes an environment, installs the project (or --wheel) with what the tutorial names, and runs every
block of `docs/tutorials/1-sorted-recording.md` in an empty folder, timed. With --python that
environment is used as it is. The two pictures of the page go to --out. Exit code 4 if a block fails
or the whole takes longer than the title promises.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from neds_rt.errors import BadInput, CheckFailed, NedsError  # noqa: E402
from neds_rt.machine import machine_facts  # noqa: E402
from tools.docs_blocks import blocks, free_ports, run_block  # noqa: E402

PAGE = ROOT / "docs" / "tutorials" / "1-sorted-recording.md"
PACKAGES = ("pandas",)
EXTRAS = "[train,sorting,dashboard]"
PROMISED_S = 15 * 60
COLOURS = 128  # of a picture that is kept: half the size, and nobody sees it
PICTURES = {"live.png": "tutorial1-live.png",
            "runs/monday-report/monday.traces.png": "tutorial1-report.png"}


def main(argv: list[str] | None = None) -> int:
    """Install, run, keep the pictures; 4 if a block fails."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="install this instead of building the checkout")
    parser.add_argument("--python", type=Path, help="interpreter of an environment that is ready")
    parser.add_argument("--out", type=Path, help="folder for the pictures (none are kept)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    began = time.monotonic()
    try:
        if args.out and find_spec("PIL") is None:
            raise BadInput("--out", "Pillow", "not installed", "pip install pillow")
        with tempfile.TemporaryDirectory(prefix="neds-tutorial-") as scratch:
            python = args.python or install(Path(scratch), args.wheel)
            installed_s = time.monotonic() - began
            folder = Path(scratch) / "reader"
            folder.mkdir()
            rows = run(folder, python)
            keep(folder, args.out)
    except NedsError as error:
        print(f"tutorial1: {error}", file=sys.stderr)
        return error.exit_code
    total = time.monotonic() - began
    facts = {"install_s": round(installed_s, 1), "blocks": rows, "total_s": round(total, 1),
             "promised_s": PROMISED_S, "machine": machine_facts()}
    print(json.dumps(facts) if args.json else
          f"{len(rows)} blocks, installed in {installed_s:.0f} s, {total:.0f} s in all")
    return 0 if total < PROMISED_S else 4


def install(scratch: Path, wheel: Path | None) -> Path:
    """Make a new environment with the project in it and return its interpreter."""
    folder = scratch / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    project = f"{(wheel or ROOT).resolve()}{EXTRAS}"
    torch = os.environ.get("NEDS_CI_TORCH")  # a build of torch to take, as .ci/run has it
    for packages in ([torch] if torch else [], [project, *PACKAGES]):
        if packages:
            done = subprocess.run([python, "-m", "pip", "install", "-q", *packages],
                                  capture_output=True, text=True)
            if done.returncode:
                raise CheckFailed(f"pip install {' '.join(packages)}: {done.stderr[-500:]}")
    return python


def run(folder: Path, python: Path) -> list[dict[str, Any]]:
    """Run the page's blocks in a folder and return where each stands and how long it took."""
    ports, rows = free_ports(), []
    for block in blocks(PAGE):
        if not block.runs:
            continue
        began = time.monotonic()
        try:
            done = run_block(block, folder, ports, python=str(python), timeout=PROMISED_S)
        except subprocess.TimeoutExpired:
            raise CheckFailed(f"{block.page}:{block.line}: not done in {PROMISED_S} s") from None
        if done.returncode:
            raise CheckFailed(f"{block.page}:{block.line}: {done.stderr[-500:]}")
        seconds = time.monotonic() - began
        last = done.stdout.strip().splitlines()[-2:]
        rows.append({"line": block.line, "language": block.language, "seconds": round(seconds, 1),
                     "printed": [line[:200] for line in last]})
        print(f"line {block.line}: {seconds:.1f} s", file=sys.stderr)
    return rows


def keep(folder: Path, out: Path | None) -> None:
    """Keep the pictures that the page shows, in few colours; each has to be there, kept or not."""
    for made, name in PICTURES.items():
        if not (folder / made).is_file():
            raise CheckFailed(f"the tutorial made no {made}")
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            reduce(folder / made, out / name)


def reduce(made: Path, kept: Path) -> None:
    """Write a picture again with a palette of `COLOURS` colours."""
    from PIL import Image

    with Image.open(made) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(kept, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
