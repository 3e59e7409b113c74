"""The words of the page, as HTML. Whatever comes from a server goes through `escape`."""

from __future__ import annotations

import time
from html import escape

from msgspec.structs import replace

from neds_rt.dashboard.history import SILENT_S, Snapshot
from neds_rt.dashboard.style import AMBER, GREEN, RED
from neds_rt.status import ProbeStatus, Status
from neds_rt.watching import LOST_S
from neds_rt.words import (
    STAGE_NAMES,
    engine_rows,
    probe_trouble,
    probe_words,
    seconds,
    stage_row,
    trouble,
    verdict,
)

LATE_S = 2.0  # a browser that draws for longer than this shows the past


def banner(
    shot: Snapshot, status: Status | None, age_s: float, late_s: float = 0.0
) -> tuple[str, str]:
    """Return the headline's HTML and the text of the browser's tab.

    `late_s` is for how long the browser has not finished the last pictures.
    """
    word, since_s, colour = judgement(shot, status, age_s)
    since = ""
    if since_s < 1e9:
        at = time.strftime("%H:%M:%S", time.localtime(time.time() - since_s))
        since = f"since {at}, {_whole(since_s)}"
    if late_s > LATE_S:
        since += f" · this browser is slow: the pictures below are {_whole(late_s)} old"
    facts = []
    if status is not None:
        silent = "" if age_s <= LOST_S else f" · no status for {_whole(age_s)}"
        facts = [f"engine {status.engine} {status.precision} · model {status.model[:12]}",
                 f"{status.endpoint} · up {_whole(status.uptime_s)}{silent}"]
    if shot.last is not None:
        facts.append(f"session {shot.last.session or '–'}")
    lines = "<br>".join(map(escape, facts))
    html = (f'<div class="banner" style="background:{colour}"><div><div class="word">'
            f'{escape(word)}</div><div class="since">{escape(since)}</div></div>'
            f'<div class="facts">{lines}</div></div>')
    return html, f"{'●' if colour == GREEN else '✕'} {word}"


def judgement(shot: Snapshot, status: Status | None, age_s: float) -> tuple[str, float, str]:
    """Return the headline, since how many seconds it is true, and its colour."""
    heard = status is not None and age_s <= LOST_S
    if shot.last is not None and shot.silent_s <= SILENT_S:
        since_s = shot.since_s
        if heard and status is not None and status.reason == shot.last.reason:
            since_s = max(since_s, status.reason_s)  # it was so before we looked
        colour = GREEN if shot.last.valid else AMBER if shot.last.reason == "warming up" else RED
        return verdict(shot.last.valid, shot.last.reason), since_s, colour
    if heard and status is not None and status.reason and status.valid:
        return "DECODES NOT VALID HERE: the server sends, none arrives", shot.silent_s, RED
    if heard and status is not None:
        return verdict(False, status.reason), status.reason_s, RED
    if shot.last is None:
        return "NO SERVER: nothing heard so far", float("inf"), RED
    return "DECODES NOT VALID: server silent", shot.silent_s, RED


def figures(status: Status | None, age_s: float, drift: float | None = None) -> str:
    """Return the numbers one looks for first. `drift` is that of the newest decode."""
    if status is None:
        return _card("now", _grid([(name, None, False) for name in (
            "sample age", "service p99", "deadlines missed", "bins lost", "gaps", "drift")]))
    service = status.stages.get("service_us")
    p99 = stage_row(service.recent)[1] if service is not None else "–"
    lost, gaps = (status.counters.get(name, 0) for name in ("lost_bins", "gaps"))
    rows: list[tuple[str, str | None, bool]] = [
        ("sample age", seconds(_now(status.sample_age_s, age_s)), _is_old(status)),
        ("service p99", p99, False),
        ("deadlines missed", f"{status.missed_deadlines:,}", status.missed_deadlines > 0),
        ("bins lost", f"{lost:,}", lost > 0),
        ("gaps", f"{gaps:,}", gaps > 0),
        ("drift", None, False) if drift is None else
        ("drift (alarm from 1)", f"{drift:.2f}", drift >= 1.0),
    ]
    return _card(f"now, of {status.bins:,} bins", _grid(rows))


def probes(status: Status | None, age_s: float) -> str:
    """Return one line for each probe, red where it is silent."""
    if status is None:
        return _card("probes", '<div class="list dim">no status so far</div>')
    return _card("probes", "".join(_probe(p, age_s, status.silent_s) for p in status.probes))


