"""Swaps and fail-overs under load: missed bins, decodes of the wrong model, what they cost in time.

    python bench/swap.py --swaps 100 --failovers 100 --json --out bench/results/swap.json

A sender plays Poisson spikes of 600 units at 50 bins a second; the server changes between a model
of the paper's size (256 wide, 5 layers) and a small one by `model load`, with a random pause after
each. Then an engine is killed at random moments and replaced by loading its model anew. Every
decode is checked against both models, recomputed here from the same spikes: it must be what the
model says whose hash it carries. Ends with exit code 4 if a bin is missing or a decode is wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds_rt.binning import bin_edges  # noqa: E402
from neds_rt.bundle import Bundle, read_bundle  # noqa: E402
from neds_rt.children import Child  # noqa: E402
from neds_rt.control import Request, ask  # noqa: E402
from neds_rt.engines import load_engine  # noqa: E402
from neds_rt.latency.random_model import parse_sizes, write_random  # noqa: E402
from neds_rt.latency.sender import POOL, make_pool  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402
from neds_rt.subscribe import subscribe  # noqa: E402
from neds_rt.wire import Decode, decode_message  # noqa: E402

FS, BIN_S, RATE_HZ = 30_000.0, 0.02, 10.0
SIZES = {"paper": "", "small": "hidden=64,layers=2,heads=4,mlp=128,window=50"}
START_S = 120.0
PAUSE_S = (0.5, 1.5)  # between one change and the next
FILL_BINS = 150  # before the first change: a window, and the keep-warm tick at work
ORDER_BINS = 100  # that the sender plays at a time
AFTER_BINS = 3  # of a change that count as around it


class Row(NamedTuple):
    """One decode of a bin, and when it came."""

    arrival_ns: int
    decode: Decode


class Change(NamedTuple):
    """One change: when its answer came, in ns of the monotonic clock, and what it was."""

    end_ns: int
    report: dict[str, Any]


class Rig:
    """Sender, server and client, with changes made from a thread beside the client."""

    def __init__(self, folder: Path, model: Path, engine: str) -> None:
        units = read_bundle(model).manifest.units
        self.control = str(folder / "control")
        self.sender = Child(
            "sender", "neds_rt.latency.sender", "--targets", "1", "--units", str(len(units)),
            "--stream", units[0].probe, "--bin-size", repr(BIN_S), "--rate-hz", repr(RATE_HZ))
        self.server = Child(
            "server", "neds_rt", "serve", "--probe",
            f"{units[0].probe}={self.sender.json(START_S)['uris'][0]}", "--model", str(model),
            "--engine", engine, "--out", "tcp://127.0.0.1:*", "--control", self.control, "--json")
        self.rows: list[Row] = []
        self.changes: list[Change] = []
        self.failure: BaseException | None = None
        self.due_ns: NDArray[np.float64] = np.zeros(0)
        self.sent = 0

    def run(self, n: int, change: Callable[[int], dict[str, Any]], seed: int) -> dict[str, Any]:
        """Make `n` changes under load; returns the server's summary."""
        context = zmq.Context()
        done = threading.Event()

        def changes() -> None:
            rng = np.random.default_rng(seed)
            try:
                while len(self.rows) < FILL_BINS and not done.is_set():
                    time.sleep(0.1)
                for i in range(n):
                    time.sleep(rng.uniform(*PAUSE_S))
                    report = change(i)
                    self.changes.append(Change(time.monotonic_ns(), report))
            except BaseException as error:
                self.failure = error
            done.set()

        with self.sender, self.server:
            socket = subscribe(context, self.server.ready(START_S), START_S)
            worker = threading.Thread(target=changes)
            worker.start()
            while not done.is_set():
                self._order(ORDER_BINS)
                self._take(socket, ORDER_BINS)
            worker.join()
            context.destroy(linger=0)
            summary = self.server.stop(30)
        if self.failure is not None:
            raise self.failure
        return summary or {}

    def _order(self, n: int) -> None:
        """Have `n` bins played on from the last one, on one schedule for the whole run."""
        self.sender.tell({"target": 0, "bins": n, "speed": 1.0})
        answer = self.sender.json(START_S)
        edges = bin_edges(np.arange(self.sent, self.sent + n + 1), FS, BIN_S)
        dues = answer["start_ns"] + np.rint((edges[1:] - edges[0]) * (1e9 / FS))
        self.due_ns = np.append(self.due_ns, dues)
        self.sent += n

    def _take(self, socket: zmq.Socket[bytes], n: int) -> None:
        taken = 0
        while taken < n and socket.poll(2000):
            raw = socket.recv()
            arrival = time.monotonic_ns()
            decode = decode_message(raw)
            if decode.bin >= 0:
                self.rows.append(Row(arrival, decode))
                taken += 1
        self.sender.json(START_S)


