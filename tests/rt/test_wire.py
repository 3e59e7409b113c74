"""Both messages as an independent client sees them, and headers that are not as they should be."""

import math
import re
from itertools import pairwise
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neds_rt import _core
from neds_rt.assemble import COUNTERS, FIRST_REFUSAL, GAP, OK, REASONS, STALE
from neds_rt.wire import SpikeHeader, decode_header, decode_message, encode_spikes
from tests.rt.spike_frames import Sender, counters_of, drain, feed, fields, pack, spikes_of

README = Path(__file__).parents[2] / "rt" / "README.md"
HEADER_FIELDS = list(fields())


def verdict(data):
    found = _core.parse_header(data)
    return found if isinstance(found, str) else "ok"


def test_plain_msgpack_reads_what_we_write():
    header = SpikeHeader(1, "probe00", "s", 7, 0, 600, 30_000.0, 11, 12, 2)
    packed, payload = encode_spikes(header, spikes_of([3, 5], [1, 0]))
    assert msgpack.unpackb(packed) == ["spikes", 1, "probe00", "s", 7, 0, 600, 30_000.0, 11, 12, 2]
    assert payload.hex() == "0300000000000000" "01000000" "0500000000000000" "00000000"


def test_plain_msgpack_writes_what_we_read():
    values = fields(n_spikes=2, watermark=1200)
    spikes = spikes_of([3, 700], [1, 0])
    live = _core.Assembler(0.02, [("a", [0, 1])], 2, 16)
    assert feed(live, [pack(values.values(), spikes.tobytes())])[0].tolist() == [0, 1]
    assert decode_header(pack(values.values())[0]) == SpikeHeader(**values)
    assert _core.parse_header(pack(values.values())[0]) == tuple(values.values())


@pytest.mark.parametrize("fs", [30_000, np.float32(30_000).item()])
def test_a_rate_may_be_written_as_an_integer_or_short_float(fs):
    for data in (pack(fields(fs=fs).values())[0],
                 msgpack.packb(["spikes", *fields().values()], use_single_float=True)):
        assert _core.parse_header(data)[6] == 30_000.0
        assert decode_header(data).fs == 30_000.0


SURROGATE = b"\xed\xa0\x80"  # half of a pair, which UTF-8 forbids

# Every way for a header to be wrong, and what it is counted as.
WRONG = [
    ("bad_header", lambda: b""),
    ("bad_header", lambda: b"\xc1"),
    ("bad_header", lambda: b"\xff" * 40),
    ("bad_header", lambda: b"\xdd\xff\xff\xff\xff"),
    ("bad_header", lambda: pack(fields().values())[0][:-1]),
    ("bad_header", lambda: pack(fields().values())[0] + b"\x00"),
    ("bad_header", lambda: pack([*fields().values(), 1])[0]),
    ("bad_header", lambda: pack(list(fields().values())[:-1])[0]),
    ("bad_header", lambda: pack(fields().values(), tag="decode")[0]),
    ("bad_header", lambda: msgpack.packb(fields())),
    ("bad_header", lambda: pack(fields(stream=b"a").values())[0]),
    ("bad_header", lambda: pack(fields(seq="0").values())[0]),
    ("bad_header", lambda: pack(fields(seq=None).values())[0]),
    ("bad_header", lambda: pack(fields(watermark=2**64 - 1).values())[0]),
    ("bad_header", lambda: pack(fields(session="x" * 600).values())[0]),
    ("bad_header", lambda: pack(fields(session="??").values())[0].replace(b"??", b"\xc3\x28")),
    ("bad_header", lambda: pack(fields(session="?" * 3).values())[0].replace(b"???", SURROGATE)),
    ("bad_version", lambda: pack(fields(version=2).values())[0]),
    ("bad_version", lambda: msgpack.packb(["spikes", 0, "what", "may come"])),
    ("bad_range", lambda: pack(fields(seq=-1).values())[0]),
    ("bad_range", lambda: pack(fields(t0_sample=601).values())[0]),
    ("bad_range", lambda: pack(fields(t0_sample=-(2**52) - 1).values())[0]),
    ("bad_range", lambda: pack(fields(watermark=2**52 + 1).values())[0]),
    ("bad_range", lambda: pack(fields(fs=0).values())[0]),
    ("bad_range", lambda: pack(fields(fs=-1.0).values())[0]),
    ("bad_range", lambda: pack(fields(fs=math.nan).values())[0]),
    ("bad_range", lambda: pack(fields(fs=math.inf).values())[0]),
    ("bad_range", lambda: pack(fields(n_spikes=-1).values())[0]),
    ("bad_range", lambda: pack(fields(n_spikes=1_000_001).values())[0]),
    ("bad_range", lambda: pack(fields(session="s" * 65).values())[0]),
    ("bad_range", lambda: pack(fields(stream="ä" * 33).values())[0]),
]


