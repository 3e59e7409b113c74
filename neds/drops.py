"""Which of many recordings can be trained on, and a report of all that cannot.

A pretraining run over dozens of animals must not end in its middle because one of them has a
constant wheel. So everything is looked at before training: what does not work is left out, by
name, with the reason and a count, and the run goes on with the rest. The looks are at the
training part wherever a fit would look there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds.checkpoint import BehaviourState
from neds.config import RunConfig
from neds.data.checks import naming
from neds.data.dropped import DropReport
from neds.data.rebin import rebin_factor, rebinned
from neds.data.session import Binned, Counts, Session
from neds.data.store import read_session
from neds.data.windows import split
from neds.dataset import Recording, after, describe, fit_bins, to_recording
from neds_rt.errors import BadInput


def load_recordings(
    paths: Sequence[Path | str],
    config: RunConfig,
    rebin: bool = False,
    *,
    fit: bool = True,
    gap_bins: int | None = None,
    spill: Path | None = None,
) -> tuple[list[Recording], RunConfig, DropReport]:
    """Read prepared sessions for one training run, leaving out what `usable` leaves out.

    With `fit` and without `rebin`, a first session that comes in bins of another size makes the
    recipe that of its bins (`neds.dataset.fit_bins`); the recipe used comes back. Raises `BadInput`
    for a path that does not exist, and when nothing is left.
    """
    files = [Path(path) for path in paths]
    for path in files:
        if not path.exists():
            raise BadInput(path, "session", "no such file", "a file written by neds prepare")
    if fit and not rebin and files:
        config = fitted(files, config)
    recordings, report = usable(files, config, rebin, gap_bins=gap_bins, spill=spill)
    return recordings, config, report


def fitted(files: Sequence[Path], config: RunConfig) -> RunConfig:
    """The recipe on the bins of the first session that can be read (`neds.dataset.fit_bins`)."""
    for path in files:
        try:
            return fit_bins(config, read_session(path))
        except BadInput:
            continue  # named by `usable`
    return config


def usable(
    sources: Sequence[Session | Path | str],
    config: RunConfig,
    rebin: bool = False,
    *,
    gap_bins: int | None = None,
    spill: Path | None = None,
) -> tuple[list[Recording], DropReport]:
    """Make recordings of the sessions that can be trained on; one at a time is held whole.

    Left out: a session that cannot be read, is given twice, comes in other bins than the recipe
    (unless `rebin` and a whole number of them makes one), or is shorter than a window; a behaviour
    that is unknown or constant on the training part, or is of another kind, width or classes than
    in most sessions; units below the recipe's rate. `gap_bins` between the parts defaults to the
    recipe's window; `spill` is a folder for counts, as in `to_recording`. Raises `BadInput` when no
    session is left, or when a behaviour the recipe names is in none.
    """
    report, recordings = DropReport(), []
    seen: dict[str, str] = {}
    found: set[str] = set()
    run = config
    for where, session in _read(sources, report):
        if session.session in seen:
            report.add("session", session.session, where, f"already read from "
                       f"{seen[session.session]}")
            continue
        seen[session.session] = where
        found |= set(session.behaviours)
        try:
            recordings.append(_recording(session, run, rebin, gap_bins, spill,
                                         report))
            run = msgspec.structs.replace(run, data=after(run.data, recordings[-1].state))
        except BadInput as error:
            report.add("session", session.session, where, str(error))
    _check_names(config, found)
    if not recordings:
        first = report.drops[0].reason if report.drops else "none given"
        raise BadInput("sessions", "usable sessions", f"0 of {len(sources)} ({first})",
                       "one or more")
    return agreeing(recordings, report), report


def _read(
    sources: Sequence[Session | Path | str], report: DropReport
) -> Iterator[tuple[str, Session]]:
    for source in sources:
        if isinstance(source, Session):
            yield source.session, source
            continue
        try:
            yield str(source), read_session(Path(source))
        except BadInput as error:
            report.add("session", Path(source).stem, str(source), str(error))


def _check_names(config: RunConfig, found: set[str]) -> None:
    for name in config.data.behaviours:
        if found and name not in found:
            raise BadInput("data.behaviours", "name", repr(name),
                           f"a behaviour of some session: {', '.join(sorted(found))}")


def _recording(
    session: Session,
    config: RunConfig,
    rebin: bool,
    gap_bins: int | None,
    spill: Path | None,
    report: DropReport,
) -> Recording:
    """One session's recording; its behaviours, units and bins that drop out go to the report."""
    notes = DropReport()  # of a session that fails below, only the session is reported
    gap = config.model.window if gap_bins is None else gap_bins
    session = _in_bins(session, config, rebin, notes)
    names = config.data.behaviours or list(session.behaviours)
    for name in names:
        if name not in session.behaviours:
            notes.add("behaviour", session.session, name, "not recorded in this session")
    wanted = {name: session.behaviours[name] for name in names if name in session.behaviours}
    binned = replace(session, behaviours=wanted).binned(config.data.bin_size_s)
    with naming(session.session):
        first, stop = split(binned, config.data.fractions, gap).train
    if stop - first < config.model.window:
        raise BadInput(session.session, "training part", f"{stop - first} bins",
                       f"one window of {config.model.window} or more")
    kept = {name: behaviour for name, behaviour in wanted.items()
            if _teaches(session, name, binned, (first, stop), notes)}
    data = msgspec.structs.replace(config.data, behaviours=list(kept))
    binned, state = describe(replace(session, behaviours=kept), data, gap)
    if lost := session.n_units - len(state.units):
        notes.add("unit", session.session, "units",
                  f"below {config.data.min_rate_hz:g} Hz on the training part", lost)
    report.drops += notes.drops
    return to_recording(binned, state, spill)


