"""What NEDS is held against: decoders and encoders behind one interface, in one table.

Every baseline sees the training part, chooses what there is to choose (lags, strengths, rank,
number of steps) on the validation part and never looks at the test part. Causal ones predict a row
from that row and those before it, each run of consecutive bins from a cold start, as NEDS does.

    fitted = fit("gru", recordings, seed=1, device="cuda")
    predictions = fitted.decode_part(recording, "test")
    fitted.adapt(new_recording, seed=1).decode_part(new_recording, "test")

The modules are imported when a baseline is fitted, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

from neds_rt.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neds.dataset import Recording

    Floats = NDArray[np.float32]

Budget = Literal["full", "quick"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One row of the table."""

    function: str  # "module:function", called with (recordings, seed=, device=, budget=, ...)
    direction: Literal["decoding", "encoding"]
    multi: bool = False  # one fit over many sessions; otherwise every session is fitted alone
    causal: bool = True  # False: predictions use later bins too (flattened trials: see `linear`)
    options: dict[str, Any] = field(default_factory=dict)


BASELINES: dict[str, Baseline] = {
    "linear": Baseline(function="neds.baselines.linear:fit", direction="decoding"),
    "ridge_pretrained": Baseline(
        function="neds.baselines.channels:fit", direction="decoding", multi=True),
    "rrr": Baseline(function="neds.baselines.sequence:fit", direction="decoding", multi=True,
                    options={"core": "rrr"}),
    "gru": Baseline(function="neds.baselines.sequence:fit", direction="decoding", multi=True,
                    options={"core": "gru"}),
    "gru_single": Baseline(function="neds.baselines.sequence:fit", direction="decoding",
                           options={"core": "gru", "alone": True}),
    "mlp": Baseline(function="neds.baselines.sequence:fit", direction="decoding", multi=True,
                    options={"core": "mlp"}),
    "ndt": Baseline(function="neds.baselines.sequence:fit", direction="decoding", multi=True,
                    options={"core": "ndt"}),
    "glm": Baseline(function="neds.baselines.glm:fit", direction="encoding"),
    "glm_window": Baseline(function="neds.baselines.glm:fit", direction="encoding", causal=False,
                           options={"future": True}),
    "rrr_encoder": Baseline(
        function="neds.baselines.rrr_encoder:fit", direction="encoding", multi=True),
}


class Fitted:
    """A fitted baseline: predicts the sessions it was fitted on, and adapts to a new one."""

    name = "baseline"

    def decode_part(self, recording: Recording, part: str) -> list[Floats]:
        """Predictions per behaviour (rows, n_outputs) over a part's runs, one after another.

        In the units, or probabilities, of `neds.evaluate.to_units`. Raises `BadInput` for a
        session that was not fitted.
        """
        raise BadInput(self.name, "direction", "encoding", "a baseline that decodes")

    def encode_part(self, recording: Recording, part: str) -> Floats:
        """Rates (rows, N), spikes per bin, over a part's runs, one after another.

        All known behaviours are shown. Raises `BadInput` for a session that was not fitted.
        """
        raise BadInput(self.name, "direction", "decoding", "a baseline that encodes")

    def adapt(self, recording: Recording, *, seed: int) -> Fitted:
        """The baseline for a new session, whose parts "train" and "val" are its calibration data.

        With an empty "val" the last fifth of "train" chooses; with both empty (zero-shot), what
        was pretrained is used as it is. Raises `BadInput` where nothing was.
        """
        raise NotImplementedError


def fit(
    name: str,
    recordings: list[Recording],
    *,
    seed: int,
    device: str = "cpu",
    budget: Budget = "full",
    progress: bool = False,
) -> Fitted:
    """Fit a baseline of the table on the training parts, tuned on the validation parts.

    `budget` "quick" is for tests and first looks: fewer candidates, fewer steps. Raises `BadInput`
    for an unknown name, no recordings, a session given twice, and a recording without behaviours or
    without training rows.
    """
    if name not in BASELINES:
        raise BadInput("baseline", "name", repr(name), f"one of {', '.join(BASELINES)}")
    if budget not in ("full", "quick"):
        raise BadInput("baseline", "budget", repr(budget), "full or quick")
    _check(recordings)
    row = BASELINES[name]
    module, _, function = row.function.partition(":")
    start = cast(Callable[..., Fitted], getattr(import_module(module), function))
    fitted = start(recordings, seed=seed, device=device, budget=budget, progress=progress,
                   **row.options)
    fitted.name = name
    return fitted


def _check(recordings: list[Recording]) -> None:
    if not recordings:
        raise BadInput("baseline", "recordings", "none", "at least one")
    names = [r.state.session for r in recordings]
    for recording, name in zip(recordings, names, strict=True):
        if names.count(name) > 1:
            raise BadInput(name, "session", "given twice", "every session once")
        if not recording.encoded:
            raise BadInput(name, "behaviours", "none", "some to decode or to encode from")
        if not recording.runs_within("train"):
            raise BadInput(name, "train part", "no rows", "some to fit on, or adapt to the session")
