"""What `bench/accuracy.py` can score: models, and the protocols that name them.

A model is a baseline of `neds.baselines` or the recipe with some fields changed. `alone` models are
trained on one session each, the others on all sessions together.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from neds.config import MaskingConfig
from neds.masking import SCHEMES

FIRST_SEED = 101  # recipes were tuned with seeds below 100


@dataclass(frozen=True, kw_only=True)
class Model:
    """One row of a table of results."""

    baseline: str = ""  # a key of BASELINES; else NEDS
    alone: bool = False
    overrides: tuple[str, ...] = ()  # of the recipe
    without: str = ""  # a masking scheme whose share the others take over
    only: str = ""  # a masking scheme that gets everything: a unimodal model
    oracle: str = ""  # what made the spikes of synthetic animals, a key of ORACLES
    seeded: bool = True  # False: the same whatever the seed


def _neds(*overrides: str) -> Model:
    return Model(overrides=overrides)


MODELS = {
    "linear": Model(baseline="linear", alone=True, seeded=False),
    "ridge_pretrained": Model(baseline="ridge_pretrained", seeded=False),
    "rrr": Model(baseline="rrr"),
    "mlp": Model(baseline="mlp"),
    "ndt": Model(baseline="ndt"),
    "gru_single": Model(baseline="gru_single", alone=True),
    "gru": Model(baseline="gru"),
    "glm": Model(baseline="glm", alone=True, seeded=False),
    "glm_window": Model(baseline="glm_window", alone=True, seeded=False),
    "rrr_encoder": Model(baseline="rrr_encoder"),
    "true_rates": Model(oracle="true_rates", alone=True, seeded=False),
    "true_drive": Model(oracle="true_drive", alone=True, seeded=False),
    "long_glm": Model(oracle="long_glm", alone=True, seeded=False),
    "neds_single": Model(alone=True),
    "neds": Model(),
    "neds_decoding": Model(only="decoding"),
    "neds_encoding": Model(only="encoding"),
    "neds_window": _neds("model.form=window", "model.window=100"),
    "neds_separate": _neds("model.tokens=separate"),
    "neds_all_attended": _neds("model.tokens=separate", "model.attend=all"),
    "neds_sqrt": _neds("model.inputs=sqrt"),
    "neds_table": _neds("model.inputs=table"),
    "neds_unshared": _neds("model.shared=", "train.own_dropout=0"),
    "neds_own_kept": _neds("train.own_dropout=0"),
    "neds_conv_only": _neds("model.recurrent=false"),
    "neds_gru_only": _neds("model.conv=0"),
    "neds_no_stem": _neds("model.conv=0", "model.recurrent=false"),
    "neds_window15": _neds("model.window=15"),
    "neds_window60": _neds("model.window=60"),
    "neds_all_units": _neds("train.unit_dropout=0"),
    "neds_width128": _neds("model.hidden=128", "model.heads=4", "model.mlp=256"),
    **{f"neds_no_{scheme}": Model(without=scheme) for scheme in SCHEMES},
}

PROTOCOLS = {
    "within": ("linear", "rrr", "mlp", "ndt", "gru_single", "gru", "neds_single", "neds"),
    "new-session": ("ridge_pretrained", "gru", "neds"),
    "new-animal": ("linear", "neds"),
    "encoding": ("glm", "rrr_encoder", "neds_encoding", "neds_decoding", "neds"),
    "streaming-vs-window": ("neds_window", "neds"),
    "forms": ("neds", "neds_separate", "neds_all_attended", "neds_sqrt", "neds_table",
              "neds_unshared", "neds_own_kept", "neds_conv_only", "neds_gru_only", "neds_no_stem",
              "neds_window15", "neds_window60", "neds_all_units", "neds_width128"),
    "masking": ("neds", *(f"neds_no_{scheme}" for scheme in SCHEMES)),
}


def masking_for(model: Model, masking: MaskingConfig) -> MaskingConfig:
    """The recipe's scheme shares, with one scheme left out or everything given to one."""
    if model.only:
        return msgspec.structs.replace(
            masking, **{name: float(name == model.only) for name in SCHEMES})
    if model.without:
        rest = 1 - getattr(masking, model.without)
        return msgspec.structs.replace(masking, **{
            name: 0.0 if name == model.without else getattr(masking, name) / rest
            for name in SCHEMES
        })
    return masking
