"""The safe state of outputs that act, measured at their receivers while the rig is broken.

`neds-rt sink` runs in its own process with a UDP and a TTL output. Their receivers note when a
datagram says that it is not valid, and when the line goes down. Validity is lost with the last
valid decode before the first one that is not, or that does not come: from there to the safe state
is a bin and 5 ms at most. The receivers run in this process, their own wake-up is in the figures.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from neds_rt.children import Child
from neds_rt.sinks.udp import HEADER
from neds_rt.wire import Decode
from tools.fault_rig import BIN_S, Rig
from tools.twins.network_events import NetworkEventsTwin

SAFE_MS = 1e3 * BIN_S + 5.0
OPTIONS = "lockout=0"  # of both outputs
RULE = "value=velocity.0&above=-1e9&pulse=0&refractory=0"  # up with the first valid decode
MOST_TICKS = 200  # until the line is up
MOST_TRIES = 10  # at outputs that stay active for a moment
NAMES = ("all input stops", "one probe unplugged", "acquisition restarts", "engine not a number",
         "engine too slow", "server held up", "server terminated", "server killed")


class Datagram(NamedTuple):
    """One datagram, and when it came on the monotonic clock."""

    at: float
    valid: bool
    seq: int
    bin: int
    values: tuple[float, ...]


class Receiver:
    """A microcontroller's side of `udp://`: every datagram with its time."""

    def __init__(self) -> None:
        self.datagrams: list[Datagram] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.uri = f"udp://127.0.0.1:{self._socket.getsockname()[1]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unbind."""
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                continue
            at = time.monotonic()
            _, _, valid, _, n, seq, _, bin_, _ = HEADER.unpack_from(data)
            values = struct.unpack_from(f"<{n}f", data, HEADER.size)
            self.datagrams.append(Datagram(at, bool(valid), seq, bin_, values))


class Outputs:
    """A sink process for one episode, a line that every valid decode raises, and the receivers."""

    def __init__(self, rig: Rig, line: NetworkEventsTwin, receiver: Receiver) -> None:
        """Start the sink, and tick until the line is up."""
        self._rig, self._line, self._receiver = rig, line, receiver
        self._ttls, self._datagrams = len(line.ttls), len(receiver.datagrams)
        self._sink = Child("sink", "neds_rt", "sink", f"{receiver.uri}?{OPTIONS}",
                           f"oe-events+{line.endpoint}?{RULE}&{OPTIONS}", "--from", rig.endpoint)
        for _ in range(MOST_TICKS):
            rig.tick()
            if self.raised:
                break

    @property
    def datagrams(self) -> list[Datagram]:
        """Those of this episode."""
        return self._receiver.datagrams[self._datagrams :]

    @property
    def up_s(self) -> float:
        """When the line went up; infinite while it has not."""
        return next((at for at, _, up in self._line.ttls[self._ttls :] if up), math.inf)

    def safe_s(self) -> dict[str, float]:
        """Return when each output was safe again after it had been active; infinite for never."""
        down = (at for at, _, up in self._line.ttls[self._ttls :] if not up)
        told = self.datagrams
        active = next((d.at for d in told if d.valid), math.inf)
        silent = (d.at for d in told if d.at > active and not d.valid)
        return {"ttl": next(down, math.inf), "udp": next(silent, math.inf)}

    @property
    def raised(self) -> bool:
        """Whether both outputs have been active."""
        return self.up_s < math.inf and any(d.valid for d in self.datagrams)

    @property
    def active(self) -> bool:
        """Whether both still are."""
        return self.raised and all(at == math.inf for at in self.safe_s().values())

    def close(self) -> None:
        """End the sink."""
        self._sink.stop()


def validity_lost_s(decodes: Sequence[Decode], since: float, safe: float) -> float:
    """Return when the last valid decode was published, on the monotonic clock, of those after
    `since` and before the first that is not valid, comes after two bins of silence, or comes after
    `safe`; infinite where none was valid."""
    last = math.inf
    for decode in decodes:
        at = decode.pub_ns * 1e-9
        if at >= since and (not decode.valid or at > min(last + 2 * BIN_S, safe)):
            return last
        last = at if decode.valid else last
    return last


def wrong_datagrams(datagrams: Sequence[Datagram], decodes: Sequence[Decode]) -> int:
    """Count datagrams that say valid and are not what a valid decode said."""
    said = {(d.seq & 0xFFFFFFFF, d.bin): d for d in decodes if d.valid}
    wrong = 0
    for each in datagrams:
        if each.valid:
            decode = said.get((each.seq, each.bin))
            mean = None if decode is None else decode.values["velocity"].mean
            wrong += mean is None or not np.array_equal(np.array(mean, np.float32),
                                                        np.array(each.values, np.float32))
    return wrong


class SafeStates:
    """Collects, episode by episode, how long outputs took to be safe."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._line, self._receiver = NetworkEventsTwin(), Receiver()
        self.ms: dict[str, list[float]] = {"ttl": [], "udp": []}
        self.missed = self.early = 0  # outputs never safe; safe before there was a fault

    def open(self) -> Outputs:
        """Return outputs that are active; those that a late decode made safe are counted.

        A line whose event found no connection yet stays down: another sink has to try.
        """
        for _ in range(MOST_TRIES):
            outputs = Outputs(self._rig, self._line, self._receiver)
            for _ in range(self._rig.some_bins()):
                self._rig.tick()
            if outputs.active:
                return outputs
            self.early += outputs.raised
            outputs.close()
        self._rig.problems.append("no output stayed active")
        return outputs

    def take(self, outputs: Outputs, since: float) -> None:
        """End these outputs and note when they were safe; the fault came after `since`."""
        outputs.close()
        for name, safe in outputs.safe_s().items():
            lost = validity_lost_s(self._rig.decodes, outputs.up_s, safe)
            if safe == math.inf or lost == math.inf:
                self.missed += 1
            elif safe < since:
                self.early += 1
            else:
                self.ms[name].append((safe - lost) * 1e3)

    def close(self) -> dict[str, Any]:
        """Close the receivers; return what they found of datagrams."""
        self._line.close()
        self._receiver.close()
        told = self._receiver.datagrams
        return {"datagrams_checked": sum(d.valid for d in told),
                "wrong_datagrams": wrong_datagrams(told, self._rig.decodes)}
