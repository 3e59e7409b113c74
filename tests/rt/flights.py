"""Flight recordings for tests: a pipeline in this process, recorded by the real recorder."""

import struct
import zlib

from neds_rt import _core
from neds_rt.assemble import make_assembler, make_encoder, make_stepper
from neds_rt.bundle import read_bundle
from neds_rt.config import ServeConfig
from neds_rt.engines import load_engine
from neds_rt.recording import flight as flights
from neds_rt.recording import verdict
from neds_rt.recording.header import open_recording
from neds_rt.recording.tape import Hole, TapeReader
from tests.rt.serving import SHAPE, wait_for


class Flight:
    """A pipeline whose every frame and message is recorded; `feed` as a server does."""

    def __init__(self, path, model, probes=("a",), engine="native", **options):
        uris = {name: f"zmq+ipc://{name}" for name in probes}
        config = ServeConfig(probe=uris, model=str(model), engine=engine, record=str(path),
                             **{"record_reserve_mb": 0, **options})
        bundle = read_bundle(model)
        self.engine = load_engine(engine, bundle)
        assembler = make_assembler(bundle.manifest, list(probes), config.open_bins)
        self.encoder = make_encoder(bundle.manifest, len(probes))
        self.pipeline = _core.Pipeline(
            assembler, self.encoder, make_stepper(self.engine, assembler.counts),
            _core.LatencyRing(16), SHAPE.window)
        self.recorder = flights.FlightRecorder(config, bundle, self.engine)
        self.recorder.start(self.pipeline)
        self.path, self.fed = path, 0

    def feed(self, *frames):
        """Feed frames; returns the messages."""
        found = []
        for header, payload in frames:
            self.fed += 1
            size = self.pipeline.feed(header, payload, _core.monotonic_ns())
            while size:
                found.append(self.encoder.buffer[:size].tobytes())
                size = self.pipeline.next()
        return found

    def settle(self):
        """Wait until all of it is in the file, in a chunk that ends here."""
        wait_for(lambda: self.recorder.report()["waiting_bytes"] == 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.recorder.stop()


def read(path):
    """What a recording holds: (records, holes, reader)."""
    reader = TapeReader(open_recording(path))
    items = list(reader)
    return [r for r in items if not isinstance(r, Hole)], reader.holes, reader


def verify(path, engine=None, tolerance=None, bundles=()):
    """The report of `neds-rt replay PATH --verify`."""
    return verdict.verify(path, None, engine, tolerance, [str(bundle) for bundle in bundles])


def chunk(recording_id, sequence, body, records=1, inputs=1):
    """A chunk as README.md has it, written by other means than the recorder's."""
    rest = struct.pack("<QQIIII", recording_id, sequence, len(body), zlib.crc32(body), records,
                       inputs)
    return b"NTC1" + struct.pack("<I", zlib.crc32(rest)) + rest + body


def record(kind, head=b"", body=b"", ns=0):
    """A record as README.md has it."""
    return struct.pack("<IHcBq", len(head) + len(body), len(head), kind, 0, ns) + head + body
