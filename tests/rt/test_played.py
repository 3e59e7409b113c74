"""Sources that play: what `replay:` and `synthetic:` give is what the publishers would send."""

import json
import subprocess
import threading
import time

import h5py
import numpy as np
import pytest

from neds_rt import _core
from neds_rt.binning import bin_edges, bin_spikes
from neds_rt.bundle import read_bundle
from neds_rt.errors import BadInput
from neds_rt.manifest import Unit
from neds_rt.player import Player
from neds_rt.recording.compare import differing
from neds_rt.recording.session import write_sessions
from neds_rt.recording.spool import FRAME
from neds_rt.recording.tape import DECODE
from neds_rt.sources import open_source
from neds_rt.sources.frame import Frame
from neds_rt.sources.replay import blocks, read_recording
from neds_rt.sources.synthetic import make_animal, synthetic_blocks
from neds_rt.sources.units import UnitMap
from neds_rt.wire import SPIKE_DTYPE, decode_header, decode_message
from tests.rt.flights import read
from tests.rt.serving import COMMAND, ROOT, fail, small_bundle, wait_for
from tests.rt.spike_frames import drain
from tests.rt.test_received import Recording

FS, BIN_S = 30_000.0, 0.02
SECONDS = 1.2


def write_session(path, units, seed=3, seconds=SECONDS):
    """A session with a gap and more units than the model has, in another order."""
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.integers(0, int(seconds * FS), 900))
    sample = sample[(sample < 15_000) | (sample >= 18_000)]
    table = [*reversed(units), Unit(units[0].probe, 999, 999)]
    with h5py.File(path, "w") as file:
        file.attrs["schema"], file.attrs["session"] = "neds-session-1", "s1"
        file["units/probe"] = [u.probe.encode() for u in table]
        file["units/channel"] = [u.channel for u in table]
        file["units/cluster"] = [u.cluster for u in table]
        file["spikes/sample"] = sample
        file["spikes/unit_index"] = rng.integers(0, len(table), len(sample)).astype(np.int32)
        file["spikes"].attrs["fs"] = FS
        file["domain/start"], file["domain/end"] = [0.0, 0.6], [0.5, seconds]
    return path


