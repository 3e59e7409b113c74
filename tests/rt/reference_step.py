"""The streaming model as one batch computation in float64, written from its definition alone.

All bins at once, with a mask of the band t-W+1 .. t over the bins that are present; no ring, no
state. What the engines compute bin by bin has to equal this.
"""

import numpy as np


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x, position, rope_base):
    """Rotate x (T, ..., d) by the positions (T,)."""
    half = x.shape[-1] // 2
    frequency = rope_base ** (-np.arange(half) / half)
    angle = (position[:, None] * frequency).reshape(len(x), *[1] * (x.ndim - 2), half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
    )


def embed(w, shape, counts, present):
    e = np.sqrt(counts.astype(float)) @ w["input.weight"] + w["input.bias"]
    e[~present] = 0
    if shape.conv:
        g = np.tile(w["conv.bias"], (len(e), 1))
        for j in range(min(shape.conv, len(e))):
            g[j:] += w["conv.weight"][j] * e[: len(e) - j]
        e = e + gelu(g)
    return e


def attend(q, k, v, mask):
    """q (T, R, h, d), k and v (T, h, d), mask (T, T): bin t may see bin s. Returns (T, R, h, d)."""
    scores = np.einsum("trhd,shd->trhs", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask[:, None, None, :], scores, -np.inf)
    some = mask.any(1)
    result = np.zeros_like(q)
    result[some] = np.einsum("trhs,shd->trhd", softmax(scores[some]), v)
    return result


def run_reference(bundle, counts, present, first_position=0):
    """Outputs (T, n_outputs) of counts (T, U) and present (T,), starting from no history."""
    shape, modalities = bundle.manifest.shape, bundle.manifest.modalities
    w = {name: values.astype(float) for name, values in bundle.weights.items()}
    n_bins, hidden, heads = len(counts), shape.hidden, shape.heads
    position = first_position + np.arange(n_bins)
    lag = np.arange(n_bins)[:, None] - np.arange(n_bins)
    mask = (lag >= 0) & (lag < shape.window) & present
    spikes = embed(w, shape, counts, present) + w["input.token"]
    queries = np.broadcast_to(w["queries"], (n_bins, *w["queries"].shape))
    x = np.concatenate([spikes[:, None], queries], 1)
    for i in range(shape.layers):
        p = {name.split(".", 2)[2]: t for name, t in w.items() if name.startswith(f"layers.{i}.")}
        y = layer_norm(x, p["norm1.weight"], p["norm1.bias"])
        qkv = y @ p["qkv.weight"].T + p["qkv.bias"]
        q, k, v = (
            part.reshape(n_bins, -1, heads, hidden // heads) for part in np.split(qkv, 3, -1)
        )
        q = rotate(q, position, shape.rope_base)
        k = rotate(k[:, 0], position, shape.rope_base)
        attended = attend(q, k, v[:, 0], mask).reshape(x.shape)
        x = x + attended @ p["out.weight"].T + p["out.bias"]
        y = layer_norm(x, p["norm2.weight"], p["norm2.bias"])
        x = x + gelu(y @ p["up.weight"].T + p["up.bias"]) @ p["down.weight"].T + p["down.bias"]
    z = layer_norm(x, w["norm.weight"], w["norm.bias"])
    outputs, begin = [], 0
    for m, modality in enumerate(modalities):
        rows = slice(begin, begin + modality.n_outputs)
        raw = z[:, 1 + m] @ w["head.weight"][rows].T + w["head.bias"][rows]
        outputs.append(softmax(raw) if modality.kind == "categorical" else raw)
        begin += modality.n_outputs
    return np.concatenate(outputs, 1)


def run_reference_in_chunks(bundle, counts, present, chunk):
    """The same over a long sequence, in chunks that overlap by the receptive field."""
    shape = bundle.manifest.shape
    context = shape.layers * (shape.window - 1) + max(shape.conv - 1, 0)
    outputs = []
    for begin in range(0, len(counts), chunk):
        start = max(0, begin - context)
        part = slice(start, begin + chunk)
        result = run_reference(bundle, counts[part], present[part], first_position=start)
        outputs.append(result[begin - start :])
    return np.concatenate(outputs)
