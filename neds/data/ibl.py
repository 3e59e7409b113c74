"""Reader `ibl`: sessions of the International Brain Laboratory, from an ALF folder or by ONE.

Two forms. `continuous`: spike events, wheel speed at 1 kHz and whisker motion energy on their own
clocks; choice and block known in the windows of kept trials; the table has the kept trials alone.
`trials`: the paper's own arrays as counts, one run of 100 bins a trial (`neds.data.ibl_trials`);
where windows overlap or start between bins, the trial moves, its times with it (`clock_shift_s`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds.data.alf import Alf, one_by_one, probes_of, trials_of, wheel_velocity
from neds.data.alf_files import chosen
from neds.data.build import Builder, Columns
from neds.data.checks import naming
from neds.data.ibl_trials import (
    BIN_S,
    BINS,
    bugs_of,
    kept_trials,
    scaled,
    settle,
    trial_counts,
    trial_traces,
    windows,
)
from neds.data.reader import EventOptions, Reader, chosen_units, needed, parse_options
from neds.data.session import Session
from neds_rt.errors import BadInput
from neds_rt.small_files import read_small

FORMS = ("continuous", "trials")
MAX_OWN_BYTES = 16 << 20  # of what a session notes of itself
CHOICES, BLOCKS = (-1.0, 1.0), (0.2, 0.5, 0.8)
DATE = re.compile(r"\d{4}-\d\d-\d\d[a-z]?")
Trace = tuple[NDArray[np.float64], NDArray[np.float64]]


class IblOptions(EventOptions, frozen=True, kw_only=True):
    """form: continuous or trials. bugs: switches of `neds.data.ibl_trials.BUGS`, or all (form
    trials). min_rate_hz: units above it in the trials' windows (form trials; the paper has 2 or 5).
    regions: beryl for the Beryl atlas's names. revision: a date, the newest revision of a file not
    after it counts. mode: local or remote, cache: ONE's folder, host: the database (for session
    ids; see `neds.data.ibl_one`)."""

    form: str = "continuous"
    bugs: str = ""
    min_rate_hz: float = 0.0
    regions: str = ""
    revision: str = ""
    mode: str = "remote"
    cache: str = ""
    host: str = "https://openalyx.internationalbrainlab.org"


def ibl_reader(preset: str | None, words: Sequence[str]) -> Reader:
    """Make the reader; a source is a folder in ALF or a session id. Raises `BadInput`."""
    if preset:
        raise BadInput("ibl reader", "--preset", preset, "none")
    options = parse_options(words, IblOptions, "ibl reader")
    if options.form not in FORMS or options.regions not in ("", "beryl"):
        raise BadInput("ibl reader", "options", f"form={options.form} regions={options.regions}",
                       f"form {' or '.join(FORMS)}, regions beryl")
    if options.revision and not DATE.fullmatch(options.revision):
        raise BadInput("ibl reader", "revision", repr(options.revision), "a date as 2024-05-06")
    if bugs_of(options.bugs) and options.form != "trials":
        raise BadInput("ibl reader", "bugs", options.bugs, "form=trials beside it")
    from neds.data.ibl_one import session_folder

    def read(source: str) -> Session:
        name = "" if Path(source).is_dir() else source
        return read_alf(session_folder(source, options), options, session=name)

    def files(source: str) -> list[Path]:
        folder = session_folder(source, options)
        return [file.path for file in chosen(Alf(folder, options.revision).files)]

    return Reader(read=read, files=files)


def read_alf(folder: str | Path, options: IblOptions | None = None, session: str = "") -> Session:
    """Read one session's folder. Raises `BadInput` where no spikes of any probe are usable.

    Its name is `session`, or SUBJECT_DATE_NUMBER of a folder .../SUBJECT/DATE/NUMBER.
    """
    path, options = Path(folder), options or IblOptions()
    alf = Alf(path, options.revision)
    with naming(path):
        own = _own(alf)
        parts = path.resolve().parts[-3:]
        dated = len(parts) == 3 and parts[1].count("-") == 2
        name = session or own.get("session") or ("_".join(parts) if dated else path.name)
        build = Builder(name.lstrip("."), own.get("subject") or (parts[0] if dated else ""),
                        options)
        trials_of(alf, build)
        times, unit, columns, more = probes_of(alf, build)
        if options.regions == "beryl":
            columns["region"] = _beryl(columns["region"], build)
        if options.form == "trials":
            return _trial_session(alf, build, options, times, unit, columns, more)
        _continuous(alf, build, own)
        domain = np.array(own["domain"]) if "domain" in own else None
        return build.finish(times, unit, columns, more, fs=own.get("fs", 0.0), domain=domain)


def _own(alf: Alf) -> dict[str, Any]:
    """What `write_alf` noted of the session."""
    path = alf.find("session", "neds")
    data = read_small(path, "content", "JSON", MAX_OWN_BYTES) if path else b"{}"
    try:
        own: dict[str, Any] = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(path, "content", error, "JSON") from error
    return own


def _beryl(regions: NDArray[Any], build: Builder) -> NDArray[Any]:
    """The Beryl atlas's region of each unit, unknown where the Allen atlas has no such acronym."""
    atlas = needed("iblatlas.regions", "ibl", build.session).BrainRegions()
    out = one_by_one(regions, lambda name: atlas.acronym2acronym(name, mapping="Beryl"))
    build.report.add_rows("column", build.session, (out == "") & (regions != ""),
                          "region is none of the Allen atlas")
    return out


