"""The state of a server as text for a terminal: `neds-rt top`."""

from __future__ import annotations

import time
from threading import Event
from typing import Self

import msgspec
from rich.align import Align
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from neds_rt.curve import LOCAL, Access
from neds_rt.dashboard.feed import RecentDecodes
from neds_rt.dashboard.history import SILENT_S, WINDOW_S, Snapshot
from neds_rt.errors import BadInput
from neds_rt.sparks import traces
from neds_rt.status import Status
from neds_rt.watching import LOST_S, StatusReader
from neds_rt.words import (
    STAGE_NAMES,
    engine_rows,
    probe_words,
    seconds,
    stage_row,
    trouble,
    verdict,
)

BLOCKS = " ▁▂▃▄▅▆▇█"
AUTO, OFF = "auto", "off"
MAX_COLUMNS, NAMES_COLUMNS = 100, 44  # of a curve; of names, values and frames beside it


def as_json(status: Status) -> str:
    """Return a status as one JSON object, without the raster."""
    plain = msgspec.structs.replace(status, raster=None)
    return msgspec.json.encode(plain).decode()


class Decodes:
    """The decodes of the server that a status is of, followed when it moves."""

    def __init__(self, endpoint: str, access: Access = LOCAL) -> None:
        """Listen at `endpoint`, or where the status says for "auto", or nowhere for "off".

        Raises `BadInput` for an endpoint that is none, or on another machine without keys.
        """
        self._endpoint, self._access = endpoint, access
        self._recent: RecentDecodes | None = None
        if endpoint not in (AUTO, OFF):
            self._recent = RecentDecodes(endpoint, access)
        self._refused = ""
        self.note = ""  # why there are none

    def shot(self, status: Status) -> Snapshot | None:
        """Return the last seconds of decodes, None where there are none to be had."""
        endpoint = status.endpoint if self._endpoint == AUTO else self._endpoint
        if endpoint in (OFF, self._refused):
            return None
        if self._recent is None or self._recent.endpoint != endpoint:
            self.close()
            try:
                self._recent = RecentDecodes(endpoint, self._access)
            except BadInput as error:
                self._refused, self.note = endpoint, f"{error} (--decodes)"
                return None
        return self._recent.history.snapshot(time.monotonic())

    def close(self) -> None:
        """Disconnect."""
        if self._recent is not None:
            self._recent.close()
            self._recent = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def watch(reader: StatusReader, decodes: Decodes, console: Console, stop: Event) -> None:
    """Draw every status until told to stop."""
    status: Status | None = None
    heard = time.monotonic()
    waiting = Text(f"waiting for a server at {reader.endpoint} …", style="dim")
    with Live(waiting, console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while not stop.is_set():
            new = reader.recv(0.25)
            if new is not None:
                status, heard = new, time.monotonic()
            if status is not None:
                picture = render(status, time.monotonic() - heard, decodes.shot(status),
                                 decodes.note, console.width)
                live.update(picture, refresh=True)


def render(
    status: Status, silent_s: float, shot: Snapshot | None = None, note: str = "", width: int = 80
) -> RenderableType:
    """Return one picture; `silent_s` is how long ago the status came.

    With decodes, or a `note` why there are none, it shows them, for `width` columns in all.
    """
    parts = [_banner(status, silent_s), _probes(status), _timing(status), _details(status)]
    if shot is not None or note:
        parts.insert(1, _traces(status, shot, note, width))
    return Group(*parts)


def _traces(status: Status, shot: Snapshot | None, note: str, width: int) -> Panel:
    if shot is None:
        return Panel(Text(note, style="yellow"), title="decodes", title_align="left")
    columns = max(10, min(MAX_COLUMNS, width - NAMES_COLUMNS))
    silent = shot.silent_s > SILENT_S
    words = "no decodes" if silent or shot.last is None else shot.last.reason
    good = not silent and shot.last is not None and shot.last.valid
    return Panel(traces(shot, status.modalities, columns), title_align="left",
                 title=f"decodes, last {seconds(WINDOW_S)}: {escape(words)}",
                 border_style="none" if good else "red")


def _banner(status: Status, silent_s: float) -> Panel:
    if silent_s > LOST_S:
        text, colour = f"SERVER SILENT for {seconds(silent_s)}", "red"
    else:
        text = f"{verdict(status.valid, status.reason)}   since {seconds(status.reason_s)}"
        colour = "green" if status.valid else "red"
    facts = (f"{status.endpoint}   engine {status.engine} {status.precision}   model "
             f"{status.model[:12]}   up {seconds(status.uptime_s)}")
    lines = Text(text, style=f"bold white on {colour}", justify="center")
    return Panel(Group(Align.center(lines), Align.center(Text(facts, style="dim"))), style=colour)


def _probes(status: Status) -> Panel:
    table = Table(box=None, expand=True, header_style="dim")
    for heading in ("probe", "state", "last frame", "behind", "frames", "units"):
        table.add_column(heading, justify="left" if heading in ("probe", "state") else "right")
    for probe in status.probes:
        style = {"live": "green", "waiting": "yellow"}.get(probe.state, "bold white on red")
        state = Text(probe_words(probe), style=style)
        if probe.note:
            state.append(f"  {probe.note}", style="yellow")
        table.add_row(Text(probe.name), state, seconds(probe.frame_age_s), seconds(probe.lag_s),
                      f"{probe.frames:,}", str(probe.units))
    return Panel(table, title="probes", title_align="left")


def _timing(status: Status) -> Panel:
    table = Table(box=None, expand=True, header_style="dim")
    table.add_column("stage", no_wrap=True)
    for heading in ("p50", "p99", "p99.9", "max", "p99.9 of all", "max of all"):
        table.add_column(heading, justify="right")
    for key, name in STAGE_NAMES.items():
        stage = status.stages.get(key)
        if stage is not None:
            table.add_row(name, *stage_row(stage.recent), *stage_row(stage.all)[2:],
                          style="bold" if key == "service_us" else "")
    figures = Text.assemble(
        ("\nsample age ", "dim"), seconds(status.sample_age_s),
        ("   deadlines missed ", "dim"),
        (f"{status.missed_deadlines:,}", "bold red" if status.missed_deadlines else ""),
        ("   bins ", "dim"), f"{status.bins:,}", ("   decodes ", "dim"), f"{status.decodes:,}",
        ("   service ", "dim"), _bars(status),
    )
    return Panel(Group(table, figures), title_align="left",
                 title=f"latency, last {seconds(status.recent_s)}")


def _bars(status: Status) -> str:
    """Return the shape of the recent service times, a character for each fifth of a decade."""
    counts = status.service.recent
    width = max(1, status.service.per_decade // 5)
    sums = [sum(counts[i : i + width]) for i in range(0, len(counts), width)]
    shown = [i for i, n in enumerate(sums) if n]
    if not shown:
        return "–"
    first, last, most = shown[0], shown[-1], max(sums)
    return "".join(BLOCKS[-(-n * (len(BLOCKS) - 1) // most)] for n in sums[first : last + 1])


def _details(status: Status) -> Panel:
    table = Table.grid(padding=(0, 2))
    found = trouble(status)
    odd = ", ".join(f"{name} {count:,}" for name, count in found.items())
    table.add_row(Text("trouble", style="dim"), Text(odd or "none", style="red" if odd else ""))
    if status.memory_mb is not None:
        table.add_row(Text("memory", style="dim"), Text(f"{status.memory_mb:.1f} MB"))
    ticks = f"{'on' if status.keep_warm else 'off'}, {status.keep_warm_ticks:,} ticks"
    table.add_row(Text("keep warm", style="dim"), Text(ticks))
    if status.clocks:
        table.add_row(Text("clocks", style="dim"), Text(status.clocks))
    if status.drift is not None:
        drifted = status.drift.score >= status.drift.limit
        text = f"{status.drift.score:.2f} of {status.drift.limit:.2f}"
        table.add_row(Text("drift", style="dim"), Text(text, style="red" if drifted else ""))
    if status.recorder is not None:
        recorder = status.recorder
        text = f"{recorder.state}, {recorder.bytes / 1e6:.1f} MB, {recorder.path}"
        table.add_row(Text("recorder", style="dim"), Text(text))
    for name, text, bad in engine_rows(status):
        table.add_row(Text(name, style="dim"), Text(text, style="red" if bad else ""))
    return Panel(table, title="details", title_align="left")
