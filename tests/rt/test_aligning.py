"""Probes with clocks of their own in the first one's sample clock: nothing lost, little error."""

import time
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neds_rt import _core
from neds_rt.aligning import Aligner, wanted
from neds_rt.binning import bin_spikes
from neds_rt.sources.frame import Frame
from neds_rt.wire import SPIKE_DTYPE, SpikeHeader, decode_header, encode_spikes
from tests.rt.serving import Publisher, Serving, small_bundle
from tests.rt.spike_frames import drain

FS, BIN_S = 30_000.0, 0.02


def frame_of(stream, seq, t0, watermark, samples, session="a", fs=FS):
    spikes = np.zeros(len(samples), SPIKE_DTYPE)
    spikes["sample"] = samples
    spikes["unit"] = np.arange(len(samples)) % 5
    header = SpikeHeader(1, stream, session, seq, t0, watermark, fs, 0, 0, len(samples))
    frame = Frame()
    (frame.header, frame.payload), frame.parts = encode_spikes(header, spikes), 2
    return frame


def read(frame):
    header = decode_header(bytes(frame.header))
    return header, np.frombuffer(bytes(frame.payload), SPIKE_DTYPE)["sample"]


@st.composite
def streams(draw):
    """Frames of one stream with gaps, overlaps, early and late spikes, and now and then a line."""
    frames, border = [], draw(st.integers(-5000, 5000))
    for seq in range(draw(st.integers(1, 12))):
        t0 = border + draw(st.sampled_from([0, 0, 0, 700, -50]))
        end = max(t0, border) + draw(st.integers(0, 900))
        samples = draw(st.lists(st.integers(t0 - 300, end + 300), max_size=8))
        line = draw(st.none() | st.tuples(
            st.integers(-9000, 9000), st.floats(-1e6, 1e6), st.floats(0.9, 1.1)))
        frames.append((seq, t0, end, samples, line))
        border = end
    return frames


@given(streams())
def test_spikes_stay_on_their_side_of_every_watermark(frames):
    clocks = _core.ClockMap(["reference", "other"])
    reference = frame_of("reference", 0, 0, 100, [])
    assert clocks.take(reference.header, reference.payload, 1) == _core.AS_IT_IS
    first = frame_of("other", 0, frames[0][1], frames[0][1], [])
    assert clocks.take(first.header, first.payload, 1) == _core.HELD
    clocks.know(1, 1, 1, 0, 12_345.5, 1.00004)
    border = image = None
    for seq, t0, end, samples, line in frames:
        if line is not None:
            clocks.know(1, 1, 1, *line)
        sent = frame_of("other", seq + 1, t0, end, samples)
        assert clocks.take(sent.header, sent.payload, 1) == _core.REWRITTEN
        sent.header, sent.payload = clocks.header(), clocks.payload()
        header, mapped = read(sent)
        before = t0 if border is None else border
        assert header.t0_sample <= header.watermark
        if image is not None:  # gaps, overlaps and touching borders stay what they are
            assert np.sign(header.t0_sample - image) == np.sign(t0 - border)
            assert header.watermark >= image
        image = header.t0_sample if image is None else image
        for sample, found in zip(samples, mapped.tolist(), strict=True):
            assert (found < image) == (sample < before)
            assert (found < header.watermark) == (sample < end)
        border, image = max(before, end), header.watermark


def test_frames_without_a_known_clock_are_held_and_bad_ones_left_alone():
    aligner = Aligner(["a", "b"])
    assert aligner.take(frame_of("a", 0, 0, 600, [5]), 10)
    assert not aligner.take(frame_of("b", 0, 0, 600, [5]), 10)
    assert aligner.held == 1
    odd = Frame()
    odd.header, odd.payload, odd.parts = b"\x00", b"", 2
    assert aligner.take(odd, 10)
    assert bytes(odd.header) == b"\x00"
    assert aligner.take(frame_of("c", 0, 0, 600, []), 10)


