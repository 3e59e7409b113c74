"""A wire between a probe and the server that can be cut in the middle of a frame.

Bytes pass as they come until `cut`: then half of what comes next passes, and the connection breaks
on both sides. Whoever dials again gets through.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time

CHUNK = 1 << 16
LEAST_CUT = 64  # bytes, so that it is a frame that is cut and not a handshake or a heartbeat


class Wire:
    """Listens at `port` and carries every connection on to another port of this machine."""

    def __init__(self, target: int) -> None:
        self.cut_ns = 0  # when the last cut was made
        self._target, self._cut = target, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._other: dict[socket.socket, socket.socket] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Break the connection in the middle of the next frame."""
        self.cut_ns, self._cut = 0, True

    def close(self) -> None:
        """Break all connections and stop listening."""
        self._stop.set()
        self._thread.join()
        for end in list(self._other):
            end.close()
        self._listener.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._listener:
                    self._accept()
                elif end in self._other:  # its other end may have broken in this very round
                    self._carry(end)

    def _accept(self) -> None:
        dialled, _ = self._listener.accept()
        try:
            target = socket.create_connection(("127.0.0.1", self._target), 1.0)
        except OSError:
            dialled.close()
            return
        for end, other in ((dialled, target), (target, dialled)):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(1.0)
            self._other[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _carry(self, end: socket.socket) -> None:
        other = self._other[end]
        try:
            data = end.recv(CHUNK)
            cut = self._cut and len(data) >= LEAST_CUT
            other.sendall(data[: len(data) // 2] if cut else data)
        except OSError:
            data, cut = b"", False
        if cut:
            self._cut, self.cut_ns = False, time.monotonic_ns()
        if cut or not data:
            for each in (end, other):
                del self._other[each]
                self._selector.unregister(each)
                each.close()
