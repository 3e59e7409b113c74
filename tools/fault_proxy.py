"""A proxy between an Open Ephys twin and the server, that mangles what passes as it is told.

It listens on a pair of ports as ZMQ Interface does, data and heartbeat, on a thread of its own.
Messages pass whole, in order and at once until `begin` gives it something worse to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Self

import zmq

Parts = list[bytes]
Mangle = Callable[[Parts], list[Parts]]

POLL_MS = 5  # how soon an order is seen to while nothing passes


class Proxy:
    """Carries one plugin's messages to a server, and its heartbeats back."""

    def __init__(self, upstream: int) -> None:
        """Connect to the plugin's ports `upstream` and the next; listen on `port` and the next."""
        self.passed = self.harmed = 0  # messages seen to, and those of them not passed on as is
        self.harmed_ns = 0  # when the first was since `begin`
        self._mangle: Mangle | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._plugin = self._open(zmq.SUB)
        self._plugin.setsockopt(zmq.RCVHWM, 0)
        self._plugin.subscribe(b"")
        self._plugin.connect(f"tcp://127.0.0.1:{upstream}")
        self._beats_out = self._open(zmq.DEALER)
        self._beats_out.connect(f"tcp://127.0.0.1:{upstream + 1}")
        self._server, self._beats_in = self._open(zmq.XPUB), self._open(zmq.ROUTER)
        self._server.setsockopt(zmq.SNDHWM, 0)
        self.port = self._bind(upstream + 2)
        self._orders: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, mangle: Mangle) -> None:
        """From now on send, for every message, the messages that `mangle` makes of it."""
        self.harmed_ns = 0
        self._mangle = mangle

    def end(self) -> None:
        """From now on pass messages as they are."""
        self._mangle = None

    def unbind(self) -> None:
        """Stop listening for the server: its connection breaks."""
        self._do(self._unbind)

    def bind(self) -> None:
        """Listen again, on the same port."""
        self._do(self._listen)

    def close(self) -> None:
        """Close all ports."""
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        return socket

    def _bind(self, port: int) -> int:
        """Bind two ports in a row that nobody has."""
        while True:
            try:
                self._server.bind(f"tcp://127.0.0.1:{port}")
            except zmq.ZMQError:
                port += 2
                continue
            try:
                self._beats_in.bind(f"tcp://127.0.0.1:{port + 1}")
            except zmq.ZMQError:
                self._server.unbind(f"tcp://127.0.0.1:{port}")
                port += 2
                continue
            return port

    def _listen(self) -> None:
        self._server = self._open(zmq.XPUB)
        self._server.setsockopt(zmq.SNDHWM, 0)
        self._server.bind(f"tcp://127.0.0.1:{self.port}")

    def _unbind(self) -> None:
        self._server.close()  # unbinding alone leaves connections as they are
        self.harmed_ns = self.harmed_ns or time.monotonic_ns()

    def _do(self, order: Callable[[], None]) -> None:
        """Have the thread, which owns the sockets, do something; wait until it has."""
        done = threading.Event()
        self._orders.put((order, done))
        done.wait()

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._plugin, self._beats_in, self._beats_out):
            poller.register(socket, zmq.POLLIN)
        while not self._stop.is_set():
            self._obey()
            ready = dict(poller.poll(POLL_MS))
            if self._plugin in ready:
                self._pass_on(self._plugin.recv_multipart())
            for source, target in ((self._beats_in, self._beats_out),
                                   (self._beats_out, self._beats_in)):
                if source in ready:
                    target.send_multipart(source.recv_multipart())

    def _obey(self) -> None:
        try:
            order, done = self._orders.get_nowait()
        except Empty:
            return
        order()
        done.set()

    def _pass_on(self, parts: Parts) -> None:
        mangle = self._mangle
        sent = [parts] if mangle is None else mangle(parts)
        if sent != [parts]:
            self.harmed += 1
            self.harmed_ns = self.harmed_ns or time.monotonic_ns()
        if not self._server.closed:
            for each in sent:
                self._server.send_multipart(each)
        self.passed += 1
