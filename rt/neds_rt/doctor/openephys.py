"""What is right and wrong with an Open Ephys plugin, from what it sends."""

from __future__ import annotations

import json
import uuid
from collections import Counter

import numpy as np
import zmq

from neds_rt.doctor import Check, refused_check
from neds_rt.doctor.asked import Asked, stream_check, templates_check
from neds_rt.doctor.heard import Heard
from neds_rt.sources import oebroadcast, openephys
from neds_rt.sources.heartbeat import MAX_ANSWER_BYTES
from neds_rt.sources.units import UnitMap

LEAST_BLOCK = 200  # samples; below, the Spike Detector loses spikes
LATENESS = 100  # samples
PROBE_MS = 25.6  # what the Neuropixels plugin may hold back, 64 packets of 12 samples
MANY_CHANNELS = 16
RATE_OFF = 0.01  # by which a rate may differ from what timestamps tell
HEARTBEATS = ("heartbeat received", "message correctly parsed", "JSON message could not be read")
UPDATE = {
    "bad_header": "rename streams and electrodes with ASCII letters only, or update ZMQ Interface",
    "bad_envelope": "let no other program send to this port",
    "bad_parts": "let no other program send to this port",
}


def ask(endpoint: str, request: str, seconds: float) -> str:
    """Send one request to a REP socket; return the answer, "" for none."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_ANSWER_BYTES)
    socket.connect(endpoint)
    socket.send(request.encode())
    answered = socket.poll(int(seconds * 1000))
    text = socket.recv()[:60].decode("ascii", "replace").rstrip("\0") if answered else ""
    socket.close()
    return text


def ask_heartbeat(endpoint: str, seconds: float) -> str:
    """Send one heartbeat; return the answer, "" for none."""
    beat = {"application": "neds-rt doctor", "uuid": str(uuid.uuid4()), "type": "heartbeat"}
    return ask(endpoint, json.dumps(beat), seconds)


def zmq_interface_checks(
    port: int, heard: Heard, next_port: str, asked: Asked | None = None
) -> list[Check]:
    """Return what is right and wrong with one ZMQ Interface plugin.

    `next_port` says who is on the port after it, where its heartbeat should be; `asked` is the
    probe's URI, if it is known, by which raw samples may be what is wanted.
    """
    where = f"port {port}"
    raw = asked is not None and asked.raw
    checks = [Check(where, "ok", f"ZMQ Interface {heard.version}, {heard.messages} messages"),
              _heartbeat(port, next_port)]
    if raw:
        assert asked is not None
        checks.append(_all_channels(where, heard, asked))
        if heard.blocks:
            checks += templates_check(where, asked, asked.channels, heard.rate)
    else:
        checks.append(_channels(where, heard, asked))
    checks.append(_losses(where, heard, raw=raw))
    if not raw:
        checks.append(_spikes(where, heard))
    if heard.blocks:
        if not raw:
            checks.append(_block_size(where, heard))
        checks.append(_age(where, heard, 0 if raw else LATENESS))
    names = {heard.block_stream, *heard.streams, *(name for _, name, _ in heard.names)}
    odd = sorted(name for name in names if not name.isascii())
    if odd or heard.cut:
        checks.append(Check(f"{where} names", "warn", f"{', '.join(odd) or 'unknown'}: "
                            f"{heard.cut} headers cut off", "rename it with ASCII letters only"))
    worst = heard.refused.most_common(1)[0][0] if heard.refused else ""
    checks += refused_check(where, heard.refused, openephys.MESSAGES, UPDATE.get(
        worst, "update ZMQ Interface: versions 0.2 to 1.x are read here"))
    others = [name for name in heard.streams if heard.block_stream and name != heard.block_stream]
    if others:
        checks.append(Check(f"{where} streams", "warn",
                            f"spikes of {', '.join(map(repr, others))} beside those of "
                            f"{heard.block_stream!r}",
                            "send each stream through a plugin of its own"))
    return checks + stream_check(where, asked, {*heard.streams, heard.block_stream} - {""})


def broadcaster_checks(port: int, heard: Heard, asked: Asked | None = None) -> list[Check]:
    """Return what is right and wrong with an Event Broadcaster."""
    where = f"port {port}"
    streams = ", ".join(f"{name!r} {n} spikes" for name, n in heard.streams.items()) or "no spikes"
    kind = "raw binary, " if heard.stamps else "JSON, " if heard.json_spikes else ""
    checks = [
        Check(where, "ok", f"Event Broadcaster {heard.version}, {kind}{heard.messages} messages: "
              f"{streams}"),
        Check(f"{where} losses", "warn", "messages are not numbered: losses cannot be noticed",
              "use ZMQ Interface with one continuous channel selected"),
    ]
    if heard.stamps:
        checks.append(_binary_rate(where, heard, asked))
    refused = heard.refused.copy()
    if strange := refused.pop("bad_envelope", 0):
        refused["bad_kind"] = strange
    checks += refused_check(where, refused, oebroadcast.MESSAGES,
                            "update Event Broadcaster: 0.2 and 0.3 are read here")
    if len(heard.streams) > 1 and (asked is None or not asked.stream):
        checks.append(Check(f"{where} streams", "warn", f"{len(heard.streams)} streams, and only "
                            "that of the first spike is taken", "?stream=NAME in the URI"))
    return checks + stream_check(where, asked, set(heard.streams))


def unit_check(units: UnitMap, names: Counter[tuple[str, str, int]], name: str) -> Check:
    """Compare what was heard with the units of a bundle."""
    for (stream, electrode, sorted_id), n in names.items():
        if units.number(stream, electrode, sorted_id) < 0:
            units.unknown_spikes += n - 1
    report = units.report()
    found = (f"{report['heard']} of {report['units']} units heard, {len(report['missing'])} that "
             f"nothing can mean, {report['unknown_spikes']} spikes of unknown units")
    if report["heard"] and not report["unknown_spikes"] and not report["missing"]:
        return Check(name, "ok", found)
    first = report["first_unknown"] or report["missing"][:1]
    advice = f"put {first[0]} into the unit map (--units)" if first else "listen longer (--seconds)"
    return Check(name, "warn" if report["heard"] else "fail", found, advice)


def _heartbeat(port: int, next_port: str) -> Check:
    name = f"port {port} heartbeat"
    if next_port == "heartbeat":
        return Check(name, "ok", f"answered on port {port + 1}")
    return Check(name, "warn", f"{next_port or 'nobody'} on port {port + 1}",
                 f"give the two plugins ports that are two apart; data of port {port} "
                 "come all the same")


def _channels(where: str, heard: Heard, asked: Asked | None) -> Check:
    n = len({channel for channel, _, _ in heard.blocks})
    if asked is not None and getattr(asked.options, "watermark", "data") == "spikes" and n == 0:
        return Check(f"{where} channels", "ok", "none selected, as ?watermark=spikes wants")
    if n == 1:
        return Check(f"{where} channels", "ok", "one continuous channel selected")
    if n == 0:
        return Check(f"{where} channels", "fail", "no continuous channel selected",
                     "select exactly one: without it nothing says what is complete")
    return Check(f"{where} channels", "fail" if n > MANY_CHANNELS else "warn",
                 f"{n} channels selected",
                 f"deselect all but one: {1000 / n:.1f} blocks fill the plugin's queue, and then "
                 "it drops messages silently; where ?mode= is to find spikes in them, say so by "
                 "--probe NAME=URI")


def _all_channels(where: str, heard: Heard, asked: Asked) -> Check:
    """For `?mode=`: every channel has to come, from the first one on."""
    there = {channel for channel, _, _ in heard.blocks}
    wanted = asked.channels or max(there, default=0) + 1
    missing = sorted(set(range(wanted)) - there)
    if not there:
        return Check(f"{where} channels", "fail", "no continuous channel selected",
                     f"select all: {asked.scheme}://...?mode= finds spikes in them")
    if missing:
        return Check(f"{where} channels", "fail", f"{len(missing)} of {wanted} channels are not "
                     f"selected, {missing[0]} among them",
                     "select all: a block without them is a gap")
    if len(there) > wanted:
        return Check(f"{where} channels", "fail", f"{len(there)} channels selected",
                     f"select the {wanted} that ?channels= or the templates are of")
    return Check(f"{where} channels", "ok", f"all {wanted} channels selected")


def _binary_rate(where: str, heard: Heard, asked: Asked | None) -> Check:
    """Compare `?rate=` with what the seconds of binary spikes tell."""
    told = heard.stamped_rate
    rate = asked.options.rate if asked and isinstance(asked.options, oebroadcast.Options) else 0.0
    advice = f"?rate={told:.0f} in the URI" if told else "?rate= in the URI, in Hz"
    if not rate:
        return Check(f"{where} rate", "warn", "binary spikes do not tell the sampling rate",
                     f"{advice}, or have them sent as JSON")
    if told and abs(rate / told - 1) > RATE_OFF:
        return Check(f"{where} rate", "fail",
                     f"the URI says {rate:g} Hz, the spikes' seconds {told:.0f} Hz", advice)
    return Check(f"{where} rate", "ok", f"{rate:g} Hz, as the URI says")


def _block_size(where: str, heard: Heard) -> Check:
    sizes = np.array([n for _, _, n in heard.blocks])
    found = f"{np.median(sizes):.0f} samples a block ({sizes.min()} to {sizes.max()})"
    if sizes.min() >= LEAST_BLOCK:
        return Check(f"{where} block", "ok", found)
    return Check(f"{where} block", "fail", found,
                 f"set the GUI's audio buffer so that a block has {LEAST_BLOCK} samples or more: "
                 "below, the Spike Detector loses spikes")


def _losses(where: str, heard: Heard, *, raw: bool) -> Check:
    steps = np.diff(np.array(heard.numbers or [0]))
    if np.any(steps < 0):
        return Check(f"{where} losses", "warn", f"{int((steps < 0).sum())} times counted anew",
                     "acquisition was restarted meanwhile; if it was not, two plugins send here")
    missing = int((steps - 1).clip(0).sum()) - heard.unnumbered
    if missing <= 0:
        return Check(f"{where} losses", "ok", "no message missing")
    return Check(f"{where} losses", "fail", f"{missing} messages missing",
                 "run neds-rt on the machine of the GUI" if raw else
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


def _age(where: str, heard: Heard, lateness: int) -> Check:
    block = 1e3 * max(n for _, _, n in heard.blocks) / heard.rate
    late = 1e3 * lateness / heard.rate
    return Check(f"{where} sample age", "ok",
                 f"expected {late:.0f} to {late + block + PROBE_MS:.0f} ms when a spike arrives: "
                 f"block {block:.1f}, detector {late:.1f}, probe up to {PROBE_MS:g}")
