"""Good inputs of every parser, which fuzzing begins with; made here, so they follow the formats."""

from __future__ import annotations

import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from neds_rt import bundle, curve, wire
from neds_rt.bundle import ModalityOut, Shape, Unit, random_bundle
from neds_rt.recording.spool import Spool
from neds_rt.safetensors_io import encode_tensors
from neds_rt.templates import Settings, Templates, make_templates

MODALITIES = [ModalityOut("v", "continuous", 2, sd=[0.5, 0.2]), ModalityOut("h", "circular", 2)]
SHAPE = Shape(hidden=8, layers=1, heads=1, mlp=8, window=3, conv=2, recurrent=True)
UNITS = [Unit("a", 3, 1), Unit("a", 4, 1), Unit("a", 4, 2)]


def joined(*parts: bytes) -> bytes:
    """Return parts as `cut` takes them."""
    return b"".join(struct.pack("<H", len(part)) + part for part in parts)


def spike_header(**changed: Any) -> bytes:
    """Return the header of a native frame, some of its fields changed."""
    fields: dict[str, Any] = {
        "version": 1, "stream": "a", "session": "s", "seq": 0, "t0_sample": 0, "watermark": 600,
        "fs": 3e4, "sent_mono_ns": 1, "sent_real_ns": 1 << 60, "n_spikes": 1}
    return msgspec.msgpack.encode(wire.SpikeHeader(**(fields | changed)))


def frames() -> list[bytes]:
    """Whole bins, and a restart."""
    spike = struct.pack("<qI", 12, 1)
    parts = []
    for seq in range(4):
        parts += [spike_header(seq=seq, t0_sample=600 * seq, watermark=600 * seq + 600), spike]
    return [joined(*parts), joined(spike_header(session="t", n_spikes=2), spike * 2)]


def decodes() -> list[bytes]:
    """A stale decode with a value of every kind."""
    value = {"mean": [1.0, float("nan")], "sd": [0.5]}
    fields = {"v": 1, "kind": "decode", "seq": 0, "session": "s", "bin": -1, "t_s": 0.0,
              "spike_age_us": -1.0, "service_us": 1.0, "recv_ns": 1, "pub_ns": 2, "model": "m",
              "valid": False, "reason": "stale", "values": {
                  "v": value, "h": {"angle": 1.0, "r": 1.0}, "c": {"p": [0.5, 0.5], "label": "x"}}}
    return [msgspec.msgpack.encode(fields)]


def openephys() -> list[bytes]:
    """A spike, a block, an event and messages of plugin 0.2."""
    spike = (b'{"message_num":1,"type":"spike","spike":{"stream":"s","electrode":"E 4",'
             b'"sample_num":10,"sorted_id":1,"num_channels":1,"num_samples":1},"timestamp":1}')
    block = (b'{"message_num":2,"type":"data","content":{"stream":"s","sample_num":0,'
             b'"num_samples":2,"sample_rate":30000.0,"channel_num":0},"data_size":8}')
    ttl = b'{"message_num":3,"type":"event","content":{"stream":"s","sample_num":5},"data_size":10}'
    old = (b'{"message_no":4,"type":"spike","spike":{"timestamp":10,"electrode_id":1,'
           b'"n_channels":1}}')
    messages = [joined(b"EVENT\0", spike, bytes(4)), joined(b"DATA\0", block, bytes(8)),
                joined(b"EVENT\0", ttl, bytes(10)), joined(b"EVENT\0", old),
                joined(b"PARAM\0", b"{}")]
    return [joined(*messages), *(joined(message) for message in messages)]


def broadcast() -> list[bytes]:
    """Spikes and events, JSON and binary."""
    spike = (b'{"event_type":"spike","stream":"s","electrode":"E 4","sample_number":10,'
             b'"sorted_id":1,"sample_rate":30000.0}')
    ttl = b'{"event_type":"ttl","stream":"s","sample_number":10}'
    raw = struct.pack("<BBHHHqdH", 2, 1, 100, 1, 4, 10, 0.1, 1) + bytes(8)
    messages = [joined(b"\1\0", spike), joined(b"\0\0", ttl), joined(b"\1\0", raw),
                joined(b"\0\0", b"\1" + bytes(40))]
    return [joined(*messages), *(joined(message) for message in messages)]


