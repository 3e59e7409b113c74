"""The document that one browser tab shows, and what refreshes it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from neds_rt.dashboard import cards
from neds_rt.dashboard.feed import Feed
from neds_rt.dashboard.figures import Latency, Population, Timing
from neds_rt.dashboard.style import PAGE, TEXT
from neds_rt.dashboard.traces import Trace

if TYPE_CHECKING:
    from bokeh.document import Document

    from neds_rt.status import ModalityStatus

REFRESH_MS = 200
HEIGHT = 900  # pixels for the figures at the left
MAX_TRACES = 8


class Page:
    """One viewer's document. It has no callbacks but its own clock: nothing can be told to it."""

    def __init__(self, feed: Feed, doc: Document) -> None:
        from bokeh.layouts import column, row
        from jinja2 import Template

        self._feed, self._doc = feed, doc
        self._modalities: list[ModalityStatus] | None = None
        self._traces: list[Trace] = []
        self._population: Population | None = None
        self._timing: Timing | None = None
        self._latency = Latency(230)
        self._texts = {name: _text(name) for name in (
            "banner", "figures", "probes", "stages", "device")}
        texts = self._texts
        self._left = column(sizing_mode="stretch_width", spacing=6)
        right = column(
            texts["figures"], texts["probes"], self._latency.figure, texts["stages"],
            texts["device"], width=500, spacing=8)
        doc.add_root(column(
            texts["banner"], row(self._left, right, sizing_mode="stretch_width", spacing=12),
            sizing_mode="stretch_width", spacing=10, margin=(10, 14, 10, 14)))
        doc.template = Template(PAGE)
        doc.title = "neds-rt"
        self.refresh()
        doc.add_periodic_callback(self.refresh, REFRESH_MS)

    def refresh(self) -> None:
        """Show how things are now."""
        status, age_s = self._feed.status()
        shot = self._feed.history.snapshot(time.monotonic())
        html, self._doc.title = cards.banner(shot, status, age_s)
        self._say("banner", html)
        self._say("figures", cards.figures(status, age_s))
        self._say("probes", cards.probes(status, age_s))
        self._say("stages", cards.stages(status))
        self._say("device", cards.device(status, self._feed.missed))
        if status is None:
            return
        if status.modalities != self._modalities:
            self._build(status.modalities)
        for trace in self._traces:
            trace.update(shot)
        assert self._population is not None
        assert self._timing is not None
        self._population.update(shot, status)
        self._timing.update(shot)
        self._latency.update(status)

    def _build(self, modalities: list[ModalityStatus]) -> None:
        """Make the figures of a model's behaviours."""
        self._modalities = modalities
        shown = modalities[:MAX_TRACES]
        height = max(90, min(150, (HEIGHT - 330) // max(1, len(shown))))
        self._traces = [Trace(m, height, last=False) for m in shown]
        self._population, self._timing = Population(190), Timing(100)
        self._left.children = [
            *(trace.figure for trace in self._traces), self._population.figure, self._timing.figure]

    def _say(self, name: str, html: str) -> None:
        if self._texts[name].text != html:
            self._texts[name].text = html


def _text(name: str) -> Any:
    from bokeh.models import Div, InlineStyleSheet

    return Div(text="", name=name, sizing_mode="stretch_width",
               stylesheets=[InlineStyleSheet(css=TEXT)])
