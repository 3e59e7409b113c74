"""Runs the demo: probe and server as processes of their own, this process is the client.

Order of start: the probe binds and waits, the server connects to it and announces where it
publishes, the client subscribes there, and only then is the probe told to play. So the first bin
is decoded and seen like every other one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import zmq

from neds_rt.binning import bin_edges
from neds_rt.bundle import Manifest, read_bundle
from neds_rt.children import Child
from neds_rt.demo import ANIMAL, SESSION
from neds_rt.demo.state import DemoState
from neds_rt.errors import BadInput, StartError
from neds_rt.machine import machine_facts
from neds_rt.subscribe import subscribe
from neds_rt.synthetic import FS, SyntheticAnimal
from neds_rt.synthetic_task import STEP_S
from neds_rt.wire import decode_message

START_S = 60.0
LAST_DECODE_S = 5.0  # how long after the last spike a decode may still come
FRAME_S = 0.15  # time between two pictures of the view


def run_demo(
    model: Path, engine: str, seconds: float, *, view: bool, dashboard: bool = False
) -> dict[str, Any]:
    """Play `seconds` of a synthetic session through a server and return what came out.

    Raises `BadInput` for a bundle that is not the demo animal's, `StartError` if a process fails.
    """
    manifest = read_bundle(model).manifest
    if abs(manifest.bin_size_s - STEP_S) > 1e-12:
        raise BadInput(model, "bin_size_s", manifest.bin_size_s, f"{STEP_S}, the animal's step")
    animal = SyntheticAnimal(ANIMAL, len(manifest.units))
    state = DemoState(manifest, animal, SESSION, seconds)
    name = manifest.units[0].probe
    context = zmq.Context()
    probe = Child(
        "probe", "neds_rt.sources.synthetic", "--stream", name, "--animal", str(ANIMAL),
        "--session", str(SESSION), "--units", str(len(manifest.units)), "--seconds", str(seconds),
    )
    try:
        with probe, Child(
            "server", "neds_rt", "serve", "--probe", f"{name}={probe.json(START_S)['uri']}",
            "--model", str(model), "--engine", engine, "--out", "tcp://127.0.0.1:*", "--json",
        ) as server:
            words = server.ready_words(START_S)
            socket = subscribe(context, words[0], START_S)
            with _page(words) if dashboard else nullcontext():
                probe.tell({"go": True})
                state.start_ns = probe.json(START_S)["start_ns"]
                with _picture(state, engine, seconds, view) as draw:
                    _follow(socket, state, probe, server, draw)
            played = probe.finish(START_S) or {}
            facts = server.stop() or {}
    finally:
        context.destroy(linger=0)
    return report(state, manifest, engine, played, facts)


def report(
    state: DemoState, manifest: Manifest, engine: str, played: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of `neds-rt demo --json`."""
    last = int(played.get("last_watermark", 0))
    edges = bin_edges(range(state.bins + 1), FS, manifest.bin_size_s)
    expected = int((edges[1:] <= last).sum())
    return {
        "decodes": state.decodes,
        "expected_decodes": expected,
        "missed_deadlines": state.missed(expected),
        **state.scores(),
        "engine": engine,
        "model_hash": manifest.model_hash,
        "spikes": played.get("spikes"),
        "probe_late_us": played.get("late_us"),
        "server": {k: facts.get(k) for k in ("reasons", "latency", "keep_warm", "rss_mb")},
        "machine": machine_facts(),
    }


def _follow(
    socket: zmq.Socket[bytes],
    state: DemoState,
    probe: Child,
    server: Child,
    draw: Callable[[], None],
) -> None:
    """Take decodes until every bin has one, or none has come for a while after the probe ended."""
    last_decode = next_frame = time.monotonic()
    while state.decodes < state.bins:
        if socket.poll(50):
            state.add(decode_message(socket.recv()))
            last_decode = time.monotonic()
        now = time.monotonic()
        if not server.running:
            raise StartError("the server ended during the demo")
        if not probe.running and now - last_decode > LAST_DECODE_S:
            break
        if now >= next_frame:
            draw()
            next_frame = now + FRAME_S
    draw()


@contextmanager
def _page(ready: list[str]) -> Iterator[None]:
    """Serve the dashboard, in a process of its own, of the server whose `ready` line this is."""
    status = dict(word.split("=", 1) for word in ready[1:])["status"]
    with Child("dashboard", "neds_rt", "dashboard", "--decodes", ready[0], "--status", status,
               "--port", "0") as dashboard:
        print(f"demo: dashboard at {dashboard.ready(START_S)}", flush=True)
        yield


@contextmanager
def _picture(
    state: DemoState, engine: str, seconds: float, view: bool
) -> Iterator[Callable[[], None]]:
    """Give a function that draws one picture, or does nothing without a view."""
    if not view:
        yield lambda: None
        return
    from rich.console import Console
    from rich.live import Live

    from neds_rt.demo.view import render

    console = Console(file=sys.stdout)
    with Live(console=console, auto_refresh=False) as live:
        yield lambda: live.update(render(state, engine, seconds, console.width), refresh=True)