def trodes() -> list[bytes]:
    """Three spikes."""
    spike = {"nTrodeId": 4, "cluster": 1, "localTimestamp": 100, "systemTimestamp": 1 << 60}
    times = (1, 900, 1 << 52)
    return [joined(*[msgspec.msgpack.encode(spike | {"localTimestamp": t}) for t in times])]


RAW_CHANNELS, RAW_FS = 4, 1000.0


@cache
def templates() -> Templates:
    """Two units on four channels, of a slow stream: a filter that settles in few samples."""
    waveform = np.zeros((2, 6, 2), np.float32)
    waveform[:, 2] = [[-60, -20], [-30, -50]]
    return make_templates(Settings(1, RAW_FS, 100.0, True, 2, "a", 0.195), {
        "unit": np.array([[3, 1], [4, 1]]), "waveform": waveform,
        "site": np.array([[0, 1], [2, 3]]), "amplitude": np.array([[1, 0.1], [1, 0.1]]),
        "noise": np.full(RAW_CHANNELS, 5.0), "correlation": np.eye(RAW_CHANNELS),
        "position": np.array([[0, 0, 0], [20, 0, 0], [0, 20, 0], [20, 20, 0]]),
    }, "fuzz")


def template_files() -> list[bytes]:
    """The file, and a signal to be taken with them."""
    signal = np.zeros((60, RAW_CHANNELS), np.int16)
    signal[50, :2] = [-100, -33]
    return [templates().encode(), b"s" + signal.tobytes()]


def raw_message(channel: int, sample: int, values: Any, **changed: Any) -> bytes:
    """A channel's part of a block of Open Ephys' ZMQ Interface."""
    data = np.asarray(values, "<f4").tobytes()
    content = {"stream": "s", "channel_num": channel, "num_samples": len(data) // 4,
               "sample_num": sample, "sample_rate": RAW_FS} | changed
    header = {"message_num": 1, "type": "data", "content": content, "data_size": len(data)}
    return joined(b"DATA\0", msgspec.json.encode(header), data)


def raw_blocks() -> list[bytes]:
    """Blocks of all channels with a spike, a channel that is missing, and a pulse."""
    values = np.zeros(30)
    values[25] = -20  # microvolts
    share = [1, 0.33, 0, 0]  # of it, by channel
    ttl = b'{"message_num":3,"type":"event","content":{"stream":"s","sample_num":5},"data_size":10}'
    pulse = joined(b"EVENT\0", ttl, bytes([2, 1, *bytes(8)]))
    blocks = [[raw_message(channel, 30 * k, values * share[channel])
               for channel in range(RAW_CHANNELS)] for k in range(3)]
    return [joined(*blocks[0], *blocks[1], *blocks[2], pulse),
            joined(*blocks[0][::2], *blocks[1], pulse),
            joined(raw_message(0, 0, values, sample_rate=30000.0), blocks[0][0], *blocks[0])]


def recordings() -> list[bytes]:
    """The header of a flight recording."""
    from types import SimpleNamespace

    from neds_rt.config import ServeConfig
    from neds_rt.recording.header import make_header

    config = ServeConfig(probe={"a": "zmq+tcp://127.0.0.1:1"}, model="x.neds", stale_after=0.5)
    engine = SimpleNamespace(name="native", precision="float32", isa="avx2")
    return [msgspec.json.encode(make_header(config, "ab", engine))]


@cache
def bundle_bytes(files: bool = True) -> bytes:
    """A small bundle, zipped."""
    made = random_bundle(SHAPE, len(UNITS), MODALITIES, probe="a")
    m = made.manifest
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.neds"
        bundle.write_bundle(path, session="s", subject="m", bin_size_s=0.02, shape=m.shape,
                            units=m.units, modalities=m.modalities, weights=made.weights,
                            files={"model.onnx": b"graph"} if files else None)
        return path.read_bytes()


def manifests() -> list[bytes]:
    """The manifest of one."""
    return [msgspec.json.encode(random_bundle(SHAPE, 3, MODALITIES, probe="a").manifest)]


def tensors() -> list[bytes]:
    """Two tensors, one of them empty."""
    return [encode_tensors({"a": np.ones((2, 3), np.float32), "b": np.zeros(0, np.float32)})]


