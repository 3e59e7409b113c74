"""Read recordings and write each as a session file, OUT/SESSION.h5.

A recording that cannot be read is reported at the end (exit code 2); the others are kept. One whose
session is there already, from the same content and options, is not read again.

    neds prepare --reader arrays --preset indy indy/*.npz --out sessions
    neds prepare --reader arrays rec.npz --out sessions \\
        --map spike_times=t spike_units=u behaviour.wheel=velocity:velocity_times
    neds prepare --reader nwb *.nwb --out sessions --set behaviour.wheel=wheel_velocity
    neds prepare --reader ibl --eids eids.txt --out sessions --jobs 4
    neds prepare --reader phy sorted/ --out sessions --set keep=group=good

    neds prepare --reader bwb brain-wide-bench/pretrain/*.h5 --out sessions

    neds prepare --reader session monday.h5 --out sessions

Options of a reader (--set, or one TOML file), of all but arrays and session: fs, keep, keep_silent,
session, subject; and of
    nwb, brainsets  behaviour.NAME=SERIES[:KIND[:UNIT]], or trials.COLUMN for a label of its trial
    ibl             form=continuous|trials bugs=all|NAMES min_rate_hz=N regions=beryl
                    revision=DATE mode=remote|local cache=FOLDER host=URL
    sorting         recording=FOLDER segment=N probe=NAME
    phy             probe=NAME seconds=N
    session         session=NAME subject=NAME, no others
keep asks for columns of the unit table: "group=good, snr>=5".

Keys of --map for arrays (TOML tables of the same names do the same):
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
from typing import Any

READERS = {
    "arrays": "neds.data.presets:arrays_reader",
    "nwb": "neds.data.nwb:nwb_reader",
    "brainsets": "neds.data.brainsets:brainset_reader",
    "bwb": "neds.bwb.sessions:bwb_reader",
    "ibl": "neds.data.ibl:ibl_reader",
    "sorting": "neds.data.sorting:sorting_reader",
    "phy": "neds.data.phy:phy_reader",
    "session": "neds.data.stored:session_reader",
}
"""Reader name -> function of (preset, option words) that returns a `neds.data.reader.Reader`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds prepare`."""
    parser.add_argument("files", nargs="*", metavar="SOURCE",
                        help="recordings to read: files, folders, or session ids")
    parser.add_argument("--eids", metavar="FILE",
                        help="a file with a source a line, such as IBL session ids; paper-train, "
                        "paper-test: the sessions of the NEDS paper, 74 and the ten held out")
    parser.add_argument("--reader", default="arrays", choices=list(READERS),
                        help="format of the sources (default %(default)s: NumPy archives)")
    parser.add_argument("--preset", help="known set: indy, place-cells, steinmetz, ibl-sample")
    parser.add_argument("--map", "--set", nargs="+", action="extend", default=[],
                        metavar="KEY=VALUE", help="options of the reader; of arrays: which array "
                        "is what; or one TOML file that says so")
    parser.add_argument("--out", required=True, help="folder for the session files")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="sources at a time, each in a process (default %(default)s)")
    parser.add_argument("--again", action="store_true",
                        help="read those too whose sessions are there already")
    parser.add_argument("--ray", default=None, metavar="ADDRESS",
                        help="read the files on a Ray cluster that sees them and OUT, or on a "
                        "local one (local)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Prepare every source; return 2 if one of them failed."""
    from contextlib import nullcontext
    from pathlib import Path

    from tqdm import tqdm

    from neds.cluster import cluster
    from neds.preparing import Job, prepare

    sources = _sources(args)
    job = Job(args.reader, READERS[args.reader], args.preset, tuple(args.map))
    job.made()  # refuses wrong options before anything starts

    def watch(results: Any) -> Any:
        return tqdm(results, desc="prepare", total=len(sources), unit="session", file=sys.stderr,
                    disable=None)

    with cluster(args.ray) if args.ray else nullcontext() as ray:
        outcome = prepare(sources, job, Path(args.out), jobs=args.jobs, again=args.again, ray=ray,
                          watch=watch)
    for row in outcome.done:
        there = " (was there)" if row["skipped"] else ""
        print(f"{row['path']}: {row['units']} units, {row['seconds']:.1f} s, "
              f"behaviours {', '.join(row['behaviours']) or 'none'}{there}")
    report = outcome.report()
    print(*report.lines(), sep="\n")
    for failure in outcome.failed:
        print(f"neds prepare: {failure['error']}", file=sys.stderr)
    if args.json:
        print(json.dumps({"sessions": outcome.done, "failed": outcome.failed,
                          "skipped": sum(row["skipped"] for row in outcome.done),
                          "dropped": report.as_json()}))
    return 2 if outcome.failed else 0


def _sources(args: argparse.Namespace) -> list[str]:
    """Every source once, absolute where it is a path, so that other processes find it."""
    import os
    from pathlib import Path

    from neds_rt.errors import BadInput
    from neds_rt.small_files import read_small

    words = list(args.files)
    if args.eids:
        from neds.data.ibl_one import LISTS

        listed = LISTS.get(args.eids, Path(args.eids))
        data = read_small(listed, "--eids", "a text file, a source a line")
        try:
            lines = [line.partition("#")[0].strip() for line in data.decode().splitlines()]
        except UnicodeDecodeError as error:
            raise BadInput(args.eids, "--eids", error, "a text file, a source a line") from error
        words += [line for line in lines if line]
    if not words:
        raise BadInput("neds prepare", "sources", "none", "files, folders or --eids FILE")
    if args.jobs < 1:
        raise BadInput("neds prepare", "--jobs", args.jobs, "1 or more")
    if args.ray:
        words = [os.path.abspath(word) if os.path.exists(word) else word for word in words]
    return list(dict.fromkeys(words))
