"""A session made ready for the model: binned, split, scaled on its training part, as tensors.

Everything that is fitted (scalers, the unit filter, null rates) sees the training rows alone, and
is written down in the `SessionState` that a checkpoint keeps, so that evaluation, export and live
decoding use the very same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neds.checkpoint import BehaviourState, SessionState
from neds.config import DataConfig, RunConfig
from neds.data.checks import naming
from neds.data.rebin import rebinned
from neds.data.session import Binned, Counts, Session
from neds.data.windows import fit_scaling, split, split_trials, units_above
from neds.model import encode_behaviour
from neds_rt.bundle import Unit
from neds_rt.errors import BadInput


@dataclass(frozen=True, eq=False)
class Recording:
    """One session's rows as tensors, T rows in time order.

    counts (T, N) uint8, or int32 where a count needs it; encoded[m] (T, n_outputs) float32 as the
    model sees behaviour m; known (M, T) bool; values: per behaviour (T, width) in its own units,
    NaN where unknown; bin (T,) absolute bin, of `bin_size_s` seconds; runs (n, 2) row ranges of
    consecutive bins. Counts may lie in a file that is mapped into memory: take the rows you need.
    """

    state: SessionState
    counts: Tensor
    encoded: list[Tensor]
    known: Tensor
    values: dict[str, NDArray[np.float32]]
    bin: NDArray[np.int64]
    runs: NDArray[np.int64]
    bin_size_s: float

    def part(self, name: str) -> tuple[int, int]:
        """Row range [first, stop) of "train", "val" or "test"; `BadInput` if split at random."""
        if self.state.trials is not None:
            raise BadInput(self.state.session, f"{name} part", "trials split at random",
                           "data.split = 'blocked', which gives parts in time")
        first, stop = self.state.split[name]
        return first, stop

    def runs_within(self, name: str) -> list[tuple[int, int]]:
        """The runs of consecutive bins, cut to one part; empty ones left out."""
        if self.state.trials is not None:
            return [(a, b) for a, b in self.runs[self.state.trials[name]].tolist()]
        first, stop = self.part(name)
        cut = [(max(a, first), min(b, stop)) for a, b in self.runs.tolist()]
        return [(a, b) for a, b in cut if b > a]

    def rows(self, name: str) -> NDArray[np.int64]:
        """The rows of one part, (n,) int64."""
        runs = [np.arange(a, b) for a, b in self.runs_within(name)]
        return np.concatenate([np.zeros(0, np.int64), *runs])


def fit_bins(config: RunConfig, session: Session) -> RunConfig:
    """The recipe on the bins that a binned recording comes in, its windows as long in seconds.

    A recording of spike events, or one in the recipe's own bins, leaves the recipe as it is.
    """
    if not isinstance(session.spikes, Counts):
        return config
    size, was = session.spikes.bin_size_s, config.data.bin_size_s
    if abs(size - was) <= 1e-9 * size:
        return config
    window = max(1, round(config.model.window * was / size))
    bins = max(window, round(config.train.bins * was / size))
    replace = msgspec.structs.replace
    return replace(
        config,
        data=replace(config.data, bin_size_s=size),
        model=replace(config.model, window=window),
        train=replace(config.train, bins=window if config.model.form == "window" else bins),
    )


def describe(session: Session, config: DataConfig, gap_bins: int) -> tuple[Binned, SessionState]:
    """Bin a session and fit on its training part what the model needs.

    Raises `BadInput` for an unknown behaviour name, a behaviour that the training part knows
    nothing of, a rate that no unit reaches, or a part without bins.
    """
    names = config.behaviours or list(session.behaviours)
    if len(set(names)) != len(names):
        raise BadInput(session.session, "data.behaviours", ", ".join(names), "each name once")
    for name in names:
        session.behaviour(name)  # refuses an unknown name, listing those there are
    binned = session.binned(config.bin_size_s)
    with naming(session.session):
        parts, trials, train = _parts(binned, session.session, config, gap_bins)
    keep = units_above(binned, train, config.min_rate_hz)
    if not keep.size:
        raise BadInput(session.session, "data.min_rate_hz", config.min_rate_hz,
                       "a rate that some unit reaches on the training part")
    states = []
    for name in names:
        behaviour = session.behaviours[name]
        with naming(session.session):
            mean, sd = fit_scaling(name, behaviour.kind, binned.values[name][train], config.scaling)
        states.append(BehaviourState(
            name=name, kind=behaviour.kind, width=behaviour.width,
            classes=list(behaviour.classes), unit=behaviour.unit,
            mean=mean.tolist(), sd=sd.tolist(),
        ))
    state = SessionState(
        session=session.session,
        subject=session.subject,
        units=unit_table(session, keep),
        unit_rows=keep.tolist(),
        behaviours=states,
        null_rates=null_rates(binned.counts[train][:, keep]).tolist(),
        split=parts,
        trials=trials,
    )
    return binned, state


def _parts(
    binned: Binned, session: str, config: DataConfig, gap_bins: int
) -> tuple[dict[str, list[int]], dict[str, list[int]] | None, slice | NDArray[np.int64]]:
    """The split as `SessionState` keeps it, its trials if drawn at random, and training rows."""
    if config.split != "blocked":
        before = config.split_before if config.split == "release" else None
        trials = split_trials(binned, session, config.fractions, config.split_seed, before)
        runs = binned.runs()[trials["train"]]
        everything = {part: [0, len(binned)] for part in trials}
        return everything, trials, np.concatenate([np.arange(a, b) for a, b in runs])
    parts = split(binned, config.fractions, gap_bins)
    return {k: list(v) for k, v in parts._asdict().items()}, None, slice(*parts.train)


def after(config: DataConfig, state: SessionState) -> DataConfig:
    """The configuration for the next session of a run: the release's split goes on from this one's.

    Elsewhere it stays as it is.
    """
    if config.split != "release" or state.trials is None:
        return config
    dealt = sum(map(len, state.trials.values()))
    return msgspec.structs.replace(config, split_before=[*config.split_before, dealt])


def null_rates(counts: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Mean count per bin of each unit (N,) on the training part, the null model of bits per spike.

    A unit that was silent there gets one spike: a null rate of zero would credit the model with
    dozens of bits for each spike it fires later.
    """
    return np.asarray(np.maximum(counts.sum(0), 1) / len(counts), np.float64)


