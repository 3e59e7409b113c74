"""The safetensors container, float32 only: what `weights.safetensors` of a bundle is.

Bytes 0-7 hold the header's length N (little-endian), the next N bytes a JSON object that maps each
tensor's name to `{"dtype", "shape", "data_offsets": [begin, end]}`, the rest is data. Nothing in a
file is trusted: every size is checked before it is used, and the data must be covered exactly once.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput

MAX_HEADER_BYTES = 4 << 20  # a thousand layers have a third of it
MAX_TENSOR_DIMS = 8


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def encode_tensors(
    tensors: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return `tensors` as a safetensors file; equal tensors give equal bytes (sorted by name)."""
    header: dict[str, dict[str, object]] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        data = np.ascontiguousarray(tensors[name], "<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the data aligned for readers that map the file
    return b"".join([struct.pack("<Q", len(text)), text, *chunks])


def decode_tensors(data: bytes, where: object) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of a safetensors file as own, writable float32 arrays.

    Raises `BadInput` naming `where` when a byte of the file is not what the format demands.
    """
    header = _header(data, where)
    entries = _parse_header(header, where)
    body = memoryview(data)[8 + len(header) :]
    tensors: dict[str, NDArray[np.float32]] = {}
    end_of_last = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        _check_entry(where, name, entry, end_of_last, len(body))
        flat = np.frombuffer(body[begin:end], "<f4")
        tensors[name] = flat.reshape(entry.shape).astype(np.float32)
        end_of_last = end
    if end_of_last != len(body):
        raise BadInput(where, "size", f"{len(body)} data bytes", f"{end_of_last} as in the header")
    return tensors


def read_metadata(data: bytes, where: object) -> dict[str, str]:
    """Return what a file says beside its tensors, often nothing. Raises `BadInput`."""
    try:
        found = _object(_header(data, where)).get("__metadata__", {})
        return msgspec.convert(found, dict[str, str])
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BadInput(where, "header", error, "a JSON object with text as metadata") from None


def _header(data: bytes, where: object) -> bytes:
    if len(data) < 8:
        raise BadInput(where, "header length", f"a file of {len(data)} bytes", "at least 8 bytes")
    n_header: int = struct.unpack_from("<Q", data)[0]
    room = min(len(data) - 8, MAX_HEADER_BYTES)
    if n_header > room:
        raise BadInput(where, "header length", n_header, f"at most {room}")
    return data[8 : 8 + n_header]


def _object(text: bytes) -> dict[str, Any]:
    raw = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    return raw


def _parse_header(text: bytes, where: object) -> dict[str, _Entry]:
    try:
        raw = _object(text)
        raw.pop("__metadata__", None)
        return msgspec.convert(raw, dict[str, _Entry])
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BadInput(where, "header", error, "a JSON object of tensors") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key twice")
    return result


def _check_entry(where: object, name: str, entry: _Entry, expected_begin: int, room: int) -> None:
    field = f"tensor {name!r}"
    begin, end = entry.data_offsets
    if entry.dtype != "F32":
        raise BadInput(where, f"{field} dtype", repr(entry.dtype), "'F32'")
    if len(entry.shape) > MAX_TENSOR_DIMS:
        found = f"{len(entry.shape)} dimensions"
        raise BadInput(where, f"{field} shape", found, f"at most {MAX_TENSOR_DIMS}")
    if any(not 0 <= size <= room for size in entry.shape):
        raise BadInput(where, f"{field} shape", entry.shape, "sizes that fit the file")
    if begin != expected_begin or not begin <= end <= room:
        expected = f"[{expected_begin}, at most {room}]"
        raise BadInput(where, f"{field} data_offsets", [begin, end], expected)
    if end - begin != 4 * math.prod(entry.shape):
        expected = f"{4 * math.prod(entry.shape)} bytes for shape {entry.shape}"
        raise BadInput(where, f"{field} data_offsets", f"{end - begin} bytes", expected)
