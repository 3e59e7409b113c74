"""Listens to a server's decodes and status, for whoever draws them."""

from __future__ import annotations

import time
from typing import Self

from neds_rt.client import Client
from neds_rt.curve import LOCAL, Access
from neds_rt.dashboard.history import History
from neds_rt.status import Status
from neds_rt.watching import TAKE_S, LatestStatus, Listener, StatusReader


class RecentDecodes(Listener):
    """The last seconds of a server's decodes, in `history`."""

    def __init__(self, endpoint: str, access: Access = LOCAL) -> None:
        """Connect to a server's `--out`, which need not be there yet; raises `BadInput`."""
        self.history = History()
        self.endpoint = endpoint
        self._client = Client(endpoint, access=access)
        super().__init__("decodes", self._next, self._client.close)

    @property
    def missed(self) -> int:
        """Decodes that were lost on the way here, by their numbers."""
        return self._client.missed

    def _next(self) -> None:
        try:
            decode = self._client.recv(TAKE_S)
        except TimeoutError:
            return
        self.history.add(decode, time.monotonic())


class Feed:
    """What all viewers of one page share."""

    def __init__(self, decodes: str, status: str, access: Access = LOCAL) -> None:
        """Connect to both, which need not be there yet; raises `BadInput`."""
        self._decodes = RecentDecodes(decodes, access)
        try:
            self._latest = LatestStatus(StatusReader(status, access))
        except BaseException:
            self._decodes.close()
            raise

    @property
    def history(self) -> History:
        """The decodes to plot."""
        return self._decodes.history

    def status(self) -> tuple[Status | None, float]:
        """Return the newest status and its age in seconds."""
        return self._latest.get()

    @property
    def missed(self) -> int:
        """Decodes that this viewer lost, by their numbers."""
        return self._decodes.missed

    def close(self) -> None:
        """End the threads and disconnect."""
        self._decodes.close()
        self._latest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
