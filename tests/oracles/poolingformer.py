"""Poolingformer, one query at a time: neighbours first, then pooled neighbours of what that gave."""

import math

import torch


def heads_of(x, num_heads):
    return x.reshape(num_heads, -1)


def attention(q, pairs):
    """One head: a query over (key, value) pairs."""
    weights = torch.stack([(q @ k / math.sqrt(len(q))).exp() for k, _ in pairs])
    return sum(w * v for w, (_, v) in zip(weights, pairs)) / weights.sum()


def projected(linear, x, num_heads):
    """For each token q, k and v, each (h, d)."""
    y = x @ linear.weight.T if linear.bias is None else x @ linear.weight.T + linear.bias
    return [[heads_of(part, num_heads) for part in row.chunk(3)] for row in y]


def pooled(layer, rows, taps, centre):
    """One pooled vector (h, d) of the rows within the kernel around `centre`."""
    first = centre - layer.kernel_size // 2
    inside = [t for t in range(layer.kernel_size) if 0 <= first + t < len(rows)]
    taken = [rows[first + t] for t in inside]
    if layer.pool == "mean":
        return sum(taken) / len(taken)
    if layer.pool == "max":
        return torch.stack(taken).max(0).values
    logits = (taps.weight @ rows[centre].flatten()).reshape(layer.kernel_size, layer.num_heads)
    weights = logits[inside].exp()
    return sum(w[:, None] * row for w, row in zip(weights, taken)) / weights.sum(0)[:, None]


def sample(layer, x):
    h = layer.num_heads
    near = projected(layer.qkv, x, h)
    y = []
    for i, (q, _, _) in enumerate(near):
        seen = [near[j] for j in range(len(x)) if abs(i - j) <= layer.window_size // 2]
        y.append(torch.cat([attention(q[head], [(k[head], v[head]) for _, k, v in seen]) for head in range(h)]))
    far = projected(layer.pool_qkv, torch.stack(y), h)
    centres = range(0, len(x), layer.stride)
    dynamic = layer.pool == "dynamic"
    keys = [pooled(layer, [k for _, k, _ in far], layer.key_taps if dynamic else None, c) for c in centres]
    values = [pooled(layer, [v for _, _, v in far], layer.value_taps if dynamic else None, c) for c in centres]
    out = []
    for i, (q, _, _) in enumerate(far):
        seen = [p for p, c in enumerate(centres) if abs(c - i) <= layer.pool_window // 2]
        z = torch.cat([attention(q[head], [(keys[p][head], values[p][head]) for p in seen]) for head in range(h)])
        out.append(layer.proj.weight @ (y[i] + z) + layer.proj.bias)
    return out


def twin(layer, tokens, grid, mask=None):
    out = []
    for n in range(len(tokens)):
        real = [j for j in range(tokens.shape[1]) if mask is None or mask[n, j]]
        rows = [torch.zeros_like(tokens[n, 0])] * tokens.shape[1]
        for place, row in zip(real, sample(layer, tokens[n, real])):
            rows[place] = row
        out.append(torch.stack(rows))
    return torch.stack(out)
