"""Attention with relative embeddings, one query at a time over the keys that are real."""

import math

import torch
from oracles.linear_attention import joined, projected


def resized(table, side):
    """Embeddings of offsets (2n - 1, d), drawn out or together to 2 side - 1 of them, between neighbours linearly."""
    count = 2 * side - 1
    if len(table) == count:
        return table
    rows = []
    for i in range(count):
        place = i * (len(table) - 1) / (count - 1) if count > 1 else 0
        low = int(place)
        high = min(low + 1, len(table) - 1)
        rows.append((1 - place + low) * table[low] + (place - low) * table[high])
    return torch.stack(rows)


def relative(logits, q, k, v, grid, mask):
    """Heads (B, h, N, any): the key of each pair is moved by the embeddings of its offsets."""
    rows, columns = (resized(table, side) for table, side in zip((logits.rows, logits.columns), grid))
    out = torch.zeros_like(v)
    for n, h, i in torch.cartesian_prod(*(torch.arange(s) for s in v.shape[:3])).tolist():
        seen = [j for j in range(v.shape[2]) if mask is None or mask[n, j]]
        if not seen:
            continue
        down, across = ([j // grid[1] - i // grid[1] + grid[0] - 1 for j in seen], [j % grid[1] - i % grid[1] + grid[1] - 1 for j in seen])
        weights = ((k[n, h, seen] + rows[down] + columns[across]) @ q[n, h, i] / math.sqrt(q.shape[-1])).exp()
        out = out.index_put(tuple(torch.tensor(t) for t in (n, h, i)), weights / weights.sum() @ v[n, h, seen])
    return out


def twin(layer, tokens, grid, mask=None):
    return joined(layer, relative(layer.relative, *projected(layer, tokens), grid, mask), mask)
