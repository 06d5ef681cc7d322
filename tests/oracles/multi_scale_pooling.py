"""Pooling attention between scales, one query at a time: each output of the convolutions by itself, then each pair with its offsets."""

import math

import torch
from oracles.mobilevit import gelu, linear
from oracles.mobilevit import normed as row_normed
from oracles.multi_scale import at_place
from oracles.shrinking_attention import normed


def attended(layer, tokens, grid):
    """Tokens (N, C) to (n, C_out), before the last projection."""
    own, size = layer.attention, layer.dim_out // layer.num_heads
    centres = [[(r, c) for r in range(0, grid[0], step) for c in range(0, grid[1], step)] for step in (2, own.stride, own.stride)]
    heads = []
    for h in range(layer.num_heads):
        q, k, v = (
            torch.stack([row_normed(pool.norm, at_place(pool.conv, part[:, h * size: (h + 1) * size].T.unflatten(1, grid), r, c)) for r, c in at])
            for pool, part, at in zip(own.pools, linear(layer.qkv, tokens).chunk(3, 1), centres))
        rows = []
        for n, (row, column) in enumerate(centres[0]):
            scores = []
            for m, (a, b) in enumerate(centres[1]):
                down, across = (min(max(o // math.gcd(2, own.stride), -own.reach), own.reach) + own.reach for o in (row - a, column - b))
                scores.append(q[n] @ k[m] / math.sqrt(size) + q[n] @ own.row_table[down] + q[n] @ own.column_table[across])
            weights = torch.stack(scores).exp()
            rows.append(weights @ v / weights.sum() + q[n])
        heads.append(torch.stack(rows))
    return torch.cat(heads, 1)


def largest(x):
    """Of a map (C, H, W), the largest values of 3x3 places around every other place of every other row, (C, h, w)."""
    rows = [[x[:, max(r - 1, 0): r + 2, max(c - 1, 0): c + 2].amax((1, 2)) for c in range(0, x.shape[2], 2)] for r in range(0, x.shape[1], 2)]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def twin(layer, x):
    z = []
    for own, before in zip(x, normed(layer.norm, x)):
        tokens = before.flatten(1).T
        kept = largest(own if layer.shortcut is None else linear(layer.shortcut, tokens).T.unflatten(1, x.shape[2:]))
        z.append(kept + linear(layer.proj, attended(layer, tokens, x.shape[2:])).T.unflatten(1, kept.shape[1:]))
    z = torch.stack(z)
    hidden = [linear(layer.ffn.fc2, gelu(linear(layer.ffn.fc1, sample.flatten(1).T))).T for sample in normed(layer.ffn_norm, z)]
    return z + torch.stack(hidden).unflatten(2, z.shape[2:])
