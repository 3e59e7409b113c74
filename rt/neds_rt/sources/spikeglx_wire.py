"""SpikeGLX's command server as a client sees it: text commands, one-line replies, raw samples.

A command is a line. Its reply is at most one line of text here, then `OK`, or `ERROR` and why.
`FETCH js ip from max channels downsample` replies `BINARY_DATA nchans nsamps uint64(headCt)`, then
int16 samples, sample-major, then `OK`. Everything read is bounded and checked: the server may be
another program, another version, or closing down.
"""

from __future__ import annotations

import io
import re
import socket
from typing import Self

from neds_rt.sources.address import Address

TIMEOUT_S = 2.0  # for a reply; a fetch itself waits at most 6 ms for samples
MAX_LINE_BYTES = 4096
_BINARY = re.compile(rb"BINARY_DATA (\d{1,6}) (\d{1,9}) uint64\((\d{1,19})\)")


class Trouble(Exception):
    """A conversation that went wrong; `kind` is the counter it goes under."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Refused(Trouble):
    """The server understood and said no; the conversation goes on."""


class Connection:
    """One TCP connection. Any `Trouble` but `Refused` leaves it unusable. Raises `OSError`."""

    def __init__(self, address: Address, timeout_s: float = TIMEOUT_S) -> None:
        host = address.host.strip("[]")
        self._socket = socket.create_connection((host, address.port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = io.BufferedReader(self._socket.makefile("rb", buffering=0), 1 << 16)

    def query(self, command: str) -> str:
        """Return the line that a command replies with, empty for one that only says `OK`."""
        self._send(command)
        found = ""
        while (line := self._line()) != b"OK":
            if line.startswith(b"ERROR"):
                raise _refused(line)
            if found:
                raise Trouble("bad_reply", f"{command}: more than one line")
            found = line.decode(errors="replace")
        return found

    def fetch(
        self, js: int, ip: int, start: int, channels: str, n_channels: int, into: memoryview
    ) -> tuple[int, int]:
        """Read the samples that there are from `start` on into `into`, bytes of int16.

        `channels` is the list as the server wants it. Returns how many samples came and the
        number of the first; raises `Refused` of kind `too_late` where `start` is no longer kept.
        """
        most = len(into) // (2 * n_channels)
        self._send(f"FETCH {js} {ip} {start} {most} {channels} 1")
        line = self._line()
        if line.startswith(b"ERROR"):
            raise _refused(line)
        match = _BINARY.fullmatch(line)
        if match is None:
            raise Trouble("bad_reply", f"FETCH: {line[:60]!r}")
        columns, n, head = (int(part) for part in match.groups())
        if (n and columns != n_channels) or n > most:
            raise Trouble("bad_reply", f"FETCH: {n} samples of {columns} channels")
        size = 2 * n * n_channels
        if self._file.readinto(into[:size]) != size:
            raise Trouble("truncated", "closed inside a reply")
        if self._line() != b"OK":
            raise Trouble("bad_reply", "FETCH: no OK after the samples")
        return n, head

    def abort(self) -> None:
        """End whatever waits for the server, from another thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, command: str) -> None:
        try:
            self._socket.sendall(command.encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Trouble("closed", "the server closed the connection") from error

    def _line(self) -> bytes:
        try:
            line = self._file.readline(MAX_LINE_BYTES)
        except ConnectionResetError as error:
            raise Trouble("closed", "the server closed the connection") from error
        except TimeoutError as error:
            raise Trouble("no_reply", f"no reply for {TIMEOUT_S:g} s") from error
        if line.endswith(b"\n"):
            return line.rstrip(b"\r\n")
        if len(line) >= MAX_LINE_BYTES:
            raise Trouble("bad_reply", "a line without an end")
        raise Trouble("truncated" if line else "closed", "the server closed the connection")


def _refused(line: bytes) -> Refused:
    text = line[5:].strip().decode(errors="replace")
    return Refused("too_late" if "Too late" in text else "refused", text)
