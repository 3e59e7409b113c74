"""Decodes as a Lab Streaming Layer stream, to be recorded beside everything else by LabRecorder.

Channels: `valid` (0 or 1), `reason` (a code of `values.REASON_CODES`), `bin`, then the values, NaN
where the decode is not valid. A sample's time is that of the decode's writing, in LSL's clock.
liblsl answers on every network interface, whatever it is told of scopes, and knows no keys: so a
stream needs `--insecure`.
"""

from __future__ import annotations

import math
import time
from typing import Any

from neds_rt.errors import BadInput, StartError
from neds_rt.sinks.outlet import WHERE
from neds_rt.sinks.values import labels, numbers, reason_code
from neds_rt.wire import Decode

FIXED_CHANNELS = ("valid", "reason", "bin")
CONTENT_TYPE = "Decode"
BUFFER_S = 10  # what liblsl keeps for a reader that is behind; older samples are dropped for it


class LslOutlet:
    """An LSL outlet `NAME`, opened with the first decode, anew when another model is served."""

    def __init__(self, uri: str, *, insecure: bool = False) -> None:
        if not insecure:
            raise BadInput(WHERE, "URI", repr(uri), "--insecure with it: LSL streams can be read "
                           "from every network that this machine is in, and know no keys")
        try:
            import pylsl
        except (ImportError, RuntimeError) as error:  # RuntimeError: without the liblsl library
            raise StartError(f"{uri}: needs pylsl: pip install 'neds[lsl]'") from error
        self._name = uri.partition("://")[2]
        if not self._name.isprintable() or not self._name.strip():
            raise BadInput(WHERE, "URI", repr(uri), "lsl://NAME")
        self._lsl: Any = pylsl
        self._outlet: Any = None
        self._layout: tuple[str, list[str]] = ("", [])
        self.counters = {"sent": 0, "opened": 0}
        self.due_s = math.inf

    def write(self, decode: Decode, now_s: float) -> None:
        """Push one sample; liblsl hands it to readers on threads of its own."""
        layout = (decode.model, labels(decode))
        if self._outlet is None or layout != self._layout:
            self._open(*layout)
        sample = [float(decode.valid), float(reason_code(decode)), float(decode.bin)]
        # Both are the system's steady clock, but their zeros differ between systems.
        ago_s = (time.monotonic_ns() - decode.pub_ns) * 1e-9
        self._outlet.push_sample(sample + numbers(decode), self._lsl.local_clock() - ago_s)
        self.counters["sent"] += 1

    def tick(self, now_s: float) -> None:
        """Nothing is ever due."""

    def close(self) -> None:
        """Withdraw the stream."""
        self._outlet = None

    def _open(self, model: str, names: list[str]) -> None:
        channels = [*FIXED_CHANNELS, *names]
        info = self._lsl.StreamInfo(
            self._name, CONTENT_TYPE, len(channels), self._lsl.IRREGULAR_RATE,
            self._lsl.cf_double64, f"neds-rt {self._name} {model}",
        )
        parent = info.desc().append_child("channels")
        for name in channels:
            parent.append_child("channel").append_child_value("label", name)
        info.desc().append_child_value("model", model)
        self._outlet = None  # the old one has to be gone before its successor is announced
        self._outlet = self._lsl.StreamOutlet(info, max_buffered=BUFFER_S)
        self._layout = (model, names)
        self.counters["opened"] += 1
