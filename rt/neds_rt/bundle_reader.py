"""Reading a bundle without holding up the process that wants it: another one reads and verifies it.

Unpacking, hashing and checking hold Python's interpreter lock here and there, and on a busy machine
whoever holds it may be put aside: measured, bins of a server that reads in a thread of its own are
late by up to two bins. So a child process does all that and writes manifest, tensors and files one
after another into memory that both share; what is left to do here is to look at them.

    python -m neds_rt.bundle_reader BUNDLE DESCRIPTOR TRUST
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from neds_rt.bundle import Bundle, read_bundle
from neds_rt.errors import BadInput, NedsError, StartError
from neds_rt.manifest import Manifest

ALIGNMENT = 64
LIMIT_S = 300.0
NICENESS = 5  # of the child: the bins come first
HEAD = struct.Struct("<Q")  # length of `_Contents`, which follows


class _Contents(msgspec.Struct, frozen=True):
    """Where what lies, in bytes from the first multiple of 64 after this."""

    manifest: Manifest
    tensors: dict[str, tuple[list[int], int]]  # shape, offset
    files: dict[str, tuple[int, int]]  # offset, size


def read_apart(path: str, trust: str = "", trust_plans: bool = False) -> Bundle:
    """Return the bundle at `path`, verified by a child process; its tensors are read-only.

    `trust` and `trust_plans` are as for `read_bundle`.

    Raises what `read_bundle` does, in the child's words, and `StartError` when the child cannot do
    its work.
    """
    with _shared() as file:
        number = file.fileno()
        words = [sys.executable, "-P", "-m", "neds_rt.bundle_reader", path, str(number), trust]
        try:
            done = subprocess.run(words, pass_fds=(number,), stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StartError(f"{path}: cannot be read by another process ({error})") from None
        if done.returncode in (2, 3):
            failure = NedsError(done.stderr.decode(errors="replace").strip())
            failure.exit_code = done.returncode
            raise failure
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise StartError(f"{path}: the process that reads it ended with code "
                             f"{done.returncode} {' '.join(last)}")
        memory = mmap.mmap(number, 0, access=mmap.ACCESS_READ)  # lives as long as the tensors
    return _look_at(memory, Path(path), plans_trusted=bool(trust) or trust_plans)


def _look_at(memory: mmap.mmap, path: Path, *, plans_trusted: bool) -> Bundle:
    (size,) = HEAD.unpack_from(memory)
    contents = msgspec.msgpack.decode(memory[HEAD.size : HEAD.size + size], type=_Contents)
    start = _aligned(HEAD.size + size)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, (shape, offset) in contents.tensors.items():
        n = int(np.prod(shape, dtype=np.int64))
        tensors[name] = np.frombuffer(memory, np.float32, n, start + offset).reshape(shape)
    files = {name: memory[start + offset : start + offset + n]
             for name, (offset, n) in contents.files.items()}
    return Bundle(contents.manifest, tensors, files, path, plans_trusted)


def _write(bundle: Bundle, file: BinaryIO) -> None:
    at = 0
    tensors: dict[str, tuple[list[int], int]] = {}
    files: dict[str, tuple[int, int]] = {}
    for name, tensor in bundle.weights.items():
        tensors[name] = (list(tensor.shape), at)
        at = _aligned(at + tensor.nbytes)
    for name, data in bundle.files.items():
        files[name] = (at, len(data))
        at = _aligned(at + len(data))
    head = msgspec.msgpack.encode(_Contents(bundle.manifest, tensors, files))
    file.write(HEAD.pack(len(head)) + head)
    start = _aligned(HEAD.size + len(head))
    for name, tensor in bundle.weights.items():
        file.seek(start + tensors[name][1])
        file.write(np.ascontiguousarray(tensor).data)
    for name, data in bundle.files.items():
        file.seek(start + files[name][0])
        file.write(data)
    file.truncate(start + at)


def _aligned(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _shared() -> BinaryIO:
    """Return a file that has no name, in memory where there is such a thing."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("neds-bundle"), "w+b")
    return tempfile.TemporaryFile()  # type: ignore[return-value]


def main() -> int:
    """Entry point of the child; 0, or the exit code of what is wrong, said in one line."""
    os.nice(NICENESS)
    path, number, trust = sys.argv[1:]
    try:
        bundle = read_bundle(path, trust=trust)
    except BadInput as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with os.fdopen(int(number), "r+b") as file:
        _write(bundle, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
