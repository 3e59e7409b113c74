"""The sender process of `neds-rt bench`: one probe socket a server, frames on an absolute schedule.

Takes orders as JSON lines on standard input, `{"target": i, "bins": n, "speed": x}`, and answers
each with two lines: when the schedule starts, and what was sent; with `"each": true` also by how
many microseconds each bin was sent late. A frame covers one bin. `speed` 0 sends the bins at once.
Bins count on per target, so a server never sees a gap between orders.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neds_rt.binning import bin_edges
from neds_rt.player import Block, Player
from neds_rt.wire import SPIKE_DTYPE

POOL = 64  # different bins prepared before the start; they repeat


def make_pool(
    n_units: int, rate_hz: float, width: int, bin_size_s: float
) -> list[NDArray[np.void]]:
    """Return bins of Poisson spikes at `rate_hz` a unit, samples counted from the bin's start."""
    rng = np.random.default_rng(0)
    pool = []
    for _ in range(POOL):
        spikes = np.zeros(rng.poisson(n_units * rate_hz * bin_size_s), SPIKE_DTYPE)
        spikes["sample"] = np.sort(rng.integers(0, width, len(spikes)))
        spikes["unit"] = rng.integers(0, n_units, len(spikes))
        pool.append(spikes)
    return pool


def bin_blocks(
    pool: list[NDArray[np.void]], first: int, n: int, fs: float, bin_size_s: float
) -> Iterator[Block]:
    """Yield one block for each of the bins `first` to `first + n - 1`."""
    edges = bin_edges(np.arange(first, first + n + 1), fs, bin_size_s).tolist()
    for k, start, after in zip(range(first, first + n), edges, edges[1:], strict=False):
        spikes = pool[k % POOL].copy()
        spikes["sample"] += start
        yield Block(start, after, spikes)


def main() -> int:
    """Entry point of the process; ends when standard input does."""
    parser = argparse.ArgumentParser(description="Paced sender of the latency benchmark.")
    parser.add_argument("--targets", type=int, required=True, help="number of servers")
    parser.add_argument("--units", type=int, required=True, help="units of the probe")
    parser.add_argument("--stream", default="probe00", help="probe name in the headers")
    parser.add_argument("--fs", type=float, default=30_000.0, help="samples per second")
    parser.add_argument("--bin-size", type=float, required=True, help="bin size in seconds")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="mean rate of a unit")
    args = parser.parse_args()
    width = int(args.fs * args.bin_size)
    pool = make_pool(args.units, args.rate_hz, width, args.bin_size)
    players = [
        Player("zmq+tcp://127.0.0.1:*", stream=args.stream, fs=args.fs) for _ in range(args.targets)
    ]
    print(json.dumps({"uris": [player.uri for player in players]}), flush=True)
    next_bin = [0] * args.targets
    for text in sys.stdin:
        order = json.loads(text)
        target, n = order["target"], order["bins"]
        player, first = players[target], next_bin[target]
        player.wait(60)
        speed = order["speed"] or float("inf")
        start_ns = time.monotonic_ns() + 5_000_000
        print(json.dumps({"start_ns": start_ns, "first_bin": first}), flush=True)
        blocks = bin_blocks(pool, first, n, args.fs, args.bin_size)
        played = player.play(blocks, speed, start_ns=start_ns)
        next_bin[target] += n
        each = {"late_us_each": played.late_us.tolist()} if order.get("each") else {}
        print(json.dumps(played.summary() | each), flush=True)
    for player in players:
        player.close(flush=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