def _traces(alf: Alf, build: Builder, bugs: frozenset[str] = frozenset()) -> dict[str, Trace]:
    """Wheel speed and whisker motion energy with their times; what is missing is noted."""
    found: dict[str, Trace] = {}
    views = ("rightCamera",) if "whisker" in bugs else ("leftCamera", "rightCamera")
    for name, loads in (("wheel", [lambda: _wheel(alf)]),
                        ("whisker", [lambda v=v: _whisker(alf, build, v) for v in views])):
        for attempt in loads:
            try:
                found[name] = attempt()
                break
            except BadInput as error:
                last = attempt is loads[-1]  # else the other camera is tried
                build.drop("behaviour", name if last else f"{name} (left)", error, int(last))
    return found


def _wheel(alf: Alf) -> Trace:
    times, position = alf.load("wheel", "timestamps"), alf.load("wheel", "position")
    if times is None or position is None:
        raise BadInput("wheel", "files", "absent", "wheel.timestamps and wheel.position")
    at, velocity = wheel_velocity(np.asarray(times, np.float64).reshape(-1),
                                  np.asarray(position, np.float64).reshape(-1))
    return at, np.abs(velocity)


def _whisker(alf: Alf, build: Builder, view: str) -> Trace:
    times, energy = alf.load(view, "times"), alf.load(view, "ROIMotionEnergy")
    if times is None or energy is None:
        raise BadInput(view, "files", "absent", f"{view}.times and {view}.ROIMotionEnergy")
    times, energy = (np.asarray(a, np.float64).reshape(-1) for a in (times, energy))
    if len(times) < len(energy) or not len(energy):
        raise BadInput(view, "ROIMotionEnergy", f"{len(energy)} frames",
                       f"at most {len(times)}, as there are times")
    times = times[len(times) - len(energy):]  # frames are lost at the start of a recording
    known = np.isfinite(times)
    times, energy = times[known], energy[known]
    if not len(times):
        raise BadInput(view, "times", "no frame with a time", "times in seconds")
    if (np.diff(times) < 0).any():
        raise BadInput(view, "times", "unsorted", "rising times")
    if not known.all():
        build.drop("bin", "whisker", "time stamp is not a number", int((~known).sum()))
    return times, energy


def _continuous(alf: Alf, build: Builder, own: dict[str, Any]) -> None:
    for number, facts in enumerate(own.get("behaviours", [])):  # as `write_alf` wrote them
        object = f"behaviour{number}"
        build.behaviour(facts["name"], facts["kind"], alf.load(object, "times"),
                        alf.load(object, "values"), facts["unit"], facts["classes"])
    if own:
        return
    units = {"wheel": "rad/s", "whisker": "a.u."}
    for name, (times, values) in _traces(alf, build).items():
        build.behaviour(name, "continuous", times, values, units[name])
    try:
        kept, reasons = kept_trials(build.trials)
    except BadInput as error:
        for name in ("choice", "block"):
            build.drop("behaviour", name, error)
        return
    _drop_trials(build, kept, reasons)
    start, stop = windows(build.trials).T
    _labels(build, start, stop)


def _labels(build: Builder, start: NDArray[np.float64], stop: NDArray[np.float64]) -> None:
    """Add choice and block, from each trial's start (n,) to a bin after its stop (n,): a window
    that is moved onto the bin grid ends up to half a bin later."""
    after = stop + BIN_S
    build.labels("choice", build.trials["choice"], start, after, CHOICES, ("right", "left"))
    build.labels("block", build.trials["probabilityLeft"], start, after, BLOCKS,
                 tuple(str(level) for level in BLOCKS))


