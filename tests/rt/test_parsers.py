"""Every parser of bytes from a socket or a file takes any bytes: the targets of tools/fuzz.py.

Here a few changed good inputs for each; tools/fuzz.py finds its way by what code they reach.
"""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tools.fuzz_targets import TARGETS

# What was found before, kept: target, input.
FOUND = [
    ("store", bytes.fromhex("01020106d804")),  # a dataset of 10^12 where a group should be
    ("store", bytes.fromhex("0102030405060726")),  # a link to another file
    ("store", bytes.fromhex("7e08000005000005")),  # a declared terabyte
    ("decode", b"\x81\xa4kind\xa6\xff\xfe\xfd\xfc\xfb\xfa"),  # a tag that is not UTF-8
    ("decode", b"\x91" * 100_000),
]
EXAMPLES = {"store": 15, "bundle": 40, "signature": 40}


@st.composite
def changed(draw, seeds):
    """A good input with a few bytes changed, put in, cut out or repeated; or any bytes at all."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(data)))
        what = draw(st.integers(0, 4))
        size = draw(st.integers(0, 12))
        if what == 0 and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif what == 1:
            data[place:place] = draw(st.binary(max_size=12))
        elif what == 2:
            del data[place : place + size]
        elif what == 3:
            data[place:place] = data[max(0, place - size) : place]
        else:
            data[place : place + size] = draw(st.sampled_from(
                [b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"-1", b"1e999", b"NaN", b"[" * 50,
                 b"\"\\ud800\"", b"99999999999999999999"]))
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Casting complex:Warning")
@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name):
    if name == "signature":
        pytest.importorskip("cryptography")
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(max_examples=EXAMPLES.get(name, 120), deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(st.one_of(changed(seeds), st.binary(max_size=200)))
    @example(b"")
    def run(data):
        target.run(data)

    for seed in seeds:
        target.run(seed)
    run()


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_before(name, data):
    TARGETS[name].run(data)


def test_good_inputs_are_taken():
    """The seeds lead past the first checks: a fuzzer that begins outside learns little."""
    from tools.fuzz_seeds import spike_header
    from tools.fuzz_targets import _collectors, _opened, _served

    for name in ("frames", "openephys", "broadcast", "trodes", "raw"):
        for seed in TARGETS[name].seeds():
            TARGETS[name].run(seed)
    assert spike_header()
    assert _served().assembler.counters[2] > 0  # bins
    for uri in ("oe://127.0.0.1:9", "oe-events://127.0.0.1:9?rate=30000", "trodes://127.0.0.1:9"):
        assert _opened(uri).counters["spikes"] > 0
    templates, threshold = _collectors()
    assert templates._counters["spikes"] > 0
    assert threshold._counters["blocks"] > 0
