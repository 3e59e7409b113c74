"""Score a trained model on a held-back part of sessions: decoding, encoding, spikes from spikes.

Writes OUT/report.json with pictures beside it. Scores have 95 % intervals by block bootstrap.

example:
  neds evaluate runs/indy data/indy_20161006_02.h5 --baselines ridge,gru --json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds.checkpoint import CheckpointInfo
    from neds.dataset import Recording
    from neds.model import Neds
    from neds.report import SessionReport
    from neds.scoring import Context, Estimates, Predictions, Settings

BASELINES = ("ridge", "gru")
PICTURES = ("svg", "png", "pdf", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="folder written by neds train")
    add("session", nargs="*", metavar="SESSION.h5",
        help="prepared sessions (all of the checkpoint, where it found them)")
    add("--session-id", default=None, help="which session of the checkpoint")
    add("--part", choices=("train", "val", "test"), default="test",
        help="part of the recording to score (default %(default)s)")
    add("--tasks", default="all",
        help="comma-separated, of: decoding, encoding, per_variable, co_smoothing, forecasting")
    add("--baselines", default="", help="comma-separated, of: ridge, gru")
    add("--out", default=None, metavar="DIR", help="folder of the report (default CKPT-report)")
    add("--plots", choices=PICTURES, default="svg", help="format of the pictures (%(default)s)")
    add("--against", default=None, metavar="REPORT.json",
        help="draw each session's score against that of another model's report")
    add("--conditions", default="",
        help="columns of the trial table whose combinations PSTHs average over "
             "(choice, reward and block where present)")
    add("--forecast-bins", type=int, default=0, help="bins to forecast (a tenth of the window)")
    add("--block-seconds", type=float, default=5.0,
        help="blocks of the bootstrap where there are no trials (%(default)s)")
    add("--replicates", type=int, default=1000, help="of the bootstrap (%(default)s, 0 for none)")
    add("--seed", type=int, default=0, help="of the bootstrap and of co-smoothing (%(default)s)")
    add("--predictions", default=None, metavar="OUT.npz",
        help="write bin, truth and prediction of every behaviour of one session")
    add("--plot", default=None, metavar="OUT.png",
        help="write the decoded traces of one session here as well (.png, .svg, .pdf)")
    add("--json", action="store_true", help="print one JSON object as last line")


def run(args: argparse.Namespace) -> int:
    """Evaluate session by session; after each, the report so far is on disk."""
    import json
    import time

    from neds.checkpoint import load_checkpoint
    from neds.report import assemble, check_folder, check_kinds, write_json

    settings, wanted = check_arguments(args)
    started = time.monotonic()
    model, info = load_checkpoint(Path(args.checkpoint))
    check_kinds(info.sessions)
    paths = session_paths(info.provenance, args.session, args.session_id)
    _check_single(args, paths)
    folder = Path(args.out) if args.out else Path(f"{str(args.checkpoint).rstrip('/')}-report")
    check_folder(folder)
    reports: list[SessionReport] = []
    about = _about(args, info, settings.ahead(model.config.window))
    report: dict[str, Any] = {}
    for path in paths:
        done, predictions = evaluate_session(model, info, path, settings, wanted, args)
        _refuse_twice(done, reports)
        reports.append(done)
        about["plots"] += _draw(folder, args, done.at, predictions)
        report = assemble(reports, settings, about)
        report["seconds"] = round(time.monotonic() - started, 1)
        write_json(folder / "report.json", report)
    if args.against:
        report["plots"] += _scatter(folder, args, report)
        write_json(folder / "report.json", report)
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print_table(reports, settings)
        print(f"wrote {folder / 'report.json'}")
    return 0


def check_arguments(args: argparse.Namespace) -> tuple[Settings, list[str]]:
    """What to score and which baselines. Raises `BadInput` before the first minute of work."""
    from neds.plots import check_picture
    from neds.report import read_report
    from neds.scoring import TASKS, Settings
    from neds_rt.errors import BadInput

    wanted = _names(args.baselines)
    for name in wanted:
        if name not in BASELINES:
            raise BadInput("--baselines", "name", repr(name), f"some of {', '.join(BASELINES)}")
    tasks = TASKS if args.tasks == "all" else tuple(_names(args.tasks))
    for name in tasks or [""]:
        if name not in TASKS:
            raise BadInput("--tasks", "name", repr(name), f"all, or some of {', '.join(TASKS)}")
    for option, least in (("forecast_bins", 0), ("replicates", 0), ("seed", 0)):
        if getattr(args, option) < least:
            raise BadInput(f"--{option.replace('_', '-')}", "number", getattr(args, option),
                           f"{least} or more")
    if not 0 < args.block_seconds < float("inf"):
        raise BadInput("--block-seconds", "number", args.block_seconds, "above 0")
    if args.plot:
        check_picture(Path(args.plot))
    if args.against:
        read_report(Path(args.against))
    return Settings(
        part=args.part, tasks=tasks, block_s=args.block_seconds, replicates=args.replicates,
        seed=args.seed, forecast_bins=args.forecast_bins,
        conditions=tuple(_names(args.conditions)),
    ), wanted


def evaluate_session(
    model: Neds, info: CheckpointInfo, path: Path, settings: Settings, baselines: list[str],
    args: argparse.Namespace,
) -> tuple[SessionReport, Predictions]:
    """Read, predict and score one session, and write its predictions if asked."""
    import time

    from neds.data.store import read_session
    from neds.dataset import match
    from neds.report import SessionReport
    from neds.scoring import context, predict, score_all
    from neds_rt.errors import BadInput

    started = time.monotonic()
    session = read_session(path)
    state = info.session(args.session_id or session.session)
    bin_size_s = info.config.data.bin_size_s
    recording = match(session, state, bin_size_s)
    if settings.forecast_bins >= model.config.window:
        raise BadInput("--forecast-bins", "number", settings.forecast_bins,
                       f"fewer than the model's window of {model.config.window}")
    at = context(recording, session.trials, bin_size_s, settings)
    predictions = predict(model, recording, settings)
    scores, regions = score_all(at, predictions)
    if args.predictions:
        _write_predictions(Path(args.predictions), recording, settings.part, predictions)
    result = SessionReport(at, scores, regions)
    for name in baselines:
        result.baselines[name] = _baseline(name, at)
    result.seconds = time.monotonic() - started
    return result, predictions


def session_paths(
    provenance: dict[str, Any], given: list[str], session_id: str | None
) -> list[Path]:
    """The session files given, or those that the checkpoint was trained on."""
    if given:
        return [Path(path) for path in given]
    known: dict[str, str] = provenance.get("sessions", {})
    if session_id is None and known:
        return [Path(path) for path in known.values()]
    return [session_path(provenance, None, session_id)]


def session_path(provenance: dict[str, Any], given: str | None, session_id: str | None) -> Path:
    """The session file given, or the one the checkpoint was trained on."""
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


def _check_single(args: argparse.Namespace, paths: list[Path]) -> None:
    from neds_rt.errors import BadInput

    for option in ("session_id", "predictions", "plot"):
        if getattr(args, option) and len(paths) > 1:
            raise BadInput(f"--{option.replace('_', '-')}", "sessions", len(paths), "one session")
    if (args.predictions or args.plot) and args.tasks != "all" and "decoding" not in args.tasks:
        raise BadInput("--tasks", "names", args.tasks, "decoding among them for decoded traces")


def _refuse_twice(done: SessionReport, reports: list[SessionReport]) -> None:
    from neds_rt.errors import BadInput

    name = done.at.recording.state.session
    if any(name == r.at.recording.state.session for r in reports):
        raise BadInput(name, "session", "given twice", "every session once")


def _about(args: argparse.Namespace, info: CheckpointInfo, ahead: int) -> dict[str, Any]:
    from neds.checkpoint import created_by

    return {"checkpoint": str(args.checkpoint), "step": info.step, "form": info.config.model.form,
            "created_by": created_by(), "forecast_bins": ahead, "plots": []}


def _baseline(name: str, at: Context) -> Estimates:
    """A baseline's decoding scores, on the same rows and blocks."""
    import numpy as np

    from neds.baselines import GruConfig, gru_part, ridge, train_gru
    from neds.scoring import score_decoding

    recording, part = at.recording, at.part
    n = len(recording.state.behaviours)
    if not n:
        return {}
    runs = recording.runs_within(part)
    if name == "gru":
        predictions = gru_part(train_gru(recording, GruConfig()), recording, part)
    else:
        rows = np.concatenate([np.arange(a, b) for a, b in runs])
        predictions = [ridge(recording, m)[rows] for m in range(n)]
    first, stop = recording.part(part)
    truths = [recording.values[b.name][first:stop] for b in recording.state.behaviours]
    return score_decoding(at, list(zip(truths, predictions, strict=True)))


