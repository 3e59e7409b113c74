"""Freeze a checkpoint and one of its sessions into a bundle that neds-rt serves.

example:
  neds export runs/indy --session indy_20161006_02 --out indy.neds
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from neds.checkpoint import CheckpointInfo
    from neds.dataset import Recording
    from neds.model import Neds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_bundle_arguments(parser)
    parser.add_argument("--graphs", default="step,window",
                        help="ONNX graphs to ship: step, window (step,window)")


def add_bundle_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every kind of bundle is made of."""
    parser.add_argument("checkpoint", metavar="CKPT", help="folder written by neds train")
    parser.add_argument("--session", default=None, metavar="ID",
                        help="which session of the checkpoint (the only one)")
    parser.add_argument("--out", required=True, metavar="X.neds", help="bundle file or folder")
    parser.add_argument("--data", default=None, metavar="SESSION.h5",
                        help="the prepared session (where the checkpoint found it); its held-back "
                        "part gives the parity report")
    parser.add_argument("--behaviours", default="", help="comma-separated names to decode (all)")
    parser.add_argument("--sign", default="", metavar="KEY.pem",
                        help="sign the bundle with this secret key (neds-rt keygen --signing)")
    parser.add_argument("--templates", action="append", default=[], metavar="[PROBE=]PATH",
                        help="templates to find the units in raw data with: a file of neds "
                        "templates, or a sorting analyzer's folder; once for each probe")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Write the bundle and print its parity report."""
    import json
    from pathlib import Path

    from neds.bundle_templates import probe_templates
    from neds.commands.templates import unheard
    from neds.export import export
    from neds_rt.errors import BadInput

    graphs = names_of(args.graphs)
    for name in graphs:
        if name not in ("step", "window"):
            raise BadInput("--graphs", "name", repr(name), "step, window")
    key = signing_key(args.sign)
    model, info, recording = open_session(args)
    extra, silent = probe_templates(args.templates, recording.state.units)
    manifest = export(model, info, recording, Path(args.out),
                      behaviours=names_of(args.behaviours), graphs=graphs, templates=extra)
    sign_written(args.out, key)
    summary = {
        "bundle": args.out,
        "model_hash": manifest.model_hash,
        "units": len(manifest.units),
        "modalities": [m.name for m in manifest.modalities],
        "bytes": size_of(args.out),
        "parity": manifest.parity,
        "without_template": silent,
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(f"wrote {args.out}: {summary['units']} units, {', '.join(summary['modalities'])}, "
              f"{summary['bytes'] / 1e6:.1f} MB; largest error against torch: "
              f"native {manifest.parity['native']['max']:.1e}, "
              f"onnx {manifest.parity['onnx']['max']:.1e}"
              + unheard("they have no template", silent))
    return 0


def signing_key(path: str) -> Ed25519PrivateKey | None:
    """The key to sign with, read before the work begins; None where none is asked for."""
    if not path:
        return None
    from neds_rt.signature import read_signing_key

    return read_signing_key(path)


def sign_written(out: str, key: Ed25519PrivateKey | None) -> None:
    """Sign the bundle just written, if there is a key."""
    if key is not None:
        from pathlib import Path

        from neds_rt.signature import sign_bundle

        sign_bundle(Path(out), key)


def names_of(text: str) -> list[str]:
    """The names of a comma-separated option."""
    return [name.strip() for name in text.split(",") if name.strip()]


def open_session(args: argparse.Namespace) -> tuple[Neds, CheckpointInfo, Recording]:
    """The model, and the session that `add_bundle_arguments` named, as the model sees it."""
    from pathlib import Path

    from neds.checkpoint import load_checkpoint
    from neds.commands.evaluate import session_path
    from neds.data.store import read_session
    from neds.dataset import match

    model, info = load_checkpoint(Path(args.checkpoint))
    state = info.session(args.session)
    session = read_session(session_path(info.provenance, args.data, state.session))
    return model, info, match(session, state, info.config.data.bin_size_s)


def size_of(path: object) -> int:
    """Bytes of a bundle, a file or a directory."""
    from pathlib import Path

    where = Path(str(path))
    files = [where] if where.is_file() else [p for p in where.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)