def counts_of(n_bins: int, n_units: int) -> NDArray[np.uint16]:
    """Return what the sender plays, shape (n_bins, n_units): its pool of bins, again and again."""
    pool = np.zeros((POOL, n_units), np.uint16)
    for row, spikes in zip(pool, make_pool(n_units, RATE_HZ, int(FS * BIN_S), BIN_S), strict=True):
        np.add.at(row, spikes["unit"], 1)
    return pool[np.arange(n_bins) % POOL]


def truth(bundle: Bundle, counts: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return what the native engine says of every bin, shape (bins, outputs)."""
    engine = load_engine("native", bundle)
    return np.stack([engine.step(row).copy() for row in counts])


def said(decode: Decode) -> NDArray[np.float32]:
    """Return the outputs behind a decode's values, in the order of its model."""
    return np.array([x for value in decode.values.values() for x in (value.mean or value.p or [])],
                    np.float32)


def judge(rig: Rig, bundles: list[Bundle]) -> dict[str, Any]:
    """Count what is missing, wrong and late, and set latencies around changes beside the rest."""
    counts = counts_of(rig.sent, len(bundles[0].manifest.units))
    expected = {b.manifest.model_hash: truth(b, counts) for b in bundles}
    wrong, worst = 0, 0.0
    for _, decode in rig.rows:
        known = expected.get(decode.model)
        error = np.inf if known is None else float(np.abs(said(decode) - known[decode.bin]).max())
        wrong += not error <= 1e-5
        worst = max(worst, error)
    bins = np.array([row.decode.bin for row in rig.rows])
    arrival = np.array([row.arrival_ns for row in rig.rows])
    late_us = (arrival - rig.due_ns[bins]) / 1e3
    service = np.array([row.decode.service_us for row in rig.rows])
    phase = phases(rig, arrival)
    model = np.array([row.decode.model for row in rig.rows])
    names = dict(zip(expected, SIZES, strict=False))

    def by_model(values: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
        """Percentiles by model, since one costs ten times the other, and by phase."""
        return {size: {p: percentiles(values[(phase == p) & (model == of)]) for p in PHASES}
                for of, size in names.items()}

    return {
        "bins": rig.sent, "decodes": len(rig.rows), "missed": rig.sent - len(set(bins.tolist())),
        "twice": len(bins) - len(set(bins.tolist())), "wrong_model": wrong, "largest_error": worst,
        "late": {name: int((late_us[phase == name] > BIN_S * 1e6).sum()) for name in PHASES},
        "decodes_by_phase": {name: int((phase == name).sum()) for name in PHASES},
        "service_us": by_model(service), "arrival_us": by_model(late_us),
    }


# Reading, building and warming hold the interpreter at times; replaying hardly does.
PHASES = ("elsewhere", "read, build, warm", "replay, shadow", "around the change")


def phases(rig: Rig, arrival: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return the phase of every decode; a change is the first decode of another model or engine."""
    phase = np.full(len(rig.rows), PHASES[0], dtype="U20")
    for change in rig.changes:
        seconds = change.report["seconds"]
        built = change.end_ns - 1e9 * sum(seconds[k] for k in ("replay", "shadow", "swap"))
        begun = built - 1e9 * sum(seconds[k] for k in ("read", "build", "warm"))
        phase[(arrival >= begun) & (arrival < built)] = PHASES[1]
        phase[(arrival >= built) & (arrival <= change.end_ns)] = PHASES[2]
    for i in range(1, len(rig.rows)):
        now, before = rig.rows[i].decode, rig.rows[i - 1].decode
        if now.model != before.model or now.reason == "failed over":
            phase[i : i + AFTER_BINS] = PHASES[3]
    return phase


def run_swaps(folder: Path, n: int, engine: str, seed: int) -> dict[str, Any]:
    """Change between two models `n` times."""
    models = [folder / name / "random.neds" for name in SIZES]
    rig = Rig(folder, models[0], engine)

    def change(i: int) -> dict[str, Any]:
        path = str(models[(i + 1) % 2])
        return ask(rig.control, Request("load", path), START_S)

    summary = rig.run(n, change, seed)
    seen = [row.decode.model for row in rig.rows]
    changes = sum(a != b for a, b in pairwise(seen))
    stages = {name: percentiles(np.array([c.report["seconds"][name] for c in rig.changes]))
              for name in rig.changes[0].report["seconds"]}
    return {
        "asked": n, "swaps": changes, "seconds": stages,
        "replayed_bins": rig.changes[-1].report["replayed_bins"],
        **judge(rig, [read_bundle(path) for path in models]), "rss_mb": summary["rss_mb"],
    }


def run_failovers(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """Kill the engine `n` times; the model is loaded anew after each."""
    model = folder / "paper" / "random.neds"
    rig = Rig(folder, model, "bench.dying_engine:DyingEngine")

    def change(i: int) -> dict[str, Any]:
        os.kill(rig.server.pid, signal.SIGUSR1)
        while len(ask(rig.control, Request("info"), START_S)["failovers"]) <= i:
            time.sleep(0.05)
        time.sleep(0.3)
        return ask(rig.control, Request("load", str(model)), START_S)

    summary = rig.run(n, change, seed)
    told = [row for row in rig.rows if row.decode.reason == "failed over"]
    due = rig.due_ns[[row.decode.bin for row in told]]
    return {
        "killed": n, "failed_over": len(summary["failovers"]), "reported": len(told),
        "late_at_failure": int(sum((row.arrival_ns - at) > BIN_S * 1e9
                                   for row, at in zip(told, due, strict=True))),
        "service_us_at_failure": percentiles(np.array([r.decode.service_us for r in told])),
        **judge(rig, [read_bundle(model)]),
    }


def print_table(report: dict[str, Any]) -> None:
    for name in ("swaps", "failovers"):
        part = report[name]
        if part is None:
            continue
        head = part.get("asked", part.get("killed"))
        print(f"{head} {name}: {part['decodes']} decodes, {part['missed']} missed, "
              f"{part['wrong_model']} wrong, late {part['late']}")
        for size, rows in part["service_us"].items():
            for phase, figures in rows.items():
                text = "".join(f"{k} {v:9.1f}  " for k, v in (figures or {}).items())
                print(f"  service us, {size:6} {phase:18} {text}")


def main() -> int:
    """Run and report; returns 4 if a bin is missing or a decode is not its model's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--swaps", type=int, default=100, help="number of swaps (default 100)")
    parser.add_argument("--failovers", type=int, default=20, help="engines killed (default 20)")
    parser.add_argument("--engine", default="native", help="engine of the swaps (default native)")
    parser.add_argument("--seed", type=int, default=0, help="of the random pauses")
    parser.add_argument("--out", help="file for the JSON object")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory(prefix="neds-swap-") as name:
        folder = Path(name)
        for size, text in SIZES.items():
            (folder / size).mkdir()
            write_random(folder / size, parse_sizes(text), BIN_S, graph=args.engine == "onnx")
        swaps = run_swaps(folder, args.swaps, args.engine, args.seed) if args.swaps else None
        failovers = run_failovers(folder, args.failovers, args.seed) if args.failovers else None
    parts = [part for part in (swaps, failovers) if part is not None]
    passed = not any(p["missed"] or p["twice"] or p["wrong_model"] for p in parts)
    finish("swap", args, {"passed": passed, "engine": args.engine, "bins_per_second": 1 / BIN_S,
                          "sizes": SIZES, "swaps": swaps, "failovers": failovers}, print_table)
    return 0 if passed else 4


if __name__ == "__main__":
    sys.exit(main())
