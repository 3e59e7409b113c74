"""Why decodes are not valid, reason by reason: times are handed in, so nothing here waits."""

import re
from pathlib import Path

import numpy as np
import pytest

from neds_rt import _core
from neds_rt.assemble import (
    CLOCK_JUMP,
    COUNTERS,
    DEADLINE_MISSED,
    DRIFT,
    GAP,
    OK,
    REASONS,
    STREAM_MISSING,
    UNITS_SILENT,
    WARMING_UP,
    make_encoder,
    make_stepper,
)
from neds_rt.binning import bin_spikes
from neds_rt.bundle import read_bundle
from neds_rt.engines import load_engine
from neds_rt.wire import decode_message
from tests.rt.serving import WINDOW, Publisher, Serving, outputs, reference, small_bundle, wait_for
from tests.rt.spike_frames import Sender

README = Path(__file__).parents[2] / "rt" / "README.md"
BIN = 600
MS = 1_000_000
CLOSE_AFTER_S = 0.1


def probe(name, seed, n_bins, session="s1", first=0):
    """A frame a bin with 5 spikes of 2 units, and the counts of the same spikes offline."""
    rng = np.random.default_rng(seed)
    samples = np.sort(rng.integers(first * BIN, (first + n_bins) * BIN, 5 * n_bins))
    units = rng.integers(0, 2, len(samples))
    sender, sent = Sender(name, session), []
    for k in range(first, first + n_bins):
        inside = samples // BIN == k
        sent.append(sender.frame(k * BIN, (k + 1) * BIN, samples[inside], units[inside]))
    return sent, bin_spikes(samples, units, 2, 30_000.0, 0.02, first, n_bins)


class Rig:
    """An assembler of two probes whose frames arrive at times that the test says."""

    def __init__(self):
        self.live = _core.Assembler(0.02, [("a", [0, 2]), ("b", [1, 3])], 4, 64, CLOSE_AFTER_S, 0.5)
        self.bins = []  # (bin, counts or None where lost, names that were missing)

    def push(self, frame, ms):
        self.live.push(*frame, int(ms * MS))
        while n := self.live.pop():
            if n > 0:
                self.bins.append((self.live.bin, self.live.counts.copy(), self.live.missing))
            else:
                self.bins += [(self.live.bin + i, None, self.live.missing) for i in range(-n)]

    def count(self, name):
        return int(self.live.counters[COUNTERS.index(name)])


def without(bins, rows):
    return np.array([counts[rows] for _, counts, _ in bins])


def test_bins_close_without_a_silent_stream_and_with_it_when_it_is_back():
    (a, counts_a), (b, counts_b) = probe("a", 1, 40), probe("b", 2, 40)
    rig = Rig()
    for k in range(40):
        rig.push(a[k], 20 * k)
        if k < 10:
            rig.push(b[k], 20 * k)
        if k == 30:  # all that was held back arrives at once, then it goes on
            for late in b[10:31]:
                rig.push(late, 20 * k + 1)
        if k > 30:
            rig.push(b[k], 20 * k + 1)
        if k == 14:
            assert len(rig.bins) == 10  # still waited for
    assert [at for at, _, _ in rig.bins] == list(range(40))
    assert [missing for _, _, missing in rig.bins] == [[]] * 10 + [["b"]] * 21 + [[]] * 9
    np.testing.assert_array_equal(without(rig.bins, [0, 2]), counts_a)
    whole = [*range(10), *range(31, 40)]
    np.testing.assert_array_equal(without(rig.bins, [1, 3])[whole], counts_b[whole])
    assert not without(rig.bins, [1, 3])[10:31].any()
    assert (rig.count("missing"), rig.count("partial_bins"), rig.count("bins")) == (1, 21, 19)
    assert rig.count("lost_bins") == 0


def test_a_stream_that_is_late_but_comes_is_waited_for():
    (a, counts_a), (b, counts_b) = probe("a", 1, 40), probe("b", 2, 40)
    rig = Rig()
    for k in range(40):
        rig.push(a[k], 20 * k)
        if k >= 20:  # 400 ms behind, in the clock and in the samples
            rig.push(b[k - 20], 20 * k) if k > 20 else [rig.push(f, 400) for f in b[:1]]
    assert rig.count("missing") == 1  # only before it was first heard of
    rig = Rig()
    rig.push(b[0], 0)
    for k in range(40):
        rig.push(a[k], 4 * k)
        if k >= 20:
            rig.push(b[k - 19], 4 * k)
    assert rig.count("missing") == 0
    assert [missing for _, _, missing in rig.bins] == [[]] * 21
    np.testing.assert_array_equal(without(rig.bins, [0, 2]), counts_a[:21])
    np.testing.assert_array_equal(without(rig.bins, [1, 3]), counts_b[:21])


