"""The other figures: the population, the age of what is decoded, and where latency lies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from neds_rt.dashboard.history import WINDOW_S, RasterHistory, Snapshot
from neds_rt.dashboard.style import GREY, INK, LINES, RASTER, RED, RULE
from neds_rt.dashboard.traces import Shading, add_legend, dress, time_figure
from neds_rt.status import Status


class Population:
    """Counts of all units over the last seconds, a row a unit."""

    def __init__(self, height: int) -> None:
        from bokeh.models import ColumnDataSource, LinearColorMapper

        self._history = RasterHistory()
        columns = ("image", "x", "y", "dw", "dh")
        self.source = ColumnDataSource({name: [] for name in columns}, name="raster")
        self.figure = time_figure("population: spikes in a bin", "unit", height)
        self._mapper = LinearColorMapper(palette=RASTER, low=0, high=3)
        self.figure.image(source=self.source, color_mapper=self._mapper, **dict(
            zip(columns, columns, strict=True)))
        self.figure.grid.visible = False
        self._add_scale()
        self._shown = -1

    def update(self, shot: Snapshot, status: Status) -> None:
        """Plot what a status says of the last bins, at the time of their decodes."""
        if status.raster is None:
            return
        self._history.add(status.raster, status.bin_size_s)
        counts, newest = self._history.picture(status.bin_size_s)
        width = counts.shape[1] * max(status.bin_size_s, WINDOW_S / counts.shape[1])
        rows = self._history.units
        self.source.data = {
            "image": [counts], "x": [self._right(shot, status, newest) - width], "y": [0],
            "dw": [width], "dh": [rows]}
        if rows != self._shown:
            self._shown = rows
            self.figure.y_range.start, self.figure.y_range.end = 0, rows
        high = max(2, int(np.percentile(counts, 99.8)))
        if high != self._mapper.high:
            self._mapper.high = high

    def _right(self, shot: Snapshot, status: Status, newest: int) -> float:
        """When the newest bin of the raster ended, in seconds before now."""
        for x, decode in zip(shot.x[::-1], shot.decodes[::-1], strict=True):
            if decode.bin >= 0:
                return float(x) - (decode.bin - newest) * status.bin_size_s
        return 0.0

    def _add_scale(self) -> None:
        from bokeh.models import ColorBar, FixedTicker

        self.figure.add_layout(ColorBar(
            color_mapper=self._mapper, width=10, height=70, location=(6, 0),
            major_label_text_font_size="11px", major_label_text_color=GREY, padding=4,
            ticker=FixedTicker(ticks=[0, 1, 2, 4, 8, 16, 32, 64, 128]),
            background_fill_alpha=0.0, bar_line_color=RULE), "right")


class Timing:
    """Age of the newest spike, and service time, of every decode."""

    def __init__(self, height: int) -> None:
        from bokeh.models import ColumnDataSource, FixedTicker, NumeralTickFormatter

        self.source = ColumnDataSource({"x": [], "age": [], "service": []}, name="timing")
        self.figure = fig = time_figure("age of the newest spike, and service time", "ms", height,
                                        last=True, log=True)
        fig.yaxis.formatter = NumeralTickFormatter(format="0.[000]")
        fig.yaxis.ticker = FixedTicker(ticks=[])
        self.shading = Shading(fig, "shading")
        lines = [
            (name, fig.line(x="x", y=column, source=self.source, line_width=1.6, line_color=colour))
            for name, column, colour in (
                ("sample age", "age", LINES[0]), ("service", "service", LINES[1]))
        ]
        add_legend(fig, lines)
        self._span = (0.0, 0.0)

    def update(self, shot: Snapshot) -> None:
        """Plot a snapshot."""
        age = np.array([d.spike_age_us if d.spike_age_us >= 0 else math.nan for d in shot.decodes])
        service = np.array([d.service_us if d.bin >= 0 else math.nan for d in shot.decodes])
        self.source.data = {"x": shot.x, "age": age / 1e3, "service": service / 1e3}
        self.shading.update(shot.stretches)
        both = np.concatenate([age, service]) / 1e3
        both = both[np.isfinite(both) & (both > 0)]
        if len(both):  # whole decades
            low, high = np.floor(np.log10(both.min())), np.ceil(np.log10(both.max()))
            span = (float(10**low), float(10 ** max(high, low + 1)))
            if span != self._span:
                self._span = span
                decades = 10.0 ** np.arange(low, high + 1)
                self.figure.yaxis.ticker.ticks = decades[:: -(-len(decades) // 4)].tolist()
                self.figure.y_range.start, self.figure.y_range.end = span


class Latency:
    """Where the service times lie: the last seconds over all, with the deadline."""

    GROUP = 2  # published buckets to a bar

    def __init__(self, height: int) -> None:
        from bokeh.models import ColumnDataSource, NumeralTickFormatter, PlainText, Range1d, Span
        from bokeh.plotting import figure

        columns = ("left", "right", "recent", "all")
        self.source = ColumnDataSource({name: [] for name in columns}, name="latency")
        self.figure = fig = figure(
            height=height, sizing_mode="stretch_width", toolbar_location=None, tools="",
            x_axis_type="log", x_range=Range1d(0.01, 100.0), y_range=Range1d(0, 10),
            title="service time: frame received to decode sent", min_border_left=58,
            min_border_right=18, min_border_top=6)
        dress(fig)
        fig.xaxis.axis_label = PlainText(text="milliseconds")
        fig.yaxis.axis_label = PlainText(text="% of bins")
        fig.xaxis.formatter = NumeralTickFormatter(format="0.[000]")
        every = fig.quad(left="left", right="right", bottom=0, top="all", source=self.source,
                         fill_color="#c3ccd6", line_color=None)
        recent = fig.quad(left="left", right="right", bottom=0, top="recent", source=self.source,
                          fill_color=LINES[0], fill_alpha=0.65, line_color=None)
        self._deadline = Span(location=20, dimension="height", line_color=RED, line_width=2,
                              line_dash="dashed")
        fig.add_layout(self._deadline)
        limit = fig.line(x=[-1, -1], y=[-1, -1], line_color=RED, line_dash="dashed", line_width=2)
        add_keys(fig, [("last 10 s", recent), ("all", every), ("deadline", limit)])

    def update(self, status: Status) -> None:
        """Plot a status."""
        service, group = status.service, self.GROUP
        edges = np.array([service.first_us * 10 ** (i / service.per_decade)
                          for i in range(len(service.all) + 1)]) / 1e3
        shares = {}
        for name, counts in (("recent", service.recent), ("all", service.all)):
            counted = np.array(counts, np.float64)[1:]  # below the first edge is none
            whole = counted[: len(counted) // group * group].reshape(-1, group).sum(axis=1)
            shares[name] = 100 * whole / max(1.0, counted.sum())
        n = len(shares["all"])
        left = edges[: n * group : group]
        right = edges[group : n * group + 1 : group]
        shown = (shares["all"] > 0) | (shares["recent"] > 0)
        self.source.data = {"left": left[shown], "right": right[shown],
                            **{name: share[shown] for name, share in shares.items()}}
        deadline = status.deadline_s * 1e3
        self._deadline.location = deadline
        if shown.any():
            start = 10 ** math.floor(math.log10(left[shown][0]))
            end = 2 * max(deadline, float(right[shown][-1]))
            self._set(self.figure.x_range, start, end)
            self._set(self.figure.y_range, 0, 5 * math.ceil(
                max(shares["all"].max(), shares["recent"].max()) / 4.2))

    @staticmethod
    def _set(span: Any, start: float, end: float) -> None:
        if (span.start, span.end) != (start, end):
            span.start, span.end = start, end


def add_keys(fig: Any, items: list[tuple[str, Any]]) -> None:
    """Name what is drawn in a row above the frame."""
    from bokeh.models import Legend, LegendItem

    fig.add_layout(Legend(
        items=[LegendItem(label=name, renderers=[item]) for name, item in items],
        orientation="horizontal", border_line_color=None, background_fill_alpha=0.0, padding=0,
        margin=2, spacing=12, glyph_width=14, glyph_height=12, label_text_font_size="11px",
        label_standoff=4, label_text_color=INK), "above")
