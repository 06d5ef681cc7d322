"""Induced set attention, one point and one position at a time."""

import torch
from oracles.linear_attention import joined, projected


def average(query, keys, values):
    """Softmax attention of one query over lists of keys and values."""
    weights = [(query @ key / len(query) ** 0.5).exp() for key in keys]
    return sum(w * value for w, value in zip(weights, values)) / sum(weights)


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    dim, out = heads * d, []
    for n in range(batch):
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        keys, values = [], []
        for point in layer.points:
            gathered = [average(point[h * d: h * d + d], k[n, h, seen], v[n, h, seen]) for h in range(heads)]
            g = point + torch.cat(gathered)
            inner = layer.point_ffn.weight @ g + layer.point_ffn.bias
            g = g + torch.where(inner > 0, inner, 0.0)
            both = layer.point_kv.weight @ g
            both = both if layer.point_kv.bias is None else both + layer.point_kv.bias
            keys.append(both[:dim])
            values.append(both[dim:])
        rows = [[average(q[n, h, i], [x[h * d: h * d + d] for x in keys], [x[h * d: h * d + d] for x in values]) for i in range(length)] for h in range(heads)]
        out.append(torch.stack([torch.stack(row) for row in rows]))
    return joined(layer, torch.stack(out), mask)