class Rig:
    """One source feeding one assembler of its units, tended as a server does."""

    def __init__(self, uri, units):
        self.source = open_source("a", uri, units=UnitMap(units))
        rows = list(range(len(units)))
        self.assembler = _core.Assembler(BIN_S, [("a", rows)], len(rows), 512)
        self.bins, self.headers, self.spikes = {}, [], []

    def take(self, condition):
        """Receive what comes until `condition()` holds after nothing waited."""
        frame = Frame()

        def step():
            self.source.tend()
            while self.source.receive(frame):
                header, payload = bytes(frame.header), bytes(frame.payload)
                self.headers.append(decode_header(header))
                self.spikes.append(np.frombuffer(payload, SPIKE_DTYPE))
                self.assembler.push(header, payload)
                self.bins |= drain(self.assembler) if self.assembler.available else {}
            return condition()
        wait_for(step)
        return self

    def to_the_end(self):
        return self.take(lambda: self.source.tend().endswith("to its end")
                         and len(self.headers) == self.source.counters["frames"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()


def published(parts, fs, units, tmp_path):
    """A Rig that has taken the same blocks from a publisher."""
    with Player(f"zmq+ipc://{tmp_path}/probe", stream="a", fs=fs) as player, \
            Rig(player.uri, units) as rig:
        player.wait(20)
        sender = threading.Thread(target=player.play, args=(parts, float("inf")))
        sender.start()
        rig.take(lambda: len(rig.headers) == len(parts))
        sender.join()
    return rig


def assert_same(played, publisher):
    facts = [[(h.stream, h.seq, h.t0_sample, h.watermark, h.fs, h.n_spikes) for h in rig.headers]
             for rig in (played, publisher)]
    assert facts[0] == facts[1]
    np.testing.assert_array_equal(np.concatenate(played.spikes), np.concatenate(publisher.spikes))
    assert list(played.bins) == list(publisher.bins)
    for k, counts in played.bins.items():
        np.testing.assert_array_equal(counts, publisher.bins[k])


UNITS = [Unit("p", 4, 1), Unit("p", 2, 7), Unit("p", 2, 3)]


def test_a_session_gives_what_its_publisher_sends(tmp_path):
    path = write_session(tmp_path / "s.h5", UNITS)
    recording = read_recording(path, "p", [(u.probe, u.channel, u.cluster) for u in UNITS])
    parts = list(blocks(recording, 0, int(SECONDS * FS), 300))
    with Rig(f"replay:{path}?speed=max", UNITS) as played:
        played.to_the_end()
        assert_same(played, published(parts, FS, UNITS, tmp_path))
        assert played.source.report() == {"played": "s1, probe p", "seconds": 1.1}
    assert {k for k, counts in played.bins.items() if counts is None} == set(range(25, 30))
    every = np.concatenate(played.spikes)
    counts = bin_spikes(every["sample"], every["unit"].astype(np.int64), 3, FS, BIN_S, 0, 60)
    assert counts.sum() > 400
    for k, found in played.bins.items():
        assert found is None or np.array_equal(found, counts[k])


@pytest.mark.parametrize("options", [{}, {"hz": 40.0, "seed": 5, "session": 2}])
def test_an_animal_gives_what_its_publisher_sends(tmp_path, options):
    animal = make_animal(options.get("seed", 0), 3, options.get("hz", 8.0))
    parts = synthetic_blocks(animal, options.get("session", 0), 1.0, 300)
    query = "".join(f"&{key}={value}" for key, value in options.items())
    with Rig(f"synthetic:?seconds=1&speed=max{query}", UNITS) as played:
        played.to_the_end()
        assert_same(played, published(parts, FS, UNITS, tmp_path))
    assert sum(len(s) for s in played.spikes) > 0


def test_the_mean_rate_is_the_one_asked_for():
    rates = [np.exp(make_animal(1, 40, hz).log_base) for hz in (8.0, 16.0)]
    np.testing.assert_allclose(rates[1], 2 * rates[0])


def serve(where, model, uri, meanwhile=lambda: None):
    """Run a server to the end of its input; return its summary and the decodes it recorded."""
    process = subprocess.Popen(
        [*COMMAND, "serve", f"--probe=a={uri}", f"--model={model}", "--out=tcp://127.0.0.1:*",
         "--status=off", "--json", "--idle-exit=2", "--deadline-ms=60000", "--drift=off",
         "--stale-after=60", "--close-after=60", "--clock-jump=60", f"--record={where}",
         "--record-reserve-mb=0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    meanwhile()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    records, _, _ = read(where)
    decodes = [r.body for r in records if r.kind == DECODE]
    return json.loads(out.splitlines()[-1]), decodes


@pytest.mark.parametrize("kind", ["replay", "synthetic"])
def test_a_server_decodes_the_same_of_either_form(tmp_path, kind):
    model = small_bundle(tmp_path / "x.neds", probes=("p",))
    units = read_bundle(model).manifest.units
    if kind == "replay":
        path = write_session(tmp_path / "s.h5", units)
        uri = f"replay:{path}?speed=4"
        recording = read_recording(path, "p", [(u.probe, u.channel, u.cluster) for u in units])
        parts = list(blocks(recording, 0, int(SECONDS * FS), 300))
    else:
        uri = "synthetic:?seconds=1&hz=30&speed=4"
        parts = synthetic_blocks(make_animal(0, len(units), 30.0), 0, 1.0, 300)
    summary, mine = serve(tmp_path / "mine", model, uri)
    with Player(f"zmq+ipc://{tmp_path}/probe", stream="a", fs=FS) as player:
        def publish():
            player.wait(30)
            player.play(parts, 4.0)
        _, theirs = serve(tmp_path / "theirs", model, player.uri, publish)
    assert len(mine) == len(theirs) == summary["decodes"] > 45
    for one, other in zip(mine, theirs, strict=True):
        fields, _ = differing(one, other)
        # Sessions are named anew; whether a deadline was met is for the clock to say.
        assert set(fields) <= {"session", "recv_ns", "valid", "reason"}
        reasons = {decode_message(one).reason, decode_message(other).reason}
        assert len(reasons) == 1 or "deadline missed" in reasons
    assert summary["sources"]["a"]["counters"]["held_up"] == 0
    assert summary["counters"]["gaps"] == (1 if kind == "replay" else 0)


def test_nothing_is_played_before_it_is_tended_nor_ahead_of_time(tmp_path):
    path = write_session(tmp_path / "s.h5", UNITS)
    with Rig(f"replay:{path}?speed=8", UNITS) as rig:
        assert not rig.source.pollable.poll(400)
        assert not rig.source.receive(Frame())
        before = time.monotonic_ns()
        rig.to_the_end()
        sent = np.array([h.sent_mono_ns for h in rig.headers])
        due = np.array([h.watermark for h in rig.headers]) / FS / 8 * 1e9
        assert np.all(sent >= before + due)
        assert np.all(np.diff(sent) >= 0)
        assert sent[-1] <= time.monotonic_ns()
        assert not rig.source.receive(Frame())  # the end is silence


def test_a_play_waits_for_a_server_that_is_behind(tmp_path):
    uri = "synthetic:?seconds=60&units=2&speed=max"
    with Rig(uri, UNITS) as rig:
        rig.source.tend()
        wait_for(lambda: rig.source.counters["held_up"])
        assert rig.source.counters["frames"] < 6000
        rig.to_the_end()
    assert [h.seq for h in rig.headers] == list(range(6000))
    ends = bin_edges(np.arange(1, 3001), FS, BIN_S)
    assert [h.watermark for h in rig.headers[1::2]] == ends.tolist()


@pytest.mark.parametrize("more", ["", "&speed=0.001"])
def test_a_source_can_be_closed_at_any_time(tmp_path, more):
    with Rig("synthetic:?seconds=30&units=2" + more, UNITS) as rig:
        rig.source.tend()
    with Rig("synthetic:?seconds=60&units=2&speed=max", UNITS) as rig:
        rig.source.tend()
        wait_for(lambda: rig.source.counters["held_up"])


def test_a_loop_is_another_session_each_time(tmp_path):
    with Rig("synthetic:?seconds=0.1&speed=10&loop=1", UNITS) as rig:
        rig.take(lambda: rig.source.counters["loops"] > 2 and len(rig.headers) >= 30)
    for k, header in enumerate(rig.headers[:30]):
        assert (header.seq, header.t0_sample) == (k % 10, 300 * (k % 10))
    sessions = [rig.headers[k].session for k in (0, 10, 20)]
    assert [s.rpartition(".")[2] for s in sessions] == ["1", "2", "3"]
    np.testing.assert_array_equal(np.concatenate(rig.spikes[:10]),
                                  np.concatenate(rig.spikes[10:20]))


def test_a_flight_recording_is_played_as_it_came(tmp_path):
    model = small_bundle(tmp_path / "x.neds", probes=("p",))
    units = read_bundle(model).manifest.units
    serve(tmp_path / "first", model, "synthetic:?seconds=0.5&hz=60&speed=max")
    with Rig("synthetic:?seconds=0.5&hz=60&speed=max", units) as truth:
        truth.to_the_end()
    with Rig(f"replay:{tmp_path / 'first'}?speed=max", units) as rig:
        rig.to_the_end()
    np.testing.assert_array_equal(np.concatenate(rig.spikes), np.concatenate(truth.spikes))
    with pytest.raises(BadInput, match="recording of other units"):
        open_source("a", f"replay:{tmp_path / 'first'}", units=UnitMap(UNITS))


def test_what_is_played_can_be_recorded(tmp_path):
    path = write_session(tmp_path / "s.h5", UNITS)
    out = tmp_path / "o.h5"
    with Recording(tmp_path / "spool", {"p": f"replay:{path}?speed=max"}) as recording:
        wait_for(lambda: len(recording.holds(FRAME)) == 110)
    write_sessions(tmp_path / "spool", out, {})
    order = [(u.probe, u.channel, u.cluster) for u in UNITS]
    one, two = (read_recording(file, "p", order).spikes(0, int(SECONDS * FS))
                for file in (path, out))
    np.testing.assert_array_equal(np.sort(one), np.sort(two))


@pytest.mark.parametrize(("uri", "text"), [
    ("replay:", "replay:PATH"),
    ("replay:missing.h5", "missing.h5"),
    ("replay:{session}?probe=z", "one of p"),
    ("replay:{session}?speed=fast", "speed=fast"),
    ("replay:{session}?speed=0", "speed=0"),
    ("replay:{session}?loop=maybe", "URI option"),
    ("replay:{session}?hz=3", "each once, of speed, loop, probe"),
    ("replay:{session}?speed", "?speed"),
    ("synthetic:there", "synthetic:[?option"),
    ("synthetic:?units=-1", "units=-1"),
    ("synthetic:?hz=nan", "hz=nan"),
    ("synthetic:?seconds=1e9", "0.02 to 3600"),
    ("synthetic:?seed=x", "URI option"),
    ("synthetic", "replay:, synthetic:"),
])
def test_bad_options_are_one_line(tmp_path, uri, text):
    path = write_session(tmp_path / "s.h5", UNITS)
    with pytest.raises(BadInput) as raised:
        open_source("a", uri.format(session=path), units=UnitMap(UNITS))
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_ends_in_one_line(tmp_path):
    model = small_bundle(tmp_path / "x.neds", probes=("p",))
    path = write_session(tmp_path / "s.h5", UNITS)  # not the model's units
    for uri, text in ((f"replay:{path}", "every unit of the model"), ("synthetic:?hz=0", "hz=0")):
        code, err = fail(f"--probe=a={uri}", f"--model={model}", "--out=tcp://127.0.0.1:*")
        assert (code, err.count("\n")) == (2, 1), err
        assert text in err
