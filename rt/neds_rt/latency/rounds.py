"""Latency of whole servers, each in its own process, beside an echo server in the same run.

A sender process holds one probe socket a server and sends a frame a bin on an absolute schedule.
This process subscribes to every server and stamps what arrives. The servers take turns in short
rounds, echo first, so that whatever else the machine does falls on all of them alike. Arrival is
counted from the time a frame was *due*, so a late sender or a stalled server cannot hide.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import zmq

from neds_rt.binning import bin_edges
from neds_rt.bundle import Manifest
from neds_rt.children import Child
from neds_rt.engines import parse_engine
from neds_rt.errors import BadInput, StartError
from neds_rt.latency.report import Seen, echo_row, engine_row, values_of
from neds_rt.machine import cpu_seconds
from neds_rt.subscribe import subscribe

FS = 30_000.0
SETTLE = 5  # bins at the start of a round that are sent and not counted
QUIET_S = 10.0
START_S = 120.0  # a server may compile or import that long before it is ready
STOP_S = 60.0  # until a server that was told to stop is killed: some stacks take long to end
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


@dataclass(frozen=True)
class Contender:
    """A server to measure: `python -m MODULE ARGUMENTS`, then its probe, model and output.

    It takes `--probe NAME=URI --model BUNDLE --out ENDPOINT --json`, prints a line that begins with
    `ready ENDPOINT` once it serves, and ends at SIGINT with a JSON object that has `precision` and
    `latency.step_us`, as `neds-rt serve` does.
    """

    name: str  # of its own among those of a run
    module: str
    arguments: tuple[str, ...] = ()
    engine: str = ""  # of `neds-rt serve`, without its precision


def served(engine: str) -> Contender:
    """`neds-rt serve` with an engine; between its rounds it is to be quiet, never stale.

    Nothing takes over from an engine that is too slow: the figures are to be its own.
    """
    arguments = ("serve", "--engine", engine, "--stale-after", "86400", "--fail-over", "off")
    return Contender(engine, "neds_rt", arguments, parse_engine(engine)[0])


@dataclass
class Target:
    """A server under test and what was seen of it."""

    index: int  # which of the sender's sockets it listens to
    child: Child
    socket: zmq.Socket[bytes]
    seen: Seen
    message_bytes: int = 0

    @property
    def name(self) -> str:
        """What the contender is called."""
        return self.seen.name


class LiveBench:
    """Starts sender, echo and one server a contender; `run` returns the figures.

    `model` is the path of a bundle, `manifest` its manifest. Raises `BadInput` for a bundle of
    several probes, `StartError` when a process does not come up, with what it said.
    """

    def __init__(
        self, model: Path, manifest: Manifest, contenders: Sequence[Contender], plan: Plan
    ) -> None:
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
            self._start(model, contenders)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
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

    def _start(self, model: Path, contenders: Sequence[Contender]) -> None:
        probe = self.manifest.units[0].probe
        self.sender = self._child(
            "sender", "neds_rt.latency.sender", "--targets", str(len(contenders) + 1),
            "--units", str(len(self.manifest.units)), "--stream", probe, "--fs", str(FS),
            "--bin-size", repr(self.manifest.bin_size_s), "--rate-hz", str(self.plan.rate_hz),
        )
        self.uris: list[str] = self.sender.json(START_S)["uris"]
        self.targets: list[Target] = []
        for index, contender in enumerate(contenders, start=1):
            child = self._child(
                f"server of {contender.name}", contender.module, *contender.arguments,
                "--probe", f"{probe}={self.uris[index]}", "--model", str(model),
                "--out", "tcp://127.0.0.1:*", "--json",
            )
            socket = subscribe(self._context, child.ready(START_S), START_S)
            seen = Seen(contender.name, contender.engine)
            self.targets.append(Target(index, child, socket, seen))

    def _start_echo(self, reply_bytes: int) -> None:
        child = self._child(
            ECHO, "neds_rt.latency.echo", "--probe", self.uris[0], "--reply-bytes", str(reply_bytes)
        )
        socket = subscribe(self._context, child.json(START_S)["out"], START_S)
        self.targets.insert(0, Target(0, child, socket, Seen(ECHO)))

    def _child(self, name: str, module: str, *arguments: str) -> Child:
        return self._stack.enter_context(Child(name, module, *arguments))

    def _fill_window(self, target: Target) -> None:
        """Send bins until the attention window is full and a step costs its full price."""
        n = self.manifest.shape.window + SETTLE
        _, _, messages = self._send(target, n, self.speed)
        if len(messages) < n:
            raise StartError(f"{target.name}: answered {len(messages)} of the first {n} bins")
        target.message_bytes = len(messages[-1][0])
        # The last bin that a window recomputed from nothing and a stream have in common.
        at = self.manifest.shape.window - 1
        target.seen.full_window = next(values_of(raw) for raw, _ in messages
                                       if Reply.of(raw).bin == at)

    def _round(self, target: Target, bins: int) -> None:
        speed, seen = self.speed, target.seen
        before = cpu_seconds(target.child.pid)
        first, start_ns, messages = self._send(target, bins + SETTLE, speed)
        after = cpu_seconds(target.child.pid)
        if before is not None and after is not None:
            seen.cpu_s += after - before
            seen.cpu_bins += bins + SETTLE
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
            seen.arrival_us.append((arrival_ns - bin_due_ns) / 1e3)
            seen.service_us.append(message.service_us)
            seen.late += seen.arrival_us[-1] > self.plan.period_s * 1e6
        seen.lost += len(due_ns)

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
            summary = target.child.stop(STOP_S)
            if summary is None:
                raise StartError(f"{target.name}: the server ended without its summary")
            rows.append(engine_row(target.seen, summary, echo.seen, engines[0].seen))
        return {
            "engines": rows,
            **echo_row(echo.seen),
            "missed": sum(t.seen.late + t.seen.lost for t in engines),
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
