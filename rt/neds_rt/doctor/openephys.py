"""What an Open Ephys plugin sends, listened to for a few seconds, and what is mis-selected."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter

import msgspec
import numpy as np
import zmq

from neds_rt.doctor import Check
from neds_rt.sources.heartbeat import open_subscriber
from neds_rt.sources.oebroadcast import SPIKE_KIND, TTL_KIND
from neds_rt.sources.openephys_wire import (
    ENVELOPES,
    DataMessage,
    EventMessage,
    Message,
    SpikeMessage,
    read_header,
)
from neds_rt.sources.trodes_directory import is_announcement
from neds_rt.sources.units import UnitMap

LEAST_BLOCK = 200  # samples; below, the Spike Detector loses spikes
LATENESS = 100  # samples
PROBE_MS = 25.6  # what the Neuropixels plugin may hold back, 64 packets of 12 samples
HEARTBEATS = ("heartbeat received", "message correctly parsed", "JSON message could not be read")
MOST_KEPT = 200_000  # messages


class Heard:
    """The messages of one publisher, sorted into what they say."""

    def __init__(self) -> None:
        self.messages = 0
        self.plugin = ""
        self.blocks: list[tuple[int, int, int]] = []  # channel, first sample, samples
        self.streams: Counter[str] = Counter()  # spikes
        self.block_stream = ""
        self.rate = 0.0
        self.names: Counter[tuple[str, str, int]] = Counter()
        self.numbers: list[int] = []
        self.cut = self.unreadable = 0
        self.stamped = self.channel_names = self.old_names = False

    def take(self, parts: list[bytes]) -> None:
        """Take note of one message of any plugin."""
        self.messages += 1
        if len(parts) in (2, 3) and parts[0] in ENVELOPES:
            self.plugin = "ZMQ Interface"
            message, cut = read_header(parts[1])
            self.cut += cut and message is not None
            if message is None:
                self.unreadable += 1
            else:
                self._read(message, parts[1])
        elif len(parts) == 2 and parts[0] in (TTL_KIND, SPIKE_KIND):
            self.plugin = "Event Broadcaster"
            self._read_event(*parts)
        elif len(parts) == 2 and parts[0][1:8] == b"\xa6spikes":
            self.plugin = "neds-rt frames"
        elif len(parts) == 1 and is_announcement(parts[0]):
            self.plugin = "Trodes"

    def _read(self, message: Message, header: bytes) -> None:
        if message.number is not None:
            self.numbers.append(message.number)
        self.stamped |= b'"timestamp"' in header and b'"message_num"' in header
        self.channel_names |= b'"channel_name"' in header
        self.old_names |= b'"message_no"' in header
        if isinstance(message, SpikeMessage):
            spike = message.spike
            self.streams[spike.stream] += 1
            self.names[(spike.stream, spike.name, spike.sorted_id)] += 1
        elif isinstance(message, DataMessage) and message.content.span is not None:
            begin, end = message.content.span
            self.blocks.append((message.content.channel_num, begin, end - begin))
            self.block_stream, self.rate = message.content.stream, message.content.sample_rate
        elif isinstance(message, EventMessage):
            self.streams[message.content.stream] += 0

    def _read_event(self, kind: bytes, body: bytes) -> None:
        if kind != SPIKE_KIND:
            return
        if body[:1] != b"{":
            self.streams["(raw binary)"] += 1
            return
        try:
            fields = msgspec.json.decode(body)
            name = (str(fields["stream"]), str(fields["electrode"]), int(fields["sorted_id"]))
        except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, ValueError):
            self.unreadable += 1
            return
        self.streams[name[0]] += 1
        self.names[name] += 1

    @property
    def version(self) -> str:
        """What the fields tell of the version of ZMQ Interface."""
        if self.old_names:
            return "0.2"
        if self.channel_names:
            return "0.4 or 1.x"
        return "0.3.2 to 0.4" if self.stamped else "0.3.0 or 0.3.1"


def listen(endpoint: str, seconds: float) -> Heard:
    """Subscribe for some seconds."""
    heard = Heard()
    socket = open_subscriber(endpoint, 20_000, 8 << 20)
    socket.connect(endpoint)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and heard.messages < MOST_KEPT:
        if socket.poll(int(left * 1000) + 1):
            heard.take(socket.recv_multipart())
    socket.close()
    return heard


def ask_heartbeat(endpoint: str, seconds: float) -> str:
    """Send one heartbeat; return the answer, "" for none."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    beat = {"application": "neds-rt doctor", "uuid": str(uuid.uuid4()), "type": "heartbeat"}
    socket.send(json.dumps(beat).encode())
    answered = socket.poll(int(seconds * 1000))
    text = socket.recv()[:60].decode("ascii", "replace").rstrip("\0") if answered else ""
    socket.close()
    return text


