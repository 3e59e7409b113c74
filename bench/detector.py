"""What detecting threshold crossings on a whole probe takes, and how old the samples are then.

    python bench/detector.py --out bench/results/detector.json

`cpu`: CPU seconds of the C++ core for a second of the AP band, in blocks of 5 ms, with and without
the common median reference. `fetched`: the whole source against its twin over TCP at real time, in
a process of its own; its CPU (fetching, detecting, handing on) is read from /proc, and the age of a
frame is from when its last sample was acquired to when the serving thread could have it.

Exit code 4 if the core takes more than a core or the source misses samples.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import write_json  # noqa: E402
from neds_rt import _core  # noqa: E402
from neds_rt.machine import commit, machine_facts  # noqa: E402
from neds_rt.manifest import Unit  # noqa: E402
from neds_rt.sources import open_source  # noqa: E402
from neds_rt.sources.frame import Frame  # noqa: E402
from neds_rt.sources.units import UnitMap  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402
from neds_rt.wire import decode_header  # noqa: E402
from tools.twins.spikeglx import SpikeGlxTwin, make_ap_band  # noqa: E402

FS, BLOCK = 30_000.0, 150


def core(data: np.ndarray[Any, np.dtype[np.int16]], rounds: int) -> list[dict[str, Any]]:
    """Return CPU seconds a second of data, the two ways in turns."""
    channels = data.shape[1]
    cost: dict[bool, list[float]] = {True: [], False: []}
    found = {True: 0, False: 0}
    detectors = {r: _core.ThresholdDetector(channels, FS, reference=r) for r in cost}
    seconds = len(data) / FS
    for turn in range(rounds):
        for reference, detector in detectors.items():
            first, began = turn * len(data), time.process_time()
            for i in range(0, len(data), BLOCK):
                found[reference] += detector.push(data[i : i + BLOCK], first + i)
            cost[reference].append((time.process_time() - began) / seconds)
    return [
        {"reference": "median" if reference else "none", "channels": channels,
         "cpu_s_per_s": percentiles(np.array(found_cost)), "crossings": found[reference]}
        for reference, found_cost in cost.items()
    ]


def _twin(channels: int, seconds: float, pipe: Any) -> None:
    data, _, _ = make_ap_band(channels, 2.0)
    with SpikeGlxTwin(data) as twin:
        # The same clock in all processes: when sample 0 was acquired.
        pipe.send((twin.port, twin._began))
        pipe.recv()


def fetched(channels: int, seconds: float) -> dict[str, Any]:
    """Return CPU and age of the whole source over `seconds` at real time."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_twin, args=(channels, seconds, theirs))
    process.start()
    port, began = mine.recv()
    units = UnitMap([Unit("p", c, 0) for c in range(channels)])
    source = open_source("a", f"spikeglx://127.0.0.1:{port}", units=units)
    frame, ages, gaps = Frame(), [], 0
    while not source.receive(frame):  # past the second in which the noise is measured
        source.pollable.poll(1000)
    start_cpu, start = time.process_time(), time.monotonic()
    header = decode_header(bytes(frame.header))
    while time.monotonic() - start < seconds:
        source.pollable.poll(100)
        while source.receive(frame):
            last, header = header, decode_header(bytes(frame.header))
            gaps += header.t0_sample != last.watermark
            ages.append((time.monotonic() - began - header.watermark / FS) * 1e3)
    wall = time.monotonic() - start
    cpu = (time.process_time() - start_cpu) / wall
    counters = dict(source.counters)
    source.close()
    mine.send("end")
    process.join()
    return {"channels": channels, "seconds": round(wall, 1), "cpu_s_per_s": round(cpu, 3),
            "frame_age_ms": percentiles(np.array(ages)), "frames": len(ages), "gaps": gaps,
            "counters": counters}


def main() -> int:
    """Measure and report; returns 4 if it is not real time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, default=384, help="default 384")
    parser.add_argument("--seconds", type=float, default=20.0, help="at real time (default 20)")
    parser.add_argument("--rounds", type=int, default=4, help="of 2 s a way (default 4)")
    parser.add_argument("--out", type=Path, help="write the result there as well")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    data, _, _ = make_ap_band(args.channels, 2.0)
    rows = core(data, args.rounds)
    for row in rows:
        print(f"core, reference {row['reference']}: {row['cpu_s_per_s']['p50']:.3f} CPU s a second")
    live = fetched(args.channels, args.seconds)
    print(f"source: {live['cpu_s_per_s']:.3f} CPU s a second, frame age {live['frame_age_ms']} ms, "
          f"{live['gaps']} gaps")
    passed = rows[0]["cpu_s_per_s"]["p50"] < 1 and live["gaps"] == 0 and live["cpu_s_per_s"] < 1
    report = {"command": "python bench/detector.py " + " ".join(sys.argv[1:]), "commit": commit(),
              "passed": passed, "core": rows, "fetched": live, "machine": machine_facts()}
    if args.out:
        write_json(args.out, report)
    if args.json:
        print(json.dumps(report))
    return 0 if passed else 4


if __name__ == "__main__":
    sys.exit(main())
