"""Find spikes of known units in a raw recording by the path that will find them live.

RECORDING is a SpikeGLX binary file (NAME.ap.bin with NAME.ap.meta beside it) or a folder of a
SpikeInterface recording of raw int16. Writes an archive of arrays, to which behaviour can be added,
and prints the `neds prepare` command that makes it a session.

example:
  neds detect run_g0_t0.imec0.ap.bin --templates probe00.templates --out spikes.npz
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("recording", metavar="RECORDING", help="NAME.ap.bin, or a folder of SpikeInterface")
    add("--templates", required=True, metavar="FILE", help="from neds templates")
    add("--out", required=True, metavar="X.npz", help="archive to write")
    add("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Find, write, and print how to prepare the result."""
    import io
    import json
    from pathlib import Path

    import numpy as np

    from neds.commands.templates import write_whole
    from neds.data.sorting import load_folder
    from neds.detect import MAP, find_spikes, read_bin
    from neds.templates import raw_of
    from neds_rt.errors import BadInput
    from neds_rt.templates import read_templates

    source, out = Path(args.recording), Path(args.out)
    if out.suffix != ".npz":
        raise BadInput("--out", "file", out, "NAME.npz")
    templates = read_templates(args.templates)
    if source.suffix == ".bin":
        raw = read_bin(source, templates.tensors["position"])
    else:
        raw = raw_of(load_folder(source), str(source))
    arrays = find_spikes(raw, templates)
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)  # type: ignore[arg-type]
    write_whole(out, archive.getvalue())
    words = MAP.format(fs=raw.fs)
    report = {"archive": str(out), "spikes": len(arrays["spike_times"]),
              "units": len(templates.names), "map": words.split(),
              "seconds": float(arrays["domain_end"][0] - arrays["domain_start"][0])}
    if args.json:
        print(json.dumps(report))
    else:
        print(f"wrote {out}: {report['spikes']} spikes of {report['units']} units in "
              f"{report['seconds']:.1f} s\nneds prepare --reader arrays {out} --out sessions "
              f"--map {words}")
    return 0
