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
    from neds.model import Neds
    from neds.report import SessionReport
    from neds.scoring import Context, Predictions, Settings

ALIASES = {"ridge": "linear"}  # for continuous behaviours that is what it is
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
    add("--baselines", default="",
        help="comma-separated, of: linear (or ridge), ridge_pretrained, rrr, gru, gru_single, mlp, "
             "ndt, glm, glm_window, rrr_encoder")
    add("--baseline-budget", choices=("full", "quick"), default="full",
        help="how thoroughly baselines are tuned (%(default)s)")
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
    add("--nwb", default=None, metavar="FILE.nwb",
        help="add the decodes of one session to this NWB file, made of the session if it is new")
    add("--plot", default=None, metavar="OUT.png",
        help="write the decoded traces of one session here as well (.png, .svg, .pdf)")
    add("--json", action="store_true", help="print one JSON object as last line")
    add("--protocol", choices=("neds", "bwb"), default="neds",
        help="what is evaluated and how (default %(default)s: the tasks above)")
    from neds.bwb.command import add_bwb_arguments

    add_bwb_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate session by session; after each, the report so far is on disk."""
    from neds.bwb.command import refuse_others, run_bwb

    refuse_others(args)
    if args.protocol == "bwb":
        return run_bwb(args)
    import json
    import time

    from neds.checkpoint import load_checkpoint
    from neds.report import assemble, check_kinds
    from neds.report_output import check_folder, print_table, write_json

    settings, wanted = check_arguments(args)
    started = time.monotonic()
    model, info = load_checkpoint(Path(args.checkpoint))
    check_kinds(info.sessions)
    settings = _with_forecast(settings, model.config.window)
    paths = session_paths(info.provenance, args.session, args.session_id)
    _check_single(args, paths)
    folder = Path(args.out) if args.out else Path(f"{str(args.checkpoint).rstrip('/')}-report")
    check_folder(folder)
    reports: list[SessionReport] = []
    contexts: list[Context] = []  # held for the baselines alone
    about = _about(args, info)
    report: dict[str, Any] = {}

    def write() -> None:
        report.update(assemble(reports, settings, about))
        report["seconds"] = round(time.monotonic() - started, 1)
        write_json(folder / "report.json", report)

    for path in paths:
        done, at, predictions = evaluate_session(model, info, path, settings, args)
        _refuse_twice(done, reports)
        reports.append(done)
        contexts += [at] if wanted else []
        about["plots"] += _draw(folder, args, at, predictions)
        write()
    for name in wanted:
        score_baseline(name, contexts, reports, args)
        write()
    if args.against:
        report["plots"] += _scatter(folder, args, report)
        write_json(folder / "report.json", report)
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        print_table(reports, settings.part)
        print(f"wrote {folder / 'report.json'}")
    return 0


def check_arguments(args: argparse.Namespace) -> tuple[Settings, list[str]]:
    """What to score and which baselines. Raises `BadInput` before the first minute of work."""
    from neds.baselines import BASELINES
    from neds.plots import check_picture
    from neds.report_output import read_report
    from neds.scoring import TASKS, Settings
    from neds_rt.errors import BadInput

    wanted = _names(args.baselines)
    for name in wanted:
        if ALIASES.get(name, name) not in BASELINES:
            known = ", ".join([*ALIASES, *BASELINES])
            raise BadInput("--baselines", "name", repr(name), f"some of {known}")
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
    model: Neds, info: CheckpointInfo, path: Path, settings: Settings, args: argparse.Namespace
) -> tuple[SessionReport, Context, Predictions]:
    """Read, predict and score one session, and write its predictions if asked."""
    import time

    from neds.data.store import read_session
    from neds.dataset import match
    from neds.report import SessionReport
    from neds.report_output import write_nwb_decodes, write_predictions
    from neds.scoring import context, predict, score_all

    started = time.monotonic()
    session = read_session(path)
    state = info.session(args.session_id or session.session)
    bin_size_s = info.config.data.bin_size_s
    recording = match(session, state, bin_size_s)
    at = context(recording, session.trials, bin_size_s, settings)
    predictions = predict(model, recording, settings)
    scores, regions = score_all(at, predictions)
    if args.predictions:
        write_predictions(Path(args.predictions), recording, settings.part, predictions)
    if args.nwb:
        write_nwb_decodes(Path(args.nwb), session, recording, settings.part, predictions,
                          f"{args.checkpoint}, step {info.step}")
    result = SessionReport.of(at, scores, regions)
    result.seconds = time.monotonic() - started
    return result, at, predictions


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

    for option in ("session_id", "predictions", "nwb", "plot"):
        if getattr(args, option) and len(paths) > 1:
            raise BadInput(f"--{option.replace('_', '-')}", "sessions", len(paths), "one session")
    traces = args.predictions or args.plot or args.nwb
    if traces and args.tasks != "all" and "decoding" not in args.tasks:
        raise BadInput("--tasks", "names", args.tasks, "decoding among them for decoded traces")


def _refuse_twice(done: SessionReport, reports: list[SessionReport]) -> None:
    from neds_rt.errors import BadInput

    if any(done.session == report.session for report in reports):
        raise BadInput(done.session, "session", "given twice", "every session once")


def _with_forecast(settings: Settings, window: int) -> Settings:
    """The settings with the bins to forecast as a number that the model's window allows."""
    from dataclasses import replace

    from neds_rt.errors import BadInput

    if settings.forecast_bins >= window:
        raise BadInput("--forecast-bins", "number", settings.forecast_bins,
                       f"fewer than the model's window of {window}")
    return replace(settings, forecast_bins=settings.ahead(window))


def _about(args: argparse.Namespace, info: CheckpointInfo) -> dict[str, Any]:
    from neds.checkpoint import created_by

    return {"checkpoint": str(args.checkpoint), "step": info.step, "form": info.config.model.form,
            "created_by": created_by(), "plots": []}


def score_baseline(
    name: str, contexts: list[Context], reports: list[SessionReport], args: argparse.Namespace
) -> None:
    """Fit a baseline, score it on the same rows and blocks, and add that to the reports."""
    from neds.baselines import BASELINES, fit
    from neds.scoring import score_decoding, score_encoding

    pairs = zip(contexts, reports, strict=True)
    there = [(at, report) for at, report in pairs if at.recording.state.behaviours]
    if not there:
        return
    row = ALIASES.get(name, name)
    fitted = fit(row, [at.recording for at, _ in there], seed=args.seed,
                 budget=args.baseline_budget)
    for at, report in there:
        if BASELINES[row].direction == "encoding":
            rates = fitted.encode_part(at.recording, at.part)
            report.baselines[name] = {"spikes": score_encoding(at, rates)[0]}
            continue
        rows = at.recording.rows(at.part)
        truths = [at.recording.values[b.name][rows] for b in at.recording.state.behaviours]
        decoded = fitted.decode_part(at.recording, at.part)
        report.baselines[name] = score_decoding(at, list(zip(truths, decoded, strict=True)))


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
    from neds.report_output import read_report, session_scores

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