@pytest.mark.parametrize(("kind", "make"), WRONG)
def test_wrong_headers_are_told_apart_and_refused_by_both_readers(kind, make):
    assert verdict(make()) == kind
    with pytest.raises(msgspec.DecodeError):
        decode_header(make())


def spoiled(good):
    """Frames no assembler at watermark 1200 of session s1 may take: (counter, frame)."""
    spike = spikes_of([1300], [0]).tobytes()
    after = {"seq": 2, "t0_sample": 1200, "watermark": 1800}
    yield from ((kind, (make(), b"")) for kind, make in WRONG)
    yield "bad_stream", pack(fields(**after, stream="b").values())
    yield "bad_stream", pack(fields(**after, stream="").values())
    yield "bad_payload", pack(fields(**after, n_spikes=1).values(), spike[:-1])
    yield "bad_payload", pack(fields(**after, n_spikes=1).values(), spike + b"\0")
    yield "bad_payload", pack(fields(**after, n_spikes=0).values(), spike)
    yield "bad_payload", pack(fields(**after, n_spikes=1_000_000).values(), spike)
    yield "bad_rate", pack(fields(**after, fs=30_001.0).values())
    yield "bad_rate", pack(fields(**after, fs=1e300).values())
    yield "bad_rate", pack(fields(**after, fs=1e-300).values())
    yield "bad_watermark", pack(fields(seq=2, t0_sample=0, watermark=1199).values())
    yield "duplicate", good
    yield "duplicate", pack(fields(**(after | {"seq": 1})).values())
    yield "overrun", pack(fields(**(after | {"watermark": 2**50})).values())


def test_malformed_frames_are_counted_and_change_no_bin():
    send = Sender()
    good = send.frame(0, 1200, [5, 700], [0, 1])
    for kind, frame in spoiled(good):
        live = _core.Assembler(0.02, [("a", [0, 1])], 2, 64)
        send = Sender()
        before = feed(live, [send.frame(0, 600, [5], [0]), send.frame(600, 1200, [700], [1])])
        counts = counters_of(live)
        assert live.push(*frame) == 0, kind
        assert counters_of(live) == counts | {kind: 1}
        assert COUNTERS.index(kind) >= FIRST_REFUSAL
        bins = before | feed(live, [send.frame(1200, 1800, [1201], [0])])
        assert [c.tolist() for c in bins.values()] == [[1, 0], [0, 1], [1, 0]], kind
        assert "lost_bins" not in counters_of(live)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.binary(max_size=80), max_size=10))
def test_junk_between_good_frames_changes_no_bin(seed, junk):
    rng = np.random.default_rng(seed)
    spikes = np.sort(rng.integers(0, 12_000, 100)), rng.integers(0, 2, 100)
    cuts = np.r_[0, np.sort(rng.integers(0, 12_000, 30)), 12_000]

    def frames():
        send = Sender()
        for a, b in pairwise(cuts):
            inside = (spikes[0] >= a) & (spikes[0] < b)
            yield send.frame(a, b, spikes[0][inside], spikes[1][inside])

    def noisy():
        wrong = [make() for _, make in WRONG]
        for header, payload in frames():
            yield junk[int(rng.integers(len(junk)))] if junk else b"", payload
            yield header, payload
            yield wrong[int(rng.integers(len(wrong)))], payload
            yield header[:-1], payload
            yield header, payload + b"!"

    def assembled(source):
        return feed(_core.Assembler(0.02, [("a", [0, 1])], 2, 64), source)

    clean, disturbed = assembled(frames()), assembled(noisy())
    assert list(clean) == list(disturbed) == list(range(20))
    for index, counts in clean.items():
        np.testing.assert_array_equal(disturbed[index], counts)


