"""Faults of the machine and of the processes on it: server, disk, memory, processor, subscribers.

They are given the rig and return an `Episode` as those of `tools/fault_frames.py` do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.blackbox import build_disk
from tools import faulty_engine
from tools.fault_rig import BIN_S, Episode, Rig

RECORD = "--record={folder}/tape-{life}"
DISK_FINE, DISK_STILL, DISK_FULL = b"\0", b"\1", b"\2"  # as bench/slow_disk.cpp has them
STALL_S = 0.3  # a write on a disk that stands still
MOST_MEMORY = 512 << 20  # bytes that the memory hog takes, and at most a quarter of what is free
HOGS = 4
NOTICED_BINS = 5  # until somebody has noticed that a server has ended, and starts another

_COMPUTE = "import os\nwhile os.getppid() != 1: sum(range(10000))"
_TAKE_MEMORY = """
import os, sys
with open("/proc/self/oom_score_adj", "w") as file: file.write("1000")  # if any ends, this one
n = int(sys.argv[1])
taken = bytearray(n)
while os.getppid() != 1: taken[::4096] = bytes(len(range(0, n, 4096)))
"""
_DEAF = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 1)
socket.subscribe(b"")
socket.connect(sys.argv[1])
time.sleep(60)
"""


class DiskRig(Rig):
    """A rig whose server records on a disk that can stand still or be full."""

    def start(self) -> None:
        """Start a server on that disk."""
        self._disk = self.folder / "disk"
        if not self.lives:
            self._library = build_disk(self.folder)
            self.set_disk(DISK_FINE)
        added = {"LD_PRELOAD": str(self._library), "NEDS_STALL_S": str(STALL_S),
                 "NEDS_DISK": str(self._disk)}
        before = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        try:
            super().start()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def set_disk(self, state: bytes) -> None:
        """From now on the disk is like this."""
        if not self._disk.exists():
            self._disk.write_bytes(bytes(8))
        _tell(self._disk, state)


def server_held_up(rig: Rig) -> Episode:
    """The server is stopped for some bins, as by a machine that hangs, and goes on.

    Nobody can say anything until then: the damage begins with its first decode afterwards.
    """
    os.kill(rig.server.pid, signal.SIGSTOP)
    for _ in range(rig.some_bins(5, 20)):
        rig.tick()
    began = time.monotonic_ns()
    os.kill(rig.server.pid, signal.SIGCONT)
    return Episode(began, rig.tick())


def server_killed(rig: Rig) -> Episode:
    """The server is killed at a random moment of a bin, and started anew."""
    return _end_server(rig, signal.SIGKILL)


def server_terminated(rig: Rig) -> Episode:
    """The server is asked to end (SIGTERM) at a random moment of a bin, and started anew."""
    return _end_server(rig, signal.SIGTERM)


def _end_server(rig: Rig, number: signal.Signals) -> Episode:
    rig.listen(time.monotonic() + float(rig.rng.uniform(0, BIN_S)))
    began = time.monotonic_ns()
    summary = rig.stop(number, ticking=True)
    if number != signal.SIGKILL and not summary:
        rig.problems.append("a server that was asked to end left no summary")
    for _ in range(NOTICED_BINS):
        rig.tick()
    rig.start_again()
    return Episode(began, rig.tick())


def disk_full(rig: Rig) -> Episode:
    """The disk that is recorded on is full; later the server is started anew, on one that is not.

    Decoding has to go on, and the summary to tell that recording has not.
    """
    assert isinstance(rig, DiskRig)
    began = rig.tick()
    rig.set_disk(DISK_FULL)
    for _ in range(rig.some_bins(10, 25)):
        rig.tick()
    if not any(d.valid and d.pub_ns > began for d in rig.decodes):
        rig.problems.append("no valid decode while the disk was full")
    state = rig.stop(ticking=True).get("recording", {}).get("state", "")
    if not state.startswith("stopped: No space left"):
        rig.problems.append(f"the disk was full and the recording was called {state!r}")
    rig.set_disk(DISK_FINE)
    rig.start_again()
    return Episode(began, rig.tick())


def disk_stands_still(rig: Rig) -> Episode:
    """Every write of the recording takes 0.3 s for a while."""
    assert isinstance(rig, DiskRig)
    began = rig.tick()
    rig.set_disk(DISK_STILL)
    for _ in range(rig.some_bins(25, 60)):
        rig.tick()
    rig.set_disk(DISK_FINE)
    return Episode(began, rig.tick())


def _beside(rig: Rig, hogs: list[subprocess.Popen[bytes]]) -> Episode:
    """Go on for a while, then end these processes."""
    began = time.monotonic_ns()
    for _ in range(rig.some_bins(25, 50)):
        rig.tick()
    for hog in hogs:
        hog.kill()
        hog.wait()
    return Episode(began, rig.tick())


def machine_overrun(rig: Rig) -> Episode:
    """Four processes compute with all they can get, beside the server."""
    return _beside(rig, [subprocess.Popen([sys.executable, "-c", _COMPUTE]) for _ in range(HOGS)])


def memory_pressure(rig: Rig) -> Episode:
    """A process takes 512 MB, or a quarter of what is free, and keeps touching all of it."""
    n = min(MOST_MEMORY, free_memory() // 4)
    return _beside(rig, [subprocess.Popen([sys.executable, "-c", _TAKE_MEMORY, str(n)])])


def free_memory() -> int:
    """Return how many bytes the system can give without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def subscriber_dies(rig: Rig) -> Episode:
    """A second subscriber never reads, and is killed with its connection full."""
    return _beside(rig, [subprocess.Popen([sys.executable, "-c", _DEAF, rig.endpoint])])


def slow_subscriber(rig: Rig) -> Episode:
    """A second subscriber connects and never reads."""
    import zmq

    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.subscribe(b"")
    socket.connect(rig.endpoint)
    began = rig.tick()
    for _ in range(rig.some_bins(25, 60)):
        rig.tick()
    ended = rig.tick()
    socket.close(linger=0)
    return Episode(began, ended)


def _engine(rig: Rig, what: int, low: int, high: int) -> Episode:
    began = time.monotonic_ns()
    _tell(rig.trigger, bytes([what]))
    for _ in range(rig.some_bins(low, high)):
        rig.tick()
    _tell(rig.trigger, bytes([faulty_engine.FINE]))
    return Episode(began, rig.tick())


def _tell(path: Path, what: bytes) -> None:
    """Write the first byte of a file that somebody has mapped."""
    with path.open("r+b") as file:
        file.write(what)


def engine_nan(rig: Rig) -> Episode:
    """The engine's outputs are not a number."""
    return _engine(rig, faulty_engine.NAN, 2, 20)


def engine_slow(rig: Rig) -> Episode:
    """The engine takes longer than a bin."""
    return _engine(rig, faulty_engine.SLOW, 2, 6)
