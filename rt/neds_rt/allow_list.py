"""An allow-list that may change while it is in use, and what is done to those taken off it.

A list is looked at now and then. When its files are no longer what they were, and have stayed as
they are from one look to the next (so that none is half written), they are read again. A list that
cannot be read leaves the keys as they were; one that is read and is empty lets nobody in.

ZeroMQ asks about a client once, when it connects, and has no way to end a connection. So those of
the endpoint are shut down below it when a key was taken off: clients connect anew by themselves
within a tenth of a second, and are asked about again.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path

from neds_rt.curve import allowed_keys
from neds_rt.errors import BadInput

LOOK_S = 0.5  # between two looks
DESCRIPTORS = ("/proc/self/fd", "/dev/fd")  # of this process; Linux, macOS

logger = logging.getLogger("neds_rt.curve")


class AllowList:
    """The keys of a file or a folder, as they were last read."""

    def __init__(self, path: str, keys: frozenset[bytes]) -> None:
        self.path, self.keys = path, keys
        # Nothing yet: what changed between the first reading and the first look is seen as well.
        self._read: Hashable = None
        self._found: Hashable = None

    def look(self) -> frozenset[bytes] | None:
        """Return the keys taken off if the list is another one now, None if it is not."""
        found = _state(Path(self.path))
        settled = found == self._found
        self._found = found
        if not settled or found == self._read:
            return None
        self._read = found
        try:
            now = allowed_keys(self.path)
        except (BadInput, OSError, ValueError) as error:
            logger.warning("the list of keys stays as it was: %s", error)
            return None
        if now == self.keys:
            return None
        added, removed = now - self.keys, self.keys - now
        self.keys = now
        logger.warning("%s: %d keys are let in now, %d more and %d fewer than before", self.path,
                       len(now), len(added), len(removed))
        return removed


def _state(path: Path) -> Hashable:
    """Return what differs after any change of a file, or of the `*.key` in a folder."""
    try:
        if not path.is_dir():
            return _stamp(path)
        return tuple((str(file), _stamp(file)) for file in sorted(path.glob("*.key")))
    except OSError as error:
        return error.errno


def _stamp(path: Path) -> Hashable:
    found = path.stat()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def cut_connections(endpoint: str) -> int:
    """Shut down all connections that this process has accepted at an endpoint; returns how many.

    Where a system does not list descriptors (Windows) there are none to be found.
    """
    folder = next((name for name in DESCRIPTORS if os.path.isdir(name)), None)
    if folder is None:
        return 0
    cut = 0
    for name in os.listdir(folder):
        with suppress(OSError, ValueError):  # one that is closed by now, or the listing's own
            cut += _cut(os.dup(int(name)), endpoint)
    return cut


def _cut(descriptor: int, endpoint: str) -> bool:
    """Shut down what a descriptor stands for if it is such a connection; closes the descriptor.

    Raises `OSError` for what is no connection.
    """
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return False
    with socket.socket(fileno=descriptor) as sock:
        sock.getpeername()  # which one that listens does not have
        if not _is_at(sock, endpoint):
            return False
        sock.shutdown(socket.SHUT_RDWR)
        return True


def _is_at(sock: socket.socket, endpoint: str) -> bool:
    transport, _, address = endpoint.partition("://")
    own = sock.getsockname()
    if transport == "ipc":
        return own in (address, b"\0" + os.fsencode(address[1:]))
    internet = sock.family in (socket.AF_INET, socket.AF_INET6)
    return internet and str(own[1]) == address.rpartition(":")[2]
