"""What a probe costs the server: one, two, four and eight of 500 units each.

    python bench/probes.py --seconds 120 --json --out bench/results/probes.json

Each row is a run at real time: a sender process for every probe, `neds-rt serve`, and this program,
which subscribes to the decodes. Frames cover a bin of 20 ms each; the senders' schedules begin a
few milliseconds apart, as those of separate programs do. The model is as large as that of the
README's latency table, with an input row for every unit. Ends with exit code 4 if a decode is
missing, a bin is lost, or a further probe costs more than the ones before it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zmq

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from bench.sources import START_S, collect, cpu_seconds  # noqa: E402
from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle  # noqa: E402
from neds_rt.children import Child  # noqa: E402
from neds_rt.manifest import Unit  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402
from neds_rt.subscribe import subscribe  # noqa: E402

BIN_S = 0.02
SHAPE = Shape(hidden=128, layers=5, heads=4, mlp=512, window=100, conv=5, recurrent=True)
SLACK = 1.1  # by which a probe may seem dearer than one of a smaller rig before it counts


def write_model(path: Path, probes: list[str], units: int) -> Path:
    """Write a bundle of random weights for `units` units on every probe."""
    modalities = [ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s")]
    made = random_bundle(SHAPE, units * len(probes), modalities, bin_size_s=BIN_S)
    table = [Unit(probe, i, 1) for probe in probes for i in range(units)]
    write_bundle(path, session="random", subject="random", bin_size_s=BIN_S, shape=SHAPE,
                 units=table, modalities=modalities, weights=made.weights)
    return path


def measure(n: int, args: argparse.Namespace) -> dict[str, Any]:
    """Serve `n` probes and return one row."""
    probes = [f"probe{k:02}" for k in range(n)]
    bins = round(args.seconds / BIN_S)
    context = zmq.Context()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="neds-probes-")))
        model = write_model(folder / "model.neds", probes, args.units)
        senders = [
            stack.enter_context(Child(
                name, "neds_rt.latency.sender", "--targets", "1", "--units", str(args.units),
                "--stream", name, "--bin-size", str(BIN_S), "--rate-hz", str(args.hz)))
            for name in probes
        ]
        uris = [sender.json(START_S)["uris"][0] for sender in senders]
        given = [text for name, uri in zip(probes, uris, strict=True)
                 for text in ("--probe", f"{name}={uri}")]
        server = stack.enter_context(Child(
            "server", "neds_rt", "serve", *given, "--model", str(model), "--out",
            "tcp://127.0.0.1:*", "--stale-after", "1", "--json"))
        decodes_from = subscribe(context, server.ready(START_S), START_S)
        used = cpu_seconds(server.pid)
        for sender in senders:
            sender.tell({"target": 0, "bins": bins, "speed": 1.0})
        decodes = collect(decodes_from, args.seconds)
        used = cpu_seconds(server.pid) - used
        summary = server.stop() or {}
        context.destroy(linger=0)
    cpu = used / args.seconds
    return {
        "probes": n, "units": n * args.units, "spikes_per_second": round(n * args.units * args.hz),
        "bins": len(decodes), "decodes_missed": bins - len({d.bin for d in decodes}),
        "bins_lost": summary["counters"]["lost_bins"], "cpu_of_a_core": round(cpu, 4),
        "cpu_per_probe": round(cpu / n, 4),
        "service_us": percentiles(np.array([d.service_us for d in decodes])),
        "counters": {k: v for k, v in summary["counters"].items() if v},
        "stages": summary["latency"],
    }


def passed(rows: list[dict[str, Any]]) -> bool:
    """Whether nothing was lost and no probe was dearer than those before it."""
    costs = [row["cpu_per_probe"] for row in rows]
    falling = all(b <= SLACK * a for a, b in pairwise(costs))
    return falling and not any(row["decodes_missed"] or row["bins_lost"] for row in rows)


def show(row: dict[str, Any]) -> str:
    """Return a row for people."""
    service = row["service_us"]
    return (f"{row['probes']:2d} probes  {row['units']:5d} units  cpu {row['cpu_of_a_core']:.3f} "
            f"of a core, {row['cpu_per_probe']:.3f} a probe  service us {service['p50']:.0f}/"
            f"{service['p99']:.0f}/{service['p999']:.0f}  missed {row['decodes_missed']}  "
            f"lost {row['bins_lost']}")


def main() -> int:
    """Run all rows and report; returns 4 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--probes", default="1,2,4,8", help="how many (default 1,2,4,8)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (default 20)")
    parser.add_argument("--units", type=int, default=500, help="of each probe (default 500)")
    parser.add_argument("--hz", type=float, default=5.0, help="spikes of a unit a second")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write that object here")
    args = parser.parse_args()
    rows = []
    for n in map(int, args.probes.split(",")):
        rows.append(measure(n, args))
        print(show(rows[-1]), flush=True)
    report = {"passed": passed(rows), "rows": rows}
    finish("probes", args, report, lambda _: None)  # the rows were printed as they came
    return 0 if report["passed"] else 4


if __name__ == "__main__":
    sys.exit(main())
