"""The study's side of a trial process: start it, ask it, notice that it died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from neds_rt.errors import NedsError


class WorkerDied(Exception):
    """The trial process is gone; the text says how it ended."""


class Worker(Protocol):
    """Something that runs trials, one at a time (`neds.sweep_worker` says what it is told)."""

    def exchange(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """Send a message, if any, and wait for the next answer; raises `WorkerDied`."""

    def stop(self) -> None:
        """End it now, in the middle of a trial too; `exchange` in another thread then raises."""

    def close(self) -> None:
        """End it and release what it holds; no other thread may be using it."""


class LocalWorker:
    """A trial process on this machine. `log`: a file that its standard error is added to."""

    def __init__(self, threads: int, log: Path | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        errors: Any = subprocess.DEVNULL if log is None else log.open("ab")
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "neds.sweep_worker"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
                start_new_session=True,  # Ctrl-C is for the study, which then stops its workers
            )
        finally:
            if log is not None:
                errors.close()

    def exchange(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """See `Worker`."""
        source, sink = self.process.stdout, self.process.stdin
        assert source is not None
        assert sink is not None
        try:
            if message is not None:
                sink.write(json.dumps(message) + "\n")
                sink.flush()
            text = source.readline()
        except (OSError, ValueError):  # a broken pipe, or closed by `stop` in another thread
            text = ""
        if not text.endswith("\n"):
            raise WorkerDied(_ending(self.process.wait()))
        answer: dict[str, Any] = json.loads(text)
        return answer

    def stop(self) -> None:
        """See `Worker`."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """See `Worker`."""
        self.stop()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a message that was never read
                    pipe.close()


def _ending(code: int) -> str:
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"trial process ended with code {code}"


def set_up(worker: Worker, setup: dict[str, Any]) -> dict[str, Any]:
    """Send the setup; returns the drop report. Raises `NedsError` if the recordings are refused."""
    answer = worker.exchange(setup)
    if "refused" in answer:
        raise NedsError(answer["refused"])
    drops: dict[str, Any] = answer["drops"]
    return drops
