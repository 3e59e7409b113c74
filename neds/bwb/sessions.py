"""Reader `bwb`, and a recording of the benchmark made ready to fit a pretrained model to it.

Behaviours have the names of the tasks of TS1. Labels hold in their windows and are unknown between
them; samples of the paws that are unsure are unknown too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neds.bwb.source import Source, read_source
from neds.bwb.tasks import TASKS
from neds.checkpoint import BehaviourState, SessionState
from neds.data.build import Builder
from neds.data.reader import EventOptions, Reader, one_file, parse_options
from neds.data.session import Session
from neds.data.windows import fit_scaling
from neds.dataset import Recording, null_rates, to_recording, unit_table
from neds_rt.errors import BadInput

UNITS = {"whisker_motion_energy": "a.u.", "wheel_speed": "rad/s", "right_paw_speed": "px/s",
         "left_paw_speed": "px/s", "licking_rate": "licks/s"}


def bwb_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Make the reader; see `neds.data.reader`. Raises `BadInput` for options it does not have."""
    if preset:
        raise BadInput("bwb reader", "--preset", preset, "none")
    options = parse_options(words, EventOptions, "bwb reader")
    return Reader(read=lambda path: bwb_session(read_source(path), options), files=one_file)


def bwb_session(
    source: Source, options: EventOptions | None = None,
    domain: NDArray[np.float64] | None = None, anatomy: bool = True,
) -> Session:
    """The recording as a session, or what lies in `domain` (n, 2) s; regions are Cosmos regions.

    Without `anatomy` the units' regions are left out, which tasks that predict them need.
    """
    build = Builder(source.recording, source.subject, options or EventOptions())
    for task in TASKS:
        if task.name in source.traces:
            trace = source.traces[task.name]
            values = np.where(trace.sure, trace.values, np.nan)
            build.behaviour(task.name, "continuous", trace.times, values, UNITS[task.name])
        elif task.kind == "label" and task.name in source.windows:
            windows = source.windows[task.name]
            assert windows.label is not None
            names = [str(code) for code in range(task.dim)]
            start, stop = windows.span.T
            build.labels(task.name, windows.label, start, stop, range(task.dim), names)
    columns = {"cluster": np.arange(source.n_units), "probe": source.probe,
               "depth_um": source.depth_um}
    if anatomy:
        columns["region"] = source.region
    return build.finish(source.times, source.unit, columns, {"id": source.id},
                        domain=source.domain if domain is None else domain)


def protocol_recording(
    source: Source, train: NDArray[np.float64], val: NDArray[np.float64], bin_size_s: float
) -> Recording:
    """The recording cut to intervals (n, 2) to train on and to choose by; nothing else is in it.

    All units, silent ones too; their regions are left out. Scaling and null rates are those of
    `train`; a behaviour that is never known there is left out. Raises `BadInput` where nothing is
    left to train on.
    """
    parts = {"train": train, "val": val}
    both = np.concatenate([train, val])
    session = bwb_session(source, EventOptions(keep_silent=True),
                          both[np.argsort(both[:, 0])], anatomy=False)
    binned = session.binned(bin_size_s)
    runs = binned.runs()
    middle = (binned.bin[runs[:, 0]] + binned.bin[runs[:, 1] - 1] + 1) * bin_size_s / 2
    dealt = {name: [i for i, t in enumerate(middle)
                    if ((spans[:, 0] <= t) & (t <= spans[:, 1])).any()]
             for name, spans in parts.items()} | {"test": []}
    rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(*runs[i]) for i in dealt["train"])])
    if not len(rows):
        raise BadInput(source.path, "training part", "no whole bin", "some time to train on")
    behaviours = []
    for name, b in session.behaviours.items():
        values = binned.values[name][rows]
        if np.isfinite(values).all(1).any():
            mean, sd = fit_scaling(name, b.kind, values)
            behaviours.append(BehaviourState(
                name=name, kind=b.kind, width=b.width, classes=list(b.classes), unit=b.unit,
                mean=mean.tolist(), sd=sd.tolist()))
    state = SessionState(
        session=session.session, subject=session.subject,
        units=unit_table(session, np.arange(session.n_units)),
        unit_rows=list(range(session.n_units)), behaviours=behaviours,
        null_rates=null_rates(binned.counts[rows]).tolist(),
        split={name: [0, len(binned)] for name in dealt}, trials=dealt,
    )
    return to_recording(binned, state)

