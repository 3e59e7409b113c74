"""What `neds-rt record` keeps of when things came: frames' receipts and shared edges."""

import json
import threading
import time

import h5py
import numpy as np
import pytest

from neds.data.store import read_session
from neds_rt.errors import BadInput
from neds_rt.recording.recorder import Recorder
from neds_rt.recording.session import write_sessions
from neds_rt.recording.spool import EDGE, FRAME, OWN_CLOCK, Spool, read_spool
from neds_rt.wire import decode_header
from tests.rt.serving import Publisher, wait_for
from tests.rt.spike_frames import Sender
from tests.rt.test_openephys import twin_of


def received(path):
    """The group as a dict: {"frames": {column: list}, "edges": ..., attributes}."""
    with h5py.File(path) as file:
        group = file["received"]
        found = {name: {key: column[()].tolist() for key, column in group[name].items()}
                 for name in ("frames", "edges")}
        return found | dict(group.attrs) | {"streams": json.loads(group.attrs["streams"])}


def test_receipts_and_edges_stand_in_the_file_of_their_session(tmp_path):
    a, b, anew = Sender("a"), Sender("b"), Sender("a", "s2")
    with Spool(tmp_path / "s", "x", "m") as spool:
        spool.edge("b", 995, 40)
        spool.frame(*a.frame(0, 600, [5], [0]), 100)
        spool.frame(*b.frame(0, 600, [7], [0]), 101, 1_000_600)
        spool.edge("a", 590, 150)
        spool.frame(*a.frame(600, 1200), 200)
        spool.frame(*b.frame(600, 1200), 210, 1_001_200)
        spool.frame(*b.frame(600, 900), 220, 7)  # its watermark goes back: it was refused
        spool.edge("b", 1_001_300, 230)
        spool.edge("a", 10, 290)  # comes before the first frame of what it belongs to
        spool.frame(*anew.frame(0, 600, [3], [0]), 300)
        spool.frame(*Sender("b", "s2").frame(0, 600, [3], [0]), 310)
    rows = write_sessions(tmp_path / "s", tmp_path / "o.h5", {})
    assert [row["edges"] for row in rows] == [2, 2]
    one, two = received(tmp_path / "o.h5"), received(tmp_path / "o-2.h5")
    assert one["streams"] == ["a", "b"]
    assert one["frames"] == {
        "stream": [0, 1, 0, 1], "sample": [600, 600, 1200, 1200],
        "own_sample": [600, 1_000_600, 1200, 1_001_200], "ns": [100, 101, 200, 210]}
    assert one["edges"] == {"stream": [1, 0], "own_sample": [995, 590], "ns": [40, 150]}
    assert two["frames"]["ns"] == [300, 310]
    assert two["edges"] == {"stream": [1, 0], "own_sample": [1_001_300, 10], "ns": [230, 290]}
    assert abs(time.monotonic_ns() - one["mono_ns"]) < 60e9
    assert abs(time.time_ns() - one["real_ns"]) < 60e9
    assert read_session(tmp_path / "o.h5").spikes.sample.tolist() == [5, 7]


def test_edges_without_a_frame_do_not_make_a_probe(tmp_path):
    with Spool(tmp_path / "s", "x", "m") as spool:
        spool.edge("silent", 1, 1)
        spool.frame(*Sender("a").frame(0, 600, [5], [0]), 100)
    rows = write_sessions(tmp_path / "s", tmp_path / "o.h5", {})
    assert [row["path"] for row in rows] == [str(tmp_path / "o.h5")]
    assert received(tmp_path / "o.h5")["streams"] == ["a"]


@pytest.mark.parametrize(("tag", "head"), [
    (OWN_CLOCK, b"short"), (EDGE, b"[]"), (EDGE, b'["a", 1e400]'),
    (EDGE, b'["a", 1%s]' % (b"0" * 30)), (EDGE, b'["a", "x"]'),
])
def test_a_spool_that_cannot_be_is_refused(tmp_path, tag, head):
    with Spool(tmp_path / "s", "x", "m") as spool:
        spool._write(tag, head)
        spool.frame(*Sender("a").frame(0, 600, [5], [0]), 100)
    with pytest.raises(BadInput, match="a spool of neds-rt record"):
        write_sessions(tmp_path / "s", tmp_path / "o.h5", {})


class Recording:
    """A recorder on a thread of this process."""

    def __init__(self, path, probes, **options):
        self.spool = Spool(path, "x", "m")
        self._recorder = Recorder(probes, self.spool, **options)
        self._thread = threading.Thread(target=self._recorder.run)
        self._thread.start()

    def holds(self, tag):
        """Records of a kind that are in the spool by now."""
        self.spool.flush()
        return [record for record in read_spool(self.spool.path) if record.tag == tag]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._recorder.stop()
        self._thread.join()
        self._recorder.close()
        self.spool.close()


def test_edges_of_a_program_are_recorded_as_they_come(tmp_path):
    before = time.monotonic_ns()
    with twin_of() as twin, Recording(
            tmp_path / "s", {"a": f"oe://127.0.0.1:{twin.port}?sync=3"}) as recording:
        twin.wait()
        twin.start_acquisition()
        for sample, line, state in ((600, 3, 1), (700, 3, 0), (800, 2, 1), (900, 3, 1)):
            twin.send_ttl(sample, line, state)
        twin.play(0, 6000)
        wait_for(lambda: len(recording.holds(EDGE)) == 2 and len(recording.holds(FRAME)) > 3)
    write_sessions(tmp_path / "s", tmp_path / "o.h5", {})
    found = received(tmp_path / "o.h5")
    assert found["edges"]["own_sample"] == [600, 900]
    for ns in (found["edges"]["ns"], found["frames"]["ns"]):
        assert before < ns[0] <= ns[-1] < time.monotonic_ns()
        assert ns == sorted(ns)


def test_aligned_frames_keep_what_their_own_clock_said(tmp_path):
    uris = {name: f"zmq+ipc://{tmp_path}/{name}" for name in "ab"}
    with Publisher(uris["a"]) as a, Publisher(uris["b"]) as b, \
            Recording(tmp_path / "s", uris, align="on") as recording:
        a.wait()
        b.wait()
        one, two, started, end = Sender("a"), Sender("b"), time.monotonic(), 0

        def send():
            nonlocal end
            begin, end = end, int((time.monotonic() - started) * 30_000)
            a.send(one.frame(begin, end, [begin], [0]))
            b.send(two.frame(10**6 + begin, 10**6 + end, [10**6 + begin], [0]))
            return any(decode_header(r.head).stream == "b" for r in recording.holds(FRAME))
        wait_for(send)
    write_sessions(tmp_path / "s", tmp_path / "o.h5", {})
    frames = {key: np.array(column)
              for key, column in received(tmp_path / "o.h5")["frames"].items()}
    other = frames["stream"] == 1
    assert other.any()
    apart = frames["own_sample"] - frames["sample"]
    assert np.all(apart[~other] == 0)
    assert np.all(np.abs(apart[other] - 10**6) < 3000)  # a tenth of a second, by arrival times
