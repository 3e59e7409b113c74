"""A synthetic animal as a live probe, in its own process.

    python -m neds_rt.sources.synthetic --animal 7 --units 150 --session 11 --seconds 20

Prints its address, waits for a line on standard input and for a subscriber, then plays at real
time and ends with a report. All spikes are drawn before the start, so that drawing delays no block.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np

from neds_rt.player import Block, Player, empty_spikes
from neds_rt.synthetic import FS, MEAN_RATE_HZ, SyntheticAnimal


def make_animal(seed: int, units: int, hz: float = MEAN_RATE_HZ) -> SyntheticAnimal:
    """Return an animal whose units fire `hz` times a second on average, before rates are capped."""
    animal = SyntheticAnimal(seed, units)
    animal.log_base += np.log(hz / MEAN_RATE_HZ)
    return animal


def synthetic_blocks(
    animal: SyntheticAnimal, session: int, seconds: float, block_samples: int
) -> list[Block]:
    """Return the first `seconds` of a session of `animal` in blocks of `block_samples`."""
    recording = animal.simulate(seconds, session)
    end = recording.n_steps * round(recording.fs * recording.step_s)
    spikes = empty_spikes(len(recording.sample))
    spikes["sample"], spikes["unit"] = recording.sample, recording.unit
    edges = np.r_[np.arange(0, end, block_samples), end].tolist()
    cuts = np.searchsorted(recording.sample, edges).tolist()
    return [
        Block(edges[i], edges[i + 1], spikes[cuts[i] : cuts[i + 1]]) for i in range(len(edges) - 1)
    ]


def main() -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description="A synthetic animal as a live probe.")
    parser.add_argument("--to", default="zmq+tcp://127.0.0.1:*", help="URI to bind")
    parser.add_argument("--stream", default="probe00", help="probe name in the headers")
    parser.add_argument("--animal", type=int, default=0, help="seed of the animal")
    parser.add_argument("--session", type=int, default=0, help="seed of the session")
    parser.add_argument("--units", type=int, default=150, help="units of the animal")
    parser.add_argument("--hz", type=float, default=MEAN_RATE_HZ, help="mean rate of a unit")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the play")
    parser.add_argument("--block-ms", type=float, default=10.0, help="time a message covers")
    args = parser.parse_args()
    animal = make_animal(args.animal, args.units, args.hz)
    block = max(1, round(args.block_ms * 1e-3 * FS))
    parts = synthetic_blocks(animal, args.session, args.seconds, block)
    with Player(args.to, stream=args.stream, fs=FS) as player:
        print(json.dumps({"uri": player.uri}), flush=True)
        sys.stdin.readline()
        player.wait(60)
        start_ns = time.monotonic_ns() + 50_000_000
        print(json.dumps({"start_ns": start_ns}), flush=True)
        played = player.play(parts, 1.0, start_ns=start_ns)
    print(json.dumps(played.summary()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
