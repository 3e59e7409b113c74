"""`neds-rt record`: what is recorded gives the bins that were decoded live, from every source."""

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from neds.data.store import read_session
from neds_rt import _core
from neds_rt.binning import bin_spikes
from neds_rt.cli import main
from neds_rt.errors import BadInput
from neds_rt.recording.session import write_sessions
from neds_rt.recording.spool import Spool, read_spool
from neds_rt.sources.replay import bin_axis, read_recording
from tests.rt.serving import COMMAND, ROOT, Publisher, wait_for
from tests.rt.spike_frames import Sender, counters_of, feed
from tests.rt.test_spikeglx import CHANNELS, DATA
from tools.twins.spikeglx import SpikeGlxTwin

FS, BIN_S = 30_000.0, 0.02


@pytest.fixture
def record(capfd):
    """Run `neds-rt record` here; returns the lines on standard error."""
    def run(*arguments, code=0):
        assert main(["record", *map(str, arguments)]) == code
        return capfd.readouterr().err.splitlines()
    return run


class Recording:
    """`neds-rt record` in its own process."""

    def __init__(self, out, *probes):
        given = [f"--probe={probe}" for probe in probes]
        self.process = subprocess.Popen(
            [*COMMAND, "record", *given, "--out", str(out), "--json"], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stderr.readline().startswith("ready ")

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        return json.loads(out.splitlines()[-1])


def live_bins(frames, streams=(("a", 3),)):
    """The bins that the assembler makes of the frames, and what it counted."""
    rows, first = [], 0
    for name, n in streams:
        rows.append((name, list(range(first, first + n))))
        first += n
    assembler = _core.Assembler(BIN_S, rows, first, 512)
    return feed(assembler, frames), counters_of(assembler)


def offline_bins(path, n_units=3):
    """Whole bins of a session file: {bin: counts}."""
    session = read_session(path)
    binned = session.binned(BIN_S)
    assert session.n_units == n_units
    return dict(zip(binned.bin.tolist(), binned.counts, strict=True))


def spooled(path, frames, session="s"):
    with Spool(path, session, "mouse") as spool:
        for frame in frames:
            spool.frame(*frame)
    return path


def assert_same(path, live, n_units=3):
    offline = offline_bins(path, n_units)
    whole = {k: counts for k, counts in live.items() if counts is not None}
    assert sorted(whole) == [k for k in sorted(offline) if k <= max(whole)]
    for k, counts in whole.items():
        np.testing.assert_array_equal(counts, offline[k], err_msg=f"bin {k}")


def messy_frames(rng, n=60):
    """Blocks of odd sizes, late, early, repeated and unordered spikes, duplicates and losses."""
    sender, t, frames = Sender(), 137, []
    for _ in range(n):
        end = t + int(rng.integers(50, 2000))
        k = int(rng.integers(0, 40))
        samples = rng.integers(t - 400, end + int(rng.choice([0, 0, 900])), k)
        frames.append(sender.frame(t, end, samples, rng.integers(0, 3, k)))
        t = end
    keep = [f for i, f in enumerate(frames) if i == 0 or rng.random() > 0.1]
    return [f for f in keep for _ in range(1 + (rng.random() < 0.1))]


@pytest.mark.parametrize("seed", range(12))
def test_recorded_bins_are_the_live_ones_whatever_happened(tmp_path, seed):
    frames = messy_frames(np.random.default_rng(seed))
    # Units that never fired in the file would not be in its table: all three do here.
    live, counted = live_bins(frames)
    rows = write_sessions(spooled(tmp_path / "s", frames), tmp_path / "o.h5", {})
    assert_same(tmp_path / "o.h5", live)
    assert rows[0]["counters"]["a"]["late_spikes"] == counted.get("late_spikes", 0)
    assert rows[0]["counters"]["a"]["duplicate"] == counted.get("duplicate", 0)


def test_two_probes_cover_what_both_cover(tmp_path):
    a, b = Sender("a"), Sender("b")
    frames = [a.frame(0, 6000, [10, 700], [0, 1]), b.frame(1800, 6000, [2000, 5000], [0, 0]),
              a.frame(9000, 12_000, [9100], [0]), b.frame(6000, 12_000, [11_000], [1])]
    live, _ = live_bins(frames, (("a", 2), ("b", 2)))
    rows = write_sessions(spooled(tmp_path / "s", frames), tmp_path / "o.h5", {})
    assert_same(tmp_path / "o.h5", live, 4)
    assert rows[0]["spans"] == 2
    session = read_session(tmp_path / "o.h5")
    assert session.units.probe.tolist() == ["a", "a", "b", "b"]
    assert session.subject == "mouse"


def test_a_restart_begins_another_file(tmp_path):
    first, second = Sender(session="s1"), Sender(session="s2")
    frames = [first.frame(0, 3000, [1, 2, 3], [0, 1, 2]),
              second.frame(0, 6000, [700, 700, 900], [2, 1, 0]),
              first.frame(3000, 9000, [4000], [0])]  # what still arrives of the session that ended
    rows = write_sessions(spooled(tmp_path / "s", frames), tmp_path / "o.h5", {})
    assert [Path(row["path"]).name for row in rows] == ["o.h5", "o-2.h5"]
    assert [row["spikes"] for row in rows] == [3, 3]
    assert read_session(tmp_path / "o-2.h5").session == "s-2"


def test_over_true_sockets_and_read_by_replay(tmp_path):
    uri, out = f"zmq+ipc://{tmp_path}/spikes", tmp_path / "monday.h5"
    rng = np.random.default_rng(5)
    frames = messy_frames(rng)
    with Publisher(uri) as publisher:
        recording = Recording(out, f"a={uri}")
        publisher.wait()
        publisher.send(*frames, (b"junk", b""), (b"one part",), frames[0])
        spool = tmp_path / ".monday.spool"
        last = frames[-1]
        wait_for(lambda: spool.stat().st_size and any(
            r.body == last[1] and r.head == last[0] for r in read_spool(spool)))
        report = recording.end()
    live, _ = live_bins(frames)
    assert_same(out, live)
    assert report["counters"] == {"bad_parts": 1, "bad_header": 1, "bad_stream": 0}
    assert report["files"][0]["session"] == "monday"
    assert not spool.exists()
    recording = read_recording(out)
    bins = bin_axis(recording, BIN_S)
    assert set(k for k, c in live.items() if c is not None) <= set(bins.tolist())


def test_raw_crossings_are_recorded_with_their_channels(tmp_path):
    """The bins of the file are those of detecting on the whole band at once."""
    out = tmp_path / "raw.h5"
    with SpikeGlxTwin(DATA) as twin:
        recording = Recording(out, f"p=spikeglx://127.0.0.1:{twin.port}")
        spool = tmp_path / ".raw.spool"
        wait_for(lambda: spool.stat().st_size > 8000)
        report = recording.end(signal.SIGTERM)
    session = read_session(out)
    assert report["sources"]["p"]["counters"]["too_late"] == 0
    assert session.units.channel.tolist() == list(range(CHANNELS))
    assert set(session.units.cluster.tolist()) == {0}
    begin, end = np.rint(session.intervals[0] * FS).astype(int)
    found = bin_spikes(session.spikes.sample, session.spikes.unit_index, CHANNELS, FS, BIN_S,
                       -(-begin // 600), end // 600 - -(-begin // 600))
    assert found.sum() > 20
    assert session.metadata["source_units"][3] == ["p", "imec0.ap", "AP3", 0]


def test_a_recording_that_was_cut_off_is_recovered(tmp_path, record):
    frames = messy_frames(np.random.default_rng(2))
    spool = spooled(tmp_path / "cut", frames)
    whole = spool.read_bytes()
    spool.write_bytes(whole[:-7])
    record("--recover", spool, "--out", tmp_path / "o.h5", "--keep-spool")
    live, _ = live_bins(frames[:-1])
    assert_same(tmp_path / "o.h5", live)
    assert spool.exists()


@pytest.mark.parametrize("content", [b"", b"NED", b"\x89HDF\r\n\x1a\n" + bytes(100),
                                     b"NEDS" + b"\xff" * 40])
def test_what_is_no_spool_is_refused(tmp_path, record, content):
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="a spool of neds-rt record"):
        list(read_spool(path))
    assert len(record("--recover", path, "--out", tmp_path / "o.h5", code=2)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_silent_source_leaves_nothing_behind(tmp_path, record):
    lines = record(f"--probe=a=zmq+ipc://{tmp_path}/none", "--out", tmp_path / "o.h5",
                          "--seconds", 0.3, code=3)
    assert "no probe delivered anything" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_refused_in_one_line(tmp_path, record):
    out = tmp_path / "o.h5"
    out.write_bytes(b"")
    probe = f"--probe=a=zmq+ipc://{tmp_path}/x"
    for arguments in ((probe, "--out", out), (probe, "--out", tmp_path / "x.nwb"),
                      (probe, "--out", tmp_path / "no" / "x.h5"),
                      ("--probe=a=oo://x", "--out", tmp_path / "n.h5"),
                      (probe, "--out", tmp_path / "n.h5", "--seconds", "-1")):
        assert len(record(*arguments, code=2)) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.h5"]


def test_probes_of_two_rates_are_refused(tmp_path):
    frames = [Sender("a").frame(0, 600, [1], [0]), Sender("b", fs=25_000.0).frame(0, 600, [1], [0])]
    with pytest.raises(BadInput, match="one rate"):
        write_sessions(spooled(tmp_path / "s", frames), tmp_path / "o.h5", {})
    assert not (tmp_path / "o.h5").exists()
