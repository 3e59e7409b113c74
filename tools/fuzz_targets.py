"""Every parser of bytes from a socket or a file, as a function that must survive any bytes.

A target returns for what it takes and for what it refuses in the way it should: `BadInput`, an
error of msgspec where callers expect one, a counter. Any other exception is a finding.
`seeds` are inputs to begin with; they are made here, so that they follow the formats.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from neds_rt import _core, assemble, bundle, curve, endpoints, wire
from neds_rt.bundle import random_bundle
from neds_rt.config import ServeConfig, load_config, parse_probes
from neds_rt.engines import load_engine, parse_engine
from neds_rt.errors import BadInput, StartError
from neds_rt.gatekeeper import Gatekeeper
from neds_rt.manifest import check_manifest, parse_manifest
from neds_rt.recording.header import HEADER, open_recording
from neds_rt.recording.session import load_spool
from neds_rt.safetensors_io import decode_tensors
from neds_rt.sources import open_source
from neds_rt.sources.edges import edge_queue
from neds_rt.sources.frame import Frame
from neds_rt.sources.spikeglx_wire import Connection, Trouble
from neds_rt.sources.trodes_digital import DigitalReader
from neds_rt.sources.trodes_directory import Directory, _decode_answer, _decode_where
from neds_rt.sources.units import UnitMap, read_unit_file
from neds_rt.templates import decode_templates
from tools import fuzz_seeds
from tools.fuzz_seeds import MODALITIES, SHAPE, UNITS


class Target(NamedTuple):
    """A parser: `run` takes any bytes."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def in_file(
    read: Callable[[str], Any], suffix: str = "", name: str = "input"
) -> Callable[[bytes], None]:
    """Return a target that writes its bytes to a file, on a disk in memory, and reads that."""
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = Path(tempfile.mkdtemp(prefix="neds-fuzz-", dir=folder)) / f"{name}{suffix}"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        path.chmod(0o600)
        try:
            read(str(path))
        except BadInput:
            return

    return run


def cut(data: bytes, most: int) -> list[bytes]:
    """Cut bytes into at most `most` parts, each behind its length in two bytes."""
    parts = []
    while data and len(parts) < most:
        (size,) = struct.unpack("<H", data[:2].ljust(2, b"\0"))
        parts.append(data[2 : 2 + size])
        data = data[2 + size :]
    return parts


# The native wire format.


def header(data: bytes) -> None:
    """A spike header, by the Python that clients use."""
    try:
        wire.decode_header(data)
    except msgspec.DecodeError:
        return


class Served:
    """The whole hot path of a server, sockets left out."""

    def __init__(self) -> None:
        made = random_bundle(SHAPE, len(UNITS), MODALITIES, probe="a")
        manifest = made.manifest
        self.assembler = assemble.make_assembler(manifest, ["a"], 16)
        self.encoder = assemble.make_encoder(manifest, 1)
        self.engine = load_engine("native", made)
        self.latency = _core.LatencyRing(16)
        stepper = assemble.make_stepper(self.engine, self.assembler.counts)
        self.pipeline = _core.Pipeline(
            self.assembler, self.encoder, stepper, self.latency, manifest.shape.window)


@cache
def _served() -> Served:
    return Served()


def frames(data: bytes) -> None:
    """Frames through assembler, step and encoder; every message must be a decode."""
    served = _served()
    parts = cut(data, 8)
    for head, body in zip(parts[::2], [*parts[1::2], b""], strict=False):
        size = served.pipeline.feed(head, body, 1)
        for _ in range(100):
            if not size:
                break
            wire.decode_message(bytes(served.encoder.buffer[:size]))
            size = served.pipeline.next()


def decode(data: bytes) -> None:
    """A decode message, as a client reads it."""
    try:
        wire.decode_message(data)
    except msgspec.DecodeError:
        return


# Acquisition programs.


def _source(uri: str) -> tuple[Any, Frame]:
    return _opened(uri), Frame()


@cache
def _opened(uri: str) -> Any:
    return open_source("a", uri, units=UnitMap(UNITS))


def openephys(data: bytes) -> None:
    """Messages of Open Ephys' ZMQ Interface, several to an input."""
    source, frame = _source("oe://127.0.0.1:9")
    for message in cut(data, 8):
        source._take(cut(message, 4), frame)


@cache
def _collectors() -> list[Any]:
    """The two kinds of raw source, without the threads that would read their sockets."""
    from types import SimpleNamespace

    from neds_rt.sources.address import Address
    from neds_rt.sources.oe_raw import COUNTERS, Collector, Options
    from neds_rt.sources.raw import RawBand

    made = []
    for mode in ("templates", "threshold"):
        units = UnitMap(UNITS)
        units.templates = fuzz_seeds.templates()
        options = Options(mode=mode, sync=2, highpass=None if mode == "templates" else 100.0)
        counters = dict.fromkeys(COUNTERS, 0)
        source: Any = SimpleNamespace(name="a", address=Address("127.0.0.1", 9), counters=counters,
                                      edges=edge_queue("fuzz", 2, 16))
        band = RawBand("fuzz", "a", options, units, counters)
        made.append(Collector(source, band, SimpleNamespace(), options))  # type: ignore[arg-type]
    return made


