"""The streaming model as one batch computation in float64, written from its definition alone.

All bins at once, with a mask of the band t-W+1 .. t over the bins that are present; no ring, and no
state but the GRU's memory, a loop over the bins. What the engines compute bin by bin has to equal
this.
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


def logistic(x):
    return 1 / (1 + np.exp(-x))


def recall(w, x, memory):
    """Memories (T, H) of the GRU after every row of x (T, H), from the memory (H,) before."""
    memories = []
    for row in x @ w["gru.weight_ih"].T + w["gru.bias_ih"]:
        now = np.split(row, 3)
        back = np.split(w["gru.weight_hh"] @ memory + w["gru.bias_hh"], 3)
        reset, update = logistic(now[0] + back[0]), logistic(now[1] + back[1])
        memory = (1 - update) * np.tanh(now[2] + reset * back[2]) + update * memory
        memories.append(memory)
    return np.array(memories).reshape(x.shape)


def embed(w, shape, counts, present):
    e = counts.astype(float) @ w["input.weight"] + w["input.bias"]
    e[~present] = 0
    if shape.conv:
        g = np.tile(w["conv.bias"], (len(e), 1))
        for j in range(min(shape.conv, len(e))):
            g[j:] += w["conv.weight"][j] * e[: len(e) - j]
        e = e + gelu(g)
    if shape.recurrent:
        e = e + recall(w, e, np.zeros(shape.hidden))
    return e


def attend(q, k, v, mask):
    """q, k and v (T, h, d), mask (T, T): bin t may see bin s. Returns (T, h, d)."""
    scores = np.einsum("thd,shd->ths", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(mask[:, None, :], scores, -np.inf)
    some = mask.any(1)
    result = np.zeros_like(q)
    result[some] = np.einsum("ths,shd->thd", softmax(scores[some]), v)
    return result


def decode(bundle, w, tokens, present, first_position):
    """Outputs (T, n_outputs) of the layers on tokens (T, H), starting from an empty ring."""
    shape, n_bins = bundle.manifest.shape, len(tokens)
    position = first_position + np.arange(n_bins)
    lag = np.arange(n_bins)[:, None] - np.arange(n_bins)
    mask = (lag >= 0) & (lag < shape.window) & present
    x = tokens
    for i in range(shape.layers):
        p = {name.split(".", 2)[2]: t for name, t in w.items() if name.startswith(f"layers.{i}.")}
        y = layer_norm(x, p["norm1.weight"], p["norm1.bias"])
        qkv = y @ p["qkv.weight"].T + p["qkv.bias"]
        q, k, v = (part.reshape(n_bins, shape.heads, -1) for part in np.split(qkv, 3, -1))
        q, k = rotate(q, position, shape.rope_base), rotate(k, position, shape.rope_base)
        attended = attend(q, k, v, mask).reshape(x.shape)
        x = x + attended @ p["out.weight"].T + p["out.bias"]
        y = layer_norm(x, p["norm2.weight"], p["norm2.bias"])
        x = x + gelu(y @ p["up.weight"].T + p["up.bias"]) @ p["down.weight"].T + p["down.bias"]
    z = layer_norm(x, w["norm.weight"], w["norm.bias"])
    outputs, begin = [], 0
    for modality in bundle.manifest.modalities:
        rows = slice(begin, begin + modality.n_outputs)
        raw = z @ w["head.weight"][rows].T + w["head.bias"][rows]
        outputs.append(softmax(raw) if modality.kind == "categorical" else raw)
        begin += modality.n_outputs
    return np.concatenate(outputs, 1)


def run_reference(bundle, counts, present, chunk=None):
    """Outputs (T, n_outputs) of counts (T, U) and present (T,), starting from no history.

    With `chunk` the layers run over so many bins at a time, and as many before as can matter.
    """
    shape = bundle.manifest.shape
    w = {name: values.astype(float) for name, values in bundle.weights.items()}
    tokens = embed(w, shape, counts, present) + w["input.token"]
    tokens[~present] = w["input.lost"]
    reach = shape.layers * (shape.window - 1)
    outputs = []
    for begin in range(0, len(counts), chunk or len(counts)):
        start = max(0, begin - reach)
        part = slice(start, begin + (chunk or len(counts)))
        outputs.append(decode(bundle, w, tokens[part], present[part], start)[begin - start :])
    return np.concatenate(outputs)
