"""Read recordings and write each as a session file, OUT/SESSION.h5.

A file that cannot be read is reported at the end (exit code 2); the others are kept.

    neds prepare --reader arrays --preset indy indy/*.npz --out sessions
    neds prepare --reader arrays rec.npz --out sessions \\
        --map spike_times=t spike_units=u behaviour.wheel=velocity:velocity_times
    neds prepare --reader arrays rec.npz --out sessions --map mapping.toml

Keys of --map (TOML tables of the same names do the same):
    spike_times=ARRAY spike_units=ARRAY [n_units=ARRAY|N] [fs=N]    spike events in seconds, or
    counts=ARRAY bin_size=ARRAY|N [bin_start=ARRAY]                 counts (bins, units)
    behaviour.NAME=VALUES:TIMESTAMPS[:KIND[:UNIT]]     TIMESTAMPS "bins" means the ends of the bins
    unit.COLUMN=ARRAY                                  probe, channel, cluster, region, depth_um
    trials.COLUMN=ARRAY  trials_prefix=TEXT  domain_start=ARRAY domain_end=ARRAY
    session=ARRAY subject=ARRAY                        names, default session_id and subject_id
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from neds.data.session import Session

READERS = {"arrays": "neds.data.presets:arrays_reader"}
"""Reader name -> function of (preset, mapping words) that returns what reads one file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds prepare`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recordings to read")
    parser.add_argument("--reader", default="arrays", choices=list(READERS),
                        help="format of the files (default %(default)s: NumPy archives)")
    parser.add_argument("--preset", help="known set: indy, place-cells, steinmetz, ibl-sample")
    parser.add_argument("--map", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="which array is what, or one TOML file that says so")
    parser.add_argument("--out", type=Path, required=True, help="folder for the session files")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Prepare every file; return 2 if one of them failed."""
    from tqdm import tqdm

    from neds_rt.errors import NedsError

    read = _reader(args)
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for path in tqdm(args.files, desc="prepare", unit="file", file=sys.stderr, disable=None):
        try:
            done.append(_prepare(path, read, args, {row["path"] for row in done}))
        except NedsError as error:
            failed.append({"source": str(path), "error": str(error)})
    for row in done:
        print(f"{row['path']}: {row['units']} units, {row['seconds']:.1f} s, "
              f"behaviours {', '.join(row['behaviours']) or 'none'}")
    for failure in failed:
        print(f"neds prepare: {failure['error']}", file=sys.stderr)
    if args.json:
        print(json.dumps({"sessions": done, "failed": failed}))
    return 2 if failed else 0


def _reader(args: argparse.Namespace) -> Callable[[Path], Session]:
    import importlib

    module, _, name = READERS[args.reader].partition(":")
    reader: Callable[[Path], Session] = getattr(importlib.import_module(module), name)(
        args.preset, args.map
    )
    return reader


def _prepare(
    path: Path, read: Callable[[Path], Session], args: argparse.Namespace, taken: set[str]
) -> dict[str, Any]:
    from neds.data.store import file_sha256, provenance, session_path, write_session
    from neds_rt.errors import BadInput

    session = read(path)
    target = session_path(args.out, session.session)
    if str(target) in taken:
        raise BadInput(path, "session", session.session, "a name no other file of this run has")
    arguments = {"preset": args.preset, "map": args.map}
    origin = provenance(args.reader, arguments, path.name, file_sha256(path))
    write_session(session, target, provenance=origin)
    return {"session": session.session, "subject": session.subject, "path": str(target),
            "source": str(path), "units": session.n_units, "seconds": session.duration_s,
            "behaviours": list(session.behaviours)}
