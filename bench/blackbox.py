"""What the flight recorder costs a server, on a good disk, one that stands still and a full one.

    python bench/blackbox.py --bins 9000 --kills 20 --json --out bench/results/blackbox.json

Four servers take turns in short rounds, as those of `neds-rt bench` do: `off` records nothing,
`on` records, `stalled` records to a disk of which every write takes `--stall-s` seconds, `full` to
one that is full half way. Afterwards the recordings are replayed and every decode compared. With
--kills, as many servers are killed (SIGKILL) at random moments under load: `lost_ms` is from the
newest frame in the recording to the kill, and what is there is replayed as well.

Ends with exit code 1 and a line for each thing that does not hold: a decode lost or different, a
record lost by `on`, a recording that does not open, more lost at a kill than --lost-at-most ms, or
a service with the recorder above --at-most times (median) or --at-most-p99 times that without, in
the same round, at the median of the rounds and not by chance (bench/paired.py).
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish, lend_path, verdict  # noqa: E402
from bench.paired import PairedBench, above, ratios  # noqa: E402
from neds_rt.bundle import ModalityOut, Shape, random_bundle, read_bundle, write_bundle  # noqa: E402
from neds_rt.children import Child  # noqa: E402
from neds_rt.errors import BadInput, NedsError, StartError  # noqa: E402
from neds_rt.latency.rounds import FS, START_S, Contender, Plan  # noqa: E402
from neds_rt.recording.flight import DRAIN_S  # noqa: E402
from neds_rt.recording.header import open_recording  # noqa: E402
from neds_rt.recording.tape import FRAME, Hole, TapeReader  # noqa: E402
from neds_rt.recording.verdict import verify  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402
from neds_rt.wire import SPIKE_DTYPE  # noqa: E402

BIN_S = 0.02
HEADERS_BYTES = 700  # of a bin on the tape, the decode and all that is no spike
SHAPE = Shape(hidden=128, layers=5, heads=4, mlp=512, window=100, conv=5, recurrent=True)
SERVERS = ("off", "on", "stalled", "full")


def write_model(path: Path, units: int) -> None:
    """Write a bundle of random weights, as large as the README's latency table has it."""
    modalities = [ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s")]
    made = random_bundle(SHAPE, units, modalities, bin_size_s=BIN_S)
    m = made.manifest
    write_bundle(path, session="random", subject="random", bin_size_s=BIN_S, shape=SHAPE,
                 units=m.units, modalities=modalities, weights=made.weights)


def build_disk(folder: Path) -> Path:
    """Compile what makes a disk stand still or be full; raises `StartError` without a compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise StartError("no C++ compiler for bench/slow_disk.cpp")
    library = folder / "slow_disk.so"
    source = Path(__file__).with_name("slow_disk.cpp")
    subprocess.run([compiler, "-std=c++20", "-O1", "-fPIC", "-shared", str(source), "-o",
                    str(library), "-ldl"], check=True)
    return library


def contenders(folder: Path, library: Path, stall_s: float, full_bytes: int) -> list[Contender]:
    """The four servers; those on a bad disk are started by `env`, through this file."""
    serve = ("serve", "--engine", "native", "--stale-after", "86400", "--record-reserve-mb", "0")
    disks = {"stalled": f"NEDS_STALL_S={stall_s}", "full": f"NEDS_FULL_BYTES={full_bytes}"}
    found = [Contender("off", "neds_rt", serve, "native"),
             Contender("on", "neds_rt", (*serve, "--record", f"{folder}/on"), "native")]
    return found + [
        Contender(name, "bench.blackbox",
                  ("--disk-of", str(library), how, *serve, "--record", f"{folder}/{name}"),
                  "native") for name, how in disks.items()]


def replayed(path: Path) -> dict[str, Any]:
    """Verify a recording as `neds-rt replay PATH --verify` does; its report."""
    found = verify(path, wanted=0.0)
    return {name: found[name] for name in (
        "decodes", "equal", "different", "unverifiable", "frames", "holes", "complete",
        "tail_bytes", "seconds")}


def newest_frame_ns(path: Path) -> int:
    """Return when the last frame of a recording was received."""
    records = (r for r in TapeReader(open_recording(path)) if not isinstance(r, Hole))
    return max((r.ns for r in records if r.kind == FRAME), default=0)


def kill(folder: Path, model: Path, units: int, moment_s: float) -> dict[str, Any]:
    """Kill a server that records under load; what is left of its recording."""
    path = folder / "killed"
    with Child("sender", "neds_rt.latency.sender", "--targets", "1", "--units", str(units),
               "--fs", str(FS), "--bin-size", str(BIN_S)) as sender:
        uri = sender.json(START_S)["uris"][0]
        with Child("server", "neds_rt", "serve", "--probe", f"probe00={uri}", "--model",
                   str(model), "--out", "tcp://127.0.0.1:*", "--record", str(path)) as server:
            server.ready(START_S)
            sender.tell({"target": 0, "bins": int((moment_s + 1) / BIN_S), "speed": 1.0})
            start_ns = sender.json(START_S)["start_ns"]
            time.sleep(max(0.0, start_ns / 1e9 + moment_s - time.monotonic()))
            os.kill(server.pid, signal.SIGKILL)
            killed_ns = time.monotonic_ns()
    reopened, newest = True, 0
    found: dict[str, Any] = {"decodes": 0, "different": 0}
    try:
        newest = newest_frame_ns(path)
        found = replayed(path) if newest else found
    except BadInput as error:
        reopened, found["error"] = False, str(error)
    lost_ms = (killed_ns - (newest or start_ns)) / 1e6
    shutil.rmtree(path)
    return {"moment_s": round(moment_s, 3), "reopened": reopened, "lost_ms": round(lost_ms, 1),
            **found}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run it all."""
    with tempfile.TemporaryDirectory(prefix="neds-blackbox-", dir=args.disk) as text:
        folder = Path(text)
        model = folder / "x.neds"
        write_model(model, args.units)
        plan = Plan(args.bins, min(250, args.bins), BIN_S, args.rate_hz)
        spikes = args.units * args.rate_hz * BIN_S
        bin_bytes = int(spikes * SPIKE_DTYPE.itemsize) + HEADERS_BYTES
        servers = contenders(folder, build_disk(folder), args.stall_s, args.bins * bin_bytes // 2)
        with PairedBench(model, read_bundle(model).manifest, servers, plan) as bench:
            report = bench.run()
            rounds = {name: ratios(bench.service, name, "off") for name in SERVERS[1:]}
        report["servers"] = dict(zip(SERVERS, report.pop("engines"), strict=True))
        report["verified"] = {name: replayed(folder / name) for name in SERVERS[1:]}
        rng = random.Random(args.seed)
        kills = [kill(folder, model, args.units, rng.uniform(0.2, 2.0)) for _ in range(args.kills)]
    lost = percentiles(np.array([row["lost_ms"] for row in kills]))
    return {**report, "to_off_by_round": rounds, "at_most": args.at_most,
            "at_most_p99": args.at_most_p99, "lost_at_most_ms": args.lost_at_most, "kills": kills,
            "kill_lost_ms": lost, "drain_ms": DRAIN_S * 1e3}


def broken(report: dict[str, Any]) -> list[str]:
    """Return what does not hold, a line each."""
    lines = [f"{name}: {row['lost']} bins lost" for name, row in report["servers"].items()
             if row["lost"]]
    for name, found in report["to_off_by_round"].items():
        lines += above(name, found, "p50", report["at_most"])
        lines += above(name, found, "p99", report["at_most_p99"])
    for name, found in report["verified"].items():
        if found["different"] or not found["equal"]:
            lines.append(f"{name}: of the recording {found['different']} decodes differ and "
                         f"{found['equal']} are equal")
    if report["verified"]["on"]["holes"]:
        lines.append(f"on: {report['verified']['on']['holes']} holes in the recording")
    if report["verified"]["full"]["complete"]:
        lines.append("full: the disk never was, the run is too short")
    for row in report["kills"]:
        at = f"killed after {row['moment_s']} s"
        if not row["reopened"]:
            lines.append(f"{at}: the recording does not open: {row['error']}")
        if row["different"]:
            lines.append(f"{at}: {row['different']} decodes differ")
        if row["lost_ms"] > report["lost_at_most_ms"]:
            lines.append(f"{at}: the last {row['lost_ms']:g} ms are lost, "
                         f"at most {report['lost_at_most_ms']:g} expected")
    return lines


def print_table(report: dict[str, Any]) -> None:
    """Print the figures for people."""
    for name, row in report["servers"].items():
        figures = "  ".join(f"{key} {value:8.1f}" for key, value in row["service_us"].items())
        print(f"{name:8} service_us  {figures}")
    for name, found in report["to_off_by_round"].items():
        print(f"{name:8} of off, median of the rounds: " + ", ".join(
            f"{key} {values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"
            for key, values in found.items()))
        print(f"{name:8} replayed: {report['verified'][name]}")
    if report["kills"]:
        print(f"lost at {len(report['kills'])} kills, ms: {report['kill_lost_ms']}, one drain is "
              f"{report['drain_ms']:g}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bins", type=int, default=9000, help="a server (default 9000: 3 min)")
    parser.add_argument("--units", type=int, default=600, help="units (default 600)")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="of a unit (default 10)")
    parser.add_argument("--stall-s", type=float, default=5.0, help="a write takes (default 5)")
    parser.add_argument("--kills", type=int, default=20, help="servers to kill (default 20)")
    parser.add_argument("--seed", type=int, default=101, help="of the moments (default 101)")
    parser.add_argument("--at-most", type=float, default=1.1, help="median ratio (default 1.1)")
    parser.add_argument("--at-most-p99", type=float, default=1.25, help="p99 ratio (default 1.25)")
    parser.add_argument("--lost-at-most", type=float, default=100.0,
                        help="ms lost at a kill (default 100: a drain, a bin and 30 to be woken)")
    parser.add_argument("--disk", help="folder to record below (default: where temporary files go)")
    parser.add_argument("--out", type=Path, help="write the result there as well")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; also starts a server on a bad disk (`--disk-of LIBRARY KEY=VALUE ARGS...`)."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--disk-of"]:
        _, library, how, *rest = words
        name, _, value = how.partition("=")
        os.execve(sys.executable, [sys.executable, "-u", "-P", "-m", "neds_rt", *rest],
                  os.environ | {"LD_PRELOAD": library, name: value})
    args = parse(words)
    lend_path(ROOT)
    try:
        report = measure(args)
        found = broken(report)
        finish("blackbox", args, {"passed": not found, **report}, print_table)
    except NedsError as error:
        print(f"bench/blackbox.py: {error}", file=sys.stderr)
        return error.exit_code
    return verdict("blackbox", found)


if __name__ == "__main__":
    sys.exit(main())
