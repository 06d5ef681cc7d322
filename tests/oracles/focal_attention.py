"""Focal attention, one query at a time: single places near by, then the windows around, each pooled to a token first."""

import math

import torch
from oracles.halo import around
from oracles.linear_attention import joined, projected


def pooled(layer, x, grid):
    """{(window row, window column): token} of a sample (N, C) whose masked tokens are zeros."""
    size, tokens = layer.window_size, {}
    for row in range(-(-grid[0] // size)):
        for column in range(-(-grid[1] // size)):
            total = layer.pool.bias.expand(x.shape[1])
            for p in range(size * size):
                y, u = row * size + p // size, column * size + p % size
                if y < grid[0] and u < grid[1]:
                    total = total + layer.pool.weight[0, p] * x[y * grid[1] + u]
            tokens[row, column] = total
    return tokens


def head(layer, h, place, grid, q, k, v, real, coarse):
    """One head of one real query: coarse is {window: (key, value)} of the windows that hold a real place."""
    size, region = layer.window_size, layer.focal_region
    rows, columns = (around(p, size, layer.expand, side) for p, side in zip(place, grid))
    middle, scores, values = size + layer.expand - 1, [], []
    for r in rows:
        for c in columns:
            j = r * grid[1] + c
            if real[j]:
                scores.append(q @ k[j] / math.sqrt(len(q)) + layer.relative_bias.table[h, place[0] - r + middle, place[1] - c + middle])
                values.append(v[j])
    for (row, column), (key, value) in coarse.items():
        down, across = row - place[0] // size + region // 2, column - place[1] // size + region // 2
        if 0 <= down < region and 0 <= across < region:
            scores.append(q @ key / math.sqrt(len(q)) + layer.region_bias[h, 0, down * region + across])
            values.append(value)
    return torch.stack(scores).softmax(0) @ torch.stack(values)


def twin(layer, tokens, grid, mask=None):
    tokens = tokens if mask is None else tokens * mask[..., None]
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    rows = []
    for n in range(batch):
        real = [mask is None or bool(mask[n, i]) for i in range(length)]
        places = [divmod(i, grid[1]) for i in range(length)]
        held = {(r // layer.window_size, c // layer.window_size) for i, (r, c) in enumerate(places) if real[i]}
        coarse = {}
        if layer.focal_region:
            windows = {w: t for w, t in pooled(layer, tokens[n], grid).items() if w in held}
            _, keys, values = projected(layer, torch.stack(list(windows.values()))[None])
            coarse = {w: (keys[0, :, p], values[0, :, p]) for p, w in enumerate(windows)}
        for h in range(heads):
            own = {w: (key[h], value[h]) for w, (key, value) in coarse.items()}
            for i in range(length):
                y = torch.zeros(d, dtype=q.dtype)
                rows.append(head(layer, h, places[i], grid, q[n, h, i], k[n, h], v[n, h], real, own) if real[i] else y)
    return joined(layer, torch.stack(rows).reshape(batch, heads, length, d), mask)