def to_recording(binned: Binned, state: SessionState, spill: Path | None = None) -> Recording:
    """Turn a binned session into tensors with the scalers and units of `state`.

    With `spill`, a folder, all that has T rows goes to files there and is mapped into memory,
    so that many sessions take no more memory than the batches drawn from them.
    """
    def kept(name: str, rows: NDArray[Any]) -> NDArray[Any]:
        return rows if spill is None else _spilled(rows, spill, f"{state.session}.{name}")

    rows = binned.counts[:, state.unit_rows]
    small = rows.max(initial=0) <= 255
    rows = np.ascontiguousarray(rows, np.uint8 if small else np.int32)
    encoded, known = [], []
    for m, b in enumerate(state.behaviours):
        values = torch.from_numpy(binned.values[b.name])
        mean, sd = torch.tensor(b.mean), torch.tensor(b.sd)
        scaled = encode_behaviour(b.spec, values, mean, sd).numpy()
        encoded.append(torch.from_numpy(kept(f"encoded{m}", scaled)))
        known.append(~torch.isnan(values).any(1))
    return Recording(
        state=state,
        counts=torch.from_numpy(kept("counts", rows)),
        encoded=encoded,
        known=torch.stack(known) if known else torch.zeros(0, len(rows), dtype=torch.bool),
        values={b.name: kept(f"values{m}", binned.values[b.name])
                for m, b in enumerate(state.behaviours)},
        bin=kept("bin", binned.bin),
        runs=binned.runs(),
        bin_size_s=binned.bin_size_s,
    )


def _spilled(rows: NDArray[Any], folder: Path, name: str) -> NDArray[Any]:
    """The same array, in a file of its own, mapped copy-on-write (torch wants it writeable)."""
    path = folder / f"{name}.npy"
    np.save(path, rows)
    mapped: NDArray[Any] = np.load(path, mmap_mode="c")
    return mapped


def match(session: Session, state: SessionState, bin_size_s: float) -> Recording:
    """The same session again, for evaluation; raises `BadInput` if it is not the one trained on.

    Recorded bins that are finer than the model's are added up, as `--rebin` did for training.
    """
    if session.session != state.session:
        raise BadInput(session.session, "session", session.session, state.session)
    table = unit_table(session, np.arange(session.n_units))
    if max(state.unit_rows) >= len(table) or [table[i] for i in state.unit_rows] != state.units:
        raise BadInput(session.session, "units", f"{len(table)} units",
                       f"the {len(state.units)} units the model was trained on")
    for b in state.behaviours:
        found = session.behaviour(b.name)
        if (found.kind, found.width, list(found.classes)) != (b.kind, b.width, b.classes):
            raise BadInput(session.session, f"behaviour {b.name}", f"{found.kind} x {found.width}",
                           f"{b.kind} x {b.width} with the classes it was trained on")
    binned = rebinned(session, bin_size_s)[0].binned(bin_size_s)
    if len(binned) != state.split["test"][1]:
        raise BadInput(session.session, "bins", len(binned),
                       f"{state.split['test'][1]}, of which the model's split speaks")
    return to_recording(binned, state)


def unit_table(session: Session, keep: NDArray[np.int64]) -> list[Unit]:
    """The kept units as the bundle's manifest lists them."""
    units = session.units
    return [
        Unit(
            probe=str(units.probe[i]),
            channel=int(units.channel[i]),
            cluster=int(units.cluster[i]),
            region=str(units.region[i]),
            depth_um=None if np.isnan(units.depth_um[i]) else float(units.depth_um[i]),
        )
        for i in keep
    ]