def test_a_stream_that_never_came_does_not_hold_up_the_start():
    a, counts_a = probe("a", 1, 40)
    b, counts_b = probe("b", 2, 20, first=20)
    rig = Rig()
    for k in range(40):
        rig.push(a[k], 20 * k)
        if k >= 20:
            rig.push(b[k - 20], 20 * k)
        assert len(rig.bins) == (0 if k < 6 else k + 1)
    assert [missing for _, _, missing in rig.bins] == [["b"]] * 21 + [[]] * 19
    np.testing.assert_array_equal(without(rig.bins, [0, 2]), counts_a)
    np.testing.assert_array_equal(without(rig.bins, [1, 3])[21:], counts_b[1:])
    assert rig.live.session == "s1"


def test_the_first_stream_may_be_the_one_that_is_missing():
    b, counts_b = probe("b", 2, 20)
    rig = Rig()
    for k in range(20):
        rig.push(b[k], 20 * k)
    assert [missing for _, _, missing in rig.bins] == [["a"]] * 20
    np.testing.assert_array_equal(without(rig.bins, [1, 3]), counts_b)
    assert rig.live.end_s(19) == pytest.approx(0.4)


def test_a_restart_while_a_stream_is_missing():
    rig = Rig()
    for k, frame in enumerate(probe("a", 1, 20)[0]):
        rig.push(frame, 20 * k)
    assert rig.live.missing == ["b"]
    for k, frame in enumerate(probe("a", 3, 20, session="s2")[0]):
        rig.push(frame, 400 + 20 * k)
        assert rig.live.missing == (["b"] if k >= 6 else [])
    assert rig.live.epoch == 1
    assert rig.live.session == "s2"


def test_early_spikes_of_a_missing_stream_leave_no_bin_half_counted():
    """b runs ahead by two bins and goes: what it had begun of those bins is lost, not served."""
    (a, _), send = probe("a", 1, 40), Sender("b", "s1")
    rig = Rig()
    for k in range(5):
        rig.push(a[k], 20 * k)
        rig.push(send.frame(k * BIN, (k + 1) * BIN, [(k + 2) * BIN], [0]), 20 * k)
    for k in range(5, 12):
        rig.push(a[k], 20 * k)
    assert rig.live.missing == ["b"]
    for k in range(5, 20):
        rig.push(send.frame(k * BIN, (k + 1) * BIN, [(k + 2) * BIN], [0]), 240)
    for k in range(12, 20):
        rig.push(a[k], 20 * k)
    assert rig.live.missing == []
    for at, counts, missing in rig.bins:
        if counts is not None and not missing:
            assert counts[1] == (1 if at >= 2 else 0), at
    assert len(rig.bins) == 20


def test_any_order_of_frames_keeps_what_is_whole_exact():
    """Streams that come and go at random: bins in order, and every row that is there is right."""
    rng = np.random.default_rng(5)
    for _ in range(30):
        sent = [probe("a", 1, 120), probe("b", 2, 120)]
        rig, at, now = Rig(), [0, 0], 0.0
        quiet = [0.0, 0.0]
        while max(at) < 120:
            now += 20
            for i in (0, 1):
                if rng.random() < 0.03:
                    quiet[i] = now + rng.integers(50, 400)
                if now < quiet[i]:
                    continue
                while at[i] < 120 and at[i] * 20 <= now:
                    rig.push(sent[i][0][at[i]], now)
                    at[i] += 1
        bins = [k for k, _, _ in rig.bins]
        assert bins == list(range(len(bins)))
        for k, counts, missing in rig.bins:
            for name, rows, truth in (("a", [0, 2], sent[0][1]), ("b", [1, 3], sent[1][1])):
                if counts is not None:
                    expected = 0 if name in missing else truth[k]
                    assert (counts[rows] == expected).all(), (k, name)


def paced(rig, frames, ms, step=20):
    for k, frame in enumerate(frames):
        rig.push(frame, ms + step * k)


