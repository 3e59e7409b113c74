"""What other programs write is made a session by `neds prepare`; here it is told by which command.

SpikeInterface and the readers of other formats belong to the training package: a rig has neither.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from neds_rt.errors import BadInput

# Reader of `neds prepare` -> files of a folder, any of which tells whose it is.
FOLDERS = {
    "phy": ("spike_times.npy", "params.py"),
    "sorting": ("numpysorting_info.json", "spikeinterface_info.json", "spikes.npy", "sorting",
                "si_folder.json", ".zgroup", "zarr.json"),
    "ibl": ("alf",),
}
RAW = ("binary.json", "traces_cached_seg0.raw")  # of a SpikeInterface recording


def check_prepared(path: Path) -> None:
    """Raise `BadInput` for what is no session by its looks, with what would make it one."""
    if path.suffix == ".bin" or any((path / name).exists() for name in RAW):
        raise BadInput(path, "session", "raw samples", "spikes; find them by: neds detect "
                       f"{shlex.quote(str(path))} --templates FILE --out spikes.npz")
    if path.suffix == ".npz":
        raise BadInput(path, "session", "NumPy arrays", by_preparing("arrays", path))
    if not path.is_dir():
        return
    for reader, names in FOLDERS.items():
        if any((path / name).exists() for name in names):
            raise BadInput(path, "session", "a folder", by_preparing(reader, path))
    raise BadInput(path, "session", "a folder", "a session file of neds prepare, or a recording of "
                   "neds-rt serve --record")


def by_preparing(reader: str, path: Path) -> str:
    """Return the words that ask for `neds prepare`."""
    return (f"a session file; make one of it by: neds prepare --reader {reader} "
            f"{shlex.quote(str(path))} --out sessions")
