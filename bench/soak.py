"""Resident memory of `neds-rt serve` over minutes of paced bins, and that no decode is lost.

    python bench/soak.py --minutes 10 --json

A sender, the server and this client are three processes; a bin comes every 1/RATE seconds. Memory
is read from /proc once a minute. Ends with exit code 4 if it moved by more than a megabyte between
the first minute and the last, or if a decode is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from neds_rt.bundle import read_bundle
from neds_rt.children import Child
from neds_rt.latency.random_model import parse_sizes, write_random
from neds_rt.machine import commit, machine_facts
from neds_rt.stats import percentiles
from neds_rt.subscribe import subscribe
from neds_rt.wire import decode_message

LIMIT_MB = 1.0
SIZES = "hidden=128,heads=4"  # of the README's latency table
START_S = 120.0
QUIET_S = 10.0


def resident_mb(pid: int) -> float:
    """Return the memory a process holds in RAM, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 3)


def soak(model: Path, engine: str, minutes: float, rate: float, every_s: float) -> dict[str, Any]:
    """Serve `minutes` of bins and return memory over time, decodes and latency."""
    manifest = read_bundle(model).manifest
    probe = manifest.units[0].probe
    bins = round(minutes * 60 * rate)
    context = zmq.Context()
    sender = Child(
        "sender", "neds_rt.latency.sender", "--targets", "1", "--units", str(len(manifest.units)),
        "--stream", probe, "--bin-size", repr(manifest.bin_size_s),
    )
    with sender, Child(
        "server", "neds_rt", "serve", "--probe", f"{probe}={sender.json(START_S)['uris'][0]}",
        "--model", str(model), "--engine", engine, "--out", "tcp://127.0.0.1:*", "--json",
    ) as server:
        socket = subscribe(context, server.ready(START_S), START_S)
        memory = [{"minute": 0.0, "rss_mb": resident_mb(server.pid)}]
        start = time.monotonic()
        sender.tell({"target": 0, "bins": bins, "speed": rate * manifest.bin_size_s})
        service_us: list[float] = []
        while len(service_us) < bins and socket.poll(int(QUIET_S * 1000)):
            decode = decode_message(socket.recv())
            if decode.bin >= 0:
                service_us.append(decode.service_us)
            if time.monotonic() - start >= len(memory) * every_s:
                minute = round((time.monotonic() - start) / 60, 2)
                memory.append({"minute": minute, "rss_mb": resident_mb(server.pid)})
                megabytes = memory[-1]["rss_mb"]
                print(f"{minute:6.2f} min  {megabytes:8.3f} MB  {len(service_us)} decodes",
                      file=sys.stderr, flush=True)
        context.destroy(linger=0)
        summary = server.stop() or {}
    after_first = [row["rss_mb"] for row in memory[1:]] or [memory[0]["rss_mb"]]
    return {
        "bins": bins, "decodes": len(service_us), "memory": memory,
        "rss_mb_spread": round(max(after_first) - min(after_first), 3),
        "service_us": percentiles(np.array(service_us)),
        "counters": summary.get("counters"), "engine": engine, "minutes": minutes,
        "bins_per_second": rate,
    }


def main() -> int:
    """Run and report; returns 4 if memory moved or a decode is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="bundle (default: random, 128 wide, 5 layers)")
    parser.add_argument("--engine", default="native", help="engine name (default native)")
    parser.add_argument("--minutes", type=float, default=10.0, help="length (default 10)")
    parser.add_argument("--bins-per-second", type=float, default=50.0, help="pace (default 50)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between readings")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="neds-soak-") as folder:
        model = args.model or write_random(
            Path(folder), parse_sizes(SIZES), 1 / args.bins_per_second, graph=False)
        report = soak(model, args.engine, args.minutes, args.bins_per_second, args.every)
    passed = report["rss_mb_spread"] <= LIMIT_MB and report["decodes"] == report["bins"]
    if args.json:
        command = "python bench/soak.py " + " ".join(sys.argv[1:])
        print(json.dumps({"command": command, "commit": commit(), "passed": passed, **report,
                          "machine": machine_facts()}))
    else:
        print(f"{report['decodes']} of {report['bins']} decodes, memory within "
              f"{report['rss_mb_spread']} MB after the first reading")
    return 0 if passed else 4


if __name__ == "__main__":
    sys.exit(main())
