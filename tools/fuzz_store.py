"""Session files changed in their structure: HDF5 itself is another project's to fuzz."""

from __future__ import annotations

import os
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from neds.data.parts import Behaviour, Counts, Spikes, Units
from neds.data.session import Session
from neds.data.store import read_facts, read_session, write_session
from neds_rt.errors import BadInput
from neds_rt.sources.replay import bin_axis, read_recording

VALUES: list[Any] = [
    0, -1, 2**63 - 1, -(2**63), float("nan"), float("inf"), -1e300, "", "text", "[", "{}", "null",
    b"\xff\xfe", True, [], [1], [[1.5, 2.5]], np.zeros((0, 3)), np.zeros((2, 2, 2)), np.arange(7),
    np.array([3, 1, 2]), np.array([b"a", b"\xff"]), np.array([2**63 - 1, -(2**63)]),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), h5py.Empty("f8"), 1 + 2j,
]


@cache
def _good() -> tuple[bytes, ...]:
    """Return a session of counts and one of events."""
    t = np.arange(40) * 0.05 + 0.05
    behaviour = {"v": Behaviour(kind="continuous", timestamps=t, values=t, unit="m"),
                 "c": Behaviour(kind="categorical", timestamps=t, values=(t > 1).astype(float),
                                classes=("l", "r"))}
    counts = Counts(counts=np.ones((40, 3), np.int64), bin=np.arange(40), bin_size_s=0.05)
    events = Spikes(sample=np.arange(0, 60_000, 100), unit_index=np.arange(600) % 3, fs=30_000.0)
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for spikes in (counts, events):
            session = Session(session="s", subject="m", spikes=spikes, units=Units.of(3),
                              behaviours=behaviour, domain=np.array([[0.0, 2.0]]))
            write_session(session, Path(folder) / "x.h5")
            made.append((Path(folder) / "x.h5").read_bytes())
    return tuple(made)


@cache
def _place() -> Path:
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    return Path(tempfile.mkdtemp(prefix="neds-fuzz-", dir=memory)) / "x.h5"


def read_changed(data: bytes) -> None:
    """Change a good session as the bytes say, then read it in every way there is."""
    rng = random.Random(data)
    path = _place()
    path.write_bytes(_good()[rng.randrange(2)])
    with h5py.File(path, "r+") as file:
        for _ in range(rng.randrange(1, 4)):
            _change(file, rng)
    for read in (read_session, read_facts, _replay):
        try:
            read(path)
        except BadInput:
            continue


def _replay(path: Path) -> None:
    bin_axis(read_recording(path), 0.05)


def _change(file: Any, rng: random.Random) -> None:
    names: list[str] = []
    file.visit(names.append)
    name = rng.choice(names)
    node = file[name]
    what = rng.randrange(6)
    if what == 0:
        del file[name]
    elif what == 1:
        holder = rng.choice([node, file])
        if holder.attrs:
            holder.attrs[rng.choice(list(holder.attrs))] = rng.choice(VALUES)
    elif what == 2:
        holder = rng.choice([node, file])
        if holder.attrs:
            del holder.attrs[rng.choice(list(holder.attrs))]
    else:
        del file[name]
        _put(file, name, what, rng)


def _put(file: Any, name: str, what: int, rng: random.Random) -> None:
    """Put something else in a node's place."""
    if what == 3:
        file[name] = rng.choice(VALUES)
    elif what == 4:
        size = rng.choice([(10**12,), (10**6, 10**6), (1000,)])
        file.create_dataset(name, shape=size, dtype=rng.choice(["i8", "f4", "u1"]), chunks=True)
    else:
        links = [h5py.SoftLink("/nowhere"), h5py.SoftLink("/"), h5py.SoftLink(f"/{name}"),
                 h5py.ExternalLink("/etc/hostname", "/")]
        file[name] = rng.choice(links)