def spools() -> list[bytes]:
    """A recording of three frames."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.spool"
        with Spool(path, "s", "m") as spool:
            spool.name("a", 0, "stream", "E 1", 1)
            for seq in range(3):
                spool.frame(spike_header(seq=seq, t0_sample=600 * seq, watermark=600 * seq + 600),
                            struct.pack("<qI", 12, 0))
        return [path.read_bytes()]


def configs() -> list[bytes]:
    """Options of every type."""
    return [b'model = "x.neds"\nkeep_warm = "on"\nstale_after = 0.5\ninsecure = false\n'
            b'curve_server = { a = "k" }\n[probe]\na = "zmq+tcp://127.0.0.1:1"\n']


def unit_files() -> list[bytes]:
    """Two units."""
    columns = "probe\tchannel\tcluster\tstream\telectrode\tsorted_id\n"
    return [(columns + "a\t3\t1\ts\tE 1\t1\na\t4\t2\t\tE 2\t0\n").encode()]


def keys() -> list[bytes]:
    """Both halves of a pair, and an allow-list."""
    with tempfile.TemporaryDirectory() as folder:
        public, secret = curve.write_key_pair(Path(folder), "k")
        key = curve.read_public(str(public))
        return [public.read_bytes(), secret.read_bytes(), key + b" me\n# nobody\n" + key]


@cache
def trusted() -> str:
    """Return the file of a public key; its secret key lies beside it."""
    from neds_rt.signature import write_signing_pair

    return str(write_signing_pair(Path(tempfile.mkdtemp(prefix="neds-fuzz-")), "k")[0])


def signatures() -> list[bytes]:
    """One that fits the manifest `{}`, and one that does not."""
    from neds_rt.signature import read_signing_key, sign

    key = read_signing_key(trusted().replace(".pub.pem", ".pem"))
    return [sign(b"{}", key), sign(b"[]", key)]


def statuses() -> list[bytes]:
    """Statuses of a server, with and without a raster."""
    from neds_rt.stats import SPANS
    from neds_rt.status import (
        Histogram,
        ModalityStatus,
        ProbeStatus,
        RasterStatus,
        Stage,
        Status,
        encode_status,
    )

    def made(raster: RasterStatus | None) -> bytes:
        return encode_status(Status(
            run="r", mono_ns=5, uptime_s=1.5, endpoint="tcp://127.0.0.1:5580", model="ab",
            engine="native", precision="int8", bin_size_s=0.02,
            modalities=[ModalityStatus("velocity", "continuous", 2, "cm/s")], bins=7, decodes=7,
            stale_decodes=0, valid=True, reason="ok", reason_s=3.0, reasons={"ok": 7},
            counters={"frames": 7}, stale_s=0.5, silent_s=0.3, recent_s=10.0, sample_age_s=0.02,
            deadline_s=0.02, missed_deadlines=0, stages={name: Stage() for name in SPANS},
            service=Histogram(1.0, 2, [0, 1, 0], [0, 2, 0]),
            probes=[ProbeStatus("a", "zmq+tcp://127.0.0.1:1", 4, "live", "", 9, 0.01, 0.0)],
            memory_mb=40.0, memory_ready_mb=39.0, keep_warm=True, keep_warm_ticks=3, clocks="",
            raster=raster))

    return [made(None), made(RasterStatus(2, 4, [5, 6], [0, 1], b"\1\2\3\4"))]


def tape_chunk(body: bytes, sequence: int = 0) -> bytes:
    """A chunk of a flight recording around any bytes, with the checksums that it needs."""
    import struct
    import zlib

    rest = struct.pack("<QQIIII", 1, sequence, len(body), zlib.crc32(body), 1, 1)
    return b"NTC1" + struct.pack("<I", zlib.crc32(rest)) + rest + body


def tapes() -> list[bytes]:
    """A tape of two chunks, and the records of one with the mark that has them wrapped."""
    import struct

    def record(kind: bytes, head: bytes, body: bytes) -> bytes:
        size = len(head) + len(body)
        return struct.pack("<IHcxq", size, len(head), kind, 7) + head + body

    start = record(b"S", b"", bytes(32))
    more = record(b"F", spike_header(), b"") + record(b"N", b"", b"\3") + record(
        b"H", b"", bytes(24)) + record(b"E", b"told", b"x")
    return [tape_chunk(start) + tape_chunk(more, 1), b"w" + start + more]
