"""Models, variants and metrics of `bench/protocols.py` in words."""

from __future__ import annotations

from bench.protocols import MODELS

METRICS = {"r2": "R²", "circular_r2": "circular R²", "balanced_accuracy": "balanced accuracy",
           "trial_balanced_accuracy": "balanced accuracy", "accuracy": "accuracy",
           "bps_pooled": "bits per spike, pooled",
           "bps_neuron_mean": "bits per spike, mean of units"}
NAMES = {
    "ridge": "ridge", "linear": "ridge or logistic, each session alone",
    "ridge_pretrained": "ridge by channel, pretrained",
    "rrr": "reduced-rank regression, all sessions", "mlp": "MLP, all sessions",
    "ndt": "spikes-only transformer, all sessions",
    "gru_single": "GRU, each session alone", "gru": "GRU, all sessions",
    "glm": "Poisson GLM, each session alone", "glm_window": "Poisson GLM that sees later bins too",
    "true_rates": "the true rates: no model can do better",
    "true_drive": "what the behaviours have in the true rates",
    "long_glm": "Poisson GLM of another 15 minutes of each animal",
    "rrr_encoder": "reduced-rank Poisson encoder, all sessions",
    "neds_single": "NEDS, each session alone", "neds": "NEDS, all sessions",
    "neds_decoding": "NEDS, decoding only", "neds_encoding": "NEDS, encoding only",
    "neds_window": "window form: decodes its last bin, encodes from later bins too",
    "neds_separate": "a token a modality and bin",
    "neds_all_attended": "a token a modality and bin, hidden ones attended to",
    "neds_sqrt": "square root of counts", "neds_table": "learned embedding of counts",
    "neds_unshared": "no maps shared by sessions",
    "neds_own_kept": "sessions' own maps never dropped",
    "neds_conv_only": "convolution without GRU", "neds_gru_only": "GRU without convolution",
    "neds_no_stem": "neither convolution nor GRU",
    "neds_window15": "window of 15 bins", "neds_window60": "window of 60 bins",
    "neds_all_units": "no unit dropout", "neds_width128": "width 128",
    "neds_no_encoding": "without `encoding`", "neds_no_decoding": "without `decoding`",
    "neds_no_self_spike": "without `self_spike`",
    "neds_no_self_behaviour": "without `self_behaviour`",
    "neds_no_random_token": "without `random_token`",
}


def model_words(name: str) -> str:
    """A model as tables name it: its words, else its recipe's changes, else its own name."""
    if name in NAMES:
        return NAMES[name]
    changes = MODELS[name].overrides if name in MODELS else ()
    return ", ".join(f"`{change}`" for change in changes) or name


def metric_words(key: str) -> str:
    """A `modality.metric` in words; spikes need no naming."""
    modality, _, metric = key.rpartition(".")
    name = METRICS.get(metric, metric.replace("_", " "))
    return name if modality == "spikes" else f"{modality} {name}"


def amount_words(seconds: float) -> str:
    """An amount of calibration data."""
    return "all" if seconds < 0 else f"{seconds:g} s"
