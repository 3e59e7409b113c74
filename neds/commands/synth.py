"""Make synthetic animals and write each as a session file, OUT/synthetic-SEED-00.h5.

IBL-like: five regions, wheel, whisker, choice and block, Poisson spikes of known rates. Animal i
has the seed SEED + i; the same seed is always the same animal. All animals share what their
regions encode, and each has its own units.

example:
  neds synth --animals 4 --seconds 600 --units 200 --seed 0 --out sessions
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds synth`."""
    parser.add_argument("--animals", type=int, default=1, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=600.0,
                        help="length of each recording (default %(default)s)")
    parser.add_argument("--units", type=int, default=200, help="per animal (default %(default)s)")
    parser.add_argument("--probes", type=int, default=1, help="per animal (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the session files")
    parser.add_argument("--schema", choices=("neds", "bwb-pretrain", "bwb-eval"), default="neds",
                        help="of the files (%(default)s), or recordings of BrainWideBench, to "
                        "pretrain on or with its parts and held-out units")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Simulate and write each animal."""
    from tqdm import tqdm

    from neds.data.store import provenance, session_path, write_session
    from neds.data.synthetic import synthetic_session
    from neds_rt.errors import BadInput
    from neds_rt.synthetic import SyntheticAnimal
    from neds_rt.synthetic_task import STEP_S

    if args.animals < 1 or args.seed < 0:
        raise BadInput("neds synth", "--animals and --seed", f"{args.animals} and {args.seed}",
                       "at least 1 and at least 0")
    if not STEP_S <= args.seconds < 1e6:
        raise BadInput("neds synth", "--seconds", args.seconds, f"{STEP_S} to 1e6")
    if args.schema != "neds":
        return _benchmark(args)
    rows = []
    seeds = range(args.seed, args.seed + args.animals)
    for seed in tqdm(seeds, desc="synth", unit="animal", file=sys.stderr, disable=None):
        animal = SyntheticAnimal(seed, args.units, n_probes=args.probes)
        session = synthetic_session(animal, args.seconds)
        path = session_path(args.out, session.session)
        arguments = {"seed": seed, "units": args.units, "probes": args.probes,
                     "seconds": args.seconds}
        write_session(session, path, provenance=provenance("synthetic", arguments, "", ""))
        rows.append({"session": session.session, "path": str(path), "units": session.n_units,
                     "seconds": session.duration_s}
                    | {"ceiling_bits_per_spike":
                       session.metadata["synthetic"]["ceiling_bits_per_spike"]})
    for row in rows:
        print(f"{row['path']}: {row['units']} units, {row['seconds']:.1f} s, "
              f"ceiling {row['ceiling_bits_per_spike']:.3f} bits per spike")
    if args.json:
        print(json.dumps({"sessions": rows}))
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    """Write OUT/RECORDING.h5 for each animal, as the benchmark's recordings lie in a folder."""
    from neds.bwb.synthetic import recording_id, write_synthetic
    from neds_rt.synthetic import SyntheticAnimal

    rows = []
    for seed in range(args.seed, args.seed + args.animals):
        animal = SyntheticAnimal(seed, args.units, n_probes=args.probes)
        path = args.out / f"{recording_id(animal, 0)}.h5"
        write_synthetic(animal, args.seconds, path, regime=args.schema.removeprefix("bwb-"))
        rows.append({"session": path.stem, "path": str(path), "units": args.units,
                     "seconds": args.seconds})
        print(f"{path}: {args.units} units, {args.seconds:.1f} s, {args.schema}")
    if args.json:
        print(json.dumps({"sessions": rows}))
    return 0
