"""SpikeGLX: the AP band fetched over TCP, threshold crossings or matched templates as spikes.

    spikeglx://HOST[:4142][?probe=0&js=2&block_ms=5&threshold=5&refractory_ms=1&highpass=300
                           &reference=median|none&sync=6]
    spikeglx://HOST[:4142]?mode=templates[&templates=FILE&threshold=3.5&refractory_ms=0.7&...]

SpikeGLX has no spike stream. A thread of this source fetches all AP channels, the C++ core filters
and finds spikes (`neds_rt.sources.raw`), and they go to the server as native frames over an
in-process socket, so that neither waiting for SpikeGLX nor finding is on the serving thread.
With `sync` the sync word of the stream is fetched as well, and rising edges of that bit of it are
a pulse that all probes record; bit 6 is the sync input of an imec stream.
By threshold a unit is a channel: electrode `AP<channel>`, sorted id 0; the noise is measured over
the first second, in which nothing is decoded. By templates, electrode and sorted id are the channel
and the cluster of the sorting.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import zmq

from neds_rt.errors import BadInput
from neds_rt.sources import raw
from neds_rt.sources.address import parse_address
from neds_rt.sources.edges import EdgeFinder, edge_queue
from neds_rt.sources.frame import Frame
from neds_rt.sources.handover import HandedOver, Handover, hand_over
from neds_rt.sources.raw import RawBand, RawOptions
from neds_rt.sources.spikeglx_wire import Connection, Refused, Trouble
from neds_rt.sources.units import UnitMap
from neds_rt.stats import now_ns

DEFAULT_PORT = 4142
SYNC_BITS = 16  # of the sync word
FETCH_S = 0.1  # at most so much a request: what has piled up comes in several
RETRY_S = 0.25
MAX_CHANNELS = 4096
JUMP_S = 1.0  # a count that is so far from what the clock says is another run's

MESSAGES = {
    "unreachable": "nothing takes connections there; trying again",
    "closed": "SpikeGLX closed the connection; connecting anew",
    "no_reply": "SpikeGLX did not reply; connecting anew",
    "truncated": "the connection ended inside a reply; connecting anew",
    "bad_reply": "a reply is not SpikeGLX's (another program's port?); connecting anew",
    "refused": "SpikeGLX refused a command",
    "too_late": "samples were gone before they were fetched: a gap",
    "backwards": "sample numbers went backwards",
    "missing_samples": "samples are missing between two replies",
    "restarts": "acquisition was started anew",
    **raw.MESSAGES,
    "dropped_frames": "the server was too far behind; frames were dropped and leave a gap",
}
COUNTERS = ("fetches", "samples", "spikes", "unknown_spikes", *MESSAGES)


class Options(RawOptions, frozen=True):
    """What stands behind the question mark of the URI."""

    probe: int = 0  # SpikeGLX's ip
    js: int = 2  # 2: imec, -2: imec filtered by SpikeGLX, 1: analog inputs of a OneBox
    block_ms: float = 5.0  # fetched at a time while nothing has piled up
    sync: int | None = None  # bit of the sync word with a pulse that all probes record; imec: 6


class SpikeGlxSource(HandedOver):
    """Spikes found in the raw band of one probe, as native frames."""

    messages = MESSAGES

    def __init__(self, name: str, uri: str, *, units: UnitMap, insecure: bool = False) -> None:
        self.name, self.uri = name, uri
        where = f"--probe {name}"
        self.address, self._options = parse_address(
            where, uri, DEFAULT_PORT, Options, insecure=insecure)
        _check(where, self._options)
        self.edges = edge_queue(where, self._options.sync, SYNC_BITS)
        self.counters = dict.fromkeys(COUNTERS, 0)
        band = RawBand(where, name, self._options, units, self.counters)
        self._handover = Handover()
        self._fetcher = Fetcher(self, band, self._handover, self._options)
        self._fetcher.start()

    def tend(self) -> str:
        """Return what the other thread is at."""
        return self._fetcher.state

    def report(self) -> dict[str, Any]:
        """Return version, rate, channels, noise and units."""
        return self._fetcher.report()

    def close(self) -> None:
        """End the thread and close both sockets."""
        self._fetcher.end()
        self._handover.close()


class Fetcher(threading.Thread):
    """Fetches, finds spikes and hands frames on, for as long as the source lives."""

    def __init__(
        self, source: SpikeGlxSource, band: RawBand, handover: Handover, options: Options
    ) -> None:
        super().__init__(name=f"spikeglx {source.name}", daemon=True)
        self.state = f"connecting to {source.address.host}:{source.address.port}"
        self._where = f"{source.address.host}:{source.address.port}"
        self._address, self._counters, self._options = source.address, source.counters, options
        self._band, self._handover = band, handover
        self._frame = Frame()
        self._stop_asked = threading.Event()
        self._connection: Connection | None = None
        self._version, self._channels, self._fs = "", 0, 0.0
        self._finder: EdgeFinder | None = None
        if source.edges is not None and options.sync is not None:
            self._finder = EdgeFinder(options.sync, source.edges)
        self._sync_channel = 0  # place of the sync word in the stream, behind AP and LF
        self._columns, self._channel_list = 0, ""  # fetched
        self._samples = bytearray()
        self._next: int | None = None  # sample to be fetched
        self._next_s = 0.0  # and when it was due

    def end(self) -> None:
        """Stop and wait for the thread."""
        self._stop_asked.set()
        connection = self._connection
        if connection is not None:
            connection.abort()
        self.join()

    def report(self) -> dict[str, Any]:
        """Return what a summary should say, JSON-ready."""
        return {"version": self._version, **self._band.report()}

    def run(self) -> None:
        """Connect, fetch, and begin again whatever happens."""
        with self._handover.sender() as push:
            while not self._stop_asked.is_set():
                try:
                    self._converse(push)
                except Trouble as trouble:
                    self._note(trouble.kind, str(trouble))
                except OSError as error:
                    self._note("unreachable", str(error))

    def _note(self, kind: str, text: str) -> None:
        if self._stop_asked.is_set():
            return
        self._counters[kind] += 1
        self.state = f"{self._where}: {text}"
        self._stop_asked.wait(RETRY_S)

    def _converse(self, push: zmq.Socket[bytes]) -> None:
        with Connection(self._address) as connection:
            self._connection = connection
            try:
                self._version = connection.query("GETVERSION")
                while not self._stop_asked.is_set():
                    try:
                        if self._prepare(connection):
                            self._fetch_on(connection, push)
                    except Refused as refused:  # a run that is not configured, or has ended
                        self._note(refused.kind, f"SpikeGLX answers, but: {refused}")
            finally:
                self._connection = None

    def _prepare(self, connection: Connection) -> bool:
        """Ask what the stream is like; False while it does not run."""
        js, ip = abs(self._options.js), self._options.probe
        counts = connection.query(f"GETSTREAMACQCHANS {js} {ip}").split()
        rate = connection.query(f"GETSTREAMSAMPLERATE {js} {ip}")
        end = self._count(connection)
        try:
            of_kinds, fs = [int(n) for n in counts], float(rate)
            channels, sync_channel = of_kinds[0], sum(of_kinds[:-1])  # AP, LF, sync words
        except (ValueError, IndexError):
            raise Trouble("bad_reply", f"stream of {counts} channels, {rate} Hz") from None
        if min(of_kinds) < 0 or sum(of_kinds) > MAX_CHANNELS or not math.isfinite(fs):
            raise Trouble("bad_reply", f"stream of {of_kinds} channels, {fs} Hz")
        if not channels or fs <= self._band.least_rate or end == 0:
            self.state = f"{self._where}: SpikeGLX answers, stream {js} {ip} does not run"
            self._stop_asked.wait(RETRY_S)
            return False
        if self._finder is not None and (len(of_kinds) < 2 or not of_kinds[-1]):
            raise Trouble("wrong_stream", "the stream has no sync word to take ?sync= from")
        if (channels, sync_channel, fs) != (self._channels, self._sync_channel, self._fs):
            self._set_up(channels, sync_channel, fs)
            end = self._count(connection)  # setting up a matcher takes a second or more
        self._resume(end)
        self.state = f"fetching {channels} channels at {fs:g} Hz from {self._where}"
        return True

    def _count(self, connection: Connection) -> int:
        """Ask for the stream's samples so far."""
        js, ip = abs(self._options.js), self._options.probe
        count = connection.query(f"GETSTREAMSAMPLECOUNT {js} {ip}")
        if not count.isdecimal():
            raise Trouble("bad_reply", f"sample count {count!r}")
        return int(count)

    def _set_up(self, channels: int, sync_channel: int, fs: float) -> None:
        try:
            self._band.set_up(f"imec{self._options.probe}.ap", channels, fs)
        except BadInput as error:
            raise Trouble("wrong_stream", str(error)) from error
        self._channels, self._sync_channel = channels, sync_channel
        self._fs, self._next = fs, None
        wanted = [*range(channels), *([sync_channel] if self._finder is not None else [])]
        self._columns = len(wanted)
        self._channel_list = "".join(f"{c}#" for c in wanted)
        self._samples = bytearray(2 * self._columns * max(1, round(FETCH_S * fs)))

    def _resume(self, end: int) -> None:
        """Go on where we were, if the stream's count `end` is what it should be by now."""
        now = time.monotonic()
        if self._next is not None:
            due = self._next + (now - self._next_s) * self._fs
            if end >= self._next and abs(end - due) <= JUMP_S * self._fs:
                return
            self._counters["restarts"] += 1
            self._band.restart()
        self._next, self._next_s = end, now

    def _fetch_on(self, connection: Connection, push: zmq.Socket[bytes]) -> None:
        """Fetch for as long as the run lasts; returns when it has to be looked at anew."""
        js, ip, fs = self._options.js, self._options.probe, self._fs
        want = max(1, round(self._options.block_ms * 1e-3 * fs))
        into = memoryview(self._samples)
        while not self._stop_asked.is_set():
            assert self._next is not None
            try:
                n, head = connection.fetch(
                    js, ip, self._next, self._channel_list, self._columns, into)
            except Refused as refused:
                if refused.kind != "too_late":
                    raise
                self._counters["too_late"] += 1
                self._skip_to_now(connection)
                continue
            self._counters["fetches"] += 1
            if n:
                if not self._follows(head):
                    return
                self._find(into[: 2 * n * self._columns], n, head, push)
            elif time.monotonic() - self._next_s > JUMP_S:
                return
            if n < want:
                self._stop_asked.wait((want - n) / fs)

    def _skip_to_now(self, connection: Connection) -> None:
        count = self._count(connection)
        self._band.gap()
        self._next, self._next_s = count, time.monotonic()

    def _follows(self, head: int) -> bool:
        """Compare the first sample with the one asked for; False for one that lies before it."""
        assert self._next is not None
        if head < self._next:
            self._counters["backwards"] += 1
            self._counters["restarts"] += 1
            self._next = None
            self._band.restart()
            return False
        if head > self._next:
            self._counters["missing_samples"] += head - self._next
            self._band.gap()
        return True

    def _find(self, data: memoryview, n: int, head: int, push: zmq.Socket[bytes]) -> None:
        samples: Any = data
        if self._finder is not None:  # the last column is the sync word
            words = np.frombuffer(data, "<i2").reshape(n, self._columns)
            self._finder.take(words[:, -1], head, now_ns())
            samples = np.ascontiguousarray(words[:, :-1])
        told = self._band.push(samples, n, head, self._frame)
        self._next, self._next_s = head + n, time.monotonic()
        if not told:
            return
        if not hand_over(push, self._frame):
            self._counters["dropped_frames"] += 1


def _check(where: str, options: Options) -> None:
    for name, least, most in (("probe", 0, 255), ("block_ms", 0.5, 100.0)):
        value = getattr(options, name)
        if not least <= value <= most:
            raise BadInput(where, "URI option", f"{name}={value}", f"{least:g} to {most:g}")
    if options.js not in (-2, 1, 2):
        raise BadInput(where, "URI option", f"js={options.js}", "2, -2 or 1")
