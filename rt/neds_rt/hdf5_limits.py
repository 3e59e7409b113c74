"""What a dataset of an HDF5 file may be before its numbers are read.

A file of a kilobyte can declare a terabyte that was never written, and can have its numbers in
another file of the machine; neither is a session.
"""

from __future__ import annotations

import math
from typing import Any

FREE_BYTES = 64 << 20
MAX_RATIO = 200  # of what is read to what is stored; counts of quiet units reach a tenth of it


def check_links(file: Any) -> None:
    """Raise `ValueError` if a link of the open `file` leads to another one."""
    import h5py

    def look(name: str, link: Any) -> str | None:
        return name if isinstance(link, h5py.ExternalLink) else None

    found = file.visititems_links(look)  # it does not take it well when `look` raises
    if found is not None:
        raise ValueError(f"{found}: a link to another file")


def checked(node: Any) -> Any:
    """Return `node` if it is a dataset that has its numbers here, and as many as can be read.

    Raises `ValueError` otherwise, as h5py does for what it cannot read.
    """
    if not hasattr(node, "shape") or node.shape is None:
        raise ValueError(f"{node.name}: no dataset of numbers")
    if node.is_virtual or node.external:
        raise ValueError(f"{node.name}: its numbers lie in another file")
    size = math.prod(node.shape) * max(1, node.dtype.itemsize)
    if size > max(FREE_BYTES, MAX_RATIO * node.id.get_storage_size()):
        raise ValueError(f"{node.name}: {size} bytes declared, {node.id.get_storage_size()} stored")
    return node