def _drop_trials(build: Builder, kept: NDArray[np.bool_], reasons: Any) -> None:
    for mask, reason in reasons:
        build.report.add_rows("trial", build.session, mask, reason)
    if not kept.any():
        raise BadInput(build.session, "trials", f"none of {len(kept)} kept", "trials")
    build.trials = {name: column[kept] for name, column in build.trials.items()}
    volume = build.trials.get("rewardVolume")
    if volume is not None:
        build.trials["reward"] = (volume > 1).astype(np.int64)


def _trial_session(
    alf: Alf, build: Builder, options: IblOptions, times: NDArray[np.float64],
    unit: NDArray[np.int32], columns: Columns, more: Columns,
) -> Session:
    """The paper's trials as a session of counts."""
    bugs = bugs_of(options.bugs)
    kept, reasons = kept_trials(build.trials)
    window = windows(build.trials)
    found = _traces(alf, build, bugs)
    absent = {"wheel", "whisker"} - set(found)
    if absent and "session" in bugs:
        raise BadInput(build.session, "behaviours", f"no {', '.join(sorted(absent))}",
                       "all of them, with the bug switch session")
    cut = {name: trial_traces(*trace, window) for name, trace in found.items()}
    traces, kept, more_reasons, left_out = settle(cut, kept, bugs)
    for name, reason in left_out.items():
        build.drop("behaviour", name, reason)
    real = np.isfinite(times)
    if not real.all():
        build.drop("spike", "spikes", "time is not a number of seconds", int((~real).sum()))
    counts = trial_counts(times[real], unit[real], len(columns["cluster"]), window)
    columns, counts = _units(build, options, counts, kept, columns, more)
    _drop_trials(build, kept, reasons + more_reasons)
    first = _places(window[kept, 0])
    _move(build, first * BIN_S - window[kept, 0])
    bins = (first[:, None] + np.arange(BINS)).ravel()
    for name, values in traces.items():
        rows = scaled(values[kept]) if "scale" in bugs else values[kept]
        build.behaviour(name, "continuous", (bins + 1) * BIN_S, rows.ravel(),
                        "" if "scale" in bugs else {"wheel": "rad/s", "whisker": "a.u."}[name])
    begin = first.astype(np.float64) * BIN_S
    _labels(build, begin, begin + BINS * BIN_S)
    build.metadata["ibl"] = {"form": "trials", "bugs": sorted(bugs),
                             "min_rate_hz": options.min_rate_hz}
    return build.finish_counts(counts[kept].reshape(len(bins), -1), bins, BIN_S, columns)


def _units(
    build: Builder, options: IblOptions, counts: NDArray[np.uint16], kept: NDArray[np.bool_],
    columns: Columns, more: Columns,
) -> tuple[Columns, NDArray[np.uint16]]:
    """Units by `keep` and by their mean rate over the kept trials (over all, with the bug)."""
    n = counts.shape[2]
    use = chosen_units(options.keep, {**more, **columns}, n, build.session)
    build.report.add_rows("unit", build.session, ~use, f"not {options.keep}")
    trials = np.ones(len(kept), bool) if "rate" in bugs_of(options.bugs) else kept
    rate = counts[trials].mean(axis=(0, 1)) / BIN_S
    slow = use & (rate <= options.min_rate_hz)
    if options.keep_silent and options.min_rate_hz == 0:
        slow[:] = False
    build.report.add_rows("unit", build.session, slow,
                          f"{options.min_rate_hz:g} spikes/s or less in the trials' windows")
    use &= ~slow
    if not use.any():
        raise BadInput(build.session, "units", f"none of {n} left", "units that fire in trials")
    return {name: column[use] for name, column in columns.items()}, counts[:, :, use]


def _places(start: NDArray[np.float64]) -> NDArray[np.int64]:
    """First bin (n,) of each trial's run: the nearest, but one bin or more after the one before."""
    first = np.maximum(np.rint(start / BIN_S).astype(np.int64), 0)
    step = BINS + 1
    order = np.argsort(start, kind="stable")
    rank = np.arange(len(first)) * step
    first[order] = np.maximum.accumulate(first[order] - rank) + rank
    return first


def _move(build: Builder, shift: NDArray[np.float64]) -> None:
    """Move each trial's times with its bins."""
    for name, column in build.trials.items():
        if name.endswith("_times") or name.startswith("intervals_"):
            build.trials[name] = column + shift
    build.trials["clock_shift_s"] = shift

