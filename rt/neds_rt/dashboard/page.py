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

    from neds_rt.dashboard.history import Snapshot
    from neds_rt.status import ModalityStatus, Status

REFRESH_MS = 125
SLOW_S = 0.5  # between two updates of what need not be quicker
ASLEEP_S = 10.0  # a browser that has not answered for so long is told nothing until it does
HEIGHT = 815  # pixels for the figures at the left
MAX_TRACES = 8


class Page:
    """One viewer's document; all that comes back from a browser is that it is ready for more."""

    def __init__(self, feed: Feed, doc: Document) -> None:
        from bokeh.layouts import column, row
        from jinja2 import Template

        self._feed, self._doc, self._pace = feed, doc, Pace(doc)
        self._modalities: list[ModalityStatus] | None = None
        self._traces: list[Trace] = []
        self._population: Population | None = None
        self._timing: Timing | None = None
        self._latency = Latency(205)
        self._texts = {name: _text(name) for name in (
            "banner", "figures", "probes", "stages", "engine", "server")}
        texts = self._texts
        self._left = column(sizing_mode="stretch_width", spacing=8)
        right = column(
            texts["figures"], texts["probes"], self._latency.figure, texts["stages"],
            texts["engine"], texts["server"], width=500, spacing=8)
        doc.add_root(column(
            texts["banner"], row(self._left, right, sizing_mode="stretch_width", spacing=10),
            sizing_mode="stretch_width", spacing=10, margin=(10, 14, 10, 14)))
        doc.template = Template(PAGE)
        doc.title = "neds-rt"
        self._slow_due = 0.0
        self.refresh()
        doc.add_periodic_callback(self._tick, REFRESH_MS)

    def _tick(self) -> None:
        if not self._pace.ready():
            if self._pace.waiting_s() < ASLEEP_S:
                self._warn(*self._now())  # what matters most does not wait for pictures
            return
        self._doc.hold("combine")
        try:
            self.refresh()
            self._pace.sent()
        finally:
            self._doc.unhold()

    def _now(self) -> tuple[Snapshot, Status | None, float]:
        status, age_s = self._feed.status()
        return self._feed.history.snapshot(time.monotonic()), status, age_s

    def _warn(self, shot: Snapshot, status: Status | None, age_s: float) -> None:
        html, title = cards.banner(shot, status, age_s, self._pace.waiting_s())
        if self._doc.title != title:
            self._doc.title = title
        self._say("banner", html)
        self._say("probes", cards.probes(status, age_s))

    def refresh(self) -> None:
        """Show how things are now."""
        shot, status, age_s = self._now()
        self._warn(shot, status, age_s)
        slow = time.monotonic() >= self._slow_due
        if slow:
            self._slow_due = time.monotonic() + SLOW_S
            self._say("figures", cards.figures(status, age_s, shot.drift))
            self._say("stages", cards.stages(status))
            self._say("engine", cards.engine(status))
            self._say("server", cards.server(status, self._feed.missed))
        if status is None:
            return
        if status.modalities != self._modalities:
            self._build(status.modalities)
        for trace in self._traces:
            trace.update(shot)
        assert self._population is not None
        assert self._timing is not None
        self._timing.update(shot)
        if slow:
            self._latency.update(status)
        self._population.update(shot, status)

    def _build(self, modalities: list[ModalityStatus]) -> None:
        """Make the figures of a model's behaviours."""
        self._modalities = modalities
        shown = modalities[:MAX_TRACES]
        height = max(90, min(150, (HEIGHT - 320) // max(1, len(shown))))
        self._traces = [Trace(m, height, last=False) for m in shown]
        self._population, self._timing = Population(170), Timing(100)
        self._left.children = [
            *(trace.figure for trace in self._traces), self._population.figure, self._timing.figure]

    def _say(self, name: str, html: str) -> None:
        if self._texts[name].text != html:
            self._texts[name].text = html


class Pace:
    """Sends to a browser no faster than it draws: what it has not drawn would pile up there.

    Each update carries a number, and the browser answers with the last one it has taken in.
    """

    def __init__(self, doc: Document) -> None:
        from bokeh.models import ColumnDataSource, CustomJS

        self._asked = ColumnDataSource({"n": [0]}, name="asked")
        self._answered = ColumnDataSource({"n": [0]}, name="answered")
        answer = CustomJS(
            args={"asked": self._asked, "answered": self._answered},
            code="setTimeout(() => { answered.data = {n: [asked.data.n[0]]} }, 0)")
        self._asked.js_on_change("data", answer)
        doc.js_on_event("document_ready", answer)  # to what was asked before it listened
        doc.add_root(self._asked)
        doc.add_root(self._answered)
        self._sent_at = time.monotonic()

    def ready(self) -> bool:
        """Whether the browser has taken in what it was sent."""
        answered = self._answered.data.get("n", [0])
        return len(answered) == 1 and bool(answered[0] == self._asked.data["n"][0])

    def waiting_s(self) -> float:
        """For how long the browser has been drawing, 0 when it is done."""
        return 0.0 if self.ready() else time.monotonic() - self._sent_at

    def sent(self) -> None:
        """Ask for the next answer."""
        self._sent_at = time.monotonic()
        self._asked.data = {"n": [self._asked.data["n"][0] + 1]}


def _text(name: str) -> Any:
    from bokeh.models import Div, InlineStyleSheet

    return Div(text="", name=name, sizing_mode="stretch_width", margin=0,
               stylesheets=[InlineStyleSheet(css=TEXT)])
