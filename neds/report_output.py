"""How a report reaches the disk and the screen, and how it is read again."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neds.data.session import Behaviour, Session
from neds.dataset import Recording
from neds.metrics import Estimate
from neds.report import Json, SessionReport, means
from neds.scoring import Predictions
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

MAX_REPORT_BYTES = 256 << 20


def check_folder(folder: Path) -> None:
    """Raise `BadInput` unless files can be written in `folder`; makes it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise BadInput(folder, "--out", error.strerror, "a folder to write in") from error


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON so that a reader finds the old file or the new one. Raises `BadInput`."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    try:
        staged.write_text(text)
        os.replace(staged, path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise BadInput(path, "report", error.strerror, "a file that can be written") from error


def read_report(path: Path) -> Json:
    """Read a report (or the folder it lies in). Raises `BadInput` if it is none."""
    path = path / "report.json" if path.is_dir() else path
    data = read_small(path, "report", "a report.json of neds evaluate", MAX_REPORT_BYTES)
    try:
        report = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(path, "report", error, "a report.json of neds evaluate") from error
    if not isinstance(report, dict) or not isinstance(report.get("sessions"), list):
        raise BadInput(path, "report", "no sessions", "a report.json of neds evaluate")
    return report


def session_scores(report: Json, metric: tuple[str, str]) -> dict[str, float]:
    """{session: value} of one (behaviour or task, metric), where a session has it."""
    found = {}
    for entry in report["sessions"]:
        value = entry["metrics"].get(metric[0], {}).get(metric[1])
        if value is not None and math.isfinite(value):
            found[entry["session"]] = float(value)
    return found


def write_predictions(
    path: Path, recording: Recording, part: str, predictions: Predictions
) -> None:
    """Write `bin` (T,) and each behaviour's NAME.truth and NAME.predicted of a part, atomically."""
    arrays: dict[str, Any] = {"bin": recording.bin[recording.rows(part)]}
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


def write_nwb_decodes(
    path: Path, session: Session, recording: Recording, part: str, predictions: Predictions,
    model: str,
) -> None:
    """Add a part's decodes to an NWB file's module `decoding`, at the ends of bins.

    A file that is not there is made of the session first. Continuous behaviours and angles under
    their names, categorical ones as codes with NAME_probability beside them. Raises `BadInput` when
    pynwb is missing, or the file has decodes of these names.
    """
    from neds.data.nwb_write import write_decodes, write_nwb

    ends = (recording.bin[recording.rows(part)] + 1.0) * np.float64(recording.bin_size_s)
    decodes: dict[str, Behaviour] = {}
    for b, (_, predicted) in zip(recording.state.behaviours, predictions.pairs, strict=True):
        values, classes = predicted, tuple(b.classes)
        if b.kind == "circular":
            values = np.arctan2(predicted[:, 1::2], predicted[:, 0::2])
        if b.kind == "categorical":
            values = predicted.argmax(1)[:, None]
            decodes[f"{b.name}_probability"] = Behaviour(
                kind="continuous", timestamps=ends, values=predicted, unit="probability")
        decodes[b.name] = Behaviour(kind=b.kind, timestamps=ends, values=values, unit=b.unit,
                                    classes=classes)
    new = not path.exists()
    if new:
        write_nwb(session, path)
    try:
        write_decodes(path, path, decodes, f"neds evaluate, {part} part, model {model}")
    except BaseException:
        if new:
            path.unlink(missing_ok=True)
        raise


def print_table(reports: Sequence[SessionReport], part: str) -> None:
    """Print the mean scores over sessions with their intervals, the baselines beside them."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for r in reports for name in r.baselines))
    columns = {"neds": means([r.scores for r in reports])}
    columns |= {name: means([r.baselines[name] for r in reports if name in r.baselines])
                for name in names}
    who = reports[0].session
    if len(reports) > 1:
        who = f"mean of {len(reports)} sessions"
    table = Table(title=f"{who}, {part} part, 95 % intervals")
    for column in ("modality", "metric", *columns):
        table.add_column(column)
    for modality, metrics in columns["neds"].items():
        for metric in metrics:
            cells = [_cell(scores.get(modality, {}).get(metric)) for scores in columns.values()]
            table.add_row(modality, metric, *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value != estimate.value:
        return ""
    ends = estimate.interval()
    return f"{estimate.value:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")
