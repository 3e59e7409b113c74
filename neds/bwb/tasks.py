"""The benchmark's tasks as one table: what each predicts, from where, and how it is scored.

TS1 predicts behaviour in windows of one second around events of a trial: a trace at 50 Hz, or one
label. TS2 predicts spikes: of units whose spikes are taken away (co-smoothing), or of the last
tenth of a window (forecasting). TS3 predicts the region of each unit. `VERSION` is the version of
the contract that all of this was written after.
"""

from __future__ import annotations

from dataclasses import dataclass

from neds_rt.errors import BadInput

VERSION = "0.1.0"
SEEDS = (43, 44, 45, 46, 47)
"""Seeds of reported numbers; at least three of them in a row make a submission."""
TUNING_SEED = 42
"""The seed for choosing hyperparameters, which no reported number uses."""

RATE_HZ = 50.0
"""Samples per second of all behaviours, and bins per second of TS2."""
BIN_S = 0.02
TARGET_S = 1.0
"""Length of the window that is scored."""
TARGET_BINS = 50
CONTEXT_S = 20.0
"""Longest input, the scored window included: parts of a recording lie this far apart."""
FORECAST_BINS = 5
"""What forecasting predicts, at the end of its window."""

COSMOS = ("CB", "CNU", "CTXsp", "HB", "HPF", "HY", "Isocortex", "MB", "OLF", "TH")
"""Classes of TS3 in the order of the columns of its predictions."""

MULTI_UNIT_UM = 60.0
MULTI_UNIT_MOST = 5
"""Multi-unit predictions are means over the nearest units of a probe, itself among them."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. `id` is its name in paths and files.

    kind: "trace" (R2), "rate" (counts, predicted as log rates), "label" (logits of `dim` classes),
    "spikes" (log rates per unit), "region" (probabilities). metrics: the primary one first. values,
    times, mask: where a session's file keeps the truth, the series whose time stamps it has, and
    which of its samples are sure; interval: the windows.
    """

    suite: str
    name: str
    kind: str
    dim: int
    metrics: tuple[str, ...]
    values: str = ""
    times: str = ""
    mask: str = ""
    interval: str = ""

    @property
    def id(self) -> str:
        """Suite and name, as paths and metadata have them."""
        return f"{self.suite}-{self.name}"

    @property
    def behaviour(self) -> str:
        """The behaviour's name in a session of ours, which is the task's."""
        return self.name

    @property
    def steps(self) -> int:
        """Predicted values in a window of TS1: one a sample, or one."""
        return TARGET_BINS if self.kind in ("trace", "rate") else 1


TRACE = ("r2", "mae", "pearson")
LABEL = ("bacc", "f1", "ap")
SPIKES = ("poisson_d2", "bps")
REGION = ("macro/f1-score", "macro/precision", "macro/recall")


def _trace(name: str, group: str, mask: str = "") -> Task:
    return Task(suite="ts1", name=name, kind="trace", dim=1, metrics=TRACE,
                values=f"{group}.{name}", times=group, mask=mask,
                interval="task_aligned_intervals.movement_window")


def _label(name: str, classes: int) -> Task:
    place = f"task_aligned_intervals.{name}"
    return Task(suite="ts1", name=name, kind="label", dim=classes, metrics=LABEL,
                values=f"{place}.{name}", interval=place)


TASKS = (
    _label("choice", 2),
    _label("reward", 2),
    _label("stimulus_contrast", 5),
    _trace("whisker_motion_energy", "whisker"),
    _trace("wheel_speed", "wheel"),
    _trace("right_paw_speed", "paws", "paws.is_right_paw_confident"),
    _trace("left_paw_speed", "paws", "paws.is_left_paw_confident"),
    Task(suite="ts1", name="licking_rate", kind="rate", dim=1, metrics=("poisson_d2", "mae"),
         values="licks.licking_rate", times="licks",
         interval="task_aligned_intervals.licking_window"),
    Task(suite="ts2", name="co_smoothing", kind="spikes", dim=0, metrics=SPIKES),
    Task(suite="ts2", name="forecasting", kind="spikes", dim=0, metrics=SPIKES),
    Task(suite="ts3", name="unit_cosmos", kind="region", dim=len(COSMOS), metrics=REGION,
         values="units.region_cosmos"),
)
"""All eleven. `dim` is 0 where it is the number of units."""

EVENTS = {
    "stimulus_contrast": ("stim_on_time", 0.9, 0.1),
    "choice": ("movement_onset_time", 1.0, 0.0),
    "reward": ("feedback_time", 0.0, 1.0),
    "movement_window": ("movement_onset_time", 0.0, 1.0),
    "licking_window": ("feedback_time", 0.0, 1.0),
}
"""Windows of TS1: trial column of the event, seconds before and after it."""


def task_of(id_: str) -> Task:
    """The task called `id_` (with its suite or without). Raises `BadInput`."""
    for task in TASKS:
        if id_ in (task.id, task.name):
            return task
    raise BadInput("--tasks", "name", repr(id_), f"some of {', '.join(t.id for t in TASKS)}")


def tasks_of(words: str) -> list[Task]:
    """The tasks of a comma-separated list of tasks and suites; "all" for all. Raises `BadInput`."""
    chosen: list[Task] = []
    for word in filter(None, (w.strip() for w in words.split(","))):
        suite = [t for t in TASKS if word in ("all", t.suite)]
        chosen += suite or [task_of(word)]
    if not chosen:
        raise BadInput("--tasks", "names", repr(words), "tasks or suites of the benchmark")
    return list(dict.fromkeys(chosen))