class TestClock:
    def rig(self):
        rig = Rig()
        rig.live = _core.Assembler(0.02, [("a", [0, 1, 2, 3])], 4, 512, CLOSE_AFTER_S, 0.5)
        return rig

    def test_a_stream_that_keeps_pace_is_in_order(self):
        rig = self.rig()
        rng = np.random.default_rng(0)
        for k, frame in enumerate(probe("a", 1, 600)[0]):
            rig.push(frame, 20 * k + rng.exponential(20))
            assert not rig.live.clock_jumped

    def test_samples_that_run_ahead_of_time_are_a_jump_until_time_agrees_again(self):
        rig, frames = self.rig(), probe("a", 1, 300)[0]
        paced(rig, frames, 0)
        assert not rig.live.clock_jumped
        send = Sender("a", "s1")
        send.seq = 300
        rig.push(send.frame(300 * BIN, 350 * BIN), 6000)  # a second of samples, all at once
        assert rig.live.clock_jumped
        for k in range(350, 700):
            rig.push(send.frame(k * BIN, (k + 1) * BIN), 6020 + 20 * (k - 350))
        assert not rig.live.clock_jumped

    def test_frames_held_back_are_a_jump_until_they_have_caught_up(self):
        rig, frames = self.rig(), probe("a", 1, 400)[0]
        paced(rig, frames[:300], 0)
        for k in range(300, 350):  # a second's frames arrive at the end of it
            rig.push(frames[k], 7000)
            assert k == 325 or rig.live.clock_jumped == (k < 325), k  # 325: half a second
        paced(rig, frames[350:], 7020)
        assert not rig.live.clock_jumped

    def test_a_recording_sent_as_fast_as_it_goes_is_not_judged(self):
        rig = self.rig()
        for k, frame in enumerate(probe("a", 1, 400)[0]):
            rig.push(frame, k if k < 200 else 3000 + k)
            assert not rig.live.clock_jumped


def test_what_speaks_against_a_bin_comes_in_this_order():
    validity = _core.Validity(2)
    assert validity.advance(True, health=DRIFT) == WARMING_UP
    assert validity.advance(True, health=DRIFT) == DRIFT
    assert validity.advance(True) == OK
    assert validity.advance(False, jumped=True) == CLOCK_JUMP
    assert validity.advance(True, health=UNITS_SILENT) == CLOCK_JUMP
    assert validity.advance(True, partial=True, jumped=True) == STREAM_MISSING
    assert [validity.advance(True) for _ in range(3)] == [CLOCK_JUMP, OK, OK]
    validity.advance(True, partial=True)
    assert [validity.advance(True) for _ in range(2)] == [GAP, OK]


def test_no_message_says_ok_that_was_written_too_late(tmp_path):
    manifest = read_bundle(small_bundle(tmp_path / "x.neds")).manifest
    encoder = make_encoder(manifest)
    values = np.zeros(encoder.n_outputs, np.float32)
    for deadline, age, reason in ((0, 10**9, "ok"), (10**9, 0, "ok"),
                                  (10**9, 2 * 10**9, "deadline missed")):
        encoder.set_deadline(deadline)
        size = encoder.encode(0, 0, 0.0, -1, _core.monotonic_ns() - age, OK, values)
        decode = decode_message(encoder.buffer[:size].tobytes())
        assert (decode.reason, decode.valid) == (reason, reason == "ok")
        assert decode.valid == (deadline == 0 or decode.service_us * 1e3 <= deadline)
    size = encoder.encode(0, 0, 0.0, -1, 0, GAP, values)  # what is worse stays said
    assert decode_message(encoder.buffer[:size].tobytes()).reason == "gap"
    assert REASONS[DEADLINE_MISSED] == "deadline missed"


def test_bins_behind_which_newer_ones_wait_are_late(tmp_path):
    bundle = read_bundle(small_bundle(tmp_path / "x.neds"))
    assembler = _core.Assembler(0.02, [("a", [0, 1, 2, 3])], 4, 64)
    encoder = make_encoder(bundle.manifest)
    engine = load_engine("native", bundle)
    pipeline = _core.Pipeline(assembler, encoder, make_stepper(engine, assembler.counts),
                              _core.LatencyRing(64), WINDOW)
    pipeline.set_patience(60.0, 2)
    sender, reasons, begin = Sender("a"), [], 0
    for end in ((WINDOW + 1) * BIN, (WINDOW + 6) * BIN):  # the second time five bins at once
        size = pipeline.feed(*sender.frame(begin, end), _core.monotonic_ns())
        begin = end
        while size:
            reasons.append(decode_message(encoder.buffer[:size].tobytes()).reason)
            size = pipeline.next()
    assert reasons == ["warming up"] * (WINDOW - 1) + ["ok"] * 2 + ["deadline missed"] * 2 + [
        "ok"] * 3


