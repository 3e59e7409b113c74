"""THE table of modalities: what each signal is, and what follows from its kind.

A kind fixes the loss, the metrics and how many numbers a model predicts for it. A modality is a
named signal of some kind; the rows below give the field's usual names their unit and IBL name. A
recording may carry behaviours that have no row: their kind, width and classes come from the
session, and everything downstream follows from the kind alone.
"""

from __future__ import annotations

from dataclasses import dataclass

SPIKES = "spikes"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a kind of signal implies."""

    loss: str
    metrics: tuple[str, ...]  # names in neds.metrics, the first is the headline


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One row: a named signal."""

    name: str
    kind: str
    width: int = 1
    unit: str = ""
    classes: tuple[str, ...] = ()
    ibl_name: str = ""


KINDS = {
    "spikes": Kind(loss="poisson", metrics=("bps_neuron_mean", "bps_pooled")),
    "continuous": Kind(loss="squared_error", metrics=("r2", "correlation")),
    "circular": Kind(loss="squared_error", metrics=("circular_r2", "median_error_deg")),
    "categorical": Kind(loss="cross_entropy", metrics=("balanced_accuracy", "accuracy")),
}

MODALITIES = {
    row.name: row
    for row in (
        Modality(name=SPIKES, kind="spikes", width=0, unit="spikes/bin"),
        Modality(name="wheel", kind="continuous", unit="rad/s", ibl_name="wheel-speed"),
        Modality(name="whisker", kind="continuous", unit="a.u.", ibl_name="whisker-motion-energy"),
        Modality(name="choice", kind="categorical", classes=("right", "left"), ibl_name="choice"),
        Modality(name="block", kind="categorical", classes=("0.2", "0.5", "0.8"), ibl_name="block"),
        Modality(name="velocity", kind="continuous", width=2, unit="cm/s"),
        Modality(name="position", kind="continuous", width=2, unit="cm"),
        Modality(name="stimulus", kind="categorical", classes=("left", "right")),
        Modality(name="response", kind="categorical", classes=("left", "nogo", "right")),
        Modality(name="heading", kind="circular", width=1, unit="rad"),
    )
}


def n_outputs(kind: str, width: int, n_classes: int) -> int:
    """How many numbers a model predicts per bin for a behaviour of this kind."""
    return {"continuous": width, "circular": 2 * width, "categorical": n_classes}[kind]
