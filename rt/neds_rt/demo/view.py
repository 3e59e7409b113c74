"""The demo in the terminal: decodes over the truth as scrolling plots, latency, counters."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from neds_rt.bundle import ModalityOut
from neds_rt.demo.plot import bar, plot
from neds_rt.demo.state import DemoState
from neds_rt.stats import percentiles

ROWS = 6
RECENT = 500  # bins that the latency shown is taken over: 10 s


def render(state: DemoState, engine: str, seconds: float, width: int) -> RenderableType:
    """Return one frame of the view, at most `width` columns wide."""
    columns = max(20, min(100, width - 6))
    parts: list[RenderableType] = [_headline(state, engine, seconds)]
    parts += [_traces(state, m, columns) for m in state.of_kind("continuous")]
    classes = [_classes(state, m, columns // 2) for m in state.of_kind("categorical")]
    if classes:
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in classes:
            grid.add_column(ratio=1)
        grid.add_row(*classes)
        parts.append(grid)
    parts.append(_timing(state))
    return Group(*parts)


def _headline(state: DemoState, engine: str, seconds: float) -> Text:
    shape = state.manifest.shape
    played = (state.newest + 1) * state.manifest.bin_size_s
    return Text.assemble(
        ("neds-rt demo", "bold"),
        f"  {played:5.1f} of {seconds:.0f} s · {len(state.manifest.units)} units · "
        f"{shape.layers} layers of {shape.hidden} · engine {engine} · "
        f"{state.manifest.bin_size_s * 1e3:.0f} ms bins",
    )


def _traces(state: DemoState, modality: ModalityOut, columns: int) -> Panel:
    name = modality.name
    last = slice(0, state.newest + 1)
    truth = state.truth[name][last].astype(np.float64)
    decoded = state.decoded[name][last, 0].astype(np.float64)
    score = state.r2(name)
    title = f"{name} ({modality.unit})  R² {'–' if score is None else f'{score:.2f}'}"
    return Panel(
        plot(truth, decoded, columns, ROWS),
        title=title, title_align="left", subtitle="[bold cyan]decoded[/] over [grey50]truth[/]",
        subtitle_align="right", width=columns + 4, padding=(0, 1),
    )


def _classes(state: DemoState, modality: ModalityOut, columns: int) -> Panel:
    table = Table.grid(padding=(0, 1))
    row = state.newest
    p = state.decoded[modality.name][row] if row >= 0 else np.zeros(modality.n_outputs)
    truth = state.truth[modality.name][max(row, 0)]
    for code, label in enumerate(modality.classes):
        is_true = row >= 0 and truth == code
        mark = Text("●" if is_true else " ", style="bold green")
        share = bar(float(np.nan_to_num(p[code])), columns - 20)
        table.add_row(mark, label, share, f"{p[code]:.2f}")
    score = state.accuracy(modality.name)
    text = "–" if score is None else f"{100 * score:.0f} %"
    return Panel(table, title=f"{modality.name}  {text}", title_align="left")


def _timing(state: DemoState) -> Panel:
    rows = np.flatnonzero(state.published_ns)[-RECENT:]
    service = percentiles(state.service_us[rows])
    whole = percentiles(state.spike_to_publish_us()[rows])
    table = Table.grid(padding=(0, 2))
    table.add_row("", "p50", "p99", "max", style="dim")
    for label, found in (("service", service), ("last spike to decode", whole)):
        texts = [f"{found[key] / 1e3:.2f} ms" for key in ("p50", "p99", "max")] if found else ["–"]
        table.add_row(label, *texts)
    got = state.decodes
    counters = Text.assemble(
        ("\ndecodes ", "dim"), f"{got}", ("  valid ", "dim"), f"{int(state.valid.sum())}",
        ("  missing ", "dim"), f"{state.newest + 1 - got}",
        ("  a bin late or lost ", "dim"), f"{state.missed(state.newest + 1)}",
    )
    return Panel(Group(table, counters), title="latency", title_align="left")
