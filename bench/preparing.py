"""Preparing hundreds of hour-long sessions: how many a minute, how much memory, what a kill costs.

    python bench/preparing.py --json --out bench/results/preparing.json

Writes synthetic recordings as ALF folders (an animal of its own each; `--recordings` of them, hard
links under further names make up the rest, which reading cannot tell apart), then runs
`neds prepare --jobs`, kills all its processes with SIGKILL at a random moment, runs the same
command again, and once more when all is done. `peak_mb` is the largest sum of resident memory of
all its processes, looked at every 50 ms.

Ends with exit code 4 if a session that was finished before the kill is read again, one is missing
in the end, a file was left behind, or memory passes `--at-most` MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds.data.alf_write import write_alf  # noqa: E402
from neds.data.synthetic import synthetic_session  # noqa: E402
from neds_rt.synthetic import SyntheticAnimal  # noqa: E402

NOTE = Path("alf") / "_neds_session.neds.json"  # where an ALF folder of ours names its session
LOOK_S = 0.05


def make_folders(folder: Path, args: argparse.Namespace) -> list[Path]:
    """Write the recordings and their links; returns a folder for every session."""
    made = []
    for i in range(args.sessions):
        target = folder / f"synthetic-{i:04d}"
        if i < args.recordings:
            animal = SyntheticAnimal(args.seed + i, args.units)
            write_alf(synthetic_session(animal, args.seconds), target)
            print(f"recording {i + 1} of {args.recordings}", file=sys.stderr)
        else:
            shutil.copytree(made[i % args.recordings], target, copy_function=os.link)
        rename_session(target / NOTE, target.name)
        made.append(target)
    return made


def rename_session(note: Path, name: str) -> None:
    """Give a folder its own session name, in a file of its own."""
    text = json.dumps(json.loads(note.read_text()) | {"session": name})
    note.unlink()  # it may be a link
    note.write_text(text)


class Prepare:
    """`neds prepare` in a process group of its own, watched."""

    def __init__(self, sources: Path, out: Path, jobs: int) -> None:
        self.began = time.monotonic()
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed by end()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "neds", "prepare", "--reader", "ibl", "--eids", str(sources),
             "--out", str(out), "--jobs", str(jobs), "--json"],
            stdout=self._output, stderr=subprocess.DEVNULL, start_new_session=True)
        self.peak_mb = 0.0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while self.process.poll() is None:
            self.peak_mb = max(self.peak_mb, resident_mb(self.process.pid))
            time.sleep(LOOK_S)

    def kill(self) -> None:
        """End all of its processes at once, if there are any left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> tuple[float, dict[str, Any]]:
        """Wait for it; returns seconds and what it said last, nothing after a kill."""
        code = self.process.wait()
        seconds = time.monotonic() - self.began
        self._thread.join()
        self._output.seek(0)
        lines = self._output.read().splitlines()
        self._output.close()
        return seconds, json.loads(lines[-1]) if code == 0 else {}


def resident_mb(group: int) -> float:
    """Return the resident memory of all processes of a session, in MB."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == group:
            pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prepare, kill, go on, and look again."""
    folders = make_folders(folder / "alf", args)
    sources, out = folder / "sources.txt", folder / "sessions"
    sources.write_text("\n".join(map(str, folders)) + "\n")
    first = Prepare(sources, out, args.jobs)
    kill_at = random.Random(args.seed).uniform(0.3, 0.7) * args.sessions
    while first.process.poll() is None and len(list(out.glob("*.h5"))) < kill_at:
        time.sleep(LOOK_S)
    time.sleep(random.Random(args.seed + 1).uniform(0, 2))
    first.kill()
    killed_s, _ = first.end()
    finished = len(list(out.glob("*.h5")))
    resumed = Prepare(sources, out, args.jobs)
    resumed_s, told = resumed.end()
    again = Prepare(sources, out, args.jobs)
    again_s, told_again = again.end()
    return {
        "sessions": args.sessions, "recordings": args.recordings, "seconds": args.seconds,
        "units": args.units, "jobs": args.jobs,
        "input_mb_a_session": size_mb(folders[0]),
        "output_mb_a_session": round(size_mb(out) / args.sessions, 1),
        "sessions_a_minute": round(args.sessions / (killed_s + resumed_s) * 60, 2),
        "peak_mb": round(max(first.peak_mb, resumed.peak_mb)),
        "killed": {"after_s": round(killed_s, 1), "finished": finished},
        "resumed": {"seconds": round(resumed_s, 1), "skipped": told["skipped"],
                    "failed": len(told["failed"])},
        "nothing_left_to_do": {"seconds": round(again_s, 1), "skipped": told_again["skipped"]},
        "left_behind": sorted(p.name for p in out.iterdir() if p.suffix != ".h5"),
        "there": len(list(out.glob("*.h5"))),
    }


def size_mb(folder: Path) -> float:
    """Return the bytes of a folder's files, in MB."""
    return round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6, 1)


def passed(found: dict[str, Any], at_most_mb: float) -> bool:
    """Whether nothing was lost, read twice or left behind, in the memory allowed."""
    return bool(found["there"] == found["sessions"] and not found["left_behind"]
                and found["resumed"]["skipped"] == found["killed"]["finished"]
                and found["nothing_left_to_do"]["skipped"] == found["sessions"]
                and found["peak_mb"] <= at_most_mb)


def show(report: dict[str, Any]) -> None:
    """Print the result for people."""
    print(f"{report['sessions']} sessions of {report['seconds']:g} s and {report['units']} units: "
          f"{report['sessions_a_minute']} a minute with {report['jobs']} jobs, at most "
          f"{report['peak_mb']} MB; killed with {report['killed']['finished']} finished, of which "
          f"{report['resumed']['skipped']} were not read again")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns 4 if something was lost or memory passed the limit."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--recordings", type=int, default=10, help="different ones (default 10)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of each (default 3600)")
    parser.add_argument("--units", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--at-most", type=float, default=2000.0, help="MB (default 2000)")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--folder", type=Path, help="where it all lies for a while")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write that object here")
    args = parser.parse_args(argv)
    args.recordings = min(args.recordings, args.sessions)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="neds-preparing-") as name:
        found = measure(args, Path(name))
    found["passed"] = passed(found, args.at_most)
    finish("preparing", args, found, show)
    return 0 if found["passed"] else 4


if __name__ == "__main__":
    sys.exit(main())
