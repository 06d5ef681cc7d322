"""CMT's attention: cells gathered one by one, then one pair of a query and a cell at a time."""

import math

import torch
from oracles.cvt_attention import cells
from oracles.flatten import convolved
from oracles.linear_attention import joined, projected


def twin(layer, tokens, grid, mask=None):
    batch, length, dim = tokens.shape
    d, size, (height, width) = layer.head_dim, layer.reduction, grid
    table = layer.table
    if grid != layer.grid:
        table = torch.nn.functional.interpolate(table[None], size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True)[0]
    real = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask
    x = tokens * real[..., None]
    perceived = torch.stack([convolved(layer.perceive, x[n].T.unflatten(1, grid)) for n in range(batch)])
    q, k, v = projected(layer, x + perceived)
    firsts = [(r, c) for r in range(0, height, size) for c in range(0, width, size)]
    weight, bias = layer.gather.weight[:, 0], layer.gather.bias
    out = []
    for n in range(batch):
        seen = [firsts[p] for p in cells(grid, size, real[n])]
        for h in range(layer.num_heads):
            keys, values = [], []
            for r, c in seen:
                for gathered, part, heads in ((keys, 0, k), (values, 1, v)):
                    here = slice(part * dim + h * d, part * dim + (h + 1) * d)
                    inside = [(y, z) for y in range(r, min(r + size, height)) for z in range(c, min(c + size, width))
                              if real[n, y * width + z]]
                    gathered.append(bias[here] + sum(weight[here, y - r, z - c] * heads[n, h, y * width + z] for y, z in inside))
            rows = []
            for i in range(length):
                y, z = divmod(i, width)
                scores = [
                    q[n, h, i] @ key / math.sqrt(d) + table[h, y - r + height - 1, z - c + width - 1] for key, (r, c) in zip(keys, seen)]
                weights = [s.exp() for s in scores]
                total = sum((w * value for w, value in zip(weights, values)), torch.zeros(d, dtype=x.dtype))
                rows.append(total / max(sum(weights), 1e-300))
            out.append(torch.stack(rows))
    attended = joined(layer, torch.stack(out).unflatten(0, (batch, layer.num_heads)), mask)
    return attended + (perceived if mask is None else perceived * mask[..., None])
