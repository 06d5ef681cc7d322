"""CvT's attention: convolutions place by place, of which keys and values take every s-th, then one query at a time."""

import math

import torch
from oracles.flatten import convolved
from oracles.linear_attention import joined


def cells(grid, size, mask):
    """The number of each s-th place in row-major order that has a real token in the s x s cell that starts there."""
    height, width = grid
    found = []
    for number, (r, c) in enumerate((r, c) for r in range(0, height, size) for c in range(0, width, size)):
        inside = [y * width + x for y in range(r, min(r + size, height)) for x in range(c, min(c + size, width))]
        if mask is None or mask[inside].any():
            found.append(number)
    return found


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d = layer.head_dim
    kept = [r * grid[1] + c for r in range(0, grid[0], layer.stride) for c in range(0, grid[1], layer.stride)]
    out = []
    for n in range(batch):
        x = tokens[n] if mask is None else tokens[n] * mask[n, :, None]
        seen = cells(grid, layer.stride, None if mask is None else mask[n])
        parts = []
        for part, conv in enumerate(layer.local):
            places = convolved(conv, x.T.unflatten(1, grid))
            rows = slice(part * dim, (part + 1) * dim)
            y = (places if part == 0 else places[kept]) @ layer.qkv.weight[rows].T
            parts.append(y if layer.qkv.bias is None else y + layer.qkv.bias[rows])
        q, k, v = parts
        for h in range(layer.num_heads):
            here, rows = slice(h * d, (h + 1) * d), []
            for i in range(length):
                weights = (k[seen][:, here] @ q[i, here] / math.sqrt(d)).exp()
                rows.append(weights @ v[seen][:, here] / weights.sum().clamp(min=1e-300))
            out.append(torch.stack(rows))
    return joined(layer, torch.stack(out).unflatten(0, (batch, layer.num_heads)), mask)
