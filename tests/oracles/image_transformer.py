"""Two-dimensional local attention, one query at a time: the rectangle that its block sees, then plain attention over it."""

import math

import torch
from oracles.linear_attention import joined, projected


def rectangle(layer, place, grid):
    """Rows and columns of the memory block of the query at `place`: its query block, widened on each side."""
    sides = []
    for axis in (0, 1):
        first = place[axis] // layer.block_size[axis] * layer.block_size[axis]
        last = first + layer.block_size[axis] - 1
        sides.append(range(max(first - layer.memory[axis], 0), min(last + layer.memory[axis] + 1, grid[axis])))
    return sides


def twin(layer, tokens, grid, mask=None):
    q, k, v = projected(layer, tokens)
    batch, heads, length, d = q.shape
    out = []
    for n in range(batch):
        for h in range(heads):
            for i in range(length):
                rows, columns = rectangle(layer, divmod(i, grid[1]), grid)
                seen = [r * grid[1] + c for r in rows for c in columns]
                seen = [j for j in seen if (mask is None or mask[n, j]) and not (layer.causal and j > i)]
                if not seen:
                    out.append(torch.zeros(d, dtype=q.dtype))
                    continue
                weights = torch.stack([(q[n, h, i] @ k[n, h, j] / math.sqrt(d)).exp() for j in seen])
                out.append(weights / weights.sum() @ torch.stack([v[n, h, j] for j in seen]))
    return joined(layer, torch.stack(out).reshape(batch, heads, length, d), mask)
