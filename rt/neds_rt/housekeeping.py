"""The thread beside the hot path: it alone logs, and only reads what the hot path counts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neds_rt.assemble import COUNTERS

if TYPE_CHECKING:
    from neds_rt.aligning import Aligner
    from neds_rt.recording.flight import FlightRecorder
    from neds_rt.sources import Source

PERIOD_S = 0.25

# What is said when a counter first moves; counters that are not here are part of normal work.
MESSAGES = {
    "gaps": "a stretch of the input is missing; its bins are lost",
    "missing": "a stream says nothing new while others go on; bins close without it",
    "restarts": "the source restarted; the model starts anew",
    "saturated": "a unit had more than 65535 spikes in a bin",
    "late_spikes": "spikes below their stream's watermark were dropped",
    "ahead_spikes": "spikes too far past their stream's watermark were dropped",
    "unit_range": "spikes of units that the model does not have were dropped",
    "duplicate": "a frame arrived twice and was ignored the second time",
    "ended_session": "a frame of a session that has ended was ignored",
    "bad_header": "a frame was refused: its header is not the MessagePack array it should be",
    "bad_version": "a frame was refused: another wire version",
    "bad_range": "a frame was refused: a header field has an impossible value",
    "bad_stream": "a frame was refused: no --probe has its stream name",
    "bad_payload": "a frame was refused: the payload is not n_spikes records long",
    "bad_rate": "a frame was refused: its sampling rate changed or does not fit the bins",
    "bad_watermark": "a frame was refused: its watermark goes backwards",
    "overrun": "a frame was refused: it spans more bins than are kept open (--open-bins)",
    "bad_parts": "a message was refused: it does not have two parts",
    "oversize": "a frame was refused: more spikes than a frame may hold",
}

logger = logging.getLogger("neds_rt.server")


class Housekeeping:
    """Logs the first of every kind of trouble and tends the sources, while the server runs."""

    def __init__(
        self, counters: NDArray[np.int64], sources: Sequence[Source] = (),
        aligner: Aligner | None = None, also: Callable[[], None] = lambda: None,
        flight: FlightRecorder | None = None,
    ) -> None:
        """`also` is called as often as the counters are looked at."""
        self._counters = counters
        self._also = also
        self._sources = sources
        self._aligner = aligner
        self._tended: list[Source | FlightRecorder] = [*sources]
        if flight is not None:
            self._tended.append(flight)
        self._states: dict[str, str] = {}  # what was said last, by whom
        self._said: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    @property
    def started(self) -> bool:
        """Whether the thread was started."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Say what is still unsaid and end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        self._tend()
        while not self._stop.wait(PERIOD_S):
            self._tend()
            self._look()
        self._look()

    def _tend(self) -> None:
        for each in self._tended:
            self._log_state(each.name, each.tend())
        if self._aligner is not None:
            self._log_state("clocks", self._aligner.tend(self._sources))

    def _log_state(self, name: str, state: str) -> None:
        if state != self._states.get(name, ""):
            self._states[name] = state
            if state:
                logger.warning("%s: %s", name, state)

    def _look(self) -> None:
        self._also()
        counters = dict(zip(COUNTERS, self._counters.tolist(), strict=True))
        self._log_first("", counters, MESSAGES)
        for each in self._tended:
            self._log_first(f"{each.name}: ", each.counters, each.messages)

    def _log_first(
        self, prefix: str, counters: Mapping[str, int], messages: Mapping[str, str]
    ) -> None:
        for name, count in counters.items():
            if count and name in messages and prefix + name not in self._said:
                self._said.add(prefix + name)
                logger.warning("%s%s: %s (said once; counted in the summary)", prefix, name,
                               messages[name])
