"""A model with all that serving it takes, and what another one needs to take its place."""

from __future__ import annotations

import numpy as np

from neds_rt import _core, assemble
from neds_rt.bundle import Bundle
from neds_rt.engines import Engine
from neds_rt.engines.lost_bins import SETTLING_BINS
from neds_rt.engines.native import NativeEngine
from neds_rt.errors import BadInput, EngineFailed
from neds_rt.manifest import Manifest

WARM_UP_STEPS = 50
MAX_HISTORY_BYTES = 64 << 20


def reach(manifest: Manifest) -> int:
    """Return how many bins the attention of a bin depends on: L (W - 1) + K, its own included.

    A layer sees W bins of the layer below, the lowest of them bins that the convolution has made
    of K. A GRU remembers without end; see `history_bins`.
    """
    shape = manifest.shape
    return shape.layers * (shape.window - 1) + max(shape.conv, 1)


def history_bins(manifest: Manifest) -> int:
    """Return how many bins to keep so that an engine that has seen them is at the present.

    The reach of the model, and before that 4096 bins, after which a GRU is taken to have forgotten
    where it began, as `skip` takes it. Fewer where counts would fill more than 64 MB.
    """
    room = MAX_HISTORY_BYTES // (2 * len(manifest.units))
    return max(8, min(SETTLING_BINS + 2 * reach(manifest), room))


class ServedModel:
    """Engine, encoder, rehearsal and standby of one bundle, built off the serving thread."""

    def __init__(
        self, bundle: Bundle, engine: Engine, assembler: _core.Assembler,
        history: _core.History, n_streams: int, *, standby: bool, deadline_s: float | None = None,
    ) -> None:
        """Build what is missing around `engine`; with `standby` also a native engine beside it.

        Raises `BadInput` when the engine does not fit the bundle.
        """
        check_engine(engine, bundle)
        manifest = bundle.manifest
        self.manifest, self.engine, self.where = manifest, engine, bundle.where
        self.encoder = assemble.make_encoder(manifest, n_streams, deadline_s)
        self.message = self.encoder.buffer.data
        self.rehearse = assemble.Rehearsal(manifest, engine)
        self.follower = _follower(engine, history)
        self.standby: NativeEngine | None = None
        beside: _core.Follower | None = None
        if standby and type(engine) is not NativeEngine:  # a subclass may fail where it does not
            self.standby = NativeEngine(bundle)
            beside = _follower(self.standby, history)
        self.standby_follower = beside
        self.failed = False  # whether the standby has taken over
        self.resting = False  # whether rehearsals are over, since the engine failed in one
        self.candidate = _core.Candidate(
            assemble.make_stepper(engine, assembler.counts), self.encoder, manifest.shape.window,
            self.follower, beside,
        )

    @property
    def model_hash(self) -> str:
        """Hash of the bundle."""
        return self.manifest.model_hash

    @property
    def serving(self) -> Engine:
        """The engine that steps: the standby once it has taken over."""
        return self.standby if self.failed and self.standby is not None else self.engine

    def warm_up(self) -> None:
        """Run bins that nobody gets to see. Raises `EngineFailed`."""
        for _ in range(WARM_UP_STEPS):
            self.warm()
        if self.standby is not None:
            self.standby.warm()

    def warm(self) -> None:
        """Go through one such bin, leaving the stream as it is. Raises `EngineFailed`."""
        try:
            if not (self.failed or self.resting):
                self.rehearse()
        except Exception as error:
            raise EngineFailed(self.engine.name, error) from error


def check_engine(engine: Engine, bundle: Bundle) -> None:
    """Raise `BadInput` unless the engine has the bundle's units and outputs."""
    n_units = len(bundle.manifest.units)
    n_outputs = sum(m.n_outputs for m in bundle.manifest.modalities)
    if engine.n_units != n_units:
        raise BadInput(bundle.where, "units", f"{n_units} in the manifest", str(engine.n_units))
    if engine.n_outputs != n_outputs:
        found = f"{n_outputs} in the manifest"
        raise BadInput(bundle.where, "outputs", found, str(engine.n_outputs))


def check_replacement(served: Manifest, new: Manifest, capacity: int, where: object) -> None:
    """Raise `BadInput` unless `new` takes the same bins of the same units as `served`.

    `capacity` is how many bins are kept to bring it to the present. What it decodes may differ.
    """
    if new.bin_size_s != served.bin_size_s:
        raise BadInput(where, "bin_size_s", new.bin_size_s, f"{served.bin_size_s}, as served")
    if len(new.units) != len(served.units):
        raise BadInput(where, "units", len(new.units), f"the {len(served.units)} being served")
    for row, (found, expected) in enumerate(zip(new.units, served.units, strict=True)):
        ours, theirs = ((u.probe, u.channel, u.cluster) for u in (expected, found))
        if ours != theirs:
            raise BadInput(where, f"unit {row} (probe, channel, cluster)", theirs, f"{ours}")
    if 2 * reach(new) > capacity:
        raise BadInput(where, "reach", f"{reach(new)} bins", f"at most {capacity // 2}: half of "
                       "what is kept of the input")


def _follower(engine: Engine, history: _core.History) -> _core.Follower:
    counts = np.zeros(engine.n_units, np.uint16)
    stepper = assemble.make_stepper(engine, counts)
    return _core.Follower(history, stepper, counts, engine.n_outputs)