packable = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(),
              st.text(max_size=70), st.binary(max_size=8)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
near_headers = st.builds(
    lambda changes, tag, extra: pack([*(fields() | changes).values(), *extra], tag=tag)[0],
    st.dictionaries(st.sampled_from(HEADER_FIELDS), packable, max_size=3),
    st.sampled_from(["spikes"] * 9 + ["decode"]),
    st.sampled_from([[]] * 9 + [[1]]),
)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=600), near_headers))
@example(b"\x9b\xa6spikes\x01")
def test_both_readers_agree_on_any_bytes(data):
    """The C++ reader against msgspec's: the same headers accepted, with the same values."""
    found = _core.parse_header(data)
    try:
        expected = decode_header(data)
    except msgspec.DecodeError:
        assert isinstance(found, str)
    else:
        assert found == tuple(getattr(expected, name) for name in HEADER_FIELDS)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(near_headers | st.binary(max_size=60), st.binary(max_size=50)), max_size=20)
)
def test_no_frame_upsets_the_assembler(frames):
    live = _core.Assembler(0.02, [("a", [0, 1]), ("b", [2])], 3, 16)
    for header, payload in frames:
        live.push(header, payload)
        while n := live.pop():
            assert n == 1 or n < 0
    assert live.available == 0
    assert sum(live.counters[FIRST_REFUSAL:]) + live.counters[0] == len(frames)
    a, b = Sender("a", "end"), Sender("b", "end")
    last = feed(live, [a.frame(0, 1200, [5], [1]), b.frame(0, 1200, [700], [0])])
    assert [c.tolist() for c in last.values()] == [[0, 1, 0], [0, 0, 1]]
    assert drain(live) == {}


def encoder(session="s1"):
    made = _core.DecodeEncoder(
        [_core.Modality("velocity", "continuous", 2, [], [0.5, 0.25]),
         _core.Modality("lick", "continuous", 1),
         _core.Modality("heading", "circular", 2),
         _core.Modality("choice", "categorical", 3, ["left", "none", "right"])],
        "abc123", 65)
    made.set_session(session)
    return made


OUTPUTS = np.array([1.5, -2.0, 0.125, 0.0, 2.0, 0.25, 0.125, 0.625], np.float32)


def test_plain_msgpack_reads_a_decode():
    made = encoder("s-ü")
    recv = _core.monotonic_ns()
    size = made.encode(3, 41, 0.84, 0.01, recv, OK, OUTPUTS)
    message = msgpack.unpackb(bytes(made.buffer[:size]))
    assert list(message) == ["v", "kind", "seq", "session", "bin", "t_s", "spike_age_us",
                             "service_us", "recv_ns", "pub_ns", "model", "valid", "reason",
                             "values"]
    assert message["pub_ns"] == made.pub_ns >= recv
    service_us = (message["pub_ns"] - recv) / 1e3
    assert message["service_us"] == pytest.approx(service_us)
    assert message["spike_age_us"] == pytest.approx(10_000 + service_us)
    expected = {"v": 1, "kind": "decode", "seq": 3, "session": "s-ü", "bin": 41, "t_s": 0.84,
                "recv_ns": recv, "model": "abc123", "valid": True, "reason": "ok"}
    assert {name: message[name] for name in expected} == expected
    assert message["values"] == {
        "velocity": {"mean": [1.5, -2.0], "sd": [0.5, 0.25]},
        "lick": {"mean": [0.125], "sd": []},
        "heading": {"angle": pytest.approx(math.pi / 2), "r": 2.0},
        "choice": {"p": [0.25, 0.125, 0.625], "label": "right"},
    }


def test_clients_read_a_plain_msgpack_decode():
    message = {"v": 1, "kind": "decode", "seq": 0, "session": "s", "bin": 1, "t_s": 0.04,
               "spike_age_us": -1.0, "service_us": 90.5, "recv_ns": 1, "pub_ns": 2, "model": "m",
               "valid": True, "reason": "ok", "values": {"x": {"mean": [1.0], "sd": []}},
               "a field of a later version": 1}
    decode = decode_message(msgpack.packb(message))
    x = decode.values["x"]
    assert (decode.bin, x.mean, x.kind) == (1, [1.0], "continuous")
    for wrong in ({"v": 2}, {"kind": "status"}, {"bin": "1"}, {"values": []}):
        with pytest.raises(msgspec.DecodeError):
            decode_message(msgpack.packb(message | wrong))


