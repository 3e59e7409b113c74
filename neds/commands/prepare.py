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
    parser.add_argument("--ray", default=None, metavar="ADDRESS",
                        help="read the files on a Ray cluster that sees them and OUT, or on a "
                        "local one (local)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Prepare every file; return 2 if one of them failed."""
    done, failed = _on_cluster(args) if args.ray else _here(args)
    for row in done:
        print(f"{row['path']}: {row['units']} units, {row['seconds']:.1f} s, "
              f"behaviours {', '.join(row['behaviours']) or 'none'}")
    for failure in failed:
        print(f"neds prepare: {failure['error']}", file=sys.stderr)
    if args.json:
        print(json.dumps({"sessions": done, "failed": failed}))
    return 2 if failed else 0


Rows = list[dict[str, Any]]


def _here(args: argparse.Namespace) -> tuple[Rows, Rows]:
    """What was prepared and what failed, one file after the other in this process."""
    from tqdm import tqdm

    from neds.data.store import session_path, write_session
    from neds_rt.errors import NedsError

    read = _reader(args.reader, args.preset, args.map)
    done: Rows = []
    failed: Rows = []
    for path in tqdm(args.files, desc="prepare", unit="file", file=sys.stderr, disable=None):
        try:
            session = read(path)
            target = session_path(args.out, session.session)
            _check_name(path, session.session, done)
            origin = _origin(path, args.reader, args.preset, args.map)
            write_session(session, target, provenance=origin)
            done.append(_row(path, session, target))
        except NedsError as error:
            failed.append({"source": str(path), "error": str(error)})
    return done, failed


def _on_cluster(args: argparse.Namespace) -> tuple[Rows, Rows]:
    """The same on a Ray cluster: tasks write beside their place, names are settled here in order.

    So the outcome is that of one process, whichever task ends first.
    """
    import os
    import tempfile

    from tqdm import tqdm

    from neds.cluster import cluster, map_files
    from neds.data.store import session_path
    from neds_rt.errors import BadInput, NedsError

    _reader(args.reader, args.preset, args.map)  # refuses wrong options before anything starts
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=args.out.absolute(), prefix=".prepare-")
    except OSError as error:
        raise BadInput(args.out, "folder", error.strerror,
                       "a folder that can be written") from error
    done: Rows = []
    failed: Rows = []
    with folder as staging, cluster(args.ray) as ray:
        calls = [(str(path.absolute()), args.reader, args.preset, args.map, f"{staging}/{i}.h5")
                 for i, path in enumerate(args.files)]
        results = tqdm(map_files(ray, prepare_to, calls), total=len(calls), desc="prepare",
                       unit="file", file=sys.stderr, disable=None)
        for path, call, row in zip(args.files, calls, results, strict=True):
            try:
                if isinstance(row, Exception):
                    raise BadInput(path, "task", type(row).__name__, "one that ends")
                if "error" in row:
                    raise NedsError(row["error"])
                _check_name(path, row["session"], done)
                target = session_path(args.out, row["session"])
                os.replace(call[-1], target)
                done.append({**row, "path": str(target), "source": str(path)})
            except (NedsError, OSError) as error:
                failed.append({"source": str(path), "error": str(error)})
    return done, failed


def prepare_to(
    source: str, reader: str, preset: str | None, words: list[str], target: str
) -> dict[str, Any]:
    """Read one file and write its session as `target`; its row, or {"error": text}."""
    from neds.data.store import write_session
    from neds_rt.errors import NedsError

    path = Path(source)
    try:
        session = _reader(reader, preset, words)(path)
        write_session(session, target, provenance=_origin(path, reader, preset, words))
    except NedsError as error:
        return {"error": str(error)}
    return _row(path, session, Path(target))


def _reader(reader: str, preset: str | None, words: list[str]) -> Callable[[Path], Session]:
    import importlib

    module, _, name = READERS[reader].partition(":")
    read: Callable[[Path], Session] = getattr(importlib.import_module(module), name)(preset, words)
    return read


def _check_name(path: Path, session: str, done: Rows) -> None:
    from neds_rt.errors import BadInput

    if any(row["session"] == session for row in done):
        raise BadInput(path, "session", session, "a name no other file of this run has")


def _origin(path: Path, reader: str, preset: str | None, words: list[str]) -> dict[str, Any]:
    from neds.data.store import file_sha256, provenance

    arguments = {"preset": preset, "map": words}
    return provenance(reader, arguments, path.name, file_sha256(path))


def _row(path: Path, session: Session, target: Path) -> dict[str, Any]:
    return {"session": session.session, "subject": session.subject, "path": str(target),
            "source": str(path), "units": session.n_units, "seconds": session.duration_s,
            "behaviours": list(session.behaviours)}
