"""Peak memory of pretraining on few and on many sessions: does it grow with the batch alone?

    python bench/memory.py --json

Writes synthetic sessions to disk, then trains on the first 20 and on all 200 of them, each in a
fresh process: sessions are read one after another, spilled to mapped files, and a few
steps are made with batches that mix sessions. `peak_mb` is the most the process ever held in
memory (ru_maxrss), which counts mapped pages that the system may take back at any time;
`anonymous_mb` is what it cannot take back (RssAnon), the most seen after any session or step;
`parameters_mb` is the part of it that weights, their best copy, gradients and AdamW's averages
take: sessions have parameters of their own, so these grow with every session whatever one does.

Ends with exit code 4 if anonymous memory beyond parameters grows by more than `--at-most` MB a
session.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import write_json  # noqa: E402
from neds_rt.errors import BadInput  # noqa: E402
from neds_rt.machine import commit, machine_facts  # noqa: E402

if TYPE_CHECKING:
    from neds.train import Run

MB = 1e6


def main(argv: list[str] | None = None) -> int:
    """Measure, print or write; 2 after bad input, named in one line."""
    args = parse_arguments(argv)
    try:
        return child(args) if args.child else compare(args)
    except BadInput as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a session (default 60)")
    parser.add_argument("--units", type=int, default=200, help="of a session (default 200)")
    parser.add_argument("--recipe", default="single")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.FIELD=VALUE")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-most", type=float, default=0.25, help="MB a session (default 0.25)")
    parser.add_argument("--folder", default=None, help="where sessions are written for a while")
    parser.add_argument("--out", default=None, help="write the JSON here")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> int:
    """Make the sessions, run a child for each number of them, report."""
    if min(args.sessions) < 1 or args.steps < 1 or args.threads < 1:
        raise BadInput("--sessions, --steps, --threads", "numbers",
                       f"{min(args.sessions)}, {args.steps}, {args.threads}", "1 or more")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_sessions(folder, max(args.sessions), args)
        rows = [measured(folder, n, args) for n in sorted(args.sessions)]
    few, many = rows[0], rows[-1]
    between = max(1, many["sessions"] - few["sessions"])
    growth = {name: (many[name] - few[name]) / between
              for name in ("peak_mb", "anonymous_mb", "parameters_mb")}
    beyond = growth["anonymous_mb"] - growth["parameters_mb"]
    result = {
        "command": " ".join(["python", *sys.argv]), "commit": commit(),
        "recipe": args.recipe, "set": args.set, "steps": args.steps,
        "seconds_a_session": args.seconds, "units_a_session": args.units,
        "runs": rows, "mb_a_session": growth | {"beyond_parameters": beyond},
        "machine": machine_facts(),
    }
    report(result, args)
    return 0 if beyond <= args.at_most else 4


def write_sessions(folder: Path, n: int, args: argparse.Namespace) -> None:
    """Write n session files; four animals under many names, which memory cannot tell apart."""
    from neds.data.store import write_session
    from neds.data.synthetic import synthetic_session
    from neds_rt.synthetic import SyntheticAnimal

    made = [synthetic_session(SyntheticAnimal(seed, args.units), args.seconds)
            for seed in range(min(4, n))]
    for i in range(n):
        session = replace(made[i % len(made)], session=f"synthetic-{i:04d}")
        write_session(session, folder / f"{session.session}.h5")


def measured(folder: Path, n: int, args: argparse.Namespace) -> dict[str, Any]:
    """What a fresh process says of its memory after training on the first n sessions."""
    command = [sys.executable, __file__, "--child", str(folder), "--sessions", str(n),
               "--recipe", args.recipe, "--steps", str(args.steps),
               "--threads", str(args.threads)]
    for item in args.set:
        command += ["--set", item]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise BadInput("memory", f"training on {n} sessions", f"exit code {done.returncode}", "0")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def child(args: argparse.Namespace) -> int:
    """Train on the sessions of a folder and print this process's memory as JSON."""
    import torch

    from neds.config import load_recipe
    from neds.data.store import read_session
    from neds.dataset import describe, to_recording
    from neds.train import Run

    torch.set_num_threads(args.threads)
    config = load_recipe(args.recipe, args.set)
    paths = sorted(Path(args.child).glob("*.h5"))[: args.sessions[0]]
    anonymous, recordings = [anonymous_bytes()], []
    with tempfile.TemporaryDirectory(dir=args.child) as spill:
        for path in paths:
            binned, state = describe(read_session(path), config.data, 0)
            recordings.append(to_recording(binned, state, Path(spill)))
            anonymous.append(anonymous_bytes())
        prepared = anonymous[-1]
        run = Run(config, recordings)
        for _ in range(args.steps):
            run.advance()
            anonymous.append(anonymous_bytes())
    print(json.dumps({
        "sessions": len(recordings),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
        "anonymous_mb": max(anonymous) / MB,
        "anonymous_after_reading_mb": prepared / MB,
        "parameters_mb": parameter_bytes(run) / MB,
        "files_mb": sum(path.stat().st_size for path in paths) / MB,
    }))
    return 0


def parameter_bytes(run: Run) -> int:
    """Bytes of weights, the best weights so far, gradients, and AdamW's averages that exist yet."""
    weights = list(run.model.parameters())
    held = [*weights, *run.best_weights.values(), *(w.grad for w in weights if w.grad is not None)]
    for state in run.optimiser.state.values():
        held += [value for value in state.values() if hasattr(value, "nbytes")]
    return sum(tensor.nbytes for tensor in held)


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise BadInput("/proc/self/status", "RssAnon", "missing", "a Linux kernel of 4.5 or later")


def report(result: dict[str, Any], args: argparse.Namespace) -> None:
    """The table on standard error, the JSON where it was asked for."""
    for row in result["runs"]:
        print(f"{row['sessions']:4} sessions ({row['files_mb']:.0f} MB): peak "
              f"{row['peak_mb']:.0f} MB, anonymous {row['anonymous_mb']:.0f} MB, of it parameters "
              f"{row['parameters_mb']:.0f} MB", file=sys.stderr)
    print(f"a session more: {result['mb_a_session']['anonymous_mb']:.2f} MB anonymous, "
          f"{result['mb_a_session']['beyond_parameters']:.2f} MB of it beyond its parameters",
          file=sys.stderr)
    if args.out:
        write_json(args.out, result)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