def _in_bins(session: Session, config: RunConfig, rebin: bool, report: DropReport) -> Session:
    size = config.data.bin_size_s
    spikes = session.spikes
    if not isinstance(spikes, Counts) or abs(spikes.bin_size_s - size) <= 1e-9 * size:
        return session
    if rebin:
        coarse, left = rebinned(session, size)
        if left:
            report.add("bin", session.session, "counts",
                       f"no whole bin of {size:g} s out of bins of {spikes.bin_size_s:g} s", left)
        return coarse
    try:
        factor = rebin_factor(session, size)
    except BadInput:
        way = f"--set data.bin_size_s={spikes.bin_size_s:g}, or this session left out"
    else:
        way = f"--rebin, which adds up {factor} bins to one"
    raise BadInput(session.session, "bin_size_s", f"bins of {spikes.bin_size_s:g} s where the "
                   f"recipe has {size:g} s", way)


def _teaches(
    session: Session, name: str, binned: Binned, train: tuple[int, int], report: DropReport
) -> bool:
    """Whether the training part knows a behaviour and sees it change; notes what is masked."""
    behaviour, values = session.behaviours[name], binned.values[name]
    known = np.isfinite(values).all(axis=1)
    inside = np.zeros(len(values), bool)
    inside[slice(*train)] = True
    rows = values[known & inside]
    if not len(rows):
        report.add("behaviour", session.session, name, "no known value on the training part")
        return False
    if is_constant(behaviour.kind, rows):
        what = f"{rows[0].tolist()}"
        if behaviour.kind == "categorical":
            what = repr(behaviour.classes[int(rows[0, 0])])
        report.add("behaviour", session.session, name, f"constant on the training part: {what}")
        return False
    if behaviour.kind == "categorical":
        codes = values[known & ~inside, 0]
        for code in sorted(set(range(len(behaviour.classes))) - set(np.unique(rows).astype(int))):
            report.add("class", session.session, f"{name}={behaviour.classes[code]}",
                       "absent from the training part; bins elsewhere counted",
                       int((codes == code).sum()))
    if unknown := int((~known).sum()):
        report.add("bin", session.session, name, f"unknown (NaN), masked, of {len(values)}",
                   unknown)
    return True


def is_constant(kind: str, rows: NDArray[np.float32]) -> bool:
    """Whether known values (n, width) never change, in any column; angles modulo a turn."""
    if kind == "circular":
        turned = np.exp(1j * rows.astype(np.float64))
        return bool(np.abs(turned - turned[0]).max() <= 1e-6)
    return bool((np.ptp(rows, axis=0) <= 1e-9).all())


def agreeing(recordings: list[Recording], report: DropReport) -> list[Recording]:
    """Leave out every behaviour that differs from what most sessions mean by its name.

    Of definitions that are equally frequent the first counts.
    """
    by_name: dict[str, dict[str, list[str]]] = {}
    for recording in recordings:
        for b in recording.state.behaviours:
            meanings = by_name.setdefault(b.name, {})
            meanings.setdefault(_meaning(b), []).append(recording.state.session)
    kept = []
    for recording in recordings:
        for b in recording.state.behaviours:
            meanings = by_name[b.name]
            most = max(meanings, key=lambda text: len(meanings[text]))
            if _meaning(b) != most:
                report.add("behaviour", recording.state.session, b.name,
                           f"is {_meaning(b)}, but {most} in {len(meanings[most])} other "
                           f"sessions such as {meanings[most][0]}")
                recording = without(recording, b.name)
        kept.append(recording)
    return kept


def _meaning(b: BehaviourState) -> str:
    return f"{b.kind} x {b.width}" + (f" ({', '.join(b.classes)})" if b.classes else "")


def without(recording: Recording, name: str) -> Recording:
    """The same recording, one behaviour less."""
    behaviours = recording.state.behaviours
    keep = [i for i, b in enumerate(behaviours) if b.name != name]
    state = msgspec.structs.replace(recording.state, behaviours=[behaviours[i] for i in keep])
    return replace(recording, state=state, encoded=[recording.encoded[i] for i in keep],
                   known=recording.known[keep],
                   values={b.name: recording.values[b.name] for b in state.behaviours})
