"""Latency of whole servers, each in its own process, beside an echo server in the same run.

A sender process holds one probe socket a server and sends a frame a bin on an absolute schedule.
This process subscribes to every server and stamps what arrives. The servers take turns in short
rounds, echo first, so that whatever else the machine does falls on all of them alike. Arrival is
counted from the time a frame was *due*, so a late sender or a stalled server cannot hide.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from neds_rt.binning import bin_edges
from neds_rt.bundle import Manifest
from neds_rt.children import Child
from neds_rt.engines import parse_engine
from neds_rt.errors import BadInput, StartError
from neds_rt.stats import percentiles
from neds_rt.subscribe import subscribe

FS = 30_000.0
SETTLE = 5  # bins at the start of a round that are sent and not counted
QUIET_S = 10.0
START_S = 120.0  # a server may compile or import that long before it is ready
ECHO = "echo"


class Reply(msgspec.Struct):
    """The fields of a decode (or an echo) that are measured; all others are passed over."""

    bin: int
    service_us: float = 0.0

    @staticmethod
    def of(raw: bytes) -> Reply:
        """Read a message."""
        return msgspec.msgpack.decode(raw, type=Reply)


@dataclass(frozen=True)
class Plan:
    """How much is sent, and when."""

    bins: int  # counted bins an engine
    per_round: int
    period_s: float  # wall time between bins
    rate_hz: float  # mean rate of a unit


@dataclass
class Target:
    """A server under test and what was seen of it."""

    name: str
    index: int  # which of the sender's sockets it listens to
    child: Child
    socket: zmq.Socket[bytes]
    arrival_us: list[float] = field(default_factory=list)
    service_us: list[float] = field(default_factory=list)
    late: int = 0
    lost: int = 0
    message_bytes: int = 0

    @property
    def is_echo(self) -> bool:
        """Whether this is the floor and not an engine."""
        return self.index == 0


class LiveBench:
    """Starts sender, echo and one server an engine; `run` returns the figures.

    `model` is the path of a bundle, `manifest` its manifest. Raises `BadInput` for a bundle of
    several probes, `StartError` when a process does not come up, with what it said.
    """

    def __init__(self, model: Path, manifest: Manifest, engines: list[str], plan: Plan) -> None:
        probes = sorted({unit.probe for unit in manifest.units})
        if len(probes) > 1:
            raise BadInput(model, "probes", ", ".join(probes), "one: a frame closes a bin here")
        self.manifest = manifest
        self.plan = plan
        self.speed = manifest.bin_size_s / plan.period_s
        self._stack = ExitStack()
        self._context = zmq.Context()
        self._stack.callback(self._context.destroy, linger=0)
        try:
            self._start(model, engines)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> LiveBench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> dict[str, Any]:
        """Send all rounds and return `engines`, `echo_us` and `missed`."""
        for target in self.targets:
            self._fill_window(target)
        size = max(target.message_bytes for target in self.targets)
        self._start_echo(size)
        rounds = -(-self.plan.bins // self.plan.per_round)
        for number in range(rounds):
            left = self.plan.bins - number * self.plan.per_round
            for target in self.targets:
                self._round(target, min(self.plan.per_round, left))
        return self._report(size, rounds)

    def _start(self, model: Path, engines: list[str]) -> None:
        probe = self.manifest.units[0].probe
        self.sender = self._child(
            "sender", "neds_rt.latency.sender", "--targets", str(len(engines) + 1),
            "--units", str(len(self.manifest.units)), "--stream", probe, "--fs", str(FS),
            "--bin-size", repr(self.manifest.bin_size_s), "--rate-hz", str(self.plan.rate_hz),
        )
        self.uris: list[str] = self.sender.json(START_S)["uris"]
        self.targets: list[Target] = []
        for index, engine in enumerate(engines, start=1):
            uri = self.uris[index]
            child = self._child(
                f"server of engine {engine}", "neds_rt", "serve", "--probe", f"{probe}={uri}",
                "--model", str(model), "--engine", engine, "--out", "tcp://127.0.0.1:*", "--json",
                "--stale-after", "86400",  # between its rounds a server is to be quiet
            )
            out = child.ready(START_S)
            socket = subscribe(self._context, out, START_S)
            self.targets.append(Target(engine, index, child, socket))

    def _start_echo(self, reply_bytes: int) -> None:
        child = self._child(
            ECHO, "neds_rt.latency.echo", "--probe", self.uris[0], "--reply-bytes", str(reply_bytes)
        )
        socket = subscribe(self._context, child.json(START_S)["out"], START_S)
        self.targets.insert(0, Target(ECHO, 0, child, socket))

    def _child(self, name: str, module: str, *arguments: str) -> Child:
        return self._stack.enter_context(Child(name, module, *arguments))

    def _fill_window(self, target: Target) -> None:
        """Send bins until the attention window is full and a step costs its full price."""
        n = self.manifest.shape.window + SETTLE
        _, _, messages = self._send(target, n, self.speed)
        if len(messages) < n:
            raise StartError(f"{target.name}: answered {len(messages)} of the first {n} bins")
        target.message_bytes = len(messages[-1][0])

    def _round(self, target: Target, bins: int) -> None:
        speed = self.speed
        first, start_ns, messages = self._send(target, bins + SETTLE, speed)
        width = (FS, self.manifest.bin_size_s)
        counted = np.arange(first + SETTLE, first + SETTLE + bins)
        samples = bin_edges(counted + 1, *width) - bin_edges(first, *width)
        due = start_ns + (samples * (1e9 / (FS * speed))).astype(np.int64)
        due_ns = dict(zip(counted.tolist(), due.tolist(), strict=True))
        for raw, arrival_ns in messages:
            message = Reply.of(raw)
            bin_due_ns = due_ns.pop(message.bin, None)
            if bin_due_ns is None:
                continue
            target.arrival_us.append((arrival_ns - bin_due_ns) / 1e3)
            target.late += target.arrival_us[-1] > self.plan.period_s * 1e6
            if not target.is_echo:
                target.service_us.append(message.service_us)
        target.lost += len(due_ns)

    def _send(
        self, target: Target, bins: int, speed: float
    ) -> tuple[int, int, list[tuple[bytes, int]]]:
        """Have `bins` sent to one server; return first bin, start of schedule, what came back."""
        self.sender.tell({"target": target.index, "bins": bins, "speed": speed})
        answer = self.sender.json(START_S)
        messages: list[tuple[bytes, int]] = []
        quiet_s = 0.0  # an engine slower than the pace is still waited for, one that ended is not
        while len(messages) < bins and quiet_s < QUIET_S:
            if not target.socket.poll(1000):
                quiet_s += 1.0
                if not target.child.running:
                    raise StartError(f"{target.name}: the server ended during the run")
                continue
            quiet_s = 0.0
            raw = target.socket.recv()
            arrival = time.monotonic_ns()
            if Reply.of(raw).bin >= 0:  # -1: sent because input had stopped, not for a bin
                messages.append((raw, arrival))
        self.sender.json(START_S)
        return answer["first_bin"], answer["start_ns"], messages

    def _report(self, size: int, rounds: int) -> dict[str, Any]:
        echo, *engines = self.targets
        rows = []
        for target in engines:
            stats = target.child.stop()
            if stats is None:
                raise StartError(f"{target.name}: the server ended without its summary")
            rows.append({
                "engine": parse_engine(target.name)[0],
                "precision": stats["precision"],
                "step_us": stats["latency"]["step_us"],
                "service_us": percentiles(np.array(target.service_us)),
                "arrival_to_publish_us": percentiles(np.array(target.arrival_us)),
                "keep_warm": stats["keep_warm"],
                "late": target.late,
                "lost": target.lost,
            })
        return {
            "engines": rows,
            "echo_us": percentiles(np.array(echo.arrival_us)),
            "missed": sum(t.late + t.lost for t in engines),
            "rounds": rounds,
            "message_bytes": size,
        }


def hot_steps(
    model: Path, engines: list[str], rate_hz: float, limit_s: float
) -> dict[str, dict[str, Any]]:
    """Return tight-loop step times per engine, each measured in a process of its own."""
    found = {}
    for engine in engines:
        with Child(
            f"step loop of {engine}", "neds_rt.latency.hot_step",
            "--model", str(model), "--engine", engine,
            "--rate-hz", str(rate_hz), "--limit-s", str(limit_s),
        ) as child:
            found[engine] = child.json(START_S + limit_s)
    return found


def summary_line(row: dict[str, Any], key: str) -> list[str]:
    """Return p50, p99, p99.9 and max of one figure in milliseconds, as text."""
    values = row.get(key)
    return [f"{values[k] / 1e3:.3f}" for k in ("p50", "p99", "p999", "max")] if values else ["–"]
