"""Record what sources deliver, as a session to train, calibrate and replay from.

Takes the same `--probe NAME=URI` as `neds-rt serve`, by the same code, and loses nothing that serve
would have had: spikes are appended to a spool as they come, and made a session file when Ctrl-C,
SIGTERM or --seconds ends it. A recording that was cut off is made one with --recover SPOOL. If the
source restarts, what follows goes to FILE-2.h5 and so on, since its samples count anew.

    neds-rt record --probe probe00=oe://127.0.0.1:5556 --out monday.h5
    neds-rt record --recover .monday.spool --out monday.h5
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt record`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--probe", action="append", metavar="NAME=URI",
                      help="a probe's stream name and where its spikes come from, as for serve")
    what.add_argument("--recover", metavar="SPOOL",
                      help="the spool of a recording that was cut off")
    parser.add_argument("--out", required=True, metavar="FILE", help="session file to write, *.h5")
    parser.add_argument("--session", metavar="NAME", help="its name (default: that of the file)")
    parser.add_argument("--subject", default="", metavar="NAME", help="the animal")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds")
    parser.add_argument("--align", choices=("auto", "on", "off"), default="auto",
                        help="put all probes into the first one's sample clock, as for serve "
                             "(default auto)")
    parser.add_argument("--keep-spool", action="store_true", help="leave the spool where it is")
    parser.add_argument("--insecure", action="store_true",
                        help="accept addresses on other machines: nothing is encrypted")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Record until stopped; returns 0. Raises `StartError` if nothing was there to record."""
    import json
    from importlib.metadata import version
    from pathlib import Path

    from neds_rt.errors import BadInput, StartError
    from neds_rt.recording.recorder import spool_path
    from neds_rt.recording.session import write_sessions

    out = Path(args.out)
    if out.suffix != ".h5" or not out.parent.is_dir():
        raise BadInput("--out", "file", out, "NAME.h5 in a folder that is there")
    if out.exists():
        raise BadInput("--out", "file", f"{out}, which exists", "a new file")
    if args.seconds is not None and not args.seconds > 0:
        raise BadInput("--seconds", "value", args.seconds, "a number above 0")
    spool = Path(args.recover) if args.recover else spool_path(out)
    report = {} if args.recover else _record(args, out, spool)
    origin = {"reader": "neds-rt record", "source": ", ".join(args.probe or [str(spool)]),
              "versions": {"neds": version("neds")}}
    rows = write_sessions(spool, out, origin)
    if not rows:
        if not args.recover:
            spool.unlink()
        raise StartError(f"{out}: not written, no probe delivered anything")
    unwritten = [row["why"] for row in rows if row["path"] is None]
    if not args.keep_spool and not unwritten:
        spool.unlink()
    report |= {"files": rows}
    if args.json:
        print(json.dumps(report))
        return 0
    for why in unwritten:
        print(f"{why}; all of it is left in {spool}")
    for row in (row for row in rows if row["path"] is not None):
        print(f"{row['path']}: {row['seconds']} s in {row['spans']} spans, {row['spikes']} spikes "
              f"of {row['units']} units")
    return 0


def _record(args: argparse.Namespace, out: Path, spool_path: Path) -> dict[str, Any]:
    import logging
    import signal
    import sys

    from neds_rt.config import parse_probes
    from neds_rt.errors import BadInput
    from neds_rt.recording.recorder import Recorder
    from neds_rt.recording.spool import Spool

    probes = parse_probes(args.probe)
    session = args.session or out.stem
    if "/" in session or session.startswith("."):
        raise BadInput("--session", "name", repr(session), "a name usable as a file name")
    logging.basicConfig(format="neds-rt record: %(message)s")
    with Spool(spool_path, session, args.subject) as spool:
        try:
            recorder = Recorder(probes, spool, insecure=args.insecure, align=args.align)
        except BaseException:
            spool_path.unlink()
            raise
        before = {
            number: signal.signal(number, lambda *_: recorder.stop())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            print(f"ready {' '.join(args.probe)} -> {out}", file=sys.stderr, flush=True)
            recorder.run(args.seconds)
            return {"frames": spool.frames, "counters": recorder.counters,
                    "sources": recorder.report(),
                    "clocks": recorder.aligner.report() if recorder.aligner else None}
        finally:
            recorder.close()
            for number, handler in before.items():
                signal.signal(number, handler)