def raw(data: bytes) -> None:
    """Raw channels of Open Ephys' ZMQ Interface: blocks put together, spikes found in them."""
    socket: Any = _Deaf()
    messages = [cut(message, 4) for message in cut(data, 32)]
    for collector in _collectors():
        for parts in messages:
            collector._take(parts, socket)
        collector.report()


def broadcast(data: bytes) -> None:
    """Messages of Open Ephys' Event Broadcaster, JSON and binary."""
    source, frame = _source("oe-events://127.0.0.1:9?rate=30000")
    for message in cut(data, 8):
        source._take(cut(message, 3), frame)


def trodes(data: bytes) -> None:
    """Messages of Trodes' spike stream."""
    source, frame = _source("trodes://127.0.0.1:9")
    for message in cut(data, 8):
        source._take(message, frame)


def digital(data: bytes) -> None:
    """Messages of Trodes' stream of digital inputs."""
    edges = edge_queue("fuzz", 9, 16)
    assert edges is not None
    counters = {"digital_messages": 0, "bad_digital": 0}
    reader = DigitalReader("tcp://127.0.0.1:9", 9, edges, counters, insecure=False)
    for message in cut(data, 8):
        reader._take(message)


def directory(data: bytes) -> None:
    """Both answers of a Trodes network's directory."""
    asked = Directory("tcp://127.0.0.1:9", "source.spikes")
    for read in (lambda: asked._checked(_decode_where(data).replyEndpoint),
                 lambda: asked._checked(_decode_answer(data))):
        try:
            read()
        except (msgspec.DecodeError, UnicodeDecodeError, BadInput):
            continue


class _Deaf:
    """A socket that takes everything."""

    def sendall(self, data: bytes) -> None:
        """Take it."""

    def send_multipart(self, parts: list[Any], flags: int) -> None:
        """Take a frame, whose header a server has to understand."""
        wire.decode_header(bytes(parts[0]))


def spikeglx(data: bytes) -> None:
    """Replies of SpikeGLX, to a question and to a fetch."""
    connection = Connection.__new__(Connection)
    connection._socket = _Deaf()  # type: ignore[assignment]
    connection._file = io.BufferedReader(io.BytesIO(data))  # type: ignore[type-var,assignment]
    try:
        connection.query("GETVERSION")
        connection.fetch(2, 0, 0, "0:3", 4, memoryview(bytearray(64)))
    except Trouble:
        return


# Files.


def manifest(data: bytes) -> None:
    """A bundle's manifest."""
    try:
        check_manifest(parse_manifest(data, "fuzz"), "fuzz")
    except BadInput:
        return


def _whole(path: str) -> bytes:
    return Path(path).read_bytes()


def tensors(data: bytes) -> None:
    """A safetensors file."""
    try:
        found = decode_tensors(data, "fuzz")
    except BadInput:
        return
    assert all(tensor.dtype == np.float32 for tensor in found.values())


def templates(data: bytes) -> None:
    """A templates file, and a matcher made of it; or a signal for the matcher of a good one."""
    signal = np.zeros((60, fuzz_seeds.RAW_CHANNELS), np.int16)
    try:
        if data[:1] == b"s":
            found, size = fuzz_seeds.templates(), 2 * signal.size
            signal = np.frombuffer(data[1:1 + size].ljust(size, b"\0"), np.int16).reshape(60, -1)
        else:
            found = decode_templates(data, "fuzz")
            signal = np.full((60, found.n_channels), 9, np.int16)
        matcher = found.matcher()
    except BadInput:
        return
    n = matcher.push(np.ascontiguousarray(signal), 0)
    matcher.push(np.ascontiguousarray(signal[::-1]), len(signal))
    assert 0 <= n <= 1 << 16


def _read_recording(path: str) -> None:
    found = open_recording(Path(path).parent)
    parse_engine(found.header.config.engine)
    assert 0 <= found.tape_id < 1 << 64
    found.header.config.check()


def _read_config(path: str) -> None:
    config: ServeConfig = load_config(path, {})
    config.check()
    parse_probes([f"{name}={uri}" for name, uri in config.probe.items() if "=" not in name and uri])


def _read_keys(path: str) -> None:
    for read in (curve.read_public, curve.read_secret, curve.read_allowed):
        try:
            read(path)
        except BadInput:
            continue


def signature(data: bytes) -> None:
    """The signature of a bundle."""
    from neds_rt.signature import check_signature

    try:
        check_signature(b"{}", data, fuzz_seeds.trusted(), "fuzz")
    except (BadInput, StartError):
        return


def control(data: bytes) -> None:
    """A request at the control socket, and the reply that a client reads."""
    from neds_rt.control import _decoder, _replies

    for decoder in (_decoder, _replies):
        try:
            decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue


