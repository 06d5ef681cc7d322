"""LeViT's shrinking attention, one query at a time: places of even rows and columns ask all places, and an MLP is added."""

import math

import torch
from oracles.mobilevit import linear


def hardswish(x):
    return x * (x + 3).clamp(0, 6) / 6


def normed(norm, y):
    """Any of the norms, of a map (B, C, H, W), each value by its own mean and variance."""
    if isinstance(norm, torch.nn.Identity):
        return y
    if isinstance(norm, torch.nn.BatchNorm2d) and not norm.training:
        mean, var = (statistic[:, None, None] for statistic in (norm.running_mean, norm.running_var))
    else:
        over = (0, 2, 3) if isinstance(norm, torch.nn.BatchNorm2d) else (1,) if isinstance(norm, torch.nn.LayerNorm) else (1, 2, 3)
        mean = y.mean(over, keepdim=True)
        var = (y - mean).square().mean(over, keepdim=True)
    return (y - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def attended(layer, rows, grid):
    """(places that ask, h d_v): softmax of products and of the table's entry at the distance, for each head."""
    table = layer.table
    if tuple(grid) != layer.grid:
        table = torch.nn.functional.interpolate(table[None], size=grid, mode="bilinear", align_corners=True)[0]
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    key_dim, value_dim = layer.widths
    asked, kv = linear(layer.query, rows), linear(layer.key_value, rows)
    heads = []
    for h in range(layer.num_heads):
        first = h * (key_dim + value_dim)
        k, v = kv[:, first: first + key_dim], kv[:, first + key_dim: first + key_dim + value_dim]
        heard = []
        for n, (i, j) in enumerate(places):
            if i % 2 == 0 and j % 2 == 0:
                q = asked[n, h * key_dim: (h + 1) * key_dim]
                scores = [q @ k[m] / math.sqrt(key_dim) + table[h, abs(i - a), abs(j - b)] for m, (a, b) in enumerate(places)]
                weights = torch.stack(scores).exp()
                heard.append(weights @ v / weights.sum())
        heads.append(torch.stack(heard))
    return torch.cat(heads, 1)


def twin(layer, x):
    grid = x.shape[2:]
    small = -(-grid[0] // 2), -(-grid[1] // 2)
    z = torch.stack([linear(layer.proj, hardswish(attended(layer, sample.flatten(1).T, grid))).T for sample in x])
    z = normed(layer.norm, z.unflatten(2, small))
    hidden = torch.stack([linear(layer.ffn.fc2, hardswish(linear(layer.ffn.fc1, sample.flatten(1).T))).T for sample in z])
    return z + normed(layer.ffn_norm, hidden.unflatten(2, small))