def simulate(aligner, seconds, *, ppm=40.0, origin=1_000_000, start=0.0, session="a", seed=0):
    """Two probes send blocks of 20 ms that arrive up to 3 ms late; return errors in ms of `b`."""
    rng = np.random.default_rng(seed)
    errors = []
    for k in range(int(seconds * 50)):
        begin, end = start + k * 0.02, start + (k + 1) * 0.02
        for stream, rate, zero in (("a", FS, 0), ("b", FS * (1 + ppm * 1e-6), origin)):
            t0, t1 = int(zero + begin * rate), int(zero + end * rate)
            true = rng.uniform(begin, end, 2)
            frame = frame_of(stream, k, t0, t1, np.int64(zero + true * rate), session)
            received = int((end + 0.005 + rng.uniform(0, 0.003)) * 1e9)
            if aligner.take(frame, received) and stream == "b":
                errors.append(np.abs(read(frame)[1] / FS - true).max() * 1e3)
        if k % 12 == 0:
            aligner.tend([])
    return np.array(errors)


def test_drifting_probes_are_aligned_by_arrival_times_alone():
    aligner = Aligner(["a", "b"])
    errors = simulate(aligner, 300)
    assert 3 * 50 < aligner.held < 8 * 50  # seconds until the clocks are known
    assert np.percentile(errors[20 * 50:], 99) < 0.2
    report = aligner.report()
    assert report["b"]["by"] == "pairs"
    assert report["b"]["ppm"] == pytest.approx(-40, abs=1)


def test_a_restart_of_either_probe_is_found_anew():
    aligner = Aligner(["a", "b"])
    simulate(aligner, 20)
    held = aligner.held
    errors = simulate(aligner, 30, start=500.0, origin=777, session="b")
    assert aligner.held > held
    assert np.percentile(errors, 99) < 1.0


class MappedOffline:
    """Spikes of a probe in the reference's clock, by the line that was in force for each frame.

    The line of every frame, held to the two promises of a correction: what lies below a watermark
    stays below its image, and images of watermarks ascend.
    """

    def __init__(self):
        self.samples, self.units, self.lines = [], [], []
        self._border = self._image = None  # the last watermark and where it went

    def take(self, line, t0, watermark, samples, units):
        def image(sample):
            start, to, rate = line
            return np.floor(to + (np.asarray(sample, np.int64) - start) * rate + 0.5)

        if self._border is None:
            self._border, self._image = t0, image(t0)
        end = max(image(watermark), self._image + 1)
        found = np.clip(image(samples), self._image, None)
        found = np.where(samples < watermark, np.minimum(found, end - 1), np.maximum(found, end))
        self.samples.append(found[samples >= self._border].astype(np.int64))
        self.units.append(units[samples >= self._border])
        self.lines.append(line)
        self._border, self._image = watermark, end

    def counts(self, reference, first, n):
        """Bins of these spikes (units 5 to 9) and those of the reference (0 to 4)."""
        samples = np.concatenate([*reference[0], *self.samples])
        units = np.concatenate([*reference[1], *(u + 5 for u in self.units)])
        return bin_spikes(samples, units, 10, FS, BIN_S, first, n)


@pytest.mark.parametrize("ppm", [40.0, -150.0])
def test_served_counts_are_the_offline_bins_of_what_the_clocks_in_force_say(ppm):
    """Two probes for a minute, with early and late spikes and lines that are corrected."""
    rng, aligner = np.random.default_rng(3), Aligner(["a", "b"])
    rows = [("a", list(range(5))), ("b", list(range(5, 10)))]
    assembler = _core.Assembler(BIN_S, rows, 10, 512)
    offline, reference, served, own, line = MappedOffline(), ([], []), {}, [], None
    for k in range(60 * 50):
        for stream, rate, zero in (("a", FS, 0), ("b", FS * (1 + ppm * 1e-6), 1_000_000)):
            t0, t1 = (int(zero + rate * 0.02 * j) for j in (k, k + 1))
            samples = rng.integers(t0, t1, 12)
            samples[:2] += rng.choice([0, 0, 250, -400], 2)  # now and then early, or late
            frame = frame_of(stream, k, t0, t1, samples)
            units = np.arange(12) % 5
            if not aligner.take(frame, int(((k + 1) * 0.02 + rng.uniform(0.005, 0.008)) * 1e9)):
                continue
            if stream == "a":
                reference[0].append(samples[samples >= t0])
                reference[1].append(units[samples >= t0])
            else:
                offline.take(line, t0, t1, samples, units)
                own.append((samples[samples >= t0], units[samples >= t0]))
            assembler.push(frame.header, frame.payload)
            served |= drain(assembler) if assembler.available else {}
        if k % 12 == 0:
            aligner.tend([])
            line = aligner._alignments[1].line_of_samples()
    whole = sorted(index for index, counts in served.items() if counts is not None)
    assert len(whole) > 50 * 50
    counts = offline.counts(reference, whole[0], whole[-1] - whole[0] + 1)
    found = np.array([served[index] for index in whole])
    np.testing.assert_array_equal(found, counts[np.array(whole) - whole[0]])
    # The last line alone does not give these bins: the lines in force are part of what was decoded.
    assert len(set(offline.lines)) > 50
    start, to, rate = offline.lines[-1]
    at_last = MappedOffline()
    at_last.samples = [np.rint(to + (s - start) * rate).astype(np.int64) for s, _ in own]
    at_last.units = [u for _, u in own]
    other = at_last.counts(reference, whole[0], whole[-1] - whole[0] + 1)
    differing = (other[np.array(whole) - whole[0]] != found).any(axis=1)
    assert 0 < differing.sum() < len(whole) // 2


