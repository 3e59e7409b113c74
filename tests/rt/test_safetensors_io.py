"""The safetensors container: the reference implementation reads ours, and malformed is refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neds_rt.errors import BadInput
from neds_rt.safetensors_io import MAX_HEADER_BYTES, decode_tensors, encode_tensors

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(2.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "c": np.linspace(-1, 1, 5, dtype=np.float32),
}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape
        assert np.array_equal(found[name], values)


def test_reference_implementation_reads_ours():
    reference = pytest.importorskip("safetensors.numpy")
    assert_equal(reference.load(encode_tensors(TENSORS)), TENSORS)


def test_reads_what_the_reference_implementation_writes():
    reference = pytest.importorskip("safetensors.numpy")
    assert_equal(decode_tensors(reference.save(TENSORS, {"made": "by"}), "x"), TENSORS)


def test_round_trip():
    found = decode_tensors(encode_tensors(TENSORS), "x")
    assert_equal(found, TENSORS)
    found["b"][0, 0] = 9.0  # own memory
    assert encode_tensors({}) == struct.pack("<Q", 8) + b"{}      "


def container(header, body=b"\0" * 24):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header length"),
        (b"1234567", "header length"),
        (struct.pack("<Q", 100) + b"{}", "header length: found 100"),
        (struct.pack("<Q", 2**63) + b"{}", "header length"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b" " * (MAX_HEADER_BYTES + 1), "at most"),
        (container(b"{"), "header"),
        (container(b"[" * 100_000), "header"),
        (container(b"[]"), "not a JSON object"),
        (container(b"\xff\xfe"), "header"),
        (container(b'{"a":' + b"1" * 5000 + b"}"), "header"),
        (container(b'{"a":NaN}'), "header"),
        (container({"a": {"dtype": "F32"}}), "shape"),
        (container({"a": entry() | {"extra": 1}}), "extra"),
        (container({"a": entry("F16")}), "dtype: found 'F16'"),
        (container({"a": entry("F64", (3,))}), "dtype"),
        (container({"a": entry(shape=(2, -3))}), "shape"),
        (container({"a": entry(shape=(2**40, 2**40))}), "shape"),
        (container({"a": entry(shape=(0, 2**70))}), "shape"),
        (container({"a": entry(shape=[1] * 10_000)}), "10000 dimensions"),
        (container({"a": entry(shape=(2, 2))}), "16 bytes for shape"),
        (container({"a": entry(offsets=(0, 28), shape=(7,))}), "data_offsets"),
        (container({"a": entry(offsets=(24, 0))}), "data_offsets"),
        (container({"a": entry(offsets=(-24, 0))}), "data_offsets"),
        (container({"a": entry(offsets=(4, 24), shape=(5,))}), "data_offsets"),  # a hole
        (container({"a": entry(), "b": entry()}), "data_offsets"),  # overlap
        (container({"a": entry(shape=(5,), offsets=(0, 20))}), "size"),  # bytes nobody owns
        (container({}), "size"),
        (container(b'{"a":1,"a":2}'), "same key twice"),
    ],
)
def test_malformed(data, message):
    with pytest.raises(BadInput) as error:
        decode_tensors(data, "w.safetensors")
    assert message in str(error.value)
    assert str(error.value).startswith("w.safetensors: ")
    assert len(str(error.value)) < 500


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_damage_never_crashes(data):
    content = bytearray(encode_tensors(TENSORS))
    del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 5))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = decode_tensors(bytes(content), "x")
    except BadInput:
        return
    assert sum(4 * t.size for t in tensors.values()) <= len(content)
