"""The status message: round trip, what is refused, percentiles, raster, where it is published."""

import logging
import math
import socket

import msgspec
import numpy as np
import pytest

from neds_rt import _core
from neds_rt.config import ServeConfig
from neds_rt.errors import BadInput
from neds_rt.reporting import LatencyBook, StatusPublisher, open_publisher
from neds_rt.stats import SPANS, now_ns
from neds_rt.status import (
    MAX_STATUS_BYTES,
    DriftStatus,
    Histogram,
    ModalityStatus,
    ProbeStatus,
    RasterStatus,
    Stage,
    Status,
    decode_status,
    encode_status,
)
from neds_rt.watching import StatusReader


def status_of(**changes):
    base = {
        "run": "r", "mono_ns": 5, "uptime_s": 12.5, "endpoint": "tcp://127.0.0.1:5580",
        "model": "ab" * 32, "engine": "native", "precision": "float32", "bin_size_s": 0.02,
        "modalities": [ModalityStatus("velocity", "continuous", 2, "cm/s")], "bins": 7,
        "decodes": 7, "stale_decodes": 0, "valid": True, "reason": "ok", "reason_s": 3.0,
        "reasons": {"ok": 7, "gap": 0}, "counters": {"frames": 7, "gaps": 0}, "stale_s": 0.5,
        "silent_s": 0.3, "recent_s": 10.0, "sample_age_s": 0.02,
        "deadline_s": 0.02, "missed_deadlines": 0,
        "stages": {name: Stage() for name in SPANS},
        "service": Histogram(1.0, 2, [0, 1, 0], [0, 2, 0]),
        "probes": [ProbeStatus("a", "zmq+tcp://127.0.0.1:1", 4, "live", "", 9, 0.01, 0.0)],
        "memory_mb": 40.0, "memory_ready_mb": 39.0, "keep_warm": True, "keep_warm_ticks": 3,
        "raster": RasterStatus(2, 4, [5, 6], [0, 1], b"\1\2\3\4"),
    }
    return Status(**(base | changes))


@pytest.mark.parametrize("changes", [
    {}, {"raster": None, "sample_age_s": None, "memory_mb": None},
    {"drift": DriftStatus(1.5, 3.0, {"rate": 0.1})}, {"valid": False, "reason": ""},
])
def test_status_survives_the_wire(changes):
    status = status_of(**changes)
    assert decode_status(encode_status(status)) == status


def test_a_reader_ignores_keys_it_does_not_know():
    fields = msgspec.to_builtins(status_of(raster=None)) | {"new": {"thing": 1}}
    assert decode_status(msgspec.msgpack.encode(fields)) == status_of(raster=None)


@pytest.mark.parametrize("changes", [
    {"v": 2}, {"uptime_s": math.nan}, {"engine": "x" * 5000}, {"bin_size_s": 0.0},
    {"deadline_s": -1.0},
    {"counters": {str(i): i for i in range(2000)}}, {"decodes": 2**63}, {"reason_s": math.inf},
    {"raster": RasterStatus(2, 4, [5, 6], [0, 1], b"\1\2\3")},
    {"raster": RasterStatus(2, 4, [5, 6], [0, 2], b"\1\2\3\4")},
    {"raster": RasterStatus(0, 4, [], [], b"")}, {"raster": RasterStatus(9, 4, [], [], b"")},
    {"service": Histogram(1.0, 2, [0], [0, 1])}, {"service": Histogram(0.0, 2, [0], [0])},
    {"service": Histogram(1.0, 1, [0] * 400, [0] * 400)}, {"service": Histogram(1.0, 2, [], [])},
    {"service": Histogram(1.0, 2, [-1], [0])}, {"probes": [ProbeStatus("p", "u", 1, "x" * 9999)]},
])
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(msgspec.DecodeError):
        decode_status(encode_status(status_of(**changes)))


@pytest.mark.parametrize("data", [
    b"", b"\xc1", b"\x80", b"\x91" * 10_000, b"\0" * (MAX_STATUS_BYTES + 1), b"\x81\xa1k\xa1\xff",
    msgspec.msgpack.encode({"kind": "decode"}),
])
def test_bytes_that_are_no_status_are_refused(data):
    with pytest.raises(msgspec.DecodeError):
        decode_status(data)


def ring_of(service_us, capacity=4096, age_s=0.0):
    """A ring of bins whose service took so long, all of it in the step."""
    ring = _core.LatencyRing(capacity)
    start = now_ns() - int(age_s * 1e9)
    for took in service_us:
        end = start + round(took * 1000)
        ring.add(start, start, end, end, end)
    return ring


