"""Pictures of results, in one style (`neds.plots.style`). matplotlib is imported when one is drawn.

Every function returns a figure; `save` writes it under its final name only when it is whole.
"""

from neds.plots.compare import (
    ablation_bars,
    calibration_curve,
    confusion_matrix,
    model_bars,
    session_scatter,
)
from neds.plots.conditions import TrialTraces, trial_panels
from neds.plots.scaling import scaling_panels
from neds.plots.style import COLOURS, check_picture, save
from neds.plots.traces import decoded_traces

__all__ = [
    "COLOURS",
    "TrialTraces",
    "ablation_bars",
    "calibration_curve",
    "check_picture",
    "confusion_matrix",
    "decoded_traces",
    "model_bars",
    "save",
    "scaling_panels",
    "session_scatter",
    "trial_panels",
]
