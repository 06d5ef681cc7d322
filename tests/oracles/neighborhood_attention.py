"""Neighbourhood attention, one query at a time: the places it sees along each axis are listed, then plain attention over them."""

import math

import torch
from oracles.linear_attention import joined, projected


def attended(layer, tokens, mask, seen, score):
    """Each real query i of sample n over the real ones of seen(n, i), with score(h, i, j, q, k) for key j."""
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    out = []
    for n, h, i in torch.cartesian_prod(*(torch.arange(s) for s in (batch, heads, length))).tolist():
        places = [j for j in seen(n, i) if mask is None or mask[n, j]] if mask is None or mask[n, i] else []
        if not places:
            out.append(torch.zeros(d, dtype=q.dtype))
            continue
        weights = torch.stack([score(h, i, j, q[n, h, i], k[n, h, j]) for j in places]).exp()
        out.append(weights / weights.sum() @ v[n, h, places])
    return joined(layer, torch.stack(out).reshape(batch, heads, length, d), mask)


def border(mask, n, grid):
    """First and last row, first and last column of the smallest rectangle that holds all real places of a sample."""
    real = [divmod(i, grid[1]) for i in range(grid[0] * grid[1]) if mask is None or mask[n, i]]
    return [(min(places), max(places)) for places in zip(*real)]


def nearest(place, first, last, step, kernel):
    """The `kernel` places of every step-th one from first to last that are around `place`, or next to it at an end."""
    line = [p for p in range(first, last + 1) if (p - place) % step == 0]
    start = min(max(line.index(place) - kernel // 2, 0), max(len(line) - kernel, 0))
    return line[start: start + kernel]


def twin(layer, tokens, grid, mask=None):
    kernel, step, table = layer.kernel_size, layer.dilation, layer.relative_bias.table

    def seen(n, i):
        rows, columns = (nearest(p, *ends, step, kernel) for p, ends in zip(divmod(i, grid[1]), border(mask, n, grid)))
        return [r * grid[1] + c for r in rows for c in columns]

    def score(h, i, j, q, k):
        row, column = ((a - b) // step + kernel - 1 for a, b in zip(divmod(i, grid[1]), divmod(j, grid[1])))
        return q @ k / math.sqrt(len(q)) + table[h, row, column]

    return attended(layer, tokens, mask, seen, score)
