"""Child processes that talk in lines: start one, read what it prints, stop it, get its report.

Used by the commands that run a whole rig on one machine (demo, bench, soak). A child runs in a
session of its own, so that Ctrl-C reaches the parent alone, which then stops its children in order.
On Linux a child ends with its parent, however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
from collections import deque
from typing import Any, Self

from neds_rt.errors import StartError


class Child:
    """A Python process `python -m MODULE ARGS...`; what it prints is read line by line.

    Lines of standard output and standard error come in one queue; the last ones of standard error
    go into the error raised when the child ends early.
    """

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name = name
        self.last_line = ""
        self._errors: deque[str] = deque(maxlen=20)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-m", "neds_rt.children", str(os.getpid()), module,
             *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_output, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def line(self, timeout: float) -> str:
        """Return the next line printed; raises `StartError` if none comes or the child ends."""
        try:
            text = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise StartError(f"{self.name}: silent for {timeout:g} s{self._complaint()}") from None
        if text is None:
            self._lines.put(None)
            code = self._process.wait()
            error = StartError(f"{self.name}: ended with code {code}{self._complaint()}")
            if code in (2, 4):  # its own verdict on what it was given, which is ours as well
                error.exit_code = code
            raise error
        return text

    def ready(self, timeout: float) -> str:
        """Return the endpoint in the line `ready ENDPOINT ...` of a server, once it serves."""
        return self.ready_words(timeout)[0]

    def ready_words(self, timeout: float) -> list[str]:
        """Return the words after `ready`, the endpoint and then `KEY=VALUE`."""
        while True:
            words = self.line(timeout).split()
            if words[:1] == ["ready"]:
                return words[1:]

    def json(self, timeout: float) -> dict[str, Any]:
        """Return the next line that is a JSON object, passing over others."""
        while True:
            text = self.line(timeout)
            if text.startswith("{"):
                answer: dict[str, Any] = json.loads(text)
                return answer

    def tell(self, message: dict[str, Any]) -> None:
        """Write one JSON line to the child's standard input."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise StartError(f"{self.name}: has ended{self._complaint()}") from None

    def stop(self, timeout: float = 10.0) -> dict[str, Any] | None:
        """Interrupt the child, wait for it, and return its last line if that is a JSON object."""
        if self.running:
            self._process.send_signal(signal.SIGINT)
        return self.finish(timeout)

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Wait for the child to end by itself, kill it after `timeout`; return as `stop` does."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join()
        self._close_pipes()
        if not self.last_line.startswith("{"):
            return None
        report: dict[str, Any] = json.loads(self.last_line)
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            self.last_line = raw.decode(errors="replace").rstrip()
            self._lines.put(self.last_line)
        self._readers[1].join()  # so that its last words are there when the end is noticed
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            self._errors.append(raw.decode(errors="replace").rstrip())
            self._lines.put(self._errors[-1])

    def _complaint(self) -> str:
        """Return the last thing the child wrote to standard error, as ': text' or nothing."""
        return f": {self._errors[-1]}" if self._errors else ""

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


def _end_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies, where there is such a thing."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


if __name__ == "__main__":  # python -m neds_rt.children PARENT MODULE ARGS...: what `Child` runs
    _end_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
