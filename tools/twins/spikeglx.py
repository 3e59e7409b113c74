"""Twin of SpikeGLX's command server: the queries a client asks, and FETCH of a stream.

    python -m tools.twins.spikeglx --port 4142 --channels 384
    python -m tools.twins.spikeglx --file run_g0_t0.imec0.ap.bin --channels 385
    python -m tools.twins.spikeglx --generate  # where SpikeInterface is installed

As the real one: commands are lines, replies end in `OK` or are one `ERROR` line; five errors in a
row close the connection, and so do ten seconds without a command; samples older than the queue are
"Too late"; a fetch of what is not there yet waits up to three times for 24 samples (two packets of
a probe) and then sends none. Plays `data` over and over, at real time or as far as `advance` says.
"""

from __future__ import annotations

import argparse
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput
from tools.twins.generated import generate

VERSION = "20250325-phase30"
QUEUE_S = 8.0
MAX_ERRORS = 5
LOOP_S = 8.0  # of samples made, then they begin anew
PACKETS = 24  # samples that a fetch waits for
IDLE_S = 10.0  # without a command: the connection is closed
STEP_UV = 2.34375
FILTERED, ONEBOX, IMEC = -2, 1, 2  # streams, by `js`


class SpikeGlxTwin:
    """The server, bound to a port of this machine, in threads of its own.

    `data` is (n, AP channels) int16. `lf` channels of zeros follow them, and the sync word: zeros,
    or `sync` (m,) int16, which is played over and over on its own. `others` are the samples of
    further streams that count as it does: -2, what SpikeGLX filters where that is enabled, and 1,
    the analog inputs of a OneBox, followed by a digital word and the sync word.
    With `paced` False the count stands still until `advance`. `fault` spoils the next fetch:
    `close`, `truncate`, `garbage`, `no_ok`, `hang`, `too_many`, `backwards`, `error`.
    """

    def __init__(
        self, data: NDArray[np.int16], *, fs: float = 30_000.0, port: int = 0, paced: bool = True,
        queue_s: float = QUEUE_S, lf: int = 0, sync: NDArray[np.int16] | None = None,
        idle_s: float = IDLE_S, others: Mapping[int, NDArray[np.int16]] | None = None,
    ) -> None:
        self.data, self.fs, self.queue_s, self._paced = data, fs, queue_s, paced
        self.others = dict(others or {})
        self.lf, self.sync = lf, np.zeros(1, np.int16) if sync is None else sync
        self.running, self.fault, self.fetches = True, "", 0
        self._count, self._began = 0, time.monotonic()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        twin = self

        class Handler(socketserver.StreamRequestHandler):
            disable_nagle_algorithm, timeout = True, idle_s

            def handle(self) -> None:
                twin._converse(self.rfile, self.wfile, self.connection)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads = True, True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def count(self) -> int:
        """Samples acquired so far."""
        with self._lock:
            if self._paced and self.running:
                return self._count + int((time.monotonic() - self._began) * self.fs)
            return self._count

    def advance(self, n: int) -> None:
        """Acquire n more samples now."""
        with self._lock:
            self._count += n

    def restart(self, count: int = 0) -> None:
        """Start a new run, with so many samples in it already."""
        with self._lock:
            self._count, self._began, self.running = count, time.monotonic(), True

    def stop_run(self) -> None:
        """End the run: the stream has no queue."""
        count = self.count
        with self._lock:
            self._count, self.running = count, False

    def samples(self, start: int, n: int, js: int = IMEC) -> NDArray[np.int16]:
        """Return (n, channels) of a stream, its first kind of channels only."""
        data = self.data if js == IMEC else self.others[js]
        start %= len(data)
        if start + n <= len(data):
            return data[start : start + n]
        return data[np.arange(start, start + n) % len(data)]

    def _kinds(self, js: int) -> tuple[int, int, int]:
        """Return how many channels of each kind a stream has: AP, LF, sync, or XA, XD, sync."""
        if js == ONEBOX:
            return self.others[ONEBOX].shape[1], 1, 1
        return self.data.shape[1], self.lf, 1

    def _all(self, start: int, n: int, js: int) -> NDArray[np.int16]:
        """Return (n, channels of all kinds) of a stream."""
        words = self.sync[np.arange(start, start + n) % len(self.sync)]
        between = np.zeros((n, self._kinds(js)[1]), np.int16)
        whole: NDArray[np.int16] = np.c_[self.samples(start, n, js), between, words]
        return whole

    def close(self) -> None:
        """Stop listening and drop all connections."""
        self._closing.set()
        self._server.shutdown()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> SpikeGlxTwin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _converse(self, rfile: Any, wfile: Any, connection: socket.socket) -> None:
        self._connections.add(connection)
        errors = 0
        try:
            while errors < MAX_ERRORS and (line := rfile.readline(1 << 16)):
                words = line.decode(errors="replace").split()
                if not words:
                    continue
                if words[0] in ("BYE", "QUIT", "EXIT", "CLOSE"):
                    return
                try:
                    reply = self._reply(words[0].upper(), words[1:])
                except (ValueError, IndexError) as error:
                    errors += 1
                    wfile.write(f"ERROR {error}\n".encode())
                    continue
                errors = 0
                if reply is None:
                    return
                wfile.write(reply)
        except ConnectionAbortedError as cut:
            wfile.write(cut.args[0])
        except OSError:
            return
        finally:
            self._connections.discard(connection)

    def _reply(self, command: str, words: list[str]) -> bytes | None:
        if command == "FETCH":
            return self._spoiled(words)
        if command == "NOOP":
            return b"OK\n"
        text = self._answer(command, words)
        if text is None:
            raise ValueError(f"CmdWorker: Unknown command [{command}].")
        return f"{text}\nOK\n".encode()

    def _answer(self, command: str, words: list[str]) -> str | None:
        if command == "GETVERSION":
            return VERSION
        if command == "ISRUNNING":
            return str(int(self.running))
        if command == "GETRUNNAME":
            return "twin"
        if command == "GETSTREAMNP":
            return str(int(abs(int(words[0])) == IMEC or int(words[0]) in self.others))
        if not command.startswith("GETSTREAM"):
            return None
        kinds = self._kinds(self._stream(command, words))
        return {
            "GETSTREAMACQCHANS": " ".join(map(str, kinds)),
            "GETSTREAMSAMPLERATE": f"{self.fs:.6f}",
            "GETSTREAMSAMPLECOUNT": str(self.count if self.running else 0),
            "GETSTREAMI16TOVOLTS": f"{STEP_UV * 1e-6:g}",
            "GETSTREAMMAXINT": "512",
            "GETSTREAMSAVECHANS": " ".join(map(str, range(sum(kinds)))),
        }.get(command)

    def _stream(self, command: str, words: list[str]) -> int:
        """Return the stream that a command names."""
        js, ip = int(words[0]), int(words[1])
        if js not in (FILTERED, 0, ONEBOX, IMEC):
            raise ValueError(f"{command}: js must be in range [0..2].")
        n = int(abs(js) == IMEC or js in self.others)
        if not 0 <= ip < n:
            raise ValueError(f"{command}: ip must be in range [0..{n - 1}].")
        return js

    def _spoiled(self, words: list[str]) -> bytes | None:
        fault, self.fault = self.fault, ""
        if fault == "backwards" and self.count <= int(words[2]):  # nothing to spoil yet
            fault, self.fault = "", fault
        if fault == "close":
            return None
        if fault == "error":
            raise ValueError("FETCH: Low mem.")
        if fault == "hang":
            self._closing.wait(30)
            return None
        reply = self._fetch(words, back=1000 if fault == "backwards" else 0)
        if fault == "garbage":
            return b"HTTP/1.1 400 Bad Request\r\n" + reply
        if fault == "too_many":
            return b"BINARY_DATA 4 999999999 uint64(5)\n" + reply
        if fault == "truncate":
            raise ConnectionAbortedError(reply[: len(reply) // 2])
        return reply[:-3] + b"NO\n" if fault == "no_ok" else reply

    def _fetch(self, words: list[str], back: int = 0) -> bytes:
        if len(words) < 4:
            raise ValueError("FETCH: Requires at least 4 params.")
        js = self._stream("FETCH", words)
        if not self.running or (js != IMEC and js not in self.others):
            raise ValueError("FETCH: Not running or stream not enabled.")
        start, most = int(words[2]), int(words[3])
        for _ in range(3):
            end = self.count
            if start < end - round(self.queue_s * self.fs):
                raise ValueError("FETCH: Too late.")
            if start < end:
                break
            time.sleep(min(max((start + PACKETS - end) / self.fs, 250e-6), 2e-3))
        n = min(max(end - start, 0), most)
        chosen = words[4] if len(words) > 4 else "-1#"
        if chosen in ("-1#", "-2#"):
            found = self._all(start, n, js)
        else:
            # As the server does: a set, sent in the order that the stream has.
            channels = sorted({int(c) for c in chosen.rstrip("#").split("#")})
            kinds = self._kinds(js)
            if channels[-1] >= sum(kinds) or channels[0] < 0:
                raise ValueError("Subset: Channel out of range.")
            if channels == list(range(kinds[0])):  # all of them are there as they are
                found = self.samples(start, n, js)
            else:
                found = self._all(start, n, js)[:, channels]
        step = int(words[5]) if len(words) > 5 else 1
        found = found[:: max(1, step)]
        self.fetches += 1
        head = f"BINARY_DATA {found.shape[1]} {len(found)} uint64({start - back})\n"
        return head.encode() + found.astype("<i2").tobytes() + b"OK\n"


def sync_words(fs: float = 30_000.0, bit: int = 6) -> NDArray[np.int16]:
    """Return the sync word over a second: the square wave of 1 Hz that SpikeGLX makes."""
    n = round(fs)
    return ((np.arange(n) >= n // 2).astype(np.int16) << bit).astype(np.int16)


def make_ap_band(
    channels: int, seconds: float, *, fs: float = 30_000.0, rate_hz: float = 5.0, seed: int = 0
) -> tuple[NDArray[np.int16], NDArray[np.int64], NDArray[np.int64]]:
    """Return an AP band (n, channels) and the sample and channel of every spike in it.

    Each channel has an offset of its own, white noise of 8, slow waves that all share, and one
    unit whose spikes reach -80 to -160 there and a quarter of that beside it.
    """
    rng = np.random.default_rng(seed)
    n = round(seconds * fs)
    data = rng.normal(0, 8, (n, channels)).astype(np.float32)
    t = np.arange(n) / fs
    data += (60 * np.sin(2 * np.pi * 9 * t) + 15 * np.sin(2 * np.pi * 700 * t))[:, None]
    data += rng.integers(-200, 200, channels)
    shape = np.arange(40) / fs
    shape = -np.exp(-((shape - 4e-4) ** 2) / 8e-9) + 0.3 * np.exp(-((shape - 8e-4) ** 2) / 4e-8)
    times, where = [], []
    for channel in range(channels):
        size = rng.uniform(80, 160)
        gaps = rng.exponential(1 / rate_hz, int(4 * rate_hz * seconds) + 4) + 0.003
        spikes = (np.cumsum(gaps) * fs).astype(np.int64)
        spikes = spikes[spikes < n - 60]
        for neighbour, part in ((channel - 1, 0.25), (channel, 1.0), (channel + 1, 0.25)):
            if 0 <= neighbour < channels:
                for start in spikes.tolist():
                    data[start : start + 40, neighbour] += size * part * shape
        times.append(spikes + 12)  # where the trough is
        where.append(np.full(len(spikes), channel))
    order = np.argsort(np.concatenate(times), kind="stable")
    whole = np.clip(np.rint(data), -32768, 32767).astype(np.int16)
    return whole, np.concatenate(times)[order], np.concatenate(where)[order].astype(np.int64)


def main() -> int:
    """Serve until interrupted, or play for a while when a line says so."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=4142, help="default 4142")
    parser.add_argument("--channels", type=int, default=384, help="of the stream or the file")
    samples = parser.add_mutually_exclusive_group()
    samples.add_argument("--file", type=Path, help="int16 samples, sample-major, played in a loop")
    samples.add_argument("--generate", action="store_true", help="samples by SpikeInterface")
    parser.add_argument("--seed", type=int, default=0, help="of the samples, without a file")
    parser.add_argument("--sync", action="store_true", help="1 Hz on bit 6 of the sync word")
    parser.add_argument("--on-line", action="store_true", help="run only after a line of input")
    parser.add_argument("--seconds", type=float, default=20.0, help="of that run (default 20)")
    args = parser.parse_args()
    if args.file:
        data: NDArray[np.int16] = np.memmap(args.file, np.int16, "r").reshape(-1, args.channels)
    elif args.generate:
        try:
            data = generate(args.channels, LOOP_S, seed=args.seed).steps(STEP_UV)
        except BadInput as error:
            print(error, file=sys.stderr)
            return 2
    else:
        data = make_ap_band(args.channels, LOOP_S, seed=args.seed)[0]
    with SpikeGlxTwin(data, port=args.port, sync=sync_words() if args.sync else None) as twin:
        if args.on_line:
            play_once(twin, args.seconds)
            return 0
        print(f"spikeglx://127.0.0.1:{twin.port}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


def play_once(twin: SpikeGlxTwin, seconds: float) -> None:
    """Run for `seconds` after a line of input; prints where it is, and when sample 0 was."""
    twin.stop_run()
    print(json.dumps({"port": twin.port}), flush=True)
    sys.stdin.readline()
    began = time.monotonic_ns()
    twin.restart()
    time.sleep(seconds)
    twin.stop_run()
    print(json.dumps({"spikes": 0, "dropped": 0, "gaps": 0, "starts_ns": [began]}), flush=True)
    sys.stdin.readline()  # stay there, as the real program does


if __name__ == "__main__":
    raise SystemExit(main())
