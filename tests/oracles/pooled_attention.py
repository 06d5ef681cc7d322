"""CoAtNet's pooled attention, one query at a time, on windows of two by two places."""

import math

import torch
from oracles.mobilevit import gelu, linear
from oracles.shrinking_attention import normed


def pooled(x, kind):
    """Windows of a map (C, H, W), read row by row: (places, C)."""
    windows = [x[:, i: i + 2, j: j + 2].flatten(1) for i in range(0, x.shape[1], 2) for j in range(0, x.shape[2], 2)]
    return torch.stack([window.amax(1) if kind == "MaxPool2d" else window.sum(1) / window.shape[1] for window in windows])


def attended(layer, seen, grid):
    table, bias = layer.relative_bias.table, layer.relative_bias
    if tuple(grid) != bias.grid:
        table = torch.nn.functional.interpolate(table[None], size=[2 * side - 1 for side in grid], mode="bilinear", align_corners=True)[0]
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    q, k, v = linear(layer.qkv, seen).chunk(3, 1)
    size, heads = layer.dim_out // layer.num_heads, []
    for h in range(layer.num_heads):
        own = slice(h * size, (h + 1) * size)
        rows = []
        for n, (i, j) in enumerate(places):
            scores = [q[n, own] @ k[m, own] / math.sqrt(size) + table[h, i - a + grid[0] - 1, j - b + grid[1] - 1] for m, (a, b) in enumerate(places)]
            weights = torch.stack(scores).exp()
            rows.append(weights @ v[:, own] / weights.sum())
        heads.append(torch.stack(rows))
    return linear(layer.proj, torch.cat(heads, 1))


def twin(layer, x):
    grid, kind = tuple(-(-side // 2) for side in x.shape[2:]), type(layer.pool).__name__
    z = []
    for own, before in zip(x, normed(layer.norm, x)):
        z.append((linear(layer.shortcut, pooled(own, kind)) + attended(layer, pooled(before, kind), grid)).T)
    z = torch.stack(z).unflatten(2, grid)
    hidden = [linear(layer.ffn.fc2, gelu(linear(layer.ffn.fc1, sample.flatten(1).T))).T for sample in normed(layer.ffn_norm, z)]
    return z + torch.stack(hidden).unflatten(2, grid)
