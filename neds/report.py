"""What `report.json` holds: one JSON object with every score of one or several sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from neds.checkpoint import SessionState
from neds.dataset import Recording
from neds.metrics import Estimate, json_scores, mean_estimate
from neds.scoring import Context, Estimates, Settings, units_by_region
from neds_rt.errors import BadInput

Json = dict[str, Any]


@dataclass(eq=False)
class SessionReport:
    """The scores of one session: the model's, by region, and the baselines' by their names.

    `facts` is what else the report says of the session. The recording is not held: many sessions
    are scored one after another.
    """

    facts: Json
    scores: Estimates
    regions: Estimates
    region_units: dict[str, int]
    baselines: dict[str, Estimates] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def of(cls, at: Context, scores: Estimates, regions: Estimates) -> SessionReport:
        """The report of a session's scores, without baselines yet."""
        recording = at.recording
        rows = recording.rows(at.part)
        units = {name: len(own) for name, own in units_by_region(recording).items()}
        facts = {
            "session": recording.state.session,
            "part": at.part,
            "first_bin": int(recording.bin[rows[0]]),
            "bins": len(rows),
            "trials": None if at.trials is None else len(at.trials),
            "blocks": {"of": at.blocks, "number": at.resampling.n_blocks},
            "unknown_bins": unknown_bins(recording, at.part),
            "notes": notes(at),
        }
        return cls(facts, scores, regions, units)

    @property
    def session(self) -> str:
        """The session's name."""
        return str(self.facts["session"])

    def as_json(self) -> Json:
        """The session's entry of the report."""
        return {
            **self.facts,
            **scores_json(self.scores, self.baselines),
            "regions": {name: {"units": self.region_units[name], **row}
                        for name, row in _values(self.regions).items()},
            "region_intervals": intervals(self.regions),
            "seconds": round(self.seconds, 1),
        }


def scores_json(scores: Estimates, baselines: Mapping[str, Estimates]) -> Json:
    """`metrics`, `intervals`, `baselines` and `baseline_intervals`, all in the same shape."""
    return {
        "metrics": _values(scores),
        "intervals": intervals(scores),
        "baselines": {name: _values(rows) for name, rows in baselines.items()},
        "baseline_intervals": {name: intervals(rows) for name, rows in baselines.items()},
    }


def assemble(reports: Sequence[SessionReport], settings: Settings, about: Json) -> Json:
    """The whole report: means over sessions on top, each session below, `about` in front.

    With one session its `session`, `part`, `first_bin` and `bins` stand on top as well. Intervals
    of means are for these sessions on other stretches of time, not for other animals.
    """
    entries = [report.as_json() for report in reports]
    names = list(dict.fromkeys(name for r in reports for name in r.baselines))
    top: Json = {}
    if len(entries) == 1:
        top = {key: entries[0][key] for key in ("session", "first_bin", "bins")}
    return {
        **about,
        **top,
        "part": settings.part,
        **scores_json(
            means([r.scores for r in reports]),
            {name: means([r.baselines[name] for r in reports if name in r.baselines])
             for name in names},
        ),
        "regions": _merged_regions(reports),
        "sessions": entries,
        "settings": {
            "tasks": list(settings.tasks), "block_s": settings.block_s,
            "replicates": settings.replicates, "seed": settings.seed,
            "forecast_bins": settings.forecast_bins,
            "conditions": list(settings.conditions), "level": 0.95,
        },
    }


def means(scores: Sequence[Estimates]) -> Estimates:
    """Mean over sessions of every metric, over the sessions that have it."""
    result: dict[str, dict[str, list[Estimate]]] = {}
    for session in scores:
        for name, row in session.items():
            for metric, estimate in row.items():
                result.setdefault(name, {}).setdefault(metric, []).append(estimate)
    return {
        name: {metric: mean_estimate(found) for metric, found in row.items()}
        for name, row in result.items()
    }


def intervals(scores: Estimates) -> dict[str, dict[str, list[float] | None]]:
    """95 % intervals [low, high] in the shape of the scores, null where there is none."""
    result: dict[str, dict[str, list[float] | None]] = {}
    for name, row in scores.items():
        ends = {metric: estimate.interval() for metric, estimate in row.items()}
        result[name] = {m: None if e is None else list(e) for m, e in ends.items()}
    return result


def unknown_bins(recording: Recording, part: str) -> dict[str, int]:
    """Bins of a part in which each behaviour is unknown, hence masked and not scored."""
    rows = recording.rows(part)
    known = recording.known[:, torch.from_numpy(rows)].sum(1).tolist()
    names = [b.name for b in recording.state.behaviours]
    return {name: len(rows) - n for name, n in zip(names, known, strict=True)}


def notes(at: Context) -> list[str]:
    """What a reader must know of scores that are null or left out, a sentence each."""
    found: list[str] = []
    recording, part = at.recording, at.part
    scored, train = recording.rows(part), recording.rows("train")
    for b in recording.state.behaviours:
        values = recording.values[b.name]
        here = values[scored][~np.isnan(values[scored]).any(1)]
        if not len(here):
            found.append(f"{b.name}: never known in the {part} part, no score")
        elif (np.ptp(here, axis=0) == 0).any() and b.kind != "categorical":
            found.append(f"{b.name}: constant in the {part} part, no R2")
        if b.kind == "categorical":
            for place, rows in (("train", values[train]), (part, here)):
                absent = [c for i, c in enumerate(b.classes) if not (rows == i).any()]
                if absent:
                    found.append(f"{b.name}: no {', '.join(absent)} in the {place} part")
    if at.trials is None:
        found.append(f"no trial lies in the {part} part: PSTH and trial scores left out")
    elif (at.trials.condition < 0).all():
        found.append("no trial has a known condition: PSTH scores left out")
    if len(at.resampling.weights) == 1:
        found.append(f"{at.resampling.n_blocks} blocks: too few for intervals")
    return list(dict.fromkeys(found))


def check_kinds(states: Sequence[SessionState]) -> None:
    """Raise `BadInput` where a behaviour's name stands for different kinds in two sessions."""
    seen: dict[str, tuple[str, str]] = {}
    for state in states:
        for b in state.behaviours:
            session, kind = seen.setdefault(b.name, (state.session, b.kind))
            if kind != b.kind:
                raise BadInput(state.session, f"behaviour {b.name}", b.kind,
                               f"{kind} as in {session}, or another name")


def _values(scores: Estimates) -> dict[str, dict[str, float | None]]:
    return json_scores({n: {m: e.value for m, e in row.items()} for n, row in scores.items()})


def _merged_regions(reports: Sequence[SessionReport]) -> dict[str, dict[str, Any]]:
    """Mean over sessions of each region's scores, with its units and sessions counted."""
    values = _values(means([r.regions for r in reports]))
    result: dict[str, dict[str, Any]] = {}
    for name, row in sorted(values.items()):
        sizes = [r.region_units[name] for r in reports if name in r.regions]
        result[name] = {"units": sum(sizes), "sessions": len(sizes), **row}
    return result
