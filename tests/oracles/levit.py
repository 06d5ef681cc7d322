"""LeViT's attention: exp(score + table at the distances), one query at a time."""

import math

import torch
from oracles.linear_attention import joined


def twin(layer, tokens, grid, mask=None):
    batch, length, _ = tokens.shape
    key_dim, _, value_dim = layer.widths
    table = layer.table
    if grid != layer.grid:
        table = torch.nn.functional.interpolate(table[None], size=grid, mode="bilinear", align_corners=True)[0]
    each = 2 * key_dim + value_dim
    y = tokens @ layer.qkv.weight.T + layer.qkv.bias
    out = []
    for n in range(batch):
        seen = [j for j in range(length) if mask is None or mask[n, j]]
        for h in range(layer.num_heads):
            q, k, v = (y[n, :, h * each + a: h * each + b] for a, b in ((0, key_dim), (key_dim, 2 * key_dim), (2 * key_dim, each)))
            rows = []
            for i in range(length):
                down, across = ([abs(i // grid[1] - j // grid[1]) for j in seen], [abs(i % grid[1] - j % grid[1]) for j in seen])
                weights = (k[seen] @ q[i] / math.sqrt(key_dim) + table[h, down, across]).exp()
                rows.append(weights @ v[seen] / weights.sum().clamp(min=1e-300))
            out.append(torch.stack(rows))
    heads = torch.stack(out).unflatten(0, (batch, layer.num_heads))
    return joined(layer, heads * (heads + 3).clamp(0, 6) / 6, mask)