def test_percentiles_are_those_of_the_bins():
    took = np.random.default_rng(1).lognormal(5.0, 0.7, 400)
    book = LatencyBook(ring_of(took), 0.02)
    book.update()
    stage = book.stages()["service_us"]
    exact = np.percentile(took, [50, 99, 99.9, 100], method="higher")
    recent = stage.recent
    np.testing.assert_allclose([recent.p50, recent.p99, recent.p999, recent.max], exact, rtol=1e-4)
    of_all = [stage.all.p50, stage.all.p99, stage.all.p999, stage.all.max]
    assert all(e * 0.999 <= found <= e * 1.06 for e, found in zip(exact, of_all, strict=True))
    assert stage.count == 400
    np.testing.assert_allclose(stage.sum_us, took.sum(), rtol=1e-4)
    histogram = book.histogram()
    assert sum(histogram.recent) == sum(histogram.all) == 400
    edges = np.r_[0, histogram.edges_us(), np.inf]
    np.testing.assert_array_equal(histogram.all, np.histogram(took, edges)[0])


def test_every_bin_is_counted_once_however_often_it_is_looked_at():
    ring = _core.LatencyRing(64)
    book = LatencyBook(ring, 0.02)
    book.update()
    assert book.stages()["service_us"].all is None
    for k in range(200):
        now = now_ns()
        late = 25_000_000 if k % 50 == 0 else 1000
        ring.add(now, now, now, now, now + late)
        if k % 7 == 0:
            book.update()
    book.update()
    assert book.stages()["service_us"].count == 200
    assert book.missed == 4


def test_old_bins_are_not_recent():
    book = LatencyBook(ring_of([100.0] * 20, age_s=60.0), 0.02)
    book.update()
    stage = book.stages()["service_us"]
    assert stage.recent is None
    assert stage.count == 20


def test_raster_sums_neighbours_and_keeps_the_last_bins():
    raster = _core.Raster(3, 5, 2)
    assert raster.recent() == ([], [], b"")
    assert raster.word == (-1, 0)
    for k in range(5):
        raster.add(k, [k, 1, 200, 100, 0], k % 2)
    bins, reasons, cells = raster.recent()
    assert (bins, reasons) == ([2, 3, 4], [0, 1, 0])
    # Rows are units 0-1 and 2-4; 300 spikes are shown as 255.
    assert np.frombuffer(cells, np.uint8).reshape(3, 2).tolist() == [[3, 255], [4, 255], [5, 255]]


def test_word_says_since_when_it_is_true():
    raster = _core.Raster(1, 1, 1)
    raster.said(2, 5_000_000)
    raster.said(2, 9_000_000)
    assert raster.word == (2, 5_000_000)
    raster.said(0, 11_000_000)
    assert raster.word == (0, 11_000_000)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 1, 0), (1, 1, 2)])
def test_impossible_rasters_are_refused(sizes):
    with pytest.raises(ValueError, match="raster"):
        _core.Raster(*sizes)


def config(**changes):
    return ServeConfig(probe={"a": "zmq+tcp://127.0.0.1:1"}, model="x", **changes)


def test_auto_goes_to_the_port_after_that_of_the_decodes():
    publisher = None
    for _ in range(10):  # the next port may belong to somebody else
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        out = f"tcp://127.0.0.1:{port}"
        publisher = publisher or open_publisher(config(out=out), out)
        if publisher is not None:
            break
    assert publisher is not None
    try:
        assert publisher.endpoint == f"tcp://127.0.0.1:{port + 1}"
    finally:
        publisher.close()


def test_auto_goes_without_when_somebody_else_is_there(caplog):
    first = StatusPublisher("tcp://127.0.0.1:*")
    try:
        out = f"tcp://127.0.0.1:{int(first.endpoint.rpartition(':')[2]) - 1}"
        with caplog.at_level(logging.WARNING):
            assert open_publisher(config(out=out), out) is None
        assert "in use" in caplog.text
        with pytest.raises(BadInput, match="in use"):
            open_publisher(config(status=first.endpoint), out)
    finally:
        first.close()
    assert open_publisher(config(status="off"), "tcp://127.0.0.1:5580") is None


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:5581", "5581", "udp://127.0.0.1:1"])
def test_bad_endpoints_are_refused_at_both_ends(endpoint):
    with pytest.raises(BadInput):
        StatusPublisher(endpoint)
    with pytest.raises(BadInput):
        StatusReader(endpoint)


def test_a_reader_passes_over_what_is_no_status(tmp_path):
    publisher = StatusPublisher(f"ipc://{tmp_path}/s")
    try:
        with StatusReader(publisher.endpoint) as reader:
            assert reader.recv(0.0) is None
            while reader.malformed == 0:  # until the subscription has arrived
                publisher._socket.send(b"nonsense")
                reader.recv(0.02)
            publisher.send(status_of())
            found = None
            while found is None:
                found = reader.recv(0.1)
            assert found == status_of()
    finally:
        publisher.close()
