"""The CPU engine's precisions against float32 torch: errors, and what they change of test scores.

    python bench/parity.py --checkpoint runs/a --data a.h5 --checkpoint runs/b --data b.h5 \
        --bins 100000 --out bench/results/parity.json

For every checkpoint: the test part, every run from a cold start, by torch and by `native` in each
precision (largest and RMS error of the largest output, change of every behaviour's score). For the
first of them also one stream of `--bins` bins, the session's counts over and over. Ends with exit
code 4 if float32 is off by more than 1e-4 there, or another precision changes an R2 by more than
0.005.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import write_json  # noqa: E402
from neds.checkpoint import load_checkpoint  # noqa: E402
from neds.data.store import read_session  # noqa: E402
from neds.dataset import Recording, match  # noqa: E402
from neds.evaluate import decode_part, decode_rows  # noqa: E402
from neds.export import export  # noqa: E402
from neds.model import Neds  # noqa: E402
from neds.precisions import decode_with, errors, precision_report, scores_of  # noqa: E402
from neds_rt.bundle import Bundle, read_bundle  # noqa: E402
from neds_rt.engine_parity import SCORE_LIMIT  # noqa: E402
from neds_rt.engines import load_engine  # noqa: E402
from neds_rt.engines.native import NativeEngine  # noqa: E402
from neds_rt.machine import commit, machine_facts  # noqa: E402

FLOAT_LIMIT = 1e-4


def open_case(checkpoint: Path, data: Path, folder: Path) -> tuple[Neds, Recording, Bundle]:
    """The model, its session's rows, and the bundle that export makes of them."""
    model, info = load_checkpoint(checkpoint)
    session = read_session(data)
    recording = match(session, info.session(session.session), info.config.data.bin_size_s)
    path = folder / f"{session.session}.neds"
    export(model, info, recording, path, behaviours=[], graphs=["step"])
    return model, recording, read_bundle(path)


def on_test_part(model: Neds, recording: Recording, bundle: Bundle) -> dict[str, Any]:
    """Errors and scores over the whole test part."""
    expected = np.concatenate([p for _, p in decode_part(model, recording, "test")], 1)
    rows = recording.rows("test")
    report = precision_report(recording, bundle, recording.runs_within("test"), expected)
    return {
        "session": recording.state.session, "bins": len(rows),
        "units": len(bundle.manifest.units), "shape": msgspec.to_builtins(bundle.manifest.shape),
        "torch": scores_of(recording, bundle, rows, expected),
        "engines": msgspec.to_builtins(report),
    }


def long_stream(model: Neds, recording: Recording, bundle: Bundle, bins: int) -> dict[str, Any]:
    """Errors over one stream of `bins` bins without a reset."""
    rows = torch.arange(bins) % len(recording.counts)
    stream = replace(recording, counts=recording.counts[rows],
                     encoded=[e[rows] for e in recording.encoded],
                     known=recording.known[:, rows])
    expected = np.concatenate(decode_rows(model, stream, 0, bins), 1)
    counts = [stream.counts.numpy().astype(np.uint16)]
    found = {}
    for precision in NativeEngine.precisions:
        engine = load_engine(f"native:{precision}", bundle)
        found[precision] = errors(decode_with(engine, counts), expected)
    return {"session": recording.state.session, "bins": bins, **found}


def passes(result: dict[str, Any]) -> bool:
    """Whether all errors and changes of R2 are within their limits."""
    exact = result["stream"]["float32"]["max"] <= FLOAT_LIMIT
    changes = [change for case in result["sessions"] for engine in case["engines"]
               for change in engine["score_change"].values() if change is not None]
    return exact and max(map(abs, changes)) < SCORE_LIMIT


def main(arguments: list[str] | None = None) -> int:
    """Measure all checkpoints, print one line each, write the file."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", required=True, type=Path, metavar="CKPT")
    parser.add_argument("--data", action="append", required=True, type=Path, metavar="SESSION.h5",
                        help="one for every checkpoint, in the same order")
    parser.add_argument("--bins", type=int, default=100_000, help="of the long stream (100000)")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    args = parser.parse_args(arguments)
    if len(args.checkpoint) != len(args.data):
        parser.error("as many --data as --checkpoint")
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]), "commit": commit(),
        "machine": machine_facts(), "sessions": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint, data in zip(args.checkpoint, args.data, strict=True):
            model, recording, bundle = open_case(checkpoint, data, Path(folder))
            if not result["sessions"]:
                result["stream"] = long_stream(model, recording, bundle, args.bins)
                print(describe_stream(result["stream"]))
            result["sessions"].append(on_test_part(model, recording, bundle))
            print(describe(result["sessions"][-1]), flush=True)
    if args.out is not None:
        write_json(args.out, result)
    return 0 if passes(result) else 4


def describe_stream(row: dict[str, Any]) -> str:
    """Errors of the long stream as text."""
    parts = [f"{p} max {row[p]['max']:.1e} rms {row[p]['rms']:.1e}"
             for p in NativeEngine.precisions]
    return f"{row['session']}, {row['bins']} bins in one stream: " + "; ".join(parts)


def describe(case: dict[str, Any]) -> str:
    """One session's errors and changes as text."""
    lines = [f"{case['session']}, {case['bins']} test bins, torch: "
             + ", ".join(f"{k} {v:.4f}" for k, v in case["torch"].items())]
    for engine in case["engines"]:
        changes = ", ".join(f"{k} {v:+.5f}" for k, v in engine["score_change"].items())
        lines.append(f"  {engine['precision']:8} max {engine['max']:.1e} rms {engine['rms']:.1e}  "
                     f"{changes}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
