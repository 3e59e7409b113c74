"""Score a trained model on a held-back part of a session, decoding and encoding.

example:
  neds evaluate runs/indy data/indy_20161006_02.h5 --baselines ridge,gru --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds.dataset import Recording
    from neds.model import Neds

BASELINES = ("ridge", "gru")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", metavar="CKPT", help="folder written by neds train")
    parser.add_argument("session", nargs="?", metavar="SESSION.h5",
                        help="prepared session (where the checkpoint found it)")
    parser.add_argument("--session-id", default=None, help="which session of the checkpoint")
    parser.add_argument("--part", choices=("train", "val", "test"), default="test",
                        help="part of the recording to score (default %(default)s)")
    parser.add_argument("--baselines", default="", help="comma-separated, of: ridge, gru")
    parser.add_argument("--predictions", default=None, metavar="OUT.npz",
                        help="write bin, truth and prediction of every behaviour")
    parser.add_argument("--plot", default=None, metavar="OUT.png",
                        help="draw decoded traces against the truth (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table or JSON, and write predictions if asked."""
    import json
    import time
    from pathlib import Path

    from neds.checkpoint import load_checkpoint
    from neds.data.store import read_session
    from neds.dataset import match
    from neds.evaluate import evaluate
    from neds.metrics import json_scores
    from neds.plots import check_picture
    from neds_rt.errors import BadInput

    wanted = [name.strip() for name in args.baselines.split(",") if name.strip()]
    for name in wanted:
        if name not in BASELINES:
            raise BadInput("--baselines", "name", repr(name), f"some of {', '.join(BASELINES)}")
    if args.plot:
        check_picture(Path(args.plot))
    started = time.monotonic()
    model, info = load_checkpoint(Path(args.checkpoint))
    path = session_path(info.provenance, args.session, args.session_id)
    session = read_session(path)
    state = info.session(args.session_id or session.session)
    recording = match(session, state, info.config.data.bin_size_s)
    metrics = evaluate(model, recording, args.part)
    baselines = {name: _baseline(name, recording, args.part) for name in wanted}
    if args.predictions:
        _write_predictions(Path(args.predictions), model, recording, args.part)
    if args.plot:
        from neds.evaluate import decode_part
        from neds.plots import decoded_traces, save

        pairs = decode_part(model, recording, args.part)
        save(decoded_traces(state.behaviours, pairs, info.config.data.bin_size_s), Path(args.plot))
    seconds = round(time.monotonic() - started, 1)
    if args.json:
        rows = recording.rows(args.part)
        print(json.dumps({"session": state.session, "part": args.part,
                          "first_bin": int(recording.bin[rows[0]]), "bins": len(rows),
                          "metrics": json_scores(metrics),
                          "baselines": {k: json_scores(v) for k, v in baselines.items()},
                          "seconds": seconds}))
    else:
        _print_table(state.session, args.part, {"neds": metrics, **baselines})
    return 0


def session_path(provenance: dict[str, Any], given: str | None, session_id: str | None) -> Any:
    """The session file given, or the one the checkpoint was trained on."""
    from pathlib import Path

    from neds_rt.errors import BadInput

    if given is not None:
        return Path(given)
    known: dict[str, str] = provenance.get("sessions", {})
    if session_id is None and len(known) == 1:
        return Path(next(iter(known.values())))
    if session_id not in known:
        raise BadInput("checkpoint", "session", repr(session_id),
                       f"one of {', '.join(known) or 'no sessions'}")
    return Path(known[session_id])


def _baseline(name: str, recording: Recording, part: str) -> dict[str, dict[str, float]]:
    import numpy as np

    from neds.baselines import GruConfig, gru_part, ridge, train_gru
    from neds.metrics import score

    behaviours = recording.state.behaviours
    if not behaviours:
        return {}
    runs = recording.runs_within(part)
    if name == "gru":
        predictions = gru_part(train_gru(recording, GruConfig()), recording, part)
    else:
        rows = np.concatenate([np.arange(a, b) for a, b in runs])
        predictions = [ridge(recording, m)[rows] for m in range(len(behaviours))]
    scores = {}
    for b, predicted in zip(behaviours, predictions, strict=True):
        truth = np.concatenate([recording.values[b.name][i:j] for i, j in runs])
        scores[b.name] = score(b.kind, truth, predicted)
    return scores


def _write_predictions(path: Any, model: Neds, recording: Recording, part: str) -> None:
    import os
    import tempfile
    from pathlib import Path

    import numpy as np

    from neds.evaluate import decode_part
    from neds_rt.errors import BadInput

    runs = recording.runs_within(part)
    arrays: dict[str, Any] = {"bin": np.concatenate([recording.bin[a:b] for a, b in runs])}
    for b, (truth, predicted) in zip(
        recording.state.behaviours, decode_part(model, recording, part), strict=True
    ):
        arrays[f"{b.name}.truth"] = truth
        arrays[f"{b.name}.predicted"] = predicted
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            staged = Path(folder) / "predictions.npz"
            np.savez(staged, **arrays)
            os.replace(staged, path)
    except OSError as error:
        raise BadInput(path, "predictions", error.strerror, "a file that can be written") from error


def _print_table(session: str, part: str, scores: dict[str, dict[str, dict[str, float]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{session}, {part} part")
    for column in ("modality", "metric", *scores):
        table.add_column(column)
    for modality, metrics in scores["neds"].items():
        for metric in metrics:
            values = [s.get(modality, {}).get(metric) for s in scores.values()]
            table.add_row(modality, metric, *("" if v is None else f"{v:.3f}" for v in values))
    Console().print(table)
