"""One figure for each decoded behaviour: the last seconds, shaded where they are not valid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.dashboard.history import MAX_LINES, WINDOW_S, Snapshot, Stretch
from neds_rt.dashboard.style import CARD, GREY, INK, LINES, RED, RULE, SHADES
from neds_rt.status import ModalityStatus

LEFT, RIGHT = 78, 104  # pixels beside every frame, so that all share one time axis
LABEL_S = 0.1  # for each letter of a reason that is to have room in its stretch


def plain(text: str) -> str:
    """Return text that Bokeh will not take for mathematics."""
    return text.replace("$", "＄").replace("\\", "＼")


def time_figure(
    heading: str, unit: str, height: int, *, last: bool = False, log: bool = False
) -> Any:
    """Return an empty figure over the last seconds, with a heading and the unit on its axis."""
    from bokeh.models import PlainText, Range1d
    from bokeh.plotting import figure

    fig = figure(
        height=height + (34 if last else 0), sizing_mode="stretch_width", toolbar_location=None,
        y_axis_type="log" if log else "linear",
        tools="", x_range=Range1d(-WINDOW_S, 0.0), y_range=Range1d(0.0, 1.0), title=plain(heading),
        min_border_left=LEFT, min_border_right=RIGHT, min_border_top=4, min_border_bottom=10,
    )
    dress(fig)
    fig.yaxis.axis_label = PlainText(text=unit)
    if not log:
        fig.yaxis.ticker.desired_num_ticks = 3
    fig.xaxis.visible = last
    if last:
        fig.xaxis.axis_label = PlainText(text="seconds before now")
    return fig


def dress(fig: Any) -> None:
    """Give a figure the look of the page."""
    fig.styles = {"border": f"1px solid {RULE}", "border-radius": "8px", "background": CARD,
                  "box-sizing": "border-box"}
    fig.background_fill_color, fig.border_fill_color = CARD, None
    fig.outline_line_color = RULE
    fig.title.text_font_size, fig.title.text_color = "13px", INK
    fig.title.text_font_style = "bold"
    fig.grid.grid_line_color = "#eef1f4"
    for axis in fig.axis:
        axis.axis_line_color = axis.major_tick_line_color = RULE
        axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = GREY
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"


def add_legend(fig: Any, items: list[tuple[str, Any]]) -> None:
    """Name the lines at the right of the frame, outside of the data."""
    from bokeh.core.properties import value
    from bokeh.models import Legend, LegendItem

    fig.add_layout(Legend(
        items=[LegendItem(label=value(plain(_short(name, 13))), renderers=[line])
               for name, line in items],
        border_line_color=None, background_fill_alpha=0.0, padding=0, margin=6, spacing=0,
        glyph_width=14, glyph_height=12, label_text_font_size="11px", label_standoff=4,
        label_height=12, label_text_color=INK), "right")


class Shading:
    """Coloured bands with their reason over the stretches in which decodes were not valid."""

    def __init__(self, fig: Any, name: str) -> None:
        from bokeh.models import ColumnDataSource, Range1d

        columns = ("left", "right", "colour", "reason", "middle", "height", "text")
        self.source = ColumnDataSource({column: [] for column in columns}, name=name)
        fig.vstrip(x0="left", x1="right", source=self.source, fill_color="colour",
                   fill_alpha=0.14, line_color="colour", line_alpha=0.35)
        fig.extra_y_ranges = {"frame": Range1d(0, 1)}
        fig.text(x="middle", y="height", text="text", source=self.source, y_range_name="frame",
                 text_align="center", text_baseline="top", text_font_size="11px",
                 text_font_style="bold", text_color="colour", background_fill_color=CARD,
                 background_fill_alpha=0.8)

    def update(self, stretches: list[Stretch]) -> None:
        """Show the stretches whose reason is not "ok"."""
        bad = [s for s in stretches if s.reason != "ok" and s.right > -WINDOW_S]
        left = [max(s.left, -WINDOW_S) for s in bad]
        right = [s.right for s in bad]
        self.source.data = {
            "left": left, "right": right,
            "colour": [SHADES.get(s.reason, RED) for s in bad],
            "reason": [s.reason for s in bad],
            "middle": [(a + b) / 2 for a, b in zip(left, right, strict=True)],
            "height": [0.96] * len(bad),
            "text": [_short(s.reason, 24) if b - a >= LABEL_S * min(24, len(s.reason)) else ""
                     for s, a, b in zip(bad, left, right, strict=True)],
        }


class Trace:
    """The figure of one behaviour; `source` holds what is plotted, under the name `trace:NAME`."""

    def __init__(self, modality: ModalityStatus, height: int, *, last: bool) -> None:
        from bokeh.models import ColumnDataSource

        self.modality = modality
        self.source = ColumnDataSource({"x": []}, name=f"trace:{modality.name}")
        unit = {"circular": "degrees", "categorical": "probability"}.get(
            modality.kind, modality.unit or "a.u.")
        name = _short(modality.name, 40)
        self.figure = time_figure(name, _short(unit, 14), height, last=last)
        self.shading = Shading(self.figure, f"shading:{modality.name}")
        self._lines = min(modality.n_outputs, MAX_LINES)
        self._low = self._high = 0.0
        self._bands: list[Any] = []
        {"circular": self._angle, "categorical": self._classes}.get(
            modality.kind, self._mean)()

    def update(self, shot: Snapshot) -> None:
        """Plot a snapshot."""
        m, data = self.modality, {"x": shot.x}
        if m.kind == "circular":
            data["y0"] = shot.angle(m)
        elif m.kind == "categorical":
            data |= {f"y{i}": y for i, y in enumerate(shot.probabilities(m))}
        else:
            mean, sd = shot.continuous(m)
            low, high = mean - np.nan_to_num(sd), mean + np.nan_to_num(sd)
            for i, band in enumerate(self._bands):
                data[f"y{i}"] = mean[i]
                band.data = band_patches(shot.x, low[i], high[i])
            self._fit(np.concatenate([low, high]))
        self.source.data = data
        self.shading.update(shot.stretches)

    def _empty(self, column: str) -> None:
        for i in range(self._lines):
            self.source.data[f"{column}{i}"] = []

    def _mean(self) -> None:
        from bokeh.models import ColumnDataSource

        self._empty("y")
        fig, lines = self.figure, []
        for i in range(self._lines):
            self._bands.append(ColumnDataSource({"xs": [], "ys": []}))
            fig.patches("xs", "ys", source=self._bands[i], fill_alpha=0.16, fill_color=LINES[i],
                        line_color=None)
            line = fig.line(x="x", y=f"y{i}", source=self.source, line_width=1.8,
                            line_color=LINES[i])
            lines.append((f"output {i}" if self._lines > 1 else "mean ± sd", line))
        add_legend(fig, lines)

    def _angle(self) -> None:
        from bokeh.models import FixedTicker

        self._lines = 1
        self._empty("y")
        dots = self.figure.scatter(x="x", y="y0", source=self.source, size=3.2, color=LINES[0],
                                   line_color=None)
        self.figure.y_range.start, self.figure.y_range.end = -185, 185
        self.figure.yaxis.ticker = FixedTicker(ticks=[-180, -90, 0, 90, 180])
        add_legend(self.figure, [("angle", dots)])

    def _classes(self) -> None:
        self._empty("y")
        labels = self.modality.classes or [f"class {i}" for i in range(self._lines)]
        lines = [
            (label, self.figure.line(x="x", y=f"y{i}", source=self.source, line_width=1.8,
                                     line_color=LINES[i]))
            for i, label in enumerate(labels[: self._lines])
        ]
        self.figure.y_range.start, self.figure.y_range.end = -0.04, 1.04
        add_legend(self.figure, lines)

    def _fit(self, values: NDArray[np.float64]) -> None:
        """Keep the axis still unless the data leave it, or fill less than half of it."""
        values = values[np.isfinite(values)]
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
        span = max(high - low, 1e-6)
        inside = self._low <= low and high <= self._high
        if inside and span > 0.5 * (self._high - self._low):
            return
        self._low, self._high = low - 0.15 * span, high + 0.15 * span
        self.figure.y_range.start, self.figure.y_range.end = self._low, self._high


def band_patches(
    x: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> dict[str, list[NDArray[np.float64]]]:
    """Return the outlines of the band between `low` and `high`, one for each run without NaN."""
    found = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    runs = np.split(found, np.flatnonzero(np.diff(found) > 1) + 1) if len(found) else []
    return {"xs": [np.r_[x[run], x[run][::-1]] for run in runs],
            "ys": [np.r_[high[run], low[run][::-1]] for run in runs]}


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
