"""Templates of sorted units, for finding them live in the raw AP band.

ANALYZER is a folder of SpikeInterface's sorting analyzer. Its units' mean waveforms and the noise
are measured on raw samples behind the very filter that the live path has: those of the recording
that the analyzer's was made from, or --recording. The file serves `neds detect`, `neds export
--templates` and `neds-rt record --probe "NAME=spikeglx://HOST?mode=templates&templates=FILE"`.

example:
  neds templates sorted/analyzer --probe probe00 --out probe00.templates
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("analyzer", metavar="ANALYZER", help="folder of a sorting analyzer")
    add("--out", required=True, metavar="FILE", help="file to write")
    add("--recording", metavar="FOLDER", help="the raw recording, where the analyzer's is filtered "
        "or not there any more")
    add("--probe", default="probe00", help="name of the probe (%(default)s)")
    add("--highpass", type=float, default=300.0, metavar="HZ", help="of the live path (300)")
    add("--reference", choices=("median", "none"), default="median",
        help="what the live path takes away from all channels (%(default)s)")
    add("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Measure and write the templates; says which units have none."""
    import json
    from pathlib import Path

    from neds.templates import from_analyzer

    templates, missing = from_analyzer(
        args.analyzer, recording=args.recording, probe=args.probe, highpass_hz=args.highpass,
        reference=args.reference == "median")
    write_whole(Path(args.out), templates.encode())
    report = {"templates": args.out, "units": len(templates.names), "missing": missing,
              "channels": templates.n_channels, "fs": templates.settings.fs,
              "held_back_samples": templates.matcher().hold}
    if args.json:
        print(json.dumps(report))
    else:
        print(f"wrote {args.out}: {report['units']} units on {report['channels']} channels; live, "
              f"{report['held_back_samples']} samples are held back"
              + unheard("too few spikes for a template", missing))
    return 0


def unheard(why: str, names: Sequence[tuple[Any, ...]]) -> str:
    """Text that names units without a template; empty if there are none."""
    if not names:
        return ""
    shown = ", ".join(map(str, names[:10])) + (", ..." if len(names) > 10 else "")
    return f"\n{len(names)} units will stay silent, {why}: {shown}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody finds a part of it. Raises `BadInput`."""
    import os

    from neds_rt.errors import BadInput

    staged = path.with_name(f".{path.name}.part")
    try:
        staged.write_bytes(data)
        os.replace(staged, path)
    except OSError as error:
        raise BadInput(path, "file", error.strerror, "a file that can be written") from error
