"""Describe a prepared session, a checkpoint or a bundle: sizes, units, behaviours, parity.

example:
  neds info runs/indy
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("path", help="SESSION.h5, checkpoint folder, or X.neds")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Print what the path holds."""
    import json

    from neds_rt.errors import BadInput

    path = Path(args.path)
    if not path.exists():
        raise BadInput(path, "path", "nothing", "a session, checkpoint or bundle")
    if (path / "checkpoint.json").exists():
        facts = _checkpoint(path)
    elif path.suffix in (".h5", ".hdf5"):
        facts = _session(path)
    else:
        facts = _bundle(path)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:>12}  {value}")
    return 0


def _session(path: Path) -> dict[str, Any]:
    from neds.data.store import read_session

    session = read_session(path)
    return {
        "kind": "session",
        "session": session.session,
        "subject": session.subject,
        "units": session.n_units,
        "seconds": round(session.duration_s, 3),
        "behaviours": {
            name: f"{b.kind}, width {b.width}, {len(b.timestamps)} samples"
            for name, b in session.behaviours.items()
        },
        "trials": next((len(c) for c in session.trials.values()), 0),
        "provenance": dict(session.metadata),
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    import msgspec

    from neds.checkpoint import load_checkpoint
    from neds.model import count_parameters

    model, info = load_checkpoint(path)
    return {
        "kind": "checkpoint",
        "form": info.config.model.form,
        "sees": _sees(info.config),
        "parameters": count_parameters(model),
        "sessions": {
            s.session: {
                "units": len(s.units),
                "behaviours": [b.name for b in s.behaviours],
                "train_hours": round(s.train_bins * info.config.data.bin_size_s / 3600, 3),
            }
            for s in info.sessions
        },
        "step": info.step,
        "config": msgspec.to_builtins(info.config),
        "provenance": info.provenance,
    }


def _sees(config: RunConfig) -> str:
    model, size = config.model, config.data.bin_size_s
    span = f"{model.window} bins of {size:g} s"
    if model.form == "window":
        return f"{span}, past and future: for offline use, cannot be exported"
    return f"the last {span} in each of {model.layers} layers, no future"


def _bundle(path: Path) -> dict[str, Any]:
    import msgspec

    from neds_rt.bundle import read_bundle

    bundle = read_bundle(path)
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "session": manifest.session,
        "units": len(manifest.units),
        "probes": sorted({unit.probe for unit in manifest.units}),
        "bin_size_s": manifest.bin_size_s,
        "shape": msgspec.to_builtins(manifest.shape),
        "modalities": [f"{m.name} ({m.kind})" for m in manifest.modalities],
        "parameters": sum(int(w.size) for w in bundle.weights.values()),
        "files": {name: len(data) for name, data in bundle.files.items()},
        "model_hash": manifest.model_hash,
        "plans": msgspec.to_builtins(manifest.plans),
        "parity": manifest.parity,
        "provenance": manifest.provenance,
    }
