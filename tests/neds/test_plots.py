"""Pictures are written whole, with what was asked for in them."""

import pytest

from neds.evaluate import decode_part
from neds.plots import decoded_traces, model_bars, save
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