class Edges:
    """A source that only delivers edges."""

    def __init__(self, name, edges):
        self.name, self.edges = name, edges


def test_shared_pulses_take_the_place_of_arrival_times():
    aligner = Aligner(["a", "b"])
    simulate(aligner, 10)
    edges = [(k, int(1e9 * (k + 0.01))) for k in range(1, 10)]
    first = Edges("a", deque((int(FS * k), t) for k, t in edges))
    second = Edges("b", deque(
        (int(1_000_000 + FS * (1 + 40e-6) * k), t) for k, t in edges))
    state = aligner.tend([first, second])
    assert state == "b: aligned by edges"
    frame = frame_of("b", 10_000, 1_600_000, 1_600_100, [])
    assert aligner.take(frame, 0)
    expected = (1_600_000 - 1_000_000) / (1 + 40e-6)
    assert read(frame)[0].t0_sample == pytest.approx(expected, abs=2)


def test_a_server_decodes_two_probes_that_count_from_different_zeros(tmp_path):
    uris = {name: f"zmq+ipc://{tmp_path}/{name}" for name in "ab"}
    zeros = {"a": 0, "b": 1_000_000}
    model = small_bundle(tmp_path / "m.neds", probes=("a", "b"))
    with Publisher(uris["a"]) as a, Publisher(uris["b"]) as b, \
            Serving(model, uris, "--align=on", "--max-bins=40") as serving:
        senders = {"a": a, "b": b}
        for sender in senders.values():
            sender.wait()
        start, end = time.monotonic(), 0
        for seq in range(2000):
            begin, end = end, int((time.monotonic() - start) * FS)
            for name, sender in senders.items():
                zero = zeros[name]
                frame = frame_of(name, seq, zero + begin, zero + end, [zero + begin])
                sender.send((frame.header, frame.payload))
            if serving.process.poll() is not None:
                break
            time.sleep(0.01)
        decodes = serving.decodes(40)
        summary = serving.end(None)
    assert [d.bin for d in decodes] == list(range(decodes[0].bin, decodes[0].bin + 40))
    assert summary["clocks"]["b"]["by"] == "pairs"
    assert summary["clocks"]["held_frames"] > 0
    assert summary["counters"]["late_spikes"] == summary["counters"]["gaps"] == 0


@pytest.mark.parametrize(("choice", "probes", "aligned"), [
    ("auto", {"a": "zmq+tcp://127.0.0.1:1", "b": "zmq+tcp://127.0.0.1:2"}, False),
    ("auto", {"a": "oe://127.0.0.1", "b": "oe://127.0.0.1:5558"}, True),
    ("auto", {"a": "oe://127.0.0.1"}, False),
    ("on", {"a": "zmq+tcp://127.0.0.1:1", "b": "zmq+tcp://127.0.0.1:2"}, True),
    ("off", {"a": "oe://127.0.0.1", "b": "oe://127.0.0.1:5558"}, False),
    ("auto", {"a": "replay:x.h5?probe=a", "b": "replay:x.h5?probe=b"}, False),
    ("auto", {"a": "synthetic:", "b": "synthetic:?seed=1"}, False),
])
def test_which_probes_are_aligned(choice, probes, aligned):
    assert wanted(choice, probes) is aligned
