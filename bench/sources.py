"""Every acquisition program's source against its twin: exact bins, gaps, latency, CPU.

    python bench/sources.py --seconds 300 --json --out bench/results/sources.json

Each row is a run at real time of three processes: the twin, `neds-rt serve`, and this program,
which subscribes to the decodes. The twin's spikes are known, so every bin that the server gave to
its model is compared with offline binning of the same spikes. Ends with exit code 4 if a bin
differs, a decode is missing or a gap was not noticed.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.counting import VARIABLE  # noqa: E402
from bench.output import finish  # noqa: E402
from bench.raw_bands import CHANNELS, RawBand, silent  # noqa: E402
from neds_rt.binning import bin_edges, bin_spikes  # noqa: E402
from neds_rt.bundle import ModalityOut, Shape, random_bundle, write_bundle  # noqa: E402
from neds_rt.children import Child  # noqa: E402
from neds_rt.manifest import Unit  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402
from neds_rt.subscribe import subscribe  # noqa: E402
from neds_rt.wire import Decode, decode_message  # noqa: E402
from tools.twins.feed import Feed, random_feed, read_feed  # noqa: E402

START_S = 120.0
QUIET_S = 3.0
BIN_S = 0.02
FS = 30_000.0
MOST_CPU, MOST_CPU_RAW = 0.5, 1.5  # of a core: spikes as messages, samples of a whole probe


class Twin(NamedTuple):
    """How a source's twin is started; it prints its port, then plays to its first subscriber."""

    module: str
    arguments: tuple[str, ...]
    uri: str  # with {port}
    stream: str  # what the twin calls its stream in a spike
    electrode: str  # with {channel}
    counts_messages: bool  # whether losses can be noticed, and so be injected
    begins: int = 0  # bins in which a source without a watermark has yet to find its place
    raw: str = ""  # how spikes are found, where it plays samples: threshold or templates


TWINS = {
    "native": Twin("tools.twins.native", (), "zmq+tcp://127.0.0.1:{port}", "", "{channel}", True),
    "oe": Twin("tools.twins.openephys", (), "oe://127.0.0.1:{port}", "", "Electrode {channel}",
               True),
    "oe-events": Twin("tools.twins.oebroadcast", ("--format", "json"),
                      "oe-events://127.0.0.1:{port}", "", "Electrode {channel}", False, begins=4),
    "oe-events-raw": Twin("tools.twins.oebroadcast", ("--format", "raw"),
                          "oe-events://127.0.0.1:{port}?rate=30000", "", "{channel}", False,
                          begins=4),
    "trodes": Twin("tools.twins.trodes", (), "trodes://127.0.0.1:{port}", "", "{channel}", False,
                   begins=4),
    "spikeglx": Twin("tools.twins.spikeglx", (), "spikeglx://127.0.0.1:{port}", "", "AP{channel}",
                     False, raw="threshold"),
    "spikeglx-templates": Twin(
        "tools.twins.spikeglx", (),
        "spikeglx://127.0.0.1:{port}?mode=templates&templates={templates}", "", "AP{channel}",
        False, raw="templates"),
    # Microvolts are the same samples again: they are rounded to steps of the ADC.
    "oe-raw": Twin("tools.twins.openephys", ("--raw", "--random", "1,0"),
                   "oe://127.0.0.1:{port}?mode=threshold", "", "AP{channel}", False,
                   raw="threshold"),
}


