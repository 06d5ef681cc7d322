"""Spatial-reduction attention, one cell and one pair of query and key at a time."""

import torch
from oracles.agent import cells as covering
from torch.nn import functional as F


def part(layer, number, rows):
    """Queries (0), keys (1) or values (2) of rows (n, C)."""
    here = slice(number * layer.dim, number * layer.dim + layer.dim)
    y = rows @ layer.qkv.weight[here].T
    return y if layer.qkv.bias is None else y + layer.qkv.bias[here]


def attended(layer, q, k, v, extra=None):
    """Softmax attention of rows (N, C) over rows (n, C), with extra(head, i, j) added to the scores: (N, C)."""
    d, out = layer.head_dim, []
    for i in range(len(q)):
        heads = []
        for h in range(layer.num_heads):
            here = slice(h * d, h * d + d)
            scores = k[:, here] @ q[i, here] / d**0.5
            if extra is not None:
                scores = scores + torch.stack([extra(h, i, j) for j in range(len(k))])
            heads.append(scores.exp() / scores.exp().sum() @ v[:, here])
        out.append(torch.cat(heads))
    return torch.stack(out)


def by_sample(layer, tokens, mask, mix):
    """mix(x, real) of each sample (N, C) with the numbers of its real positions, projected; zeros at the others."""
    out = []
    for n, x in enumerate(tokens):
        real = [j for j in range(len(x)) if mask is None or mask[n, j]]
        y = mix(x, real) @ layer.proj.weight.T + layer.proj.bias
        out.append(torch.stack([row if j in real else 0 * row for j, row in enumerate(y)]))
    return torch.stack(out)


def normed(x, norm):
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def cells(grid, size):
    """The cells of a map, row by row: each a dict from the place inside it to the number of the position."""
    return [
        {(r - top, c - left): r * grid[1] + c for r in range(top, min(top + size, grid[0])) for c in range(left, min(left + size, grid[1]))}
        for top in range(0, grid[0], size) for left in range(0, grid[1], size)]


def reduced(layer, x, grid, real):
    """One row for each cell that has a real position."""
    rows = []
    if layer.pool_size is not None:
        for down in covering(grid[0], layer.pool_size):
            for across in covering(grid[1], layer.pool_size):
                members = [r * grid[1] + c for r in down for c in across if r * grid[1] + c in real]
                if members:
                    mean = sum(x[j] for j in members) / len(members)
                    rows.append(F.gelu(normed(layer.conv.weight[:, :, 0, 0] @ mean + layer.conv.bias, layer.norm)))
        return torch.stack(rows)
    if layer.reduction == 1:
        return x[real]
    for cell in cells(grid, layer.reduction):
        taps = [layer.conv.weight[:, :, i, j] @ x[place] for (i, j), place in cell.items() if place in real]
        if taps:
            rows.append(normed(sum(taps) + layer.conv.bias, layer.norm))
    return torch.stack(rows)


def twin(layer, tokens, grid, mask=None):
    def mix(x, real):
        z = reduced(layer, x, grid, real)
        return attended(layer, part(layer, 0, x), part(layer, 1, z), part(layer, 2, z))

    return by_sample(layer, tokens, mask, mix)
