"""Sizes, switches and inputs of the paper's NEDS (`neds.reference`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from torch import Tensor

from neds.model import SessionSpec
from neds_rt.errors import BadInput

PADDING = -1.0
"""What stands for a unit that the session does not have."""

SWITCHES = {
    "mode": ("mm", "encoding", "decoding"),
    "mask": ("paper_apr2025", "head", "fixed"),
    "static_loss": ("reference", "mean_ce"),
    "stitcher": ("mlp_max", "mlp_own_n", "linear"),
    "lone_session": ("kept", "dropped"),
}


class ReferenceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes and switches; the sizes are the paper's for up to 10 sessions (16 and 22 layers above).

    mode: all modalities, or behaviours to spikes ("encoding"), or spikes to behaviours
    ("decoding"); the heads of both unimodal modes are trained, which the released code omits.
    mask: see `neds.reference_masking`. static_loss: cross-entropy of all trials over the number of
    hidden tokens, or the mean over hidden trials. stitcher: two layers at the largest session's
    unit count, at the session's own, or one layer. lone_session: whether a session that occurs once
    in a batch loses its embedding and its static heads, as in the released code.
    """

    mode: str = "mm"
    mask: str = "head"
    one_scheme_per_batch: bool = False
    mask_ratio: float = 0.3
    static_loss: str = "reference"
    stitcher: str = "mlp_max"
    lone_session: str = "kept"
    layers: int = 5
    hidden: int = 256
    mlp: int = 512
    heads: int = 8
    bins: int = 100
    n_session_rows: int = 84
    token_dropout: float = 0.2
    dropout: float = 0.4
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        for name, allowed in SWITCHES.items():
            if getattr(self, name) not in allowed:
                raise BadInput("reference", name, repr(getattr(self, name)), " or ".join(allowed))
        for name in ("layers", "hidden", "mlp", "heads", "bins", "n_session_rows"):
            if getattr(self, name) < 1:
                raise BadInput("reference", name, getattr(self, name), "at least 1")
        if self.hidden % (2 * self.heads):
            raise BadInput("reference", "heads", self.heads, "hidden divisible by 2 * heads")
        for name in ("token_dropout", "dropout", "mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput("reference", name, getattr(self, name), "from 0 to below 1")


@dataclass(frozen=True)
class ReferenceBatch:
    """Trials of any sessions: session (B,) index; counts (B, T, N), `PADDING` beyond a session's N.

    behaviours[m]: static (B,) float class index; dynamic (B, T, width) float.
    """

    session: Tensor
    counts: Tensor
    behaviours: list[Tensor]

    def groups(self) -> list[tuple[int, Tensor]]:
        """(session index, rows of the batch) of each session in the batch."""
        return [(int(s), (self.session == s).nonzero()[:, 0]) for s in self.session.unique()]

    def with_counts(self, counts: Tensor) -> ReferenceBatch:
        """The same trials with other spike inputs."""
        return replace(self, counts=counts)


def check_sessions(config: ReferenceConfig, sessions: list[SessionSpec]) -> None:
    """Raise `BadInput` for sessions that one reference model cannot hold."""
    if not 1 <= len(sessions) <= config.n_session_rows:
        raise BadInput("reference", "sessions", len(sessions),
                       f"1 to n_session_rows ({config.n_session_rows})")
    first = sessions[0]
    for spec in sessions:
        if not spec.behaviours or spec.behaviours != first.behaviours:
            theirs, ours = (", ".join(b.name for b in s.behaviours) for s in (spec, first))
            raise BadInput(spec.session, "behaviours", theirs or "none",
                           f"those of {first.session}, with their classes: {ours}")
        for b in spec.behaviours:
            if b.kind == "circular":
                raise BadInput(spec.session, b.name, b.kind, "categorical or continuous")
