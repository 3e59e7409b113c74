"""A rig for an hour: does memory grow, does a descriptor leak, does the tail, is a decode lost?

    python bench/soak.py --minutes 60 --json --out bench/results/soak.json

Two probes send 50 bins a second to `neds-rt serve`, which makes a flight recording; the page of
`neds-rt dashboard` and two sinks watch it, and this client is the third subscriber. All of them
are processes. Memory and open files are read from /proc once a minute. At the end the recording is
replayed and every decode compared. Ends with exit code 4 if memory moved by a megabyte or more or
a descriptor was added after the warm-up (a tenth of the time, at most five minutes), a decode is
missing, the p99.9 of the last sixth is above 1.3 times that of the first, or a decode differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zmq

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from bench.probes import write_model  # noqa: E402
from neds_rt.children import Child  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402
from neds_rt.subscribe import subscribe  # noqa: E402
from neds_rt.wire import decode_message  # noqa: E402

BIN_S = 0.02
LIMIT_MB, LIMIT_TAIL = 1.0, 1.3
START_S, QUIET_S, VERIFY_S = 120.0, 10.0, 3600.0


def resident_mb(pid: int) -> float:
    """Return the memory a process holds in RAM, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 3)


def open_files(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class Watch:
    """Reads what the server holds, once every `every_s`."""

    def __init__(self, pid: int, every_s: float) -> None:
        self._pid, self._every_s, self._start = pid, every_s, time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.look(0)

    def look(self, decodes: int) -> None:
        """Note the state if it is due."""
        passed = time.monotonic() - self._start
        if passed < len(self.rows) * self._every_s:
            return
        row = {"minute": round(passed / 60, 2), "rss_mb": resident_mb(self._pid),
               "files": open_files(self._pid)}
        self.rows.append(row)
        print(f"{row['minute']:6.2f} min  {row['rss_mb']:8.3f} MB  {row['files']} files  "
              f"{decodes} decodes", file=sys.stderr, flush=True)

    def after(self, minutes: float) -> list[dict[str, Any]]:
        """Return what was noted from then on; the last row at least."""
        return [row for row in self.rows if row["minute"] >= minutes] or self.rows[-1:]


def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the rig and return what it held, and what it said."""
    probes = [f"probe{k:02}" for k in range(args.probes)]
    bins, context = round(args.minutes * 60 / BIN_S), zmq.Context()
    recording = folder / "recording"
    with ExitStack() as stack:
        model = write_model(folder / "model.neds", probes, args.units)
        senders = [stack.enter_context(Child(
            name, "neds_rt.latency.sender", "--targets", "1", "--units", str(args.units),
            "--stream", name, "--bin-size", str(BIN_S))) for name in probes]
        given = [f"--probe={name}=zmq+{sender.json(START_S)['uris'][0].removeprefix('zmq+')}"
                 for name, sender in zip(probes, senders, strict=True)]
        server = stack.enter_context(Child(
            "server", "neds_rt", "serve", *given, "--model", str(model), "--engine", args.engine,
            "--out", "tcp://127.0.0.1:*", "--record", str(recording), "--json"))
        words = server.line(START_S).split()
        while words[:1] != ["ready"]:
            words = server.line(START_S).split()
        out = words[1]
        status = next(w for w in words if w.startswith("status=")).removeprefix("status=")
        stack.enter_context(Child("page", "neds_rt", "dashboard", "--no-open", "--port", "0",
                                  "--decodes", out, "--status", status))
        for port in (9, 10):
            stack.enter_context(Child(
                f"sink {port}", "neds_rt", "sink", f"udp://127.0.0.1:{port}", "--from", out))
        decodes_from = subscribe(context, out, START_S)
        watch = Watch(server.pid, args.every)
        for sender in senders:
            sender.tell({"target": 0, "bins": bins, "speed": 1.0})
        service_us: list[float] = []
        heard: set[int] = set()
        while len(heard) < bins and decodes_from.poll(int(QUIET_S * 1000)):
            decode = decode_message(decodes_from.recv())
            if decode.bin >= 0:
                service_us.append(decode.service_us)
                heard.add(decode.bin)
            watch.look(len(heard))
        context.destroy(linger=0)
        summary = server.stop() or {}
    verified = verify(recording)
    sixth = max(1, len(service_us) // 6)
    first, last = (percentiles(np.array(part))
                   for part in (service_us[:sixth], service_us[-sixth:]))
    settled = watch.after(min(5.0, args.minutes / 10))
    return {
        "minutes": args.minutes, "probes": args.probes, "engine": args.engine, "bins": bins,
        "decodes": len(heard), "readings": watch.rows,
        "rss_mb_growth": round(max(r["rss_mb"] for r in settled) - settled[0]["rss_mb"], 3),
        "files_added": max(r["files"] for r in settled) - settled[0]["files"],
        "service_us": {"first_sixth": first, "last_sixth": last},
        "tail_ratio": round(last["p999"] / first["p999"], 3),
        "replay": verified, "recording": summary.get("recording"),
        "reasons": summary.get("reasons"), "counters": summary.get("counters"),
    }


def verify(recording: Path) -> dict[str, Any]:
    """Replay a recording and return what came of it."""
    with Child("replay", "neds_rt", "replay", str(recording), "--verify", "--json") as child:
        report = child.finish(VERIFY_S) or {}
    return {name: report.get(name) for name in ("decodes", "equal", "different", "unverifiable",
                                                "holes", "complete", "frames")}


def passed(report: dict[str, Any]) -> bool:
    """Whether nothing was lost, leaked or slowed."""
    replay = report["replay"]
    return bool(
        report["decodes"] == report["bins"] and report["rss_mb_growth"] < LIMIT_MB
        and report["files_added"] == 0 and report["tail_ratio"] <= LIMIT_TAIL
        and replay["complete"] and replay["equal"] == replay["decodes"] and not replay["holes"])


def show(report: dict[str, Any]) -> str:
    """Return the report for people."""
    return (f"{report['decodes']} of {report['bins']} decodes; memory grew by "
            f"{report['rss_mb_growth']} MB and files by {report['files_added']} after the warm-up; "
            f"p99.9 of the last sixth {report['tail_ratio']} times the first's; replayed "
            f"{report['replay']['equal']} equal, {report['replay']['different']} different")


def main() -> int:
    """Run and report; returns 4 if something was lost, leaked or slowed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="length (default 10)")
    add("--probes", type=int, default=2, help="of so many units each (default 2)")
    add("--units", type=int, default=300, help="of each probe (default 300)")
    add("--engine", default="native:int8", help="engine name (default native:int8)")
    add("--every", type=float, default=60.0, help="seconds between readings")
    add("--json", action="store_true", help="end with one JSON object")
    add("--out", help="also write that object here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="neds-soak-") as folder:
        report = soak(args, Path(folder))
    report["passed"] = passed(report)
    finish("soak", args, report, lambda found: print(show(found)))
    return 0 if report["passed"] else 4


if __name__ == "__main__":
    sys.exit(main())
