"""Pictures are written whole, with what was asked for in them."""

import numpy as np
import pytest

from neds.evaluate import decode_part
from neds.plots import (
    TrialTraces,
    ablation_bars,
    calibration_curve,
    confusion_matrix,
    decoded_traces,
    model_bars,
    save,
    session_scatter,
    trial_panels,
)
from neds.plots.conditions import smoothed
from neds_rt.errors import BadInput


def test_traces_have_one_axis_per_behaviour_column(trained, tmp_path):
    _, _, recording, result = trained
    figure = decoded_traces(recording.state.behaviours,
                            decode_part(result.model, recording, "test"), 0.05)
    assert [a.get_ylabel() for a in figure.axes] == [
        "velocity cm/s", "velocity cm/s", "choice", "heading"]
    save(figure, tmp_path / "traces.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["traces.svg"]
    with pytest.raises(BadInput, match=r"traces\.jpeg2"):
        save(figure, tmp_path / "traces.jpeg2")


def test_bars_show_every_model_and_seed(tmp_path):
    figure = model_bars({"a": {"ridge": [0.5], "neds": [0.7, 0.8]},
                         "b": {"ridge": [0.4], "neds": [0.6, 0.7]}}, "R2")
    (axis,) = figure.axes
    assert len(axis.patches) == 4
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["ridge", "neds"]
    assert sum(len(line.get_xdata()) for line in axis.lines) == 6


def test_a_picture_is_the_same_file_again(tmp_path):
    for name in ("a.svg", "b.svg"):
        save(session_scatter({"s": 0.1}, {"s": 0.2}, "single", "multi", "R2"), tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "single, R2</text>" in text  # text stays text


def test_trials_are_drawn_by_condition_with_unknown_bins():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((8, 20))
    truth[:, :3] = np.nan
    condition = np.array([0, 0, 1, 1, 1, 2, -1, -1])
    rows = [TrialTraces("wheel", truth, truth + 1),
            TrialTraces("unit 3", np.abs(truth), np.abs(truth), smooth=2.0)]
    figure = trial_panels(rows, condition, ["left", "right", "none", "never"],
                          np.arange(20) * 0.1 - 0.5)
    panels = figure.axes[:8]
    assert [len(a.lines) for a in panels[:2]] == [4, 4]  # three conditions and the event
    line = panels[0].lines[1].get_ydata()
    assert np.isnan(line[:3]).all()
    np.testing.assert_allclose(line[3:], truth[2:5, 3:].mean(0))
    assert panels[2].images[0].get_array().shape == (6, 20)
    assert panels[2].images[0].get_clim() == panels[3].images[0].get_clim()
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["left", "right", "none"]


def test_smoothing_keeps_a_constant_and_its_gaps():
    trace = np.full(12, 3.0)
    trace[4:6] = np.nan
    np.testing.assert_allclose(smoothed(trace, 1.5), trace)


def test_a_scatter_counts_the_sessions_that_are_better():
    figure = session_scatter({"a": 0.5, "b": 0.6, "x": 1.0}, {"a": 0.6, "b": 0.55}, "one", "many",
                             "R2")
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "better in 1 of 2 sessions, mean +0.025"
    assert session_scatter({}, {"a": 1.0}, "one", "many", "R2").axes


def test_a_calibration_curve_has_a_line_and_a_band_a_model(tmp_path):
    figure = calibration_curve({"neds": {0: [0.4, 0.5], 2: [0.7, 0.8]}, "ridge": {0: [0.1]}}, "R2")
    (axis,) = figure.axes
    assert [line.get_label() for line in axis.lines] == ["neds", "ridge"]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [0.45, 0.75])
    low, high = axis.collections[0].get_datalim(axis.transData).intervaly
    assert (low, high) == pytest.approx((0.4, 0.8))
    save(figure, tmp_path / "c.png")


def test_a_confusion_matrix_says_shares_and_balanced_accuracy():
    figure = confusion_matrix(np.array([[8, 2, 0], [1, 1, 0], [0, 0, 0]]), ["CA1", "DG", "PO"], 0.5)
    axis = figure.axes[0]
    assert axis.get_title(loc="left") == "balanced accuracy 0.65, chance 0.50"
    assert [t.get_text() for t in axis.texts[:2]] == [".80", ".20"]
    assert len(axis.texts) == 6  # nothing is said of a region without a unit
    assert axis.get_yticklabels()[0].get_text() == "CA1 (10)"


def test_ablation_bars_have_a_row_a_metric():
    figure = ablation_bars({"no decoding": {"r2": [0.5, 0.6]}, "all": {"r2": [0.8], "bps": [0.1]}},
                           "all", {"r2": "R2", "bps": "bits per spike"})
    assert [len(a.patches) for a in figure.axes] == [2, 1]
    assert [t.get_text() for t in figure.axes[-1].get_xticklabels()] == ["all", "no decoding"]
