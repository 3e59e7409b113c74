"""Answers ZeroMQ's question whether a client's key is on the list (ZAP, ZeroMQ RFC 27).

libzmq asks over an inproc socket of the context, once a handshake; a thread of its own answers, so
that no other thread waits for a stranger. Every binding has a domain and an allow-list of its own.
`ZAP_ENFORCE_DOMAIN` makes libzmq refuse everybody when nobody answers. The same thread looks after
the lists that were read from files (`neds_rt.allow_list`): a change holds within about a second.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Any

import zmq
from zmq.utils import z85

from neds_rt.allow_list import LOOK_S, AllowList, cut_connections

ADDRESS = "inproc://zeromq.zap.01"
VERSION = b"1.0"
LOGGED = 20  # refusals said in words; all are counted

logger = logging.getLogger("neds_rt.curve")


class Gatekeeper:
    """The allow-lists of one context. Ends with the context: `term` closes what it waits on."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.admitted = self.refused = 0
        self._lists: dict[bytes, frozenset[bytes]] = {}
        self._files: dict[bytes, AllowList] = {}
        self._endpoints: dict[bytes, str] = {}  # where clients of a list have connected
        # Made directly: a socket that the context knew of would be closed from another thread
        # by `Context.destroy`, where `term` asks the thread that waits on it.
        self._socket: zmq.Socket[bytes] = zmq.Socket(context, zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, round(1e3 * LOOK_S))
        self._socket.bind(ADDRESS)
        threading.Thread(target=self._run, name="curve", daemon=True).start()

    def add(self, allowed: frozenset[bytes], path: str = "") -> bytes:
        """Return the name of a new domain that lets these public keys (Z85) in.

        With a `path` they are those of that file or folder, also after it has changed.
        """
        domain = b"neds-%d" % len(self._lists)
        self._lists[domain] = allowed
        if path:
            self._files[domain] = AllowList(path, allowed)
        return domain

    def bound(self, domain: bytes, endpoint: str) -> None:
        """Say where a domain's clients connect, so that those taken off its list can be cut."""
        self._endpoints[domain] = endpoint

    def _run(self) -> None:
        looked = time.monotonic()
        try:
            while True:
                try:
                    question = self._socket.recv_multipart()
                except zmq.Again:
                    question = None
                if question is not None:
                    self._socket.send_multipart(self._answer(question))
                if time.monotonic() - looked >= LOOK_S:
                    self._look()
                    looked = time.monotonic()
        except zmq.ZMQError:  # the context ends
            self._socket.close()

    def _look(self) -> None:
        for domain, file in list(self._files.items()):
            removed = file.look()
            if removed is None:
                continue
            self._lists[domain] = file.keys
            if removed and domain in self._endpoints:
                n = cut_connections(self._endpoints[domain])
                logger.warning("%d connections are made anew, but for those of keys that are off "
                               "the list", n)

    def _answer(self, question: list[bytes]) -> list[bytes]:
        """Return the reply to [version, id, domain, address, identity, mechanism, credentials]."""
        number = question[1] if len(question) > 1 else b""
        good = len(question) == 7 and question[0] == VERSION and question[5] == b"CURVE"
        if good and len(question[6]) == 32:
            key = z85.encode(question[6])
            if key in self._lists.get(question[2], frozenset()):
                self.admitted += 1
                return [VERSION, number, b"200", b"OK", key, b""]
            self._refuse(question[3], key.decode())
        else:
            self._refuse(b"?", "no CURVE key")
        return [VERSION, number, b"400", b"unknown key", b"", b""]

    def _refuse(self, address: bytes, who: str) -> None:
        self.refused += 1
        if self.refused <= LOGGED:
            logger.warning("refused a client at %s: key %s is not on the list (--curve-allow)",
                           address.decode("ascii", "replace"), who)


_keepers: weakref.WeakKeyDictionary[zmq.Context[Any], Gatekeeper] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def gatekeeper(context: zmq.Context[Any]) -> Gatekeeper:
    """Return the context's gatekeeper, started with the first call."""
    with _lock:
        keeper = _keepers.get(context)
        if keeper is None:
            keeper = _keepers[context] = Gatekeeper(context)
        return keeper