@pytest.mark.parametrize("reason", range(len(REASONS)))
def test_only_ok_is_valid(reason):
    made = encoder()
    size = made.encode(0, 0, 0.0, -1, 0, reason, OUTPUTS)
    decode = decode_message(bytes(made.buffer[:size]))
    assert (decode.valid, decode.reason) == (reason == OK, REASONS[reason])
    assert decode.spike_age_us == -1


def test_values_that_are_not_finite_are_never_valid():
    made = encoder()
    for bad in (np.nan, np.inf, -np.inf):
        outputs = OUTPUTS.copy()
        outputs[2] = bad
        size = made.encode(0, 0, 0.0, -1, 0, OK, outputs)
        decode = decode_message(bytes(made.buffer[:size]))
        assert (decode.valid, decode.reason) == (False, "not finite")
        size = made.encode(0, 0, 0.0, -1, 0, GAP, outputs)
        assert decode_message(bytes(made.buffer[:size])).reason == "gap"


def test_a_decode_without_outputs_has_the_same_shape():
    made = encoder()
    size = made.encode(9, -1, 0.0, -1, 0, STALE, None)
    values = decode_message(bytes(made.buffer[:size])).values
    assert [v.kind for v in values.values()] == [
        "continuous", "continuous", "circular", "categorical"]
    assert all(map(math.isnan, values["velocity"].mean + values["choice"].p))
    assert math.isnan(values["heading"].angle)
    assert values["choice"].label == ""


@pytest.mark.parametrize(
    "outputs",
    [OUTPUTS[:-1], OUTPUTS.astype(float), np.zeros(16, np.float32)[::2], [1.0], b"x" * 32],
)
def test_outputs_of_the_wrong_kind_are_refused(outputs):
    with pytest.raises((ValueError, TypeError, BufferError)):
        encoder().encode(0, 0, 0.0, -1, 0, OK, outputs)


@pytest.mark.parametrize(
    "sizes", [("x", "circular", 3), ("x", "continuous", 0), ("x", "categorical", 2, ["one"]),
              ("x", "continuous", 2, [], [1.0])]
)
def test_modalities_that_contradict_themselves_are_refused(sizes):
    with pytest.raises(ValueError, match="modality x"):
        _core.DecodeEncoder([_core.Modality(*sizes)], "m", 64)


def hex_block(name):
    text = README.read_text()
    block = re.search(rf"<!-- {name} -->\n```\n(.*?)```", text, re.S).group(1)
    return bytes.fromhex("".join(line.split("|")[0] for line in block.splitlines()))


def test_the_readmes_worked_example_is_what_the_code_does():
    header, payload = hex_block("header-example"), hex_block("payload-example")
    fresh = SpikeHeader(1, "probe00", "2b9d", 0, 0, 900, 30_000.0, 1_000_000, 2_000_000, 2)
    assert encode_spikes(fresh, spikes_of([12, 601], [3, 0])) == [header, payload]
    live = _core.Assembler(0.02, [("probe00", [0, 1, 2, 3])], 4, 16)
    assert live.push(header, payload) == 1
    assert drain(live)[0].tolist() == [0, 0, 0, 1]


def test_the_readmes_decode_is_what_the_code_does():
    data = hex_block("decode-example")
    made = _core.DecodeEncoder([_core.Modality("speed", "continuous", 1, [], [0.5])], "6f1c", 65)
    made.set_session("2b9d")
    size = made.encode(0, 0, 0.02, -1, 5000, 1, np.array([1.5], np.float32))
    ours = bytes(made.buffer[:size])
    # All but the two stamps of the moment of writing.
    for name in (b"service_us", b"pub_ns"):
        place = ours.index(name) + len(name) + 1
        ours = ours[:place] + data[place : place + 8] + ours[place + 8 :]
    assert ours == data
    assert decode_message(data).values["speed"].mean == [1.5]


def test_the_readme_names_every_counter_and_reason():
    text = README.read_text()
    for name in (*COUNTERS, *REASONS):
        assert f"`{name}`" in text or f'"{name}"' in text, name