def zap(data: bytes) -> None:
    """What libzmq asks of the gatekeeper."""
    keeper = Gatekeeper.__new__(Gatekeeper)
    keeper._lists, keeper.admitted, keeper.refused = {b"d": frozenset()}, 0, 1 << 30
    answer = keeper._answer(cut(data, 10))
    assert len(answer) == 6
    assert answer[2] == b"400"


def address(data: bytes) -> None:
    """URIs and endpoints, as a configuration or a Trodes network gives them."""
    from neds_rt.sources.address import parse_address
    from neds_rt.sources.openephys import Options

    text = data.decode("utf-8", "replace")
    for read in (lambda: endpoints.endpoint_of("fuzz", text),
                 lambda: endpoints.check_endpoint("fuzz", text),
                 lambda: parse_address("fuzz", text, 5556, Options)):
        try:
            read()
        except BadInput:
            continue


def status(data: bytes) -> None:
    """What viewers read of a server."""
    from neds_rt.status import decode_status

    try:
        decode_status(data)
    except msgspec.DecodeError:
        return


def tape() -> Callable[[bytes], None]:
    """Return a target that reads a flight recording: as it is, or the bytes as records of a chunk.

    In a chunk they have the checksums that no mutation would find.
    """
    from types import SimpleNamespace

    from neds_rt.recording.tape import TapeReader

    folder = Path(tempfile.mkdtemp(prefix="neds-fuzz-",
                                   dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    recording: Any = SimpleNamespace(path=folder, tape_id=1, digest=bytes(32))

    def run(data: bytes) -> None:
        wrapped = fuzz_seeds.tape_chunk(data[1:]) if data[:1] == b"w" else data
        (folder / "tape").write_bytes(wrapped)
        try:
            for _ in TapeReader(recording):
                continue
        except BadInput:
            return

    return run


def store(data: bytes) -> None:
    """A session file whose structure the bytes change: read by neds and by neds-rt."""
    from tools.fuzz_store import read_changed

    read_changed(data)


TARGETS: dict[str, Target] = {
    "header": Target(header, lambda: [
        fuzz_seeds.spike_header(), fuzz_seeds.spike_header(fs=1.0, session="ü")]),
    "frames": Target(frames, fuzz_seeds.frames),
    "decode": Target(decode, fuzz_seeds.decodes),
    "openephys": Target(openephys, fuzz_seeds.openephys),
    "broadcast": Target(broadcast, fuzz_seeds.broadcast),
    "raw": Target(raw, fuzz_seeds.raw_blocks),
    "trodes": Target(trodes, fuzz_seeds.trodes),
    "digital": Target(digital, lambda: [fuzz_seeds.joined(*(msgspec.msgpack.encode(
        {"localTimestamp": k, "digitalData": [bytes([0, 2 * k])]}) for k in range(2)))]),
    "directory": Target(directory, lambda: [
        msgspec.msgpack.encode({"replyEndpoint": "tcp://127.0.0.1:9"}),
        msgspec.msgpack.encode("tcp://127.0.0.1:9")]),
    "spikeglx": Target(spikeglx, lambda: [
        b"SpikeGLX 1\nOK\nBINARY_DATA 4 2 uint64(7)\n" + bytes(16) + b"OK\n",
        b"ERROR FETCH: Too late\n", b"OK\nERROR Too late\n"]),
    "bundle": Target(in_file(bundle.read_bundle, ".neds"),
                     lambda: [fuzz_seeds.bundle_bytes(), fuzz_seeds.bundle_bytes(files=False)]),
    "manifest": Target(manifest, fuzz_seeds.manifests),
    "tensors": Target(tensors, fuzz_seeds.tensors),
    "status": Target(status, fuzz_seeds.statuses),
    "tape": Target(tape(), fuzz_seeds.tapes),
    "store": Target(store, lambda: [bytes(8), b"\1\2\3\4\5\6\7\x08"]),
    "spool": Target(in_file(lambda path: load_spool(Path(path))), fuzz_seeds.spools),
    "templates": Target(templates, fuzz_seeds.template_files),
    "recording": Target(in_file(_read_recording, name=HEADER), fuzz_seeds.recordings),
    "config": Target(in_file(_read_config, ".toml"), fuzz_seeds.configs),
    "units": Target(in_file(read_unit_file), fuzz_seeds.unit_files),
    "keys": Target(in_file(_read_keys), fuzz_seeds.keys),
    "signature": Target(signature, fuzz_seeds.signatures),
    "control": Target(control, lambda: [
        msgspec.msgpack.encode({"command": "load", "path": "/x.neds", "shadow_bins": 5}),
        msgspec.msgpack.encode({"ok": True, "result": {"a": [1]}, "error": "", "code": 0})]),
    "zap": Target(zap, lambda: [
        fuzz_seeds.joined(b"1.0", b"1", b"d", b"::1", b"", b"CURVE", bytes(32))]),
    "address": Target(address, lambda: [b"zmq+tcp://127.0.0.1:1", b"tcp://[::1]:5556", b"ipc:///x",
                                        b"oe://127.0.0.1:1?stream=a&lateness=5&hold_ms=1"]),
}