def _write_predictions(
    path: Path, recording: Recording, part: str, predictions: Predictions
) -> None:
    import os
    import tempfile

    import numpy as np

    from neds_rt.errors import BadInput

    first, stop = recording.part(part)
    arrays: dict[str, Any] = {"bin": recording.bin[first:stop]}
    for b, (truth, predicted) in zip(
        recording.state.behaviours, predictions.pairs, strict=True
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


def _draw(
    folder: Path, args: argparse.Namespace, at: Context, predictions: Predictions
) -> list[str]:
    """Write the session's pictures; returns the names of those beside the report."""
    from neds.plots import decoded_traces, save
    from neds.plots.session import draw_session

    if args.plot and predictions.pairs:
        behaviours = at.recording.state.behaviours
        save(decoded_traces(behaviours, predictions.pairs, at.bin_size_s), Path(args.plot))
    return [] if args.plots == "none" else draw_session(folder, f".{args.plots}", at, predictions)


def _scatter(folder: Path, args: argparse.Namespace, report: dict[str, Any]) -> list[str]:
    """A scatter of each session's score against another report's, for every headline metric."""
    from neds.plots import save, session_scatter
    from neds.report import read_report, session_scores

    other = read_report(Path(args.against))
    names = []
    for name, row in report["metrics"].items() if args.plots != "none" else ():
        metric = next(iter(row))
        x, y = session_scores(other, (name, metric)), session_scores(report, (name, metric))
        if not x.keys() & y.keys():
            continue
        picture = session_scatter(x, y, Path(str(other.get("checkpoint", "other"))).name,
                                  Path(args.checkpoint).name, f"{name} {metric}")
        names.append(f"against.{name}.{args.plots}")
        save(picture, folder / names[-1])
    return names


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_table(reports: list[SessionReport], settings: Settings) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from neds.report import means

    names = list(reports[0].baselines)
    columns = {"neds": means([r.scores for r in reports])}
    columns |= {name: means([r.baselines[name] for r in reports]) for name in names}
    who = reports[0].at.recording.state.session
    if len(reports) > 1:
        who = f"mean of {len(reports)} sessions"
    table = Table(title=f"{who}, {settings.part} part, 95 % intervals")
    for column in ("modality", "metric", *columns):
        table.add_column(column)
    for modality, metrics in columns["neds"].items():
        for metric in metrics:
            cells = [_cell(scores.get(modality, {}).get(metric)) for scores in columns.values()]
            table.add_row(modality, metric, *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _cell(estimate: Any) -> str:
    if estimate is None or estimate.value != estimate.value:
        return ""
    ends = estimate.interval()
    return f"{estimate.value:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")