def test_a_late_engine_says_so_of_the_bin_itself(tmp_path):
    """An engine that takes its time over one bin: that bin is late, those after it are not."""
    import time

    from neds_rt.engines.native import NativeEngine

    class Slow(NativeEngine):
        steps = 0

        def step(self, counts, present=True):
            self.steps += 1
            if self.steps == WINDOW + 2:
                time.sleep(0.6)
            return super().step(counts, present)

    bundle = read_bundle(small_bundle(tmp_path / "x.neds"))
    assembler = _core.Assembler(0.02, [("a", [0, 1, 2, 3])], 4, 64)
    encoder = make_encoder(bundle.manifest)
    encoder.set_deadline(500 * MS)
    pipeline = _core.Pipeline(assembler, encoder, make_stepper(Slow(bundle), assembler.counts),
                              _core.LatencyRing(64), WINDOW)
    found = []
    for frame in probe("a", 1, WINDOW + 4)[0]:
        size = pipeline.feed(*frame, _core.monotonic_ns())
        while size:
            found.append(decode_message(encoder.buffer[:size].tobytes()).reason)
            size = pipeline.next()
    assert found[WINDOW - 1 :] == ["ok", "ok", "deadline missed", "ok", "ok"]


def reason_of(bin_, partial):
    """What a decode says when the bins of `partial` were closed without a stream."""
    if bin_ in partial:
        return "stream missing"
    if bin_ < WINDOW - 1:
        return "warming up"
    return "gap" if set(partial) & set(range(bin_ - WINDOW + 1, bin_)) else "ok"


def test_a_probe_that_goes_and_comes_back_over_real_sockets(tmp_path):
    model = small_bundle(tmp_path / "x.neds", probes=("a", "b"))
    uris = {name: f"zmq+ipc://{tmp_path}/{name}" for name in "ab"}
    (a, counts_a), (b, counts_b) = probe("a", 1, 400), probe("b", 2, 400)
    with (Publisher(uris["a"]) as first, Publisher(uris["b"]) as second,
          Serving(model, uris, "--close-after=0.2") as server):
        first.wait()
        second.wait()
        first.send(*a[:10])
        second.send(*b[:10])
        decodes = server.decodes(10)
        sent = [10]

        def missing():  # a goes on alone, at about the rate of a rig
            first.send(a[sent[0]])
            sent[0] += 1
            decode = server.next()
            if decode.reason != "stale":
                decodes.append(decode)
            return decode.reason == "stream missing"

        wait_for(missing)
        decodes += server.decodes(sent[0] - len(decodes))
        gone = sent[0]
        second.send(*b[10:gone])

        def whole():  # both again; a machine that is held up may close further bins without b
            second.send(b[sent[0]])
            first.send(a[sent[0]])
            sent[0] += 1
            decode = server.next()
            if decode.reason != "stale":
                decodes.append(decode)
            return decode.reason == "ok"

        wait_for(whole)
        decodes += server.decodes(sent[0] - len(decodes))
        summary = server.end()
    assert [d.bin for d in decodes] == list(range(sent[0]))
    partial = [d.bin for d in decodes if d.reason == "stream missing"]
    assert set(range(10, gone)) <= set(partial)
    assert [d.reason for d in decodes] == [reason_of(d.bin, partial) for d in decodes]
    assert [d.missing for d in decodes] == [["b"] * (d.bin in partial) for d in decodes]
    fed = np.zeros((len(decodes), 4), np.uint16)
    fed[:, [0, 2]] = counts_a[: len(decodes)]
    fed[:, [1, 3]] = counts_b[: len(decodes)]
    fed[np.ix_(partial, [1, 3])] = 0
    expected = reference(read_bundle(model), list(fed))
    np.testing.assert_allclose([outputs(d) for d in decodes], expected, rtol=1e-5, atol=1e-5)
    assert summary["counters"]["partial_bins"] == len(partial)
    assert summary["reasons"]["stream missing"] == len(partial)
    assert any("missing: " in line for line in server.lines)


def test_the_readmes_table_of_reasons_is_that_of_the_code():
    text = README.read_text()
    table = re.search(r"\| code \| `reason` \| `valid` \| when \|\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in table.group(1).splitlines()]
    assert rows == [[str(code), f'"{name}"', str(code == OK).lower(), meaning] for code, (
        name, meaning) in enumerate(zip(REASONS, _core.MEANINGS, strict=True))]
