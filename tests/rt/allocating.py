"""Ten thousand bins while the heap is watched; a process of its own, see test_allocations.py.

    LD_PRELOAD=counter.so python -m tests.rt.allocating steps native:int8 [NEW FOLDER TO RECORD IN]
    LD_PRELOAD=counter.so python -m tests.rt.allocating server native:int8 MODEL zmq+ipc://PATH
    LD_PRELOAD=counter.so python -m tests.rt.allocating traced native:int8 MODEL zmq+ipc://PATH

Prints one JSON object: `control` (what allocating once on purpose counts), `allocations` of the
heap by this thread over `BINS` bins, and of the server also `python_bytes`, by which what Python
holds has grown where it is traced. Tracing allocates by itself: the two are counted apart.
"""

import ctypes
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np

from neds_rt import _core
from neds_rt.assemble import Rehearsal, make_assembler, make_encoder, make_stepper
from neds_rt.bundle import random_bundle, read_bundle
from neds_rt.config import ServeConfig
from neds_rt.engines import load_engine
from neds_rt.recording.flight import FlightRecorder
from neds_rt.server import Server, announce
from tests.rt.serving import MODALITIES, SHAPE, small_bundle
from tests.rt.spike_frames import Sender

BINS, FIRST = 10_000, 500
UNITS = 4
WIDTH = 600  # samples a bin


class Heap:
    """The preloaded counter."""

    def __init__(self):
        self._library = ctypes.CDLL(None)
        self._library.allocations_counted.restype = ctypes.c_long

    def watch(self, on):
        self._library.count_allocations(ctypes.c_bool(on))

    @property
    def counted(self):
        return self._library.allocations_counted()

    def control(self):
        """What one allocation on purpose counts."""
        before = self.counted
        self.watch(True)
        block = np.empty(1 << 16, np.uint8)
        self.watch(False)
        del block
        return self.counted - before


def frames(n, sender=None, first=0):
    """One frame a bin, each with one spike."""
    sender = sender or Sender()
    return [sender.frame(k * WIDTH, (k + 1) * WIDTH, [k * WIDTH + k % 500], [k % UNITS])
            for k in range(first, first + n)]


def count_steps(heap, name, folder=""):
    """Frame to message for every bin, rehearsals between, by the C++ parts that a server uses.

    Every bin is kept, and a standby sees it; with a folder a flight recorder writes there.
    """
    bundle = random_bundle(SHAPE, UNITS, MODALITIES)
    recorder = None
    if folder:
        bundle = read_bundle(small_bundle(Path(folder) / "x.neds"))
    engine, standby = load_engine(name, bundle), load_engine("native", bundle)
    assembler = make_assembler(bundle.manifest, ["a"])
    history, counts = _core.History(256, UNITS), np.zeros(UNITS, np.uint16)
    followers = [_core.Follower(history, make_stepper(e, counts), counts, e.n_outputs)
                 for e in (engine, standby)]
    model = _core.Candidate(make_stepper(engine, assembler.counts), make_encoder(bundle.manifest),
                            SHAPE.window, *followers)
    pipeline = _core.Pipeline(assembler, model, _core.LatencyRing(64))
    pipeline.keep(history)
    rehearse = Rehearsal(bundle.manifest, engine)
    if folder:
        config = ServeConfig(probe={"a": "zmq+ipc://a"}, record=f"{folder}/r", record_reserve_mb=0)
        recorder = FlightRecorder(config, bundle, engine)
        recorder.start(pipeline)
    sent = frames(FIRST + BINS)
    decoded = before = 0
    for k, (header, payload) in enumerate(sent):
        if k == FIRST:
            before = heap.counted
            heap.watch(True)
        size = pipeline.feed(header, payload, 1)
        while size:
            decoded += 1
            size = pipeline.next()
        while pipeline.standby_behind:
            pipeline.follow()
        if k % 10 == 0:
            rehearse()
    heap.watch(False)
    assert decoded == FIRST + BINS
    np.testing.assert_array_equal(standby.core.position, engine.core.position)
    if recorder is not None:
        recorder.stop()
        assert recorder.report()["bytes"] > 100 * BINS
    return {"allocations": heap.counted - before}


def count_server(heap, name, model, uri, *, traced):
    """A whole server, from its `FIRST` bin on."""
    bundle = read_bundle(model)
    config = ServeConfig(probe={"a": uri}, model=model, out="tcp://127.0.0.1:*", engine=name,
                         keep_warm="off", stale_after=60.0, max_bins=FIRST + BINS + 2)
    server = Server(config, bundle, load_engine(name, bundle))
    seen = np.zeros(5, np.int64)  # bins, then allocations and bytes before and after
    closed = server.keep_warm.bin_closed

    def bin_closed(received_ns, service_ns):
        closed(received_ns, service_ns)
        seen[0] += 1
        if seen[0] == FIRST:
            seen[1], seen[2] = heap.counted, tracemalloc.get_traced_memory()[0]
            heap.watch(True)
        elif seen[0] == FIRST + BINS:
            heap.watch(False)
            seen[3], seen[4] = heap.counted, tracemalloc.get_traced_memory()[0]

    server.keep_warm.bin_closed = bin_closed
    if traced:
        tracemalloc.start()
        heap.control()  # what the counter itself holds is there from now on
    server.run(announce)
    assert server.decodes == FIRST + BINS + 2
    return {"allocations": int(seen[3] - seen[1]), "python_bytes": int(seen[4] - seen[2])}


def main():
    heap = Heap()
    what, *rest = sys.argv[1:]
    if what == "steps":
        found = count_steps(heap, *rest)
    else:
        found = count_server(heap, *rest, traced=what == "traced")
    print(json.dumps({"control": heap.control(), **found}))


if __name__ == "__main__":
    main()
