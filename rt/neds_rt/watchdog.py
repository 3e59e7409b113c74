"""The thread that sees an engine that never returns, and ends the process.

A call into a library that hangs cannot be ended from within its process, and the serving thread is
inside it. So the watchdog says so on the output, in a last invalid decode, and on standard error,
and ends the process with exit code 4, for whatever started it to start it anew. It looks ten times
a second.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from neds_rt import _core
from neds_rt.stats import now_ns

FLUSH_S = 0.5  # for ZeroMQ's thread to send the last decode, which nothing tells of
PERIOD_S = 0.1
EXIT_CODE = 4


class Watchdog:
    """Ends the process when the engine is inside one call for longer than `limit_s` seconds."""

    def __init__(
        self, pipeline: _core.Pipeline, limit_s: float, last_words: Callable[[], str]
    ) -> None:
        """`last_words` publishes the last decode and returns the line for standard error.

        It runs on the watchdog's thread, once the serving thread can no longer come back.
        """
        self._pipeline, self._last_words = pipeline, last_words
        self._limit_ns = int(limit_s * 1e9)
        self._limit_s = limit_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            since = self._pipeline.busy_since
            if since > 0 and now_ns() - since > self._limit_ns and self._pipeline.cut_off(since):
                self._end()

    def _end(self) -> None:
        line = f"neds-rt serve: the engine has not returned for {self._limit_s:g} s"
        try:
            line = self._last_words()
        finally:
            print(line, file=sys.stderr, flush=True)
            time.sleep(FLUSH_S)
            os._exit(EXIT_CODE)