def write_model(folder: Path, feed: Feed, twin: Twin) -> tuple[Path, Path]:
    """Write a bundle of the feed's units, as large as the README's latency table has it, and the
    unit map of what the twin calls them."""
    shape = Shape(hidden=128, layers=5, heads=4, mlp=512, window=100, conv=5, recurrent=True)
    modalities = [ModalityOut(name="wheel", kind="continuous", n_outputs=1, unit="rad/s")]
    made = random_bundle(shape, feed.n_units, modalities, bin_size_s=BIN_S)
    units = [Unit("p", i, 1) for i in range(feed.n_units)]
    model, table = folder / "model.neds", folder / "units.tsv"
    write_bundle(model, session="random", subject="random", bin_size_s=BIN_S, shape=shape,
                 units=units, modalities=modalities, weights=made.weights)
    lines = ["probe\tchannel\tcluster\tstream\telectrode\tsorted_id"]
    for i, unit in enumerate(units):
        electrode = twin.electrode.format(channel=feed.channel[i])
        lines.append(f"p\t{unit.channel}\t1\t{twin.stream}\t{electrode}\t{feed.cluster[i]}")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return model, table


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """Return the processor time a process has used, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, feed: Feed, loss: float, args: argparse.Namespace) -> dict[str, Any]:
    """Run one row."""
    twin = TWINS[name]
    if twin.raw:
        feed = silent(args.channels)
    with tempfile.TemporaryDirectory(prefix="neds-sources-") as text:
        folder = Path(text)
        model, table = write_model(folder, feed, twin)
        counts = folder / "counts.npy"
        rows = np.lib.format.open_memmap(
            counts, mode="w+", dtype=np.uint16,
            shape=(int(args.seconds / BIN_S) + 100, 1 + feed.n_units),
        )
        os.environ[VARIABLE] = str(counts)
        before = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *before]))
        band = RawBand(args.channels, args.seed, folder) if twin.raw else None
        context = zmq.Context()
        with Child("twin", twin.module, *twin.arguments, *played(twin, loss, args)) as child:
            uri = twin.uri.format(port=child.json(START_S)["port"],
                                  templates="" if band is None else band.templates)
            with Child("server", "neds_rt", "serve", "--probe", f"p={uri}", "--model", str(model),
                       "--units", str(table), "--engine", "bench.counting:CountingEngine",
                       "--out", "tcp://127.0.0.1:*", "--stale-after", "1", "--json") as server:
                decodes_from = subscribe(context, server.ready(START_S), START_S)
                child.tell({"play": True})
                used = cpu_seconds(server.pid)
                decodes = collect(decodes_from, args.seconds)
                used = cpu_seconds(server.pid) - used
                report = child.json(START_S)
                summary = server.stop() or {}
        context.destroy(linger=0)
        first_due = twin.begins
        if band is not None:
            begun = summary["sources"]["p"]["first_sample"]
            feed, live_from = band.offline(twin.raw, begun, round(args.seconds * FS))
            first_due = -(-live_from // round(BIN_S * FS))
        result = compare(decodes, np.array(rows[: len(decodes)]), feed, report["starts_ns"][0],
                         first_due)
    return {
        "source": name, "loss": loss, "seconds": args.seconds, "units": feed.n_units,
        "spikes_per_second": round(len(feed.samples) / args.seconds), **result,
        "gaps_injected": report["gaps"], "gaps_detected": summary["counters"]["gaps"],
        "messages_dropped": report["dropped"],
        "messages_missed": summary["sources"]["p"]["counters"].get("lost_messages"),
        "cpu_of_a_core": round(used / args.seconds, 3), "twin_late_us": report.get("late_us"),
        "reasons": {k: v for k, v in summary["reasons"].items() if v},
        "counters": {k: v for k, v in summary["counters"].items() if v},
        "source_counters": {k: v for k, v in summary["sources"]["p"]["counters"].items() if v},
        "stages": summary["latency"],
    }


def played(twin: Twin, loss: float, args: argparse.Namespace) -> list[str]:
    """Return the arguments that tell a twin what to play, for how long and where."""
    words = ["--seed", str(args.seed), "--seconds", str(args.seconds), "--port", str(free_port()),
             "--on-line"]
    if twin.raw:
        words += ["--channels", str(args.channels)]
        return words if "spikeglx" in twin.module else [*words, "--hwm", str(args.hwm)]
    words += [str(args.session)] if args.session else ["--random", f"{args.units},{args.hz}"]
    return [*words, "--hwm", str(args.hwm), *(["--loss", str(loss)] if loss else [])]


def collect(decodes_from: zmq.Socket[bytes], seconds: float) -> list[Decode]:
    """Return the decodes of bins until none came for `QUIET_S` seconds, once they have begun."""
    decodes: list[Decode] = []
    last = time.monotonic() + START_S
    while time.monotonic() < last:
        if not decodes_from.poll(200):
            continue
        decode = decode_message(decodes_from.recv())
        if decode.bin >= 0:
            decodes.append(decode)
            last = time.monotonic() + QUIET_S
    return decodes


def compare(
    decodes: list[Decode], rows: NDArray[np.uint16], feed: Feed, start_ns: int, first_due: int
) -> dict[str, Any]:
    """Compare the counts the model was given with offline binning, and take the ages.

    `first_due` is the first bin that the source could deliver whole.
    """
    if not decodes:
        raise SystemExit("no decode came")
    bins = np.array([d.bin for d in decodes])
    first, last = int(bins.min()), int(bins.max())
    truth = bin_spikes(feed.samples, feed.units, feed.n_units, feed.fs, BIN_S, first,
                       last - first + 1)
    present = rows[:, 0] == 1
    equal = np.all(rows[:, 1:] == truth[bins - first], axis=1)
    edges = bin_edges(bins + 1, feed.fs, BIN_S)
    newest = feed.samples[np.maximum(np.searchsorted(feed.samples, edges) - 1, 0)]
    published = np.array([d.pub_ns for d in decodes]) - start_ns
    wanted = int((feed.samples[-1] / feed.fs) / BIN_S) - 6  # the last ones stay open
    return {
        "bins": len(bins), "bins_lost": int((~present).sum()),
        "bins_equal_percent": round(100 * float(equal[present].mean()), 4),
        "bins_wrong": int((~equal & present).sum()),
        "decodes_missed": (last - first + 1 - len(np.unique(bins)) + max(0, wanted - last)
                           + max(0, first - first_due)),
        "first_bin": first,
        "service_us": percentiles(np.array([d.service_us for d in decodes])),
        "sample_age_ms": percentiles((published - newest / feed.fs * 1e9) / 1e6),
    }


def passed(row: dict[str, Any]) -> bool:
    """Whether nothing was wrong, missing or unnoticed."""
    return (row["bins_wrong"] == 0 and row["decodes_missed"] == 0
            and row["gaps_detected"] == row["gaps_injected"]
            and (row["loss"] > 0 or row["bins_lost"] == 0)
            and row["cpu_of_a_core"] <= (MOST_CPU_RAW if TWINS[row["source"]].raw else MOST_CPU))


def show(row: dict[str, Any]) -> str:
    """Return a row for people."""
    ages = "  ".join(f"{name} {row[key]['p50']:.1f}/{row[key]['p99']:.1f}/{row[key]['p999']:.1f}"
                     for name, key in (("service us", "service_us"), ("age ms", "sample_age_ms")))
    return (f"{row['source']:>14} loss {row['loss']:<6g} {row['spikes_per_second']:6d} spikes/s  "
            f"equal {row['bins_equal_percent']:.2f} % of {row['bins']}  lost {row['bins_lost']}  "
            f"missed {row['decodes_missed']}  gaps {row['gaps_detected']}/{row['gaps_injected']}  "
            f"{ages}  cpu {row['cpu_of_a_core']:.2f}")


def main() -> int:
    """Run all rows and report; returns 4 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sources", default=",".join(TWINS), help="which (default: all)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (default 20)")
    parser.add_argument("--units", type=int, default=600, help="units (default 600)")
    parser.add_argument("--hz", type=float, default=5.0, help="spikes of a unit a second")
    parser.add_argument("--channels", type=int, default=CHANNELS,
                        help=f"of a raw band (default {CHANNELS})")
    parser.add_argument("--loss", default="0,0.001,0.01", help="shares of messages dropped")
    parser.add_argument("--session", type=Path, help="session file (default: random spikes)")
    parser.add_argument("--hwm", type=int, default=0,
                        help="messages the twin queues, 0 for all (default); the programs drop "
                             "silently beyond 1000, which then counts as gaps not injected")
    parser.add_argument("--seed", type=int, default=101, help="of spikes and losses")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write that object here")
    args = parser.parse_args()
    if args.session:
        feed = read_feed(args.session)
        feed = feed.until(round(args.seconds * feed.fs))
    else:
        feed = random_feed(args.units, args.hz, args.seconds, args.seed)
    rows = []
    for name in args.sources.split(","):
        for loss in map(float, args.loss.split(",")):
            if loss and not TWINS[name].counts_messages:
                continue
            rows.append(measure(name, feed, loss, args))
            print(show(rows[-1]), flush=True)
    report = {"passed": all(map(passed, rows)), "rows": rows}
    finish("sources", args, report, lambda _: None)  # the rows were printed as they came
    return 0 if report["passed"] else 4


if __name__ == "__main__":
    sys.exit(main())
