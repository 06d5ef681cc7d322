"""Query pooling, one cell of the small map at a time: it asks every pixel, and adds what it pooled."""

import torch
from oracles.perceiver import attended, linear, normed


def pooled(rows, kind):
    """The mean or the largest of each channel of a list of rows."""
    return sum(rows) / len(rows) if kind == "mean" else torch.stack(rows).amax(0)


def twin(layer, x):
    height, width = x.shape[2:]
    cells = [[(a, b) for a in (i, i + 1) for b in (j, j + 1) if a < height and b < width] for i in range(0, height, 2) for j in range(0, width, 2)]
    samples = []
    for sample in x:
        rows = {(i, j): sample[:, i, j] for i in range(height) for j in range(width)}
        seen = dict(zip(rows, normed(layer.norm, torch.stack(list(rows.values())))))
        kv = linear(layer.key_value, torch.stack(list(seen.values())))
        asked = torch.stack([pooled([seen[place] for place in cell], layer.pool) for cell in cells])
        y = attended(linear(layer.query, asked), kv[:, : layer.dim], kv[:, layer.dim:], layer.num_heads)
        kept = torch.stack([pooled([rows[place] for place in cell], layer.pool) for cell in cells])
        kept = kept if layer.dim == layer.dim_out else kept @ layer.skip.weight.T
        samples.append((kept + linear(layer.proj, y)).T)
    return torch.stack(samples).reshape(len(x), layer.dim_out, -(-height // 2), -(-width // 2))