def zmq_interface_checks(port: int, heard: Heard, next_port: str) -> list[Check]:
    """Return what is right and wrong with one ZMQ Interface plugin.

    `next_port` says who is on the port after it, where its heartbeat should be.
    """
    where = f"port {port}"
    checks = [Check(where, "ok", f"ZMQ Interface {heard.version}, {heard.messages} messages")]
    if next_port == "heartbeat":
        checks.append(Check(f"{where} heartbeat", "ok", f"answered on port {port + 1}"))
    else:
        found = next_port or "nobody"
        checks.append(Check(f"{where} heartbeat", "warn", f"{found} on port {port + 1}",
                            f"give the two plugins ports that are two apart; data of port {port} "
                            "come all the same"))
    checks += [_channels(where, heard), _losses(where, heard), _spikes(where, heard)]
    if heard.blocks:
        checks += [_block_size(where, heard), _age(where, heard)]
    names = {heard.block_stream, *heard.streams, *(name for _, name, _ in heard.names)}
    odd = sorted(name for name in names if not name.isascii())
    if odd or heard.cut or heard.unreadable:
        checks.append(Check(f"{where} names", "fail" if heard.unreadable else "warn",
                            f"{', '.join(odd) or 'unknown'}: {heard.cut} headers cut off, "
                            f"{heard.unreadable} unreadable", "rename it with ASCII letters only"))
    others = [name for name in heard.streams if heard.block_stream and name != heard.block_stream]
    if others:
        checks.append(Check(f"{where} streams", "warn",
                            f"spikes of {', '.join(map(repr, others))} beside those of "
                            f"{heard.block_stream!r}",
                            "send each stream through a plugin of its own"))
    return checks


def broadcaster_checks(port: int, heard: Heard) -> list[Check]:
    """Return what there is to say of an Event Broadcaster."""
    streams = ", ".join(f"{name!r} {n} spikes" for name, n in heard.streams.items()) or "no spikes"
    return [
        Check(f"port {port}", "ok", f"Event Broadcaster, {heard.messages} messages: {streams}"),
        Check(f"port {port} losses", "warn", "messages are not numbered: losses cannot be noticed",
              "use ZMQ Interface with one continuous channel selected"),
    ]


def unit_check(units: UnitMap, names: Counter[tuple[str, str, int]]) -> Check:
    """Compare what was heard with the units of a bundle."""
    for (stream, electrode, sorted_id), n in names.items():
        if units.number(stream, electrode, sorted_id) < 0:
            units.unknown_spikes += n - 1
    report = units.report()
    found = (f"{report['heard']} of {report['units']} units heard, {len(report['missing'])} that "
             f"nothing can mean, {report['unknown_spikes']} spikes of unknown units")
    if report["heard"] and not report["unknown_spikes"] and not report["missing"]:
        return Check("units", "ok", found)
    first = report["first_unknown"] or report["missing"][:1]
    advice = f"put {first[0]} into the unit map (--units)" if first else "listen longer (--seconds)"
    return Check("units", "warn" if report["heard"] else "fail", found, advice)


def _channels(where: str, heard: Heard) -> Check:
    n = len({channel for channel, _, _ in heard.blocks})
    if n == 1:
        return Check(f"{where} channels", "ok", "one continuous channel selected")
    if n == 0:
        return Check(f"{where} channels", "fail", "no continuous channel selected",
                     "select exactly one: without it nothing says what is complete")
    return Check(f"{where} channels", "fail" if n > 16 else "warn", f"{n} channels selected",
                 f"deselect all but one: {1000 / n:.1f} blocks fill the plugin's queue, and then "
                 "it drops messages silently")


def _block_size(where: str, heard: Heard) -> Check:
    sizes = np.array([n for _, _, n in heard.blocks])
    found = f"{np.median(sizes):.0f} samples a block ({sizes.min()} to {sizes.max()})"
    if sizes.min() >= LEAST_BLOCK:
        return Check(f"{where} block", "ok", found)
    return Check(f"{where} block", "fail", found,
                 f"set the GUI's audio buffer so that a block has {LEAST_BLOCK} samples or more: "
                 "below, the Spike Detector loses spikes")


def _losses(where: str, heard: Heard) -> Check:
    steps = np.diff(np.array(heard.numbers or [0]))
    if np.any(steps < 0):
        return Check(f"{where} losses", "warn", f"{int((steps < 0).sum())} times counted anew",
                     "acquisition was restarted meanwhile; if it was not, two plugins send here")
    missing = int((steps - 1).clip(0).sum()) - heard.unreadable
    if missing <= 0:
        return Check(f"{where} losses", "ok", "no message missing")
    return Check(f"{where} losses", "fail", f"{missing} messages missing",
                 "deselect channels, or move the client to this machine")


def _spikes(where: str, heard: Heard) -> Check:
    n = sum(heard.streams.values())
    ids = {sorted_id for _, _, sorted_id in heard.names}
    if n == 0:
        return Check(f"{where} spikes", "fail", "none",
                     "put a Spike Detector before ZMQ Interface and select its electrodes")
    electrodes = {electrode for _, electrode, _ in heard.names}
    found = f"{n} spikes, {len(electrodes)} electrodes, {len(heard.names)} units"
    if ids == {0}:
        return Check(f"{where} spikes", "warn", f"{found}, all unsorted",
                     "put a Spike Sorter after the Spike Detector, or use a model of multi-units")
    return Check(f"{where} spikes", "ok", found)


def _age(where: str, heard: Heard) -> Check:
    block = 1e3 * max(n for _, _, n in heard.blocks) / heard.rate
    late = 1e3 * LATENESS / heard.rate
    return Check(f"{where} sample age", "ok",
                 f"expected {late:.0f} to {late + block + PROBE_MS:.0f} ms when a spike arrives: "
                 f"block {block:.1f}, detector {late:.1f}, probe up to {PROBE_MS:g}")
