"""A server with keys on all of its sockets, a probe it believes and a client it lets in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import msgspec
import zmq

from neds_rt.bundle import ModalityOut
from neds_rt.client import Client
from neds_rt.curve import Access, read_access
from neds_rt.endpoints import bind
from neds_rt.player import empty_spikes
from neds_rt.wire import WIRE_VERSION, Decode, SpikeHeader, encode_spikes
from tools import attack_bundles
from tools.attack_bundles import VELOCITY, make_bundle

FS = 30_000.0
BIN = 600  # samples
PATIENCE_S = 60.0
LOOK_S = 0.35  # after which the server's housekeeping has said what there is to say


class Rig:
    """Three keys of `folder` at work: `probe` sends, `server` serves, `client` listens."""

    def __init__(
        self, folder: Path, *, probe: str = "a", modality: ModalityOut = VELOCITY,
        probe_key: str = "probe", decodes: bool = True, options: tuple[str, ...] = (),
        sign: Path | None = None,
    ) -> None:
        self.folder, self.probe = folder, probe
        self.seq = self.sample = self.bins = 0
        self._read = 0
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1e3))
        uri = bind("probe", self._socket, "tcp://127.0.0.1:*", self.access(probe_key, "server"))
        model = make_bundle(folder / f"served-{time.monotonic_ns()}.neds", probe, modality)
        if sign is not None:
            attack_bundles.sign(model, sign)
        self._log = folder / f"log-{time.monotonic_ns()}"
        command = [
            sys.executable, "-P", "-m", "neds_rt", "serve", "--probe", f"{probe}=zmq+{uri}",
            "--model", str(model), "--out", "tcp://127.0.0.1:*", "--stale-after", "0.2", "--json",
            "--curve-key", str(folder / "server.key_secret"),
            "--curve-allow", str(folder / "client.key"),
            "--curve-server", str(folder / "probe.key"), *options,
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        self.endpoint = self._ready()
        self.client = Client(self.endpoint, access=self.access("client", server="server"))
        self.last = self.client.recv(PATIENCE_S)
        if decodes:
            self._wait_for_server()
            self.decode()

    def access(self, name: str, allow: str = "", server: str = "") -> Access:
        """Return what somebody with the secret key `name` would use."""
        return read_access(
            key=str(self.folder / f"{name}.key_secret"),
            allow=str(self.folder / f"{allow}.key") if allow else "",
            server=str(self.folder / f"{server}.key") if server else "",
        )

    def header(self, **changed: Any) -> bytes:
        """Return the next frame's header, some of its fields changed."""
        fields: dict[str, Any] = {
            "version": WIRE_VERSION, "stream": self.probe, "session": "s", "seq": self.seq,
            "t0_sample": self.sample, "watermark": self.sample + BIN, "fs": FS, "sent_mono_ns": 0,
            "sent_real_ns": 0, "n_spikes": 0,
        }
        return msgspec.msgpack.encode(SpikeHeader(**(fields | changed)))

    def next_frame(self, unit: int = 1) -> list[bytes]:
        """Return the next frame, of one spike."""
        spikes = empty_spikes(1)
        spikes["sample"], spikes["unit"] = self.sample, unit
        header = msgspec.msgpack.decode(self.header(n_spikes=1), type=SpikeHeader)
        return encode_spikes(header, spikes)

    def send(self, parts: list[bytes]) -> None:
        """Send parts as they are."""
        self._socket.send_multipart(parts)

    def decode(self, unit: int = 1) -> list[bytes]:
        """Send the next frame and take its decode; returns the frame."""
        frame = self.next_frame(unit)
        self.send(frame)
        self.seq, self.sample, self.bins = self.seq + 1, self.sample + BIN, self.bins + 1
        self._await_bin(self.bins - 1)
        return frame

    def send_blind(self, n: int) -> None:
        """Send frames that nobody may be taking, for a second."""
        for _ in range(n):
            self.send(self.next_frame())
            self.seq, self.sample = self.seq + 1, self.sample + BIN
            time.sleep(1 / n)

    def reconnected(self) -> None:
        """Wait until the server, which hung up, is subscribed again, and decode a bin."""
        self._wait_for_server()
        self.decode()

    def said(self) -> str:
        """Return what the server has logged since the last call."""
        time.sleep(LOOK_S)
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read().decode(errors="replace")
            self._read = log.tell()
        return " ".join(text.split()).removeprefix("neds-rt serve: ")

    def skip(self) -> None:
        """Pass over what the server has logged so far."""
        self._read = self._log.stat().st_size

    def resident_mb(self) -> float:
        """Return the most memory that the server has ever held, in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3

    def end(self) -> dict[str, Any]:
        """Stop the server and return its summary."""
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate(timeout=PATIENCE_S)
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._socket.close(linger=0)
        self._context.term()

    def _ready(self) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self._log.read_text(encoding="utf-8").splitlines():
                if line.startswith("ready "):
                    self._read = self._log.stat().st_size
                    return line.split()[1]
            time.sleep(0.05)
        raise RuntimeError(f"the server did not start: {self._log.read_text(encoding='utf-8')}")

    def _wait_for_server(self) -> None:
        """Wait for a subscription, byte 1, after whatever was said before."""
        while True:
            if not self._socket.poll(int(PATIENCE_S * 1e3)):
                raise RuntimeError("the server does not subscribe")
            if self._socket.recv() == b"\x01":
                return

    def _await_bin(self, number: int) -> Decode:
        while True:
            self.last = self.client.recv(PATIENCE_S)
            if self.last.bin >= number:
                return self.last
