"""Listens to a server's decodes and status on threads of its own, into a history to plot."""

from __future__ import annotations

import threading
import time
from typing import Self

from neds_rt.client import Client
from neds_rt.curve import LOCAL, Access
from neds_rt.dashboard.history import History
from neds_rt.status import Status
from neds_rt.watching import LatestStatus, StatusReader


class Feed:
    """What all viewers of one page share."""

    def __init__(self, decodes: str, status: str, access: Access = LOCAL) -> None:
        """Connect to both, which need not be there yet; raises `BadInput`."""
        self.decodes_endpoint, self.status_endpoint = decodes, status
        self.history = History()
        reader = StatusReader(status, access)
        try:
            self._client = Client(decodes, access=access)
        except BaseException:
            reader.close()
            raise
        self._latest = LatestStatus(reader)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decodes", daemon=True)
        self._thread.start()

    def status(self) -> tuple[Status | None, float]:
        """Return the newest status and its age in seconds."""
        return self._latest.get()

    @property
    def missed(self) -> int:
        """Decodes that this viewer lost, by their numbers."""
        return self._client.missed

    def close(self) -> None:
        """End the threads and disconnect."""
        self._stop.set()
        self._thread.join()
        self._client.close()
        self._latest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                decode = self._client.recv(0.2)
            except TimeoutError:
                continue
            self.history.add(decode, time.monotonic())
