"""What the flight recorder costs a server, on a good disk and on one that stands still.

    python bench/blackbox.py --bins 9000 --kills 20 --json --out bench/results/blackbox.json

Three servers take turns in short rounds, as those of `neds-rt bench` do: `off` records nothing,
`on` records, `stalled` records to a disk of which every write takes `--stall-s` seconds. Afterwards
the recordings are replayed and every decode compared. With --kills, as many servers are killed
(SIGKILL) at random moments under load: `lost_ms` is from the newest frame in the recording to the
kill, and what is there is replayed as well. Exit code 4 if a decode differs, `on` lost a record,
or a median service with the recorder is above --at-most times that without.
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
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds_rt.bundle import ModalityOut, Shape, random_bundle, read_bundle, write_bundle  # noqa: E402
from neds_rt.children import Child  # noqa: E402
from neds_rt.errors import NedsError, StartError  # noqa: E402
from neds_rt.latency.rounds import FS, START_S, Contender, LiveBench, Plan  # noqa: E402
from neds_rt.recording.flight import DRAIN_S  # noqa: E402
from neds_rt.recording.header import open_recording, recorded_bundle  # noqa: E402
from neds_rt.recording.replay_engine import replay_engine  # noqa: E402
from neds_rt.recording.tape import FRAME, Hole, TapeReader  # noqa: E402
from neds_rt.recording.verify import Verification  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402

BIN_S = 0.02


def write_model(path: Path, units: int) -> None:
    """Write a bundle of random weights, as large as the README's latency table has it."""
    shape = Shape(hidden=128, layers=5, heads=4, mlp=512, window=100, conv=5, recurrent=True)
    modalities = [ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s")]
    made = random_bundle(shape, units, modalities, bin_size_s=BIN_S)
    m = made.manifest
    write_bundle(path, session="random", subject="random", bin_size_s=BIN_S, shape=shape,
                 units=m.units, modalities=modalities, weights=made.weights)


def build_stall(folder: Path) -> Path:
    """Compile what makes a disk stand still; raises `StartError` without a compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise StartError("no C++ compiler for bench/slow_disk.cpp")
    library = folder / "slow_disk.so"
    source = Path(__file__).with_name("slow_disk.cpp")
    subprocess.run([compiler, "-std=c++20", "-O1", "-fPIC", "-shared", str(source), "-o",
                    str(library), "-ldl"], check=True)
    return library


def contenders(folder: Path, library: Path, stall_s: float) -> list[Contender]:
    """The three servers; one on a stalled disk is started by `env`, through this file."""
    serve = ("serve", "--engine", "native", "--stale-after", "86400")
    stalled = ("--stalled", str(library), str(stall_s), *serve, "--record", f"{folder}/stalled")
    return [
        Contender("off", "neds_rt", serve, "native"),
        Contender("on", "neds_rt", (*serve, "--record", f"{folder}/on"), "native"),
        Contender("stalled", "bench.blackbox", stalled, "native"),
    ]


def replayed(path: Path) -> dict[str, Any]:
    """Verify a recording as `neds-rt replay PATH --verify` does; its report."""
    recording = open_recording(path)
    bundle = recorded_bundle(recording, None)
    engine = replay_engine(recording.header, bundle, None)
    found = Verification(recording, bundle, engine, 0.0).run()
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
    found = replayed(path) if newest_frame_ns(path) else {"decodes": 0, "different": 0}
    lost_ms = (killed_ns - (newest_frame_ns(path) or start_ns)) / 1e6
    shutil.rmtree(path)
    return {"moment_s": round(moment_s, 3), "lost_ms": round(lost_ms, 1), **found}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run it all."""
    with tempfile.TemporaryDirectory(prefix="neds-blackbox-", dir=args.disk) as text:
        folder = Path(text)
        model = folder / "x.neds"
        write_model(model, args.units)
        plan = Plan(args.bins, min(250, args.bins), BIN_S, args.rate_hz)
        servers = contenders(folder, build_stall(folder), args.stall_s)
        with LiveBench(model, read_bundle(model).manifest, servers, plan) as bench:
            report = bench.run()
        report["servers"] = dict(zip(("off", "on", "stalled"), report.pop("engines"), strict=True))
        report["verified"] = {"on": replayed(folder / "on")}
        report["stalled_recording"] = replayed(folder / "stalled")
        rng = random.Random(args.seed)
        kills = [kill(folder, model, args.units, rng.uniform(0.2, 2.0)) for _ in range(args.kills)]
    lost = percentiles(np.array([row["lost_ms"] for row in kills]))
    service = {name: row["service_us"] for name, row in report["servers"].items()}
    return {**report, "kills": kills, "kill_lost_ms": lost, "drain_ms": DRAIN_S * 1e3,
            "service_ratio_p50": {name: round(service[name]["p50"] / service["off"]["p50"], 3)
                                  for name in ("on", "stalled")}}


def verdict(report: dict[str, Any], at_most: float) -> int:
    """Return the exit code."""
    on = report["verified"]["on"]
    wrong = on["different"] + sum(row["different"] for row in report["kills"])
    wrong += report["stalled_recording"]["different"]
    slow = max(report["service_ratio_p50"].values()) > at_most
    return 4 if wrong or on["holes"] or not on["equal"] or slow else 0


def print_table(report: dict[str, Any]) -> None:
    """Print the figures for people."""
    for name, row in report["servers"].items():
        figures = "  ".join(f"{key} {value:8.1f}" for key, value in row["service_us"].items())
        print(f"{name:8} service_us  {figures}")
    print(f"median with / without: {report['service_ratio_p50']}")
    print(f"replayed: {report['verified']['on']}; stalled: {report['stalled_recording']}")
    if report["kills"]:
        print(f"lost at {len(report['kills'])} kills, ms: {report['kill_lost_ms']}, one drain is "
              f"{report['drain_ms']:g}")


def main() -> int:
    """Entry point; also starts a server on a stalled disk (`--stalled LIBRARY SECONDS ARGS...`)."""
    if sys.argv[1:2] == ["--stalled"]:
        library, seconds, *rest = sys.argv[2:]
        os.execve(sys.executable, [sys.executable, "-u", "-P", "-m", "neds_rt", *rest],
                  os.environ | {"LD_PRELOAD": library, "NEDS_STALL_S": seconds})
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bins", type=int, default=9000, help="a server (default 9000: 3 min)")
    parser.add_argument("--units", type=int, default=600, help="units (default 600)")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="of a unit (default 10)")
    parser.add_argument("--stall-s", type=float, default=5.0, help="a write takes (default 5)")
    parser.add_argument("--kills", type=int, default=20, help="servers to kill (default 20)")
    parser.add_argument("--seed", type=int, default=101, help="of the moments (default 101)")
    parser.add_argument("--at-most", type=float, default=1.1, help="ratio (default 1.1)")
    parser.add_argument("--disk", help="folder to record below (default: where temporary files go)")
    parser.add_argument("--out", type=Path, help="write the result there as well")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        report = measure(args)
    except NedsError as error:
        print(f"bench/blackbox.py: {error}", file=sys.stderr)
        return error.exit_code
    finish("blackbox", args, report, print_table)
    return verdict(report, args.at_most)


if __name__ == "__main__":
    sys.exit(main())
