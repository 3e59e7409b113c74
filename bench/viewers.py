"""What watching costs a server: service latency without, with, and with stalled viewers.

    python bench/viewers.py --out bench/results/viewers.json
    python bench/viewers.py --bins 500 --round 100                   a first look, two minutes

Servers of the same model take turns in short rounds, each with viewers of its own: `off` publishes
no status, `unwatched` does and nobody looks, `watched` has `neds-rt top` and `neds-rt dashboard`,
`viewer stalled` has the same two stopped (SIGSTOP), and `subscriber stalled` has a program that
takes decodes (`neds-rt sink`) stopped. Viewers that work are stopped while it is not their server's
turn. What is measured is what `neds-rt bench` measures.

Ends with exit code 1 and a line for each thing that does not hold: a bin lost, or something that
stands still makes the p99 of a round's service more than --at-most times that of `off` in the same
round, at the median of the rounds and not by chance (bench/paired.py).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402
import zmq  # noqa: E402

from bench.output import finish, lend_path, verdict  # noqa: E402
from bench.paired import PairedBench, above, ratios  # noqa: E402
from neds_rt.bundle import Manifest, read_bundle  # noqa: E402
from neds_rt.children import Child  # noqa: E402
from neds_rt.errors import BadInput, NedsError  # noqa: E402
from neds_rt.latency.random_model import parse_sizes, write_random  # noqa: E402
from neds_rt.latency.report import print_table  # noqa: E402
from neds_rt.latency.rounds import START_S, Contender, Plan, Target  # noqa: E402

SETTLE_S = 2.0  # from a viewer's start until it has surely subscribed


@dataclass(frozen=True)
class Way:
    """A way to be watched: which programs look, and whether they are stopped."""

    programs: tuple[str, ...] = ()
    stalled: bool = False


WAYS = {
    "off": Way(),
    "unwatched": Way(),
    "watched": Way(("top", "dashboard")),
    "viewer stalled": Way(("top", "dashboard"), stalled=True),
    "subscriber stalled": Way(("sink",), stalled=True),
}


class WatchedBench(PairedBench):
    """Rounds in which every server has viewers of its own, that work in its turn alone."""

    def __init__(
        self, model: Path, manifest: Manifest, plan: Plan, ways: Sequence[str], folder: Path
    ) -> None:
        self.status = {way: "off" if way == "off" else f"ipc://{folder}/{i}.status"
                       for i, way in enumerate(ways)}
        self.viewers: dict[str, list[Child]] = {}
        contenders = [
            Contender(way, "neds_rt", ("serve", "--engine", "native", "--stale-after", "86400",
                                       "--status", self.status[way]), "native")
            for way in ways
        ]
        super().__init__(model, manifest, contenders, plan)
        try:
            for target in self.targets:
                self._look(target)
        except BaseException:
            self._stack.close()
            raise

    def _look(self, target: Target) -> None:
        """Start the viewers of one server, and stop them."""
        decodes = target.socket.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
        status = self.status[target.name]
        words = {
            "top": ("top", "--status", status, "--json"),
            "dashboard": ("dashboard", "--decodes", decodes, "--status", status, "--port", "0",
                          "--no-open"),
            "sink": ("sink", "--from", decodes, "udp://127.0.0.1:9"),
        }
        self.viewers[target.name] = children = []
        for program in WAYS[target.name].programs:
            children.append(self._child(program, "neds_rt", *words[program]))
            self._stack.callback(_signal, children[-1], signal.SIGCONT)  # or it could not end
            children[-1].line(START_S)
        if children:
            time.sleep(SETTLE_S)
        for child in children:
            _signal(child, signal.SIGSTOP)

    def _round(self, target: Target, bins: int) -> None:
        with self._looking(target.name):
            super()._round(target, bins)

    @contextmanager
    def _looking(self, name: str) -> Iterator[None]:
        """Let the viewers of this server work, unless they are to be stalled."""
        working = [] if name not in WAYS or WAYS[name].stalled else self.viewers[name]
        for child in working:
            _signal(child, signal.SIGCONT)
        try:
            yield
        finally:
            for child in working:
                _signal(child, signal.SIGSTOP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 if a claim does not hold, 2 after bad input, 3 without a server."""
    args = parse(argv)
    lend_path(ROOT)
    try:
        for option in ("bins", "round", "bins_per_second", "at_most"):
            if not getattr(args, option) > 0:
                value = getattr(args, option)
                raise BadInput(f"--{option.replace('_', '-')}", "value", value, "above 0")
        with tempfile.TemporaryDirectory(prefix="neds-viewers-") as folder:
            report = measure(args, Path(folder))
        found = broken(report)
        finish("viewers", args, {"passed": not found, **report}, show)
    except NedsError as error:
        print(f"viewers: {error}", file=sys.stderr)
        return error.exit_code
    return verdict("viewers", found)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", metavar="K=V,...", default="hidden=128,heads=4",
                        help="sizes of the random model, as neds-rt bench has them "
                             "(default hidden=128,heads=4)")
    parser.add_argument("--bins", type=int, default=5000, help="bins a server (default 5000)")
    parser.add_argument("--round", type=int, default=250, help="bins a turn (default 250)")
    parser.add_argument("--bins-per-second", type=float, default=50.0, help="pace (default 50)")
    parser.add_argument("--at-most", type=float, default=1.25,
                        help="p99 with something stalled, over that without (default 1.25)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all rounds and return the report, each server beside the one without a status."""
    sizes = parse_sizes(args.synthetic)
    model = write_random(folder, sizes, 1 / args.bins_per_second, graph=False)
    manifest = read_bundle(model).manifest
    plan = Plan(args.bins, args.round, 1 / args.bins_per_second, sizes["rate_hz"])
    with WatchedBench(model, manifest, plan, list(WAYS), folder) as bench:
        report = bench.run()
        rounds = {way: ratios(bench.service, way, "off") for way in WAYS}
    base = report["engines"][0]["service_us"]
    for row in report["engines"]:
        row["to_off"] = {key: round(row["service_us"][key] / base[key], 3)
                         for key in ("p50", "p99", "p999")}
        row["to_off_by_round"] = rounds[row["name"]]
    return {
        **report, "at_most": args.at_most, "bins": args.bins,
        "bins_per_second": args.bins_per_second,
        "model": {**msgspec.to_builtins(manifest.shape), "units": len(manifest.units),
                  "rate_hz": sizes["rate_hz"], "model_hash": manifest.model_hash},
    }


def broken(report: dict[str, Any]) -> list[str]:
    """Return what does not hold, a line each."""
    lines = [f"{row['name']}: {row['lost']} bins lost" for row in report["engines"] if row["lost"]]
    for row in report["engines"]:
        if row["name"] in WAYS and WAYS[row["name"]].stalled:
            lines += above(row["name"], row["to_off_by_round"], "p99", report["at_most"])
    return lines


def show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    print_table(report)
    for row in report["engines"]:
        told = ", ".join(f"{key} {found['median']:.2f} ({found['low']:.2f} to "
                         f"{found['high']:.2f})" for key, found in row["to_off_by_round"].items())
        print(f"{row['name']:20} of off, median of the rounds: {told}")


def _signal(child: Child, number: signal.Signals) -> None:
    if child.running:
        os.kill(child.pid, number)


if __name__ == "__main__":
    sys.exit(main())
