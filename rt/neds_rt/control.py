"""The control socket of a server: a Unix socket that only its own user can reach.

One request and one reply a connection, each a little-endian uint32 length and a MessagePack map of
that many bytes. The socket has mode 0600 in a directory of mode 0700 that belongs to the user, and
whoever connects is asked for by the kernel (`SO_PEERCRED`, where there is such a thing): another
user, root but for root's own servers included, is cut off unheard.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from neds_rt.errors import BadInput, NedsError, StartError

MAX_REQUEST = 16 * 1024
MAX_REPLY = 1 << 20
MAX_PATH_BYTES = 100  # of a Unix socket's name: 103 on macOS, 107 on Linux
CLIENTS = 8  # served at a time
REQUEST_S = 5.0  # in which a client has to say what it wants
LENGTH = struct.Struct("<I")
UCRED = struct.Struct("3i")  # pid, uid, gid


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks for."""

    command: Literal["info", "load", "rollback"]
    path: str = ""  # absolute, of the bundle to load
    shadow_bins: int | None = None


class Reply(msgspec.Struct, frozen=True):
    """What it is told: `result`, or one line and the exit code that goes with it."""

    ok: bool
    result: dict[str, Any] = {}
    error: str = ""
    code: int = 0


_decoder = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_encode = msgspec.msgpack.Encoder().encode


class ControlSocket:
    """Answers requests from threads of its own, with what `handle` returns or raises."""

    def __init__(self, path: str, handle: Callable[[Request], dict[str, Any]]) -> None:
        """Bind at `path`. Raises `BadInput` for a directory or a name that will not do."""
        self.path = Path(path)
        self.refused = 0  # connections of other users, or too many, or that were no requests
        self._handle = handle
        self._free = threading.BoundedSemaphore(CLIENTS)
        self._socket = _bind(self.path)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more and remove the socket; what is going on ends with the process."""
        with suppress(OSError):  # some systems have nothing to shut down on a listening socket
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if not _is_own_user(connection) or not self._free.acquire(blocking=False):
                self.refused += 1
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(REQUEST_S)
                reply = self._answer(receive(connection, MAX_REQUEST))
                connection.settimeout(REQUEST_S)
                send(connection, _encode(reply))
        except (OSError, EOFError, ValueError):
            self.refused += 1
        finally:
            self._free.release()

    def _answer(self, data: bytes) -> Reply:
        try:
            return Reply(True, self._handle(_decoder.decode(data)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Reply(False, error=" ".join(f"control request: {error}".split()), code=2)
        except NedsError as error:
            return Reply(False, error=str(error), code=error.exit_code)
        except Exception as error:  # a server goes on whatever a bundle or an engine does
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return Reply(False, error=text, code=4)


def ask(path: str, request: Request, timeout: float) -> dict[str, Any]:
    """Send one request to the server whose control socket is at `path`; returns its result.

    Raises `StartError` when no server answers, and what the server refused as the error it was.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(path)
            send(sock, _encode(request))
            reply = _replies.decode(receive(sock, MAX_REPLY))
        except (OSError, EOFError, ValueError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise StartError(f"{path}: no answer from a server ({text})") from None
    if not reply.ok:
        failure = NedsError(reply.error)
        failure.exit_code = reply.code
        raise failure
    return reply.result


def send(sock: socket.socket, data: bytes) -> None:
    """Send one message."""
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive(sock: socket.socket, limit: int) -> bytes:
    """Return one message; raises `ValueError` above `limit` bytes, `EOFError` for a part of one."""
    (size,) = LENGTH.unpack(_exactly(sock, LENGTH.size))
    if size > limit:
        raise ValueError(f"a message of {size} bytes, expected at most {limit}")
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the connection was closed")
        data += part
    return data


def _is_own_user(connection: socket.socket) -> bool:
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:  # macOS: the directory's mode is what there is
        return True
    _, uid, _ = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, option, UCRED.size))
    return bool(uid == os.geteuid())


def _bind(path: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise BadInput("serve", "--control", "a system without Unix sockets", "Linux or macOS")
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise BadInput("serve", "--control", f"a name of {len(os.fsencode(path))} bytes",
                       f"at most {MAX_PATH_BYTES}")
    _check_directory(path.parent)
    sock = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        sock.bind(str(path))  # in a directory that nobody else can enter
        os.chmod(path, 0o600)
        sock.listen(CLIENTS)
    except OSError as error:
        sock.close()
        raise BadInput(path, "--control", error, "a place for a socket") from None
    except BadInput:
        sock.close()
        raise
    return sock


def _check_directory(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise BadInput(folder, "--control directory", error, "one of mode 0700") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        text = f"mode {stat.S_IMODE(found.st_mode):04o} of user {found.st_uid}"
        expected = f"mode 0700 of user {os.geteuid()}: nobody else may enter"
        raise BadInput(folder, "--control directory", text, expected)


def _clear(path: Path) -> None:
    """Remove the socket of a server that is no more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise BadInput(path, "--control", "a file", "a free name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise BadInput(path, "--control", "in use by another server", "a free name")
