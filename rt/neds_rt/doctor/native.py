"""Native frames: what a sender of one's own does wrong, as the server would count it."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np

from neds_rt.doctor import Check, refused_check
from neds_rt.doctor.asked import Asked
from neds_rt.housekeeping import MESSAGES
from neds_rt.sources.units import UnitMap
from neds_rt.wire import SPIKE_DTYPE, SpikeHeader, decode_header

FORMAT = "send frames as docs/how-to/own-sender.md describes them"
MOST_STREAMS = 64  # and sessions; a sender that makes up more is told by these


class NativeHeard:
    """The frames of one publisher, stream by stream."""

    def __init__(self) -> None:
        self.frames: Counter[str] = Counter()  # by stream
        self.rates: dict[str, float] = {}
        self.highest: dict[str, int] = {}  # unit, by stream
        self.spikes = self.gaps = self.late = 0
        self._marks: dict[tuple[str, str], int] = {}  # watermark of stream and session

    def take(self, parts: list[bytes], refused: Counter[str]) -> None:
        """Take one message of two parts, or count why not."""
        try:
            header = decode_header(parts[0])
        except msgspec.DecodeError as error:
            refused[_kind(str(error))] += 1
            return
        if len(parts[1]) != SPIKE_DTYPE.itemsize * header.n_spikes:
            refused["bad_payload"] += 1
        elif (header.stream, header.session) in self._marks or len(self._marks) < MOST_STREAMS:
            self._read(header, parts[1], refused)

    def _read(self, header: SpikeHeader, payload: bytes, refused: Counter[str]) -> None:
        key = (header.stream, header.session)
        mark = self._marks.get(key, header.t0_sample)
        if header.watermark < mark:
            refused["bad_watermark"] += 1
            return
        self._marks[key] = header.watermark
        self.gaps += header.t0_sample > mark
        self.frames[header.stream] += 1
        self.rates[header.stream] = header.fs
        spikes = np.frombuffer(payload, SPIKE_DTYPE)
        if len(spikes):
            self.spikes += len(spikes)
            self.late += int((spikes["sample"] < mark).sum())
            self.highest[header.stream] = max(
                self.highest.get(header.stream, 0), int(spikes["unit"].max()))


def native_checks(
    port: int, heard: NativeHeard, refused: Counter[str], asked: Asked | None,
    units: UnitMap | None,
) -> list[Check]:
    """Return what is right and wrong with a sender; `units` are those of the bundle."""
    where = f"port {port}"
    streams = ", ".join(f"{name!r} at {heard.rates[name]:g} Hz" for name in heard.frames)
    checks = [Check(where, "ok", f"neds-rt frames, wire version 1: {sum(heard.frames.values())} "
                    f"of {streams or 'no stream'}, {heard.spikes} spikes")]
    checks += refused_check(where, refused, MESSAGES, FORMAT)
    if heard.gaps:
        checks.append(Check(f"{where} gaps", "fail", f"{heard.gaps} times samples are missing "
                            "between two frames", "begin each frame where the last one ended, and "
                            "publish by an XPUB with XPUB_NODROP: a PUB drops in silence"))
    if heard.late:
        checks.append(Check(f"{where} late spikes", "fail", f"{heard.late} below the last frame's "
                            "watermark", "send a watermark only when no spike below it will "
                            "follow"))
    if not heard.spikes:
        checks.append(Check(f"{where} spikes", "fail", "none", "send the units' spikes"))
    probe = asked.name if asked is not None else units.units[0].probe if units else ""
    if probe and probe not in heard.frames:
        checks.append(Check(f"{where} stream", "fail", f"no {probe!r} among {streams or 'none'}",
                            f"name the stream {probe!r} in the header, or --probe after it"))
    if units is not None and heard.highest.get(probe, -1) >= len(units.units):
        checks.append(Check(f"{where} units", "fail", f"unit {heard.highest[probe]}, and the "
                            f"bundle has {len(units.units)} of this probe",
                            "number the probe's units from 0 in the bundle's order"))
    return checks


def _kind(error: str) -> str:
    if "wire version" in error:
        return "bad_version"
    return "bad_range" if "out of range" in error else "bad_header"
