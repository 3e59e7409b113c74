"""What the weights of a bundle are once an engine has stored them in a narrower precision."""

import numpy as np


def is_stored(name, w):
    """Whether this tensor takes the engine's precision: matrices do, but for the heads."""
    return name == "input.weight" or (name.startswith(("layers.", "gru.")) and w.ndim == 2)


def to_bf16(w):
    bits = w.view(np.uint32)
    even = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return even.view(np.float32)


def to_int8(w):
    """Every row with a scale of its own."""
    scale = np.abs(w).max(1, keepdims=True) / np.float32(127)
    return np.rint(w / np.where(scale > 0, scale, 1)).clip(-127, 127) * scale


def stored(bundle, precision):
    """The bundle with its matrices rounded as engine `native` rounds them."""
    rounded = {"float32": lambda w: w, "bf16": to_bf16, "int8": to_int8}[precision]
    weights = {n: rounded(w) if is_stored(n, w) else w for n, w in bundle.weights.items()}
    return type(bundle)(bundle.manifest, weights)