def stages(status: Status | None) -> str:
    """Return the table of latency, a row a stage."""
    heads = "".join(f"<th>{name}</th>" for name in ("p50", "p99", "p99.9", "max", "max of all"))
    rows = []
    for key, name in STAGE_NAMES.items():
        stage = None if status is None else status.stages.get(key)
        cells = [*stage_row(None if stage is None else stage.recent),
                 stage_row(None if stage is None else stage.all)[3]]
        kind = ' class="whole"' if key == "service_us" else ""
        rows.append(f"<tr{kind}><td>{name}</td>" +
                    "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    recent = 10.0 if status is None else status.recent_s
    return _card(f"latency of each stage, last {seconds(recent)}",
                 f"<table><tr><th>stage</th>{heads}</tr>{''.join(rows)}</table>")


def engine(status: Status | None) -> str:
    """Return what decodes, on what, and whether something took over from it."""
    if status is None:
        return _card("engine", '<div class="list dim">no status so far</div>')
    return _card("engine", _list(engine_rows(status)))


def server(status: Status | None, missed_here: int) -> str:
    """Return what is known of the server's memory, recorder and trouble."""
    if status is None:
        return _card("server and trouble", '<div class="list dim">no status so far</div>')
    lines = [("bin", f"{status.bin_size_s * 1e3:g} ms, stale after {seconds(status.stale_s)}",
              False)]
    if status.memory_mb is not None:
        grown = status.memory_mb - (status.memory_ready_mb or status.memory_mb)
        lines.append(("memory", f"{status.memory_mb:.1f} MB, {grown:+.1f} MB since start", False))
    ticks = f"on, {status.keep_warm_ticks:,} ticks" if status.keep_warm else "off"
    lines.append(("keep warm", ticks, False))
    if status.clocks:
        lines.append(("clocks", status.clocks, False))
    if status.recorder is not None:
        tape = status.recorder
        text = f"{tape.state}, {tape.bytes / 1e6:.1f} MB, {tape.lost} lost"
        lines.append(("recorder", text, tape.lost > 0))
    found = trouble(status) | ({"lost on the way to this page": missed_here} if missed_here else {})
    odd = ", ".join(f"{name} {n:,}" for name, n in found.items())
    lines.append(("trouble", odd or "none", bool(odd)))
    return _card("server and trouble", _list(lines))


def _list(lines: list[tuple[str, str, bool]]) -> str:
    """Name and words a line, in red where they are bad."""
    body = "".join(
        f'<div><span class="dim">{escape(name)}</span> '
        f'<span{" class=bad" if bad else ""}>{escape(text)}</span></div>'
        for name, text, bad in lines)
    return f'<div class="list">{body}</div>'


def _probe(probe: ProbeStatus, age_s: float, silent_s: float) -> str:
    """One probe; a status that is old itself makes its probes older."""
    age = _now(probe.frame_age_s, age_s)
    silent = age is not None and age > silent_s
    shown = replace(probe, state="silent", frame_age_s=age) if silent else probe
    state = shown.state if shown.state in ("live", "waiting") else "silent"
    more = f"{probe.units} units"
    if state == "live" and probe.lag_s > 0.1:
        more += f" · {seconds(probe.lag_s)} behind"
    odd = ", ".join(f"{name} {n:,}" for name, n in probe_trouble(probe).items())
    details = "<br>".join(escape(text) for text in (more, probe.note, odd) if text)
    return (f'<div class="probe {state}"><span><span class="name">{escape(probe.name)}</span> '
            f'<span class="state">{escape(probe_words(shown))}</span></span>'
            f'<span class="more">{details}</span></div>')


def _now(age: float | None, status_age_s: float) -> float | None:
    """What was that old when the status was built is older by now; small ages are left alone."""
    if age is None or status_age_s <= LOST_S:
        return age
    return age + status_age_s


def _whole(length_s: float) -> str:
    """Seconds without tenths: every new text makes the browser lay the page out anew."""
    return f"{int(length_s)} s" if length_s < 60 else seconds(length_s)


def _is_old(status: Status) -> bool:
    return status.sample_age_s is not None and status.sample_age_s > status.stale_s


def _grid(rows: list[tuple[str, str | None, bool]]) -> str:
    cells = []
    for name, value, bad in rows:
        kind = "value none" if value is None else "value bad" if bad else "value"
        text = "not measured" if value is None else value
        cells.append(f'<div><div class="name">{escape(name)}</div>'
                     f'<div class="{kind}">{escape(text)}</div></div>')
    return f'<div class="figures">{"".join(cells)}</div>'


def _card(heading: str, body: str) -> str:
    return f'<div class="card"><h2>{escape(heading)}</h2>{body}</div>'
